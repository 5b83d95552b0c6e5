//! How fast a scrub may read: so many bytes a second, and a rest after whatever was read faster.

use std::time::{Duration, Instant};

/// What is smaller counts as much as this: to look something up and to check its signatures has its price.
const STEP_BYTES_MIN: usize = 1_024;

/// What a scrub reads in a second, at most, however much there is to read: a disk is there for the traffic.
const BYTES_PER_S_CAP: u64 = 8 << 20;

/// How many bytes a second a pass over so many bytes reads, so that it has an end within so many hours.
pub(super) fn bytes_per_s(bytes: u64, bytes_per_s_max: u64, within_h: u64) -> u64 {
    let needed = bytes.div_ceil(within_h.saturating_mul(3_600).max(1));
    bytes_per_s_max.max(needed.min(BYTES_PER_S_CAP))
}

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
    fn a_pass_has_an_end_in_time_whatever_the_size() {
        let (pace, week) = (256 << 10, 168);
        assert_eq!(bytes_per_s(10 << 30, pace, week), pace, "eleven hours, as ever");
        let terabyte = bytes_per_s(1 << 40, pace, week);
        assert!(terabyte > pace && (1_u64 << 40) / terabyte <= week * 3_600);
        assert_eq!(
            bytes_per_s(u64::MAX, pace, week),
            BYTES_PER_S_CAP,
            "the traffic goes first"
        );
        assert_eq!(
            bytes_per_s(u64::MAX, 64 << 20, week),
            64 << 20,
            "unless the operator wants it"
        );
    }

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
