//! Times of a device without a wall clock: its tick counter, read at a moment that the gateway's clock knows, too.
//!
//! HL7's Personal Health Device guide calls the pair a coincident timestamp. It travels with the reading it was used for, so
//! that everybody computes the same time; the device's own count stays as it was signed.

use serde::{Deserialize, Serialize};

/// Two tick counters drift apart by less than one part of this many.
const DRIFT_PARTS: i128 = 1_000;

/// A moment by two clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Coincidence {
    /// Milliseconds since 1970, by the gateway's clock.
    pub gateway_ms: i64,
    /// Milliseconds since boot, by the device's tick counter.
    pub up_ms: u64,
}

impl Coincidence {
    /// When the device's counter stood at `up_ms`, in milliseconds since 1970 by the gateway's clock.
    #[must_use]
    pub fn time_of(&self, up_ms: u64) -> i64 {
        let ms = self.boot_ms() + i128::from(up_ms);
        i64::try_from(ms.clamp(i64::MIN.into(), i64::MAX.into())).expect("clamped")
    }

    /// When the device's counter began, as far as this pair knows: a message that took longer to come makes it later.
    fn boot_ms(&self) -> i128 {
        i128::from(self.gateway_ms) - i128::from(self.up_ms)
    }

    /// How much later the device seems to have booted than by another pair: how much longer this message took.
    #[must_use]
    pub fn delay_beside(&self, other: &Self) -> i128 {
        self.boot_ms() - other.boot_ms()
    }

    /// Whether this pair's message took no longer than another's, as far as a counter may have drifted since.
    #[must_use]
    pub fn is_no_later_than(&self, other: &Self) -> bool {
        let age = i128::from(self.gateway_ms) - i128::from(other.gateway_ms);
        self.delay_beside(other) <= age.max(0) / DRIFT_PARTS
    }
}

/// When a reading came to the gateway, and by which pair its own time is known, if it has no wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reception {
    /// Milliseconds since 1970, by the gateway's clock.
    pub received_ms: i64,
    /// The pair of its device's start that is used.
    pub clock: Option<Coincidence>,
}

impl From<i64> for Reception {
    fn from(received_ms: i64) -> Self {
        Self {
            received_ms,
            clock: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIVE: Coincidence = Coincidence {
        gateway_ms: 1_000_000,
        up_ms: 400_000,
    };

    #[test]
    fn a_count_has_a_time_before_and_after_the_pair() {
        assert_eq!(LIVE.time_of(400_000), 1_000_000);
        assert_eq!(LIVE.time_of(1_000), 601_000);
        assert_eq!(LIVE.time_of(500_000), 1_100_000);
    }

    #[test]
    fn a_message_that_took_longer_is_later_and_drift_is_not() {
        let after = |gateway_ms, up_ms| Coincidence { gateway_ms, up_ms };
        assert!(after(1_010_000, 410_000).is_no_later_than(&LIVE));
        assert!(after(1_010_000, 410_500).is_no_later_than(&LIVE), "a shorter way");
        assert!(!after(1_010_000, 409_000).is_no_later_than(&LIVE), "a longer way");
        let slow = |parts_in_a_million: u64| after(101_000_000, 100_400_000 - 100 * parts_in_a_million);
        assert!(slow(500).is_no_later_than(&LIVE), "28 hours of drift");
        assert!(!slow(1_500).is_no_later_than(&LIVE), "more than a counter drifts");
        assert!(
            !after(101_000_000, 1_000).is_no_later_than(&LIVE),
            "held back for 28 hours"
        );
    }

    proptest! {
        #[test]
        fn no_pair_overflows(gateway_ms: i64, up_ms: u64, other_ms: i64, other_up: u64, at: u64) {
            let one = Coincidence { gateway_ms, up_ms };
            let other = Coincidence { gateway_ms: other_ms, up_ms: other_up };
            let _ = (one.time_of(at), one.is_no_later_than(&other), one.delay_beside(&other));
            prop_assert_eq!(one.time_of(up_ms), gateway_ms);
        }
    }
}
