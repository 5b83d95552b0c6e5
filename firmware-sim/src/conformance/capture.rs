//! Messages written down, one JSON line each: topic and bytes, as `mosquitto_sub -F` or the fleet itself writes them.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

/// A message as it was published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captured {
    /// Under which topic.
    pub topic: String,
    /// Its bytes.
    pub payload: Vec<u8>,
    /// With which quality of service, if that is known.
    pub qos: Option<u8>,
    /// Whether it was to be retained, if that is known.
    pub retain: Option<bool>,
    /// When it was received, in milliseconds since 1970, if that is known; else it counts as received now.
    pub received_ms: Option<i64>,
}

/// A line that is no message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a captured message ({0}); a line is {{\"topic\":\"..\",\"hex\":\"..\",\"qos\":1,\"retain\":0}}, with `base64` or \
     `text` instead of `hex` if you like"
)]
pub struct NotCaptured(String);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    topic: String,
    hex: Option<String>,
    base64: Option<String>,
    text: Option<String>,
    qos: Option<u8>,
    retain: Option<Flag>,
    received_ms: Option<i64>,
}

/// mosquitto writes 0 and 1.
#[derive(Clone, Copy, Deserialize)]
#[serde(untagged)]
enum Flag {
    Truth(bool),
    Number(u8),
}

impl Captured {
    /// Reads a line.
    ///
    /// # Errors
    /// [`NotCaptured`], without what the line says.
    pub fn parse(line: &str) -> Result<Self, NotCaptured> {
        let wrong = |what: &str| NotCaptured(what.to_owned());
        let line: Line = serde_json::from_str(line).map_err(|e| match e.classify() {
            serde_json::error::Category::Data => wrong("a field is missing, unknown or of the wrong type"),
            _ => wrong("not JSON"),
        })?;
        let payload = match (line.hex, line.base64, line.text) {
            (Some(hex), None, None) => hex::decode(hex).map_err(|_| wrong("`hex` is not hexadecimal"))?,
            (None, Some(base64), None) => STANDARD.decode(base64).map_err(|_| wrong("`base64` is not base64"))?,
            (None, None, Some(text)) => text.into_bytes(),
            _ => return Err(wrong("it needs exactly one of `hex`, `base64` and `text`")),
        };
        Ok(Self {
            topic: line.topic,
            payload,
            qos: line.qos,
            retain: line.retain.map(|flag| match flag {
                Flag::Truth(truth) => truth,
                Flag::Number(number) => number != 0,
            }),
            received_ms: line.received_ms,
        })
    }
}

/// The line for a message that the fleet sends.
pub(crate) fn line(topic: &str, payload: &[u8], received_ms: i64) -> String {
    #[derive(Serialize)]
    struct Written<'a> {
        topic: &'a str,
        base64: String,
        qos: u8,
        retain: bool,
        received_ms: i64,
    }
    let written = Written {
        topic,
        base64: STANDARD.encode(payload),
        qos: 1,
        retain: false,
        received_ms,
    };
    serde_json::to_string(&written).expect("plain fields")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_mosquitto_and_one_of_the_fleet_are_read() {
        let sub = r#"{"topic":"vitalfog/v1/home-1/scale-1/reading","hex":"7b7d","qos":1,"retain":0}"#;
        let read = Captured::parse(sub).expect("good");
        assert_eq!(
            (read.payload.as_slice(), read.qos, read.retain),
            (&b"{}"[..], Some(1), Some(false))
        );
        let own = Captured::parse(&line("a/b", &[0, 255], 7)).expect("good");
        assert_eq!(
            (own.topic.as_str(), own.payload, own.received_ms),
            ("a/b", vec![0, 255], Some(7))
        );
    }

    #[test]
    fn a_line_that_is_none_is_refused_without_repeating_it() {
        for bad in [
            "",
            "Ada is ill",
            r#"{"topic":"a"}"#,
            r#"{"topic":"a","hex":"zz"}"#,
            r#"{"topic":"a","hex":"00","text":"Ada"}"#,
            r#"{"topic":"a","hex":"00","Ada":1}"#,
        ] {
            let refusal = Captured::parse(bad).expect_err(bad).to_string();
            assert!(!refusal.contains("Ada"), "{refusal}");
        }
    }
}
