//! How fast a scrub may read: so many bytes a second, and a rest after whatever was read faster.

use std::time::{Duration, Instant};

/// What is smaller counts as much as this: to look something up and to check its signatures has its price.
const STEP_BYTES_MIN: usize = 1_024;

/// The pace of one scrub.
#[derive(Debug)]
pub(super) struct Pace {
    bytes_per_s_max: u64,
    /// When everything that was read so far may have been read.
    due: Instant,
}

impl Pace {
    pub(super) const fn starting(now: Instant, bytes_per_s_max: u64) -> Self {
        Self {
            bytes_per_s_max,
            due: now,
        }
    }

    /// How long to rest now that so many bytes more were read. A scrub that was slow does not make up for it: that would
    /// be a burst just when the machine has little to give.
    pub(super) fn rest(&mut self, bytes: usize, now: Instant) -> Duration {
        let bytes = bytes.max(STEP_BYTES_MIN) as f64;
        self.due += Duration::from_secs_f64(bytes / self.bytes_per_s_max as f64);
        let rest = self.due.saturating_duration_since(now);
        self.due = self.due.max(now);
        rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn what_is_read_too_fast_is_followed_by_a_rest() {
        let start = Instant::now();
        let mut pace = Pace::starting(start, MIB as u64);
        assert_eq!(pace.rest(MIB / 2, start), Duration::from_millis(500));
        let later = start + Duration::from_millis(600);
        assert_eq!(pace.rest(MIB / 2, later), Duration::from_millis(400));
    }

    #[test]
    fn a_slow_scrub_does_not_make_up_for_it() {
        let start = Instant::now();
        let mut pace = Pace::starting(start, MIB as u64);
        let late = start + Duration::from_secs(60);
        assert_eq!(pace.rest(MIB, late), Duration::ZERO);
        assert_eq!(pace.rest(MIB, late), Duration::from_secs(1));
    }

    #[test]
    fn small_things_have_their_price() {
        let start = Instant::now();
        let mut pace = Pace::starting(start, STEP_BYTES_MIN as u64);
        assert_eq!(pace.rest(1, start), Duration::from_secs(1));
        assert_eq!(pace.rest(0, start), Duration::from_secs(2));
    }
}
