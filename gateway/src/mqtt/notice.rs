//! What the gateway says on a device's error topic when it does not believe a message.

use aws_lc_rs::digest;
use record::{
    ids::{BootId, ReadingId},
    reading::Refusal,
};
use serde::Serialize;

/// The JSON on `vitalfog/v1/{gateway}/{device}/error`.
#[derive(Debug, Serialize)]
pub(super) struct Notice<'a> {
    /// A word of the glossary's table of reasons.
    reason: &'static str,
    /// A sentence that says what to change; never a value.
    detail: &'a str,
    /// Which start of the device, if the signature is the device's: what nobody has vouched for is not repeated here, or
    /// whoever can publish could make a device forget a reading that was never taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    boot: Option<BootId>,
    /// Which message of that start.
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<u64>,
    /// SHA-256 of the payload, in hex: the device knows by it which message is meant, whatever was wrong with it.
    message: String,
}

impl<'a> Notice<'a> {
    pub(super) fn of(refusal: &'a Refusal, reading: Option<&ReadingId>, message: &[u8]) -> Self {
        Self {
            reason: refusal.reason.as_str(),
            detail: &refusal.detail,
            boot: reading.map(|reading| reading.boot),
            seq: reading.map(|reading| reading.seq),
            message: hex::encode(digest::digest(&digest::SHA256, message)),
        }
    }

    pub(super) fn text(&self) -> String {
        serde_json::to_string(self).expect("plain fields")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use record::reading::Reason;

    #[test]
    fn a_notice_names_the_reading_only_when_it_is_known() {
        let refusal = Refusal::new(Reason::Malformed, "send CBOR");
        let unknown: serde_json::Value = serde_json::from_str(&Notice::of(&refusal, None, b"x").text()).expect("JSON");
        assert_eq!(unknown["reason"], "malformed");
        assert!(unknown.get("boot").is_none() && unknown.get("seq").is_none());
        assert!(
            unknown["message"]
                .as_str()
                .is_some_and(|m| m.starts_with("2d711642b726b044"))
        );
        let id = ReadingId {
            device: "scale-1".parse().expect("good"),
            boot: BootId { counter: 7, random: 1 },
            seq: 9,
        };
        let known: serde_json::Value =
            serde_json::from_str(&Notice::of(&refusal, Some(&id), b"x").text()).expect("JSON");
        assert_eq!(
            (known["boot"].as_str(), known["seq"].as_u64()),
            (Some("7-0000000000000001"), Some(9))
        );
    }
}
