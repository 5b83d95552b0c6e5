//! Whether the gateway's clock was set while it runs: pairs with a device's ticks from before would be wrong by the step.

use std::time::{Duration, Instant};

/// A clock that goes on as the steady one does, as far as this, was not set.
const STEP_MIN: Duration = Duration::from_secs(2);
/// A time service that does not set a clock makes it faster or slower by less than one part of this many.
const SLEW_PARTS: u32 = 1_000;

/// The two clocks when they were last compared.
#[derive(Debug)]
pub(super) struct Steady {
    at: Instant,
    wall_ms: i64,
}

impl Steady {
    /// Compared for the first time.
    pub(super) const fn since(at: Instant, wall_ms: i64) -> Self {
        Self { at, wall_ms }
    }

    /// Compares them again: whether the wall clock was set since the last time.
    pub(super) fn was_set(&mut self, at: Instant, wall_ms: i64) -> bool {
        let passed = at.saturating_duration_since(self.at);
        let shown_ms = i128::from(wall_ms) - i128::from(self.wall_ms);
        *self = Self { at, wall_ms };
        let bound = STEP_MIN + passed / SLEW_PARTS;
        shown_ms.abs_diff(i128::try_from(passed.as_millis()).unwrap_or(i128::MAX)) > bound.as_millis()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_seen_once_and_a_slew_is_not() {
        let start = Instant::now();
        let mut steady = Steady::since(start, 1_000_000);
        let after = |s| start + Duration::from_secs(s);
        assert!(!steady.was_set(after(10), 1_010_000));
        assert!(
            !steady.was_set(after(3_610), 1_000_000 + 3_611_800),
            "half a part in a thousand"
        );
        assert!(steady.was_set(after(3_611), 9_000_000));
        assert!(!steady.was_set(after(3_612), 9_001_000));
        assert!(steady.was_set(after(3_613), 8_000_000), "backwards");
        assert!(!steady.was_set(after(3_614), 8_001_000));
        assert!(steady.was_set(after(3_615), i64::MAX) && steady.was_set(after(3_616), i64::MIN));
    }
}
