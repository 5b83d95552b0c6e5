//! Messages that were not believed: kept with their reason, sealed, bounded, so that somebody can look at them.

use std::collections::{BTreeMap, VecDeque};

use record::{
    bundle::{Category, SubjectKey},
    canonical::Digest,
    ids::DeviceId,
    reading::{Reason, Refusal},
};
use serde::{Deserialize, Serialize, Serializer};
use serde_bytes::ByteBuf;

/// Entries shown in the status.
const RECENT_MAX: usize = 50;

/// What quarantine may hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// X25519 public key, 64 hex digits: payloads are sealed to it, so that only its owner can look at them.
    pub key: String,
    /// Entries kept; the oldest goes first, its reason stays counted.
    pub entries_max: usize,
    /// Bytes of sealed payloads kept; the oldest goes first, its reason stays counted.
    pub bytes_max: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            key: String::new(),
            entries_max: 10_000,
            bytes_max: 64 << 20,
        }
    }
}

impl Config {
    /// The key that payloads are sealed to.
    ///
    /// # Errors
    /// A sentence that says what is wrong with the text.
    pub fn sealing_key(&self) -> Result<SubjectKey, String> {
        let public = hex::decode(&self.key).ok().filter(|bytes| bytes.len() == 32);
        let public = public.ok_or("must be an X25519 public key in 64 hex digits")?;
        Ok(SubjectKey {
            public,
            category: Category::Clinical,
            epoch: 1,
        })
    }
}

/// One message in quarantine, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Kept {
    pub(super) device: Option<DeviceId>,
    pub(super) reason: Reason,
    pub(super) detail: String,
    pub(super) at_ms: i64,
    pub(super) size_bytes: u64,
    /// Of the message as it was received; absent if it was cut off before it was received.
    pub(super) digest: Option<Digest>,
    /// Sealed; absent if the message was larger than a reading may be.
    pub(super) payload: Option<ByteBuf>,
}

impl Kept {
    fn weight_bytes(&self) -> u64 {
        self.payload.as_ref().map_or(0, |payload| payload.len() as u64) + self.detail.len() as u64
    }
}

/// One message in quarantine, as it is shown: never its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// Whose it claimed to be.
    pub device: Option<DeviceId>,
    /// Why it was not taken.
    #[serde(flatten)]
    pub refusal: ShownRefusal,
    /// When.
    #[serde(serialize_with = "instant")]
    pub at: i64,
}

/// Reason and detail as two fields of the status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ShownRefusal {
    /// The reason code.
    pub reason: Reason,
    /// What to change.
    pub detail: String,
}

impl From<Refusal> for ShownRefusal {
    fn from(refusal: Refusal) -> Self {
        Self {
            reason: refusal.reason,
            detail: refusal.detail,
        }
    }
}

/// Milliseconds since 1970 as a time that people read.
pub(crate) fn instant<S: Serializer>(at_ms: &i64, serializer: S) -> Result<S::Ok, S::Error> {
    let instant = jiff::Timestamp::from_millisecond(*at_ms).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    serializer.collect_str(&instant)
}

/// The quarantine as the status shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Messages ever quarantined.
    pub total: u64,
    /// The same by reason.
    pub by_reason: BTreeMap<String, u64>,
    /// The last ones, the newest last.
    pub recent: Vec<Shown>,
}

/// What is in quarantine: sizes and the last entries; the entries themselves are on disk.
#[derive(Debug)]
pub(super) struct Quarantine {
    config: Config,
    weights: VecDeque<(u64, u64)>,
    bytes: u64,
    recent: VecDeque<Shown>,
    next: u64,
}

impl Quarantine {
    /// The quarantine as it was kept, oldest first.
    pub(super) fn of(config: Config, kept: impl IntoIterator<Item = (u64, Kept)>) -> Self {
        let mut all = Self {
            config,
            weights: VecDeque::new(),
            bytes: 0,
            recent: VecDeque::new(),
            next: 0,
        };
        for (number, entry) in kept {
            all.remember(number, &entry);
        }
        all
    }

    /// Takes an entry; returns its number and the numbers of those that must go for it.
    pub(super) fn add(&mut self, entry: &Kept) -> (u64, Vec<u64>) {
        let number = self.next;
        self.remember(number, entry);
        let mut gone = Vec::new();
        while self.weights.len() > self.config.entries_max.max(1)
            || (self.bytes > self.config.bytes_max && self.weights.len() > 1)
        {
            let (oldest, bytes) = self.weights.pop_front().expect("longer than the limit");
            self.bytes -= bytes;
            gone.push(oldest);
        }
        (number, gone)
    }

    /// The last entries, the newest last.
    pub(super) fn recent(&self) -> Vec<Shown> {
        self.recent.iter().cloned().collect()
    }

    fn remember(&mut self, number: u64, entry: &Kept) {
        self.next = number + 1;
        self.weights.push_back((number, entry.weight_bytes()));
        self.bytes += entry.weight_bytes();
        if self.recent.len() == RECENT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back(Shown {
            device: entry.device.clone(),
            refusal: Refusal::new(entry.reason, entry.detail.clone()).into(),
            at: entry.at_ms,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(bytes: usize) -> Kept {
        Kept {
            device: None,
            reason: Reason::Malformed,
            detail: String::new(),
            at_ms: 1_790_000_000_000,
            size_bytes: bytes as u64,
            digest: None,
            payload: Some(ByteBuf::from(vec![0; bytes])),
        }
    }

    #[test]
    fn the_oldest_go_first_when_number_or_bytes_are_reached() {
        let config = Config {
            entries_max: 3,
            bytes_max: 100,
            ..Config::default()
        };
        let mut quarantine = Quarantine::of(config, [(7, entry(10))]);
        assert_eq!(quarantine.add(&entry(10)), (8, vec![]));
        assert_eq!(quarantine.add(&entry(10)), (9, vec![]));
        assert_eq!(quarantine.add(&entry(10)), (10, vec![7]));
        assert_eq!(quarantine.add(&entry(85)), (11, vec![8, 9]));
        assert_eq!(quarantine.bytes, 95);
    }

    #[test]
    fn the_status_shows_when_and_why() {
        let quarantine = Quarantine::of(Config::default(), [(0, entry(1))]);
        let text = serde_json::to_string(&quarantine.recent()).expect("encodes");
        assert_eq!(
            text,
            r#"[{"device":null,"reason":"malformed","detail":"","at":"2026-09-21T14:13:20Z"}]"#
        );
    }

    #[test]
    fn a_key_is_64_hex_digits() {
        let key = |text: &str| {
            Config {
                key: text.to_owned(),
                ..Config::default()
            }
            .sealing_key()
        };
        assert!(key(&"ab".repeat(32)).is_ok());
        assert!(key("").is_err() && key("abcd").is_err() && key(&"xy".repeat(32)).is_err());
    }
}
