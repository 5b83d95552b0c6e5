//! The lines of the device's own account: what was acknowledged, refused, and can be with nobody.

use record::{
    canonical::Digest,
    decimal::Decimal,
    ids::{BootId, DeviceId},
    reading::{Measured, Reading},
};
use serde::Serialize;

/// What `acknowledged.ndjson` says about a reading: what it measured, not how it was spoiled.
pub(super) fn acknowledged_line(reading: &Reading) -> String {
    #[derive(Serialize)]
    struct Line<'a> {
        device: &'a DeviceId,
        boot: BootId,
        seq: u64,
        observations: Vec<Observed<'a>>,
    }
    #[derive(Serialize)]
    struct Observed<'a> {
        code: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        value: Option<Decimal>,
        // A digest instead of the samples: a line stays a line.
        #[serde(skip_serializing_if = "Option::is_none")]
        samples: Option<Digest>,
    }
    fn observed(measured: &Measured) -> Observed<'_> {
        Observed {
            code: &measured.code,
            value: measured.value,
            samples: measured.samples.as_ref().map(|block| block.digest(&measured.unit)),
        }
    }
    let line = Line {
        device: &reading.device,
        boot: reading.boot,
        seq: reading.seq,
        observations: reading.observations.iter().map(observed).collect(),
    };
    serde_json::to_string(&line).expect("a line has string keys and finite numbers")
}

/// What `refused.ndjson` says about a reading.
pub(super) fn refused_line((device, boot, seq): (&DeviceId, BootId, u64), code: u8, is_expected: bool) -> String {
    serde_json::json!({"device": device, "boot": boot, "seq": seq, "code": code, "expected": is_expected}).to_string()
}

/// What `missing.ndjson` says about numbers that nobody else can have.
pub(super) fn missing_line((device, boot): (&DeviceId, BootId), (from, to): (u64, u64), why: &str) -> String {
    serde_json::json!({"device": device, "boot": boot, "from": from, "to": to, "why": why}).to_string()
}
