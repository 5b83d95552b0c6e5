//! How many payloads are read from the disk for one validator that asks for proofs: so many a minute, and no more.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use record::signature::PublicKey;

/// Payloads in a minute, at most: eight times what the defaults ask for.
const PAYLOADS_MAX: u32 = 128;
/// The minute.
const WINDOW: Duration = Duration::from_secs(60);

/// What was had since a minute began; the next one begins with what is wanted after its end.
#[derive(Debug, Default)]
pub(super) struct Minute(Option<Instant>, u32);

impl Minute {
    /// Whether so many more may be had now, of so many a minute.
    pub(super) fn takes(&mut self, wanted: u32, max: u32, now: Instant) -> bool {
        if self.0.is_none_or(|since| now.duration_since(since) >= WINDOW) {
            (self.0, self.1) = (Some(now), 0);
        }
        let after = self.1.saturating_add(wanted);
        if after > max {
            return false;
        }
        self.1 = after;
        true
    }
}

/// What each validator has had; callers bring keys that the chain knows, so there are at most as many as validators ever were.
#[derive(Debug, Default)]
pub(super) struct Allowance(HashMap<PublicKey, Minute>);

impl Allowance {
    /// Whether so many payloads may be read for a validator now.
    pub(super) fn takes(&mut self, by: PublicKey, payloads: u32, now: Instant) -> bool {
        self.0.entry(by).or_default().takes(payloads, PAYLOADS_MAX, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use record::signature::SigningKey;

    #[test]
    fn who_asks_too_often_waits_for_the_next_minute_and_nobody_with_him() {
        let (mut allowance, now) = (Allowance::default(), Instant::now());
        let (greedy, other) = (SigningKey::random().public(), SigningKey::random().public());
        let taken = (0..100).filter(|_| allowance.takes(greedy, 16, now)).count();
        assert_eq!(taken, 8);
        assert!(allowance.takes(other, 16, now));
        assert!(!allowance.takes(greedy, 1, now + WINDOW / 2));
        assert!(allowance.takes(greedy, 16, now + WINDOW));
    }
}
