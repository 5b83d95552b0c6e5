//! How long to wait before trying again: longer each time, and never all devices at once.

use std::time::Duration;

/// The first wait is at most this long.
const FIRST_MS: u64 = 500;
/// No wait is longer than this.
pub(crate) const LONGEST_MS: u64 = 15_000;

/// Doubling waits with jitter.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The wait after one more failure: a random part, at least half, of a doubling limit.
    pub(crate) fn failed(&mut self) -> Duration {
        let limit = FIRST_MS.saturating_mul(1 << self.failures.min(10)).min(LONGEST_MS);
        self.failures = self.failures.saturating_add(1);
        Duration::from_millis(rand::random_range(limit / 2..=limit))
    }

    /// It worked: the next wait is short again.
    pub(crate) const fn worked(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_limit_and_start_anew_after_success() {
        let mut backoff = Backoff::default();
        assert!(backoff.failed() <= Duration::from_millis(FIRST_MS));
        let waits: Vec<_> = (0..100).map(|_| backoff.failed()).collect();
        assert!(waits[50..].iter().all(|w| *w >= Duration::from_millis(LONGEST_MS / 2)));
        assert!(waits.iter().all(|w| *w <= Duration::from_millis(LONGEST_MS)));
        backoff.worked();
        assert!(backoff.failed() <= Duration::from_millis(FIRST_MS));
    }
}
