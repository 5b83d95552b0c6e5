//! How long readings took to become final: the recent ones, as percentiles.

use std::collections::VecDeque;

use serde::Serialize;

/// Durations kept for the percentiles.
const RECENT_MAX: usize = 4_096;

/// The middle and the slow end of the recent durations; absent before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Percentiles {
    /// Half of them took at most this long, in milliseconds.
    pub p50: Option<u64>,
    /// 99 of 100 took at most this long, in milliseconds.
    pub p99: Option<u64>,
}

/// Recent durations.
#[derive(Debug, Default)]
pub(super) struct Durations(VecDeque<u64>);

impl Durations {
    /// Adds one, given where it started and ended; a start in the future (a clock ahead) counts as no time.
    pub(super) fn add(&mut self, from_ms: i64, to_ms: i64) {
        if self.0.len() == RECENT_MAX {
            self.0.pop_front();
        }
        self.0
            .push_back(u64::try_from(to_ms.saturating_sub(from_ms)).unwrap_or(0));
    }

    /// The percentiles now.
    pub(super) fn percentiles(&self) -> Percentiles {
        let mut sorted: Vec<_> = self.0.iter().copied().collect();
        sorted.sort_unstable();
        let at = |percent: usize| {
            sorted
                .get((sorted.len() * percent).div_ceil(100).saturating_sub(1))
                .copied()
        };
        Percentiles {
            p50: at(50),
            p99: at(99),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_recent_ones() {
        let mut durations = Durations::default();
        assert_eq!(durations.percentiles(), Percentiles { p50: None, p99: None });
        (0..10_000).for_each(|_| durations.add(0, 77));
        (1..=4_096).for_each(|ms| durations.add(0, ms));
        assert_eq!(
            durations.percentiles(),
            Percentiles {
                p50: Some(2_048),
                p99: Some(4_056)
            }
        );
    }
}
