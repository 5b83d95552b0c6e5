//! What the index takes in and says of it: rows, what was rejected, what became of a block.

use cid::Cid;
use ledger::block::Height;
use record::ids::{BundleId, KeyId, ReadingId, SubjectId};

use super::Reported;

/// One observation, as far as the index knows it: where it is, not what was measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// FHIR logical id (`record::observation::Observation::id`).
    pub id: String,
    /// The key that opens it.
    pub key: KeyId,
    /// Whose it is.
    pub subject: SubjectId,
    /// LOINC (or MDC) code.
    pub code: String,
    /// When it holds, in milliseconds since 1970.
    pub effective_ms: i64,
    /// When the gateway received it, in milliseconds since 1970.
    pub received_ms: i64,
    /// The reading it comes from.
    pub reading: ReadingId,
    /// Which of the reading's observations, from 0.
    pub ordinal: u16,
    /// The bundle that holds the reading.
    pub bundle: BundleId,
    /// The bundle's payload.
    pub cid: Cid,
    /// Which reading of the bundle, from 0.
    pub entry: u32,
    /// Block of the commitment.
    pub height: Height,
}

/// What the opened bundles of a block give: rows of observations, and gap reports.
pub type Contents<'a> = (&'a [Row], &'a [Reported]);

/// Something in a final bundle that was not indexed; it never repeats a measured value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The bundle.
    pub bundle: BundleId,
    /// Which reading of it, from 0; none for the bundle as a whole.
    pub entry: Option<u32>,
    /// The reason code.
    pub reason: &'static str,
    /// Block of the commitment.
    pub height: Height,
}

/// A bundle of which something was rejected for a reason that may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// The bundle.
    pub bundle: BundleId,
    /// Block of the commitment.
    pub height: Height,
}

/// What became of a block's rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Projected {
    /// Rows that are new.
    pub inserted: u64,
    /// Rows whose observation was there already, from another bundle or another place in this one.
    pub duplicates: u64,
}

/// How much is in the index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Observations.
    pub observations: u64,
    /// Second occurrences, which are not inserted.
    pub duplicates: u64,
    /// Entries and bundles that were rejected.
    pub rejected: u64,
    /// Bundles among them whose payload no peer had; they are tried again.
    pub payloads_missing: u64,
}
