//! What became of all devices' messages, and the gateway's word on what is durable.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use record::ids::BootId;
use serde::Deserialize;
use tokio::time::Instant;

/// What became of all devices' messages.
#[derive(Debug, Default)]
pub(in crate::bench) struct Account {
    pub(super) connected: AtomicU64,
    pub(super) made: AtomicU64,
    pub(super) acknowledged: AtomicU64,
    pub(super) held_back: AtomicU64,
    pub(super) broken: AtomicU64,
    // Held for one push or one swap, never across an await: every device adds to it.
    waited_ms: Mutex<Vec<f64>>,
}

/// The account at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::bench) struct Counts {
    /// Connections there are.
    pub(in crate::bench) connected: u64,
    /// Readings that were made.
    pub(in crate::bench) made: u64,
    /// Readings with an acknowledgement.
    pub(in crate::bench) acknowledged: u64,
    /// Messages that were not taken for now.
    pub(in crate::bench) held_back: u64,
    /// Connections that broke.
    pub(in crate::bench) broken: u64,
}

impl Account {
    /// The counts now.
    pub(in crate::bench) fn counts(&self) -> Counts {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            connected: of(&self.connected),
            made: of(&self.made),
            acknowledged: of(&self.acknowledged),
            held_back: of(&self.held_back),
            broken: of(&self.broken),
        }
    }

    /// How long each acknowledgement took since this was asked last, in milliseconds.
    pub(in crate::bench) fn take_waits(&self) -> Vec<f64> {
        std::mem::take(&mut *self.waited_ms.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn waited(&self, since: Instant) {
        self.acknowledged.fetch_add(1, Ordering::Relaxed);
        let ms = since.elapsed().as_secs_f64() * 1_000.0;
        self.waited_ms.lock().unwrap_or_else(PoisonError::into_inner).push(ms);
    }
}

/// What the gateway says is durable.
#[derive(Deserialize)]
pub(super) struct Word {
    pub(super) boot: BootId,
    upto_seq: u64,
    #[serde(default)]
    high_seq: u64,
    #[serde(default)]
    missing: Vec<(u64, u64)>,
}

impl Word {
    /// Whether a reading of this number is durable.
    pub(super) fn covers(&self, seq: u64) -> bool {
        let is_missing = || self.missing.iter().any(|(from, to)| (*from..=*to).contains(&seq));
        seq <= self.upto_seq || (seq <= self.high_seq && !is_missing())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateways_word_covers_what_it_says() {
        let word: Word = serde_json::from_str(
            r#"{"boot": "1-00000000c0ffee01", "upto_seq": 3, "high_seq": 9, "missing": [[4, 5], [7, 7]]}"#,
        )
        .expect("as documented");
        let covered: Vec<_> = (1..=10).filter(|seq| word.covers(*seq)).collect();
        assert_eq!(covered, [1, 2, 3, 6, 8, 9]);
    }
}
