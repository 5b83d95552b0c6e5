//! How long acknowledgements take: a histogram with buckets of 1.6 % width, exact enough for percentiles, of fixed size.

use std::time::Duration;

/// Buckets for each doubling; the widest error is half of 1/64.
const STEPS: usize = 64;
/// From 1 microsecond to more than an hour.
const DOUBLINGS: usize = 32;

/// Counts durations in microseconds.
#[derive(Debug)]
pub(super) struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Histogram {
    pub(super) fn new() -> Self {
        Self {
            counts: vec![0; STEPS * DOUBLINGS],
            total: 0,
        }
    }

    pub(super) fn record(&mut self, duration: Duration) {
        self.counts[bucket(duration.as_micros())] += 1;
        self.total += 1;
    }

    /// How many durations were recorded.
    pub(super) const fn total(&self) -> u64 {
        self.total
    }

    /// The duration that so many hundredths of all stay below, in milliseconds; 0 while nothing is recorded.
    pub(super) fn percentile_ms(&self, hundredths: u64) -> f64 {
        let rank = (self.total * hundredths).div_ceil(100).max(1);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return middle_us(bucket) / 1_000.0;
            }
        }
        0.0
    }
}

/// The bucket of a duration: exact below 64 us, then 64 buckets a doubling.
fn bucket(us: u128) -> usize {
    let us = usize::try_from(us).unwrap_or(usize::MAX).max(1);
    let doubling = us.ilog2().saturating_sub(STEPS.ilog2());
    let at = (us >> doubling) + STEPS * doubling as usize;
    at.min(STEPS * DOUBLINGS - 1)
}

/// The middle of a bucket's durations.
fn middle_us(bucket: usize) -> f64 {
    let doubling = (bucket / STEPS).saturating_sub(1);
    let low = bucket - STEPS * doubling;
    // Below 2^32 buckets and steps a double is exact.
    let width = 2_f64.powi(doubling as i32);
    if doubling == 0 {
        low as f64
    } else {
        (low as f64 + 0.5) * width
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_within_two_percent() {
        let mut histogram = Histogram::new();
        for us in 1..=100_000 {
            histogram.record(Duration::from_micros(us));
        }
        for (hundredths, exact_ms) in [(1, 1.0), (50, 50.0), (99, 99.0), (100, 100.0)] {
            let found = histogram.percentile_ms(hundredths);
            assert!((found / exact_ms - 1.0).abs() < 0.02, "{found} instead of {exact_ms}");
        }
    }

    #[test]
    fn buckets_are_in_order_and_contain_their_middle() {
        let mut last = 0;
        for us in (1..10_000_000_u128).step_by(997) {
            let at = bucket(us);
            assert!(at >= last, "{us}");
            last = at;
            assert!((middle_us(at) / us as f64 - 1.0).abs() <= 1.0 / 64.0, "{us}");
        }
    }

    #[test]
    fn nothing_and_everything_have_an_answer() {
        let mut histogram = Histogram::new();
        assert_eq!(histogram.percentile_ms(99).to_bits(), 0.0_f64.to_bits());
        histogram.record(Duration::from_secs(1_000_000));
        assert!(histogram.percentile_ms(50) > 3_600_000.0);
    }
}
