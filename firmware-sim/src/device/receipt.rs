//! What the gateway says to a device behind an outside broker, whose PUBACK is no receipt: what is durable, and what is refused.

use std::time::{Duration, Instant};

use record::ids::BootId;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The wait for an answer doubles so often, at most.
const DOUBLINGS_MAX: u32 = 5;

/// What tells a device that the gateway has a reading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Receipt {
    /// The broker's PUBACK: right for the gateway's embedded broker, which sends it when the reading is durable.
    #[default]
    Puback,
    /// The gateway's own message on `.../ack`: right for every outside broker.
    Ack,
}

/// The JSON on the topic `ack`: how far one start of the device has come. Other fields are for later versions.
#[derive(Debug, Deserialize)]
pub(crate) struct Progress {
    boot: BootId,
    upto_seq: u64,
    #[serde(default)]
    high_seq: u64,
    #[serde(default)]
    missing: Vec<(u64, u64)>,
}

impl Progress {
    /// Whether it is about this start.
    pub(crate) fn is_of(&self, boot: BootId) -> bool {
        self.boot == boot
    }

    /// Whether the gateway has this number.
    pub(crate) fn covers(&self, seq: u64) -> bool {
        let is_missing = || self.missing.iter().any(|(from, to)| (*from..=*to).contains(&seq));
        seq <= self.upto_seq || (seq <= self.high_seq && !is_missing())
    }
}

/// The JSON on the topic `error`: which message is refused.
#[derive(Debug, Deserialize)]
pub(crate) struct Refusal {
    pub(crate) reason: String,
    #[serde(default)]
    boot: Option<BootId>,
    #[serde(default)]
    seq: Option<u64>,
    #[serde(default)]
    message: String,
}

impl Refusal {
    /// Whether this reading is meant: by its number, or by the digest of its bytes if the gateway could not know the number.
    pub(crate) fn means(&self, (boot, seq): (BootId, u64), payload: &[u8]) -> bool {
        match (self.boot, self.seq) {
            (Some(of), Some(number)) => (of, number) == (boot, seq),
            _ => self.message == hex::encode(Sha256::digest(payload)),
        }
    }
}

/// Asks what became of readings that the broker has taken and nobody acknowledges: the oldest is sent again. The answer says
/// which of the others have to be sent again, too; without one the next question waits twice as long, so that a broker whose
/// gateway is away is not filled with repetitions.
#[derive(Debug)]
pub(crate) struct Questions {
    wait: Duration,
    asked: Option<Instant>,
    unanswered: u32,
}

impl Questions {
    pub(crate) const fn every(wait: Duration) -> Self {
        Self {
            wait,
            asked: None,
            unanswered: 0,
        }
    }

    /// When to ask, if readings wait since then.
    pub(crate) fn due(&self, waiting_since: Option<Instant>) -> Option<Instant> {
        let since = waiting_since?;
        let since = self.asked.map_or(since, |at| at.max(since));
        Some(since + self.wait * (1 << self.unanswered.min(DOUBLINGS_MAX)))
    }

    /// A reading is sent again now.
    pub(crate) fn ask(&mut self) {
        self.asked = Some(Instant::now());
        self.unanswered += 1;
    }

    /// The gateway has said something.
    pub(crate) const fn answered(&mut self) {
        self.unanswered = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOT: BootId = BootId { counter: 7, random: 1 };

    fn progress(text: &str) -> Progress {
        serde_json::from_str(text).expect("JSON")
    }

    #[test]
    fn a_number_that_was_skipped_holds_up_nothing_after_it() {
        let said = progress(r#"{"boot":"7-0000000000000001","upto_seq":3,"high_seq":9,"missing":[[4,5],[7,7]]}"#);
        assert!(said.is_of(BOOT) && !said.is_of(BootId { counter: 8, random: 1 }));
        let covered: Vec<_> = (1..=12).filter(|seq| said.covers(*seq)).collect();
        assert_eq!(covered, [1, 2, 3, 6, 8, 9]);
        let plain = progress(r#"{"boot":"7-0000000000000001","upto_seq":3}"#);
        assert!(plain.covers(3) && !plain.covers(4));
    }

    #[test]
    fn a_refusal_means_one_reading_by_its_number_or_by_its_bytes() {
        let by_number: Refusal =
            serde_json::from_str(r#"{"reason":"implausible","boot":"7-0000000000000001","seq":4,"message":"00"}"#)
                .expect("JSON");
        assert!(by_number.means((BOOT, 4), b"x") && !by_number.means((BOOT, 5), b"x"));
        assert!(!by_number.means((BootId { counter: 6, random: 1 }, 4), b"x"));
        let digest = hex::encode(Sha256::digest(b"x"));
        let by_bytes: Refusal =
            serde_json::from_str(&format!(r#"{{"reason":"wrong-signature","message":"{digest}"}}"#)).expect("JSON");
        assert!(by_bytes.means((BOOT, 4), b"x") && !by_bytes.means((BOOT, 4), b"y"));
    }

    #[test]
    fn questions_come_more_and_more_seldom_until_somebody_answers() {
        let (wait, start) = (Duration::from_secs(10), Instant::now());
        let mut questions = Questions::every(wait);
        assert_eq!(questions.due(None), None);
        assert_eq!(questions.due(Some(start)), Some(start + wait));
        questions.ask();
        assert!(questions.due(Some(start)) >= Some(start + wait * 2));
        for _ in 0..100 {
            questions.ask();
        }
        assert!(questions.due(Some(start)) <= Some(Instant::now() + wait * 32));
        questions.answered();
        assert!(questions.due(Some(start)) <= Some(Instant::now() + wait));
    }
}
