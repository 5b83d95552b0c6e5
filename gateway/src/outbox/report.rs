//! What the outbox says of itself, and what it counts over all starts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Gap, Percentiles, Refused, Shortage, Summary};

/// The outbox as the status shows it.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Counted over all starts of the gateway.
    pub counters: Counters,
    /// Bundles not yet final.
    pub spooled_bundles: u64,
    /// Readings in them.
    pub spooled_readings: u64,
    /// Their bytes.
    pub spooled_bytes: u64,
    /// Bytes of bundles that are set aside; they count towards `bytes_max`.
    pub refused_bytes: u64,
    /// Why nothing new is taken now; absent when it is.
    pub full: Option<Shortage>,
    /// Why no waveform is taken now, which is so before nothing is; absent when they are.
    pub waves_refused: Option<Shortage>,
    /// The last bundles that were set aside, the newest first.
    pub refused: Vec<Refused>,
    /// What is in quarantine.
    pub quarantined: Summary,
    /// What is missing.
    pub gaps: Vec<Gap>,
    /// From the device's clock to a verified receipt.
    pub publish_to_final: Percentiles,
    /// From reception to a verified receipt.
    pub received_to_final: Percentiles,
}

/// What is counted over all starts of the gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counters {
    /// Messages answered: spooled, duplicate or quarantined.
    pub received: u64,
    /// Readings that became durable.
    pub acknowledged: u64,
    /// Repetitions of readings that were durable already.
    pub duplicates: u64,
    /// Bundles with a verified receipt.
    pub final_bundles: u64,
    /// Readings in them.
    pub final_readings: u64,
    /// Bundles that the fog refuses for good, set aside.
    pub refused_bundles: u64,
    /// Bundles that the disk has damaged, set aside. Absent while there are none, as in files from before it was counted.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub damaged_bundles: u64,
    /// When what is missing of a device was reported last, in milliseconds since 1970: the next report is later, whatever
    /// the clock does. 0 before the first, and absent then.
    #[serde(default, skip_serializing_if = "is_none")]
    pub gaps_reported_ms: i64,
    /// Quarantined messages by reason.
    pub quarantined: BTreeMap<String, u64>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands the field itself")]
const fn is_zero(count: &u64) -> bool {
    *count == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands the field itself")]
const fn is_none(at_ms: &i64) -> bool {
    *at_ms == 0
}
