//! How many bundles of the backlog may start now: so many a second, in small lots.

use std::{num::NonZeroU32, time::Duration};

use tokio::time::Instant;

/// What was not started in this time may be started at once: timers are not finer.
const LOT: Duration = Duration::from_millis(100);

/// So many a second, at most.
#[derive(Debug)]
pub(super) struct Pace {
    every: Duration,
    /// When the next one may start.
    next: Instant,
}

impl Pace {
    pub(super) fn of(per_s_max: NonZeroU32) -> Self {
        Self {
            every: Duration::from_secs(1) / per_s_max.get(),
            next: Instant::now(),
        }
    }

    /// When the next one may start.
    pub(super) const fn next(&self) -> Instant {
        self.next
    }

    /// How many may start now.
    pub(super) fn allows(&self) -> usize {
        let since = Instant::now().checked_duration_since(self.from());
        let lots = |since: Duration| since.as_nanos() / self.every.as_nanos().max(1) + 1;
        since.map_or(0, |since| usize::try_from(lots(since)).unwrap_or(usize::MAX))
    }

    /// Counts those that were started.
    pub(super) fn started(&mut self, count: usize) {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.next = self.from() + self.every.saturating_mul(count);
    }

    fn from(&self) -> Instant {
        let lot = Instant::now().checked_sub(LOT);
        lot.map_or(self.next, |lot| lot.max(self.next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn no_more_than_so_many_a_second_are_started() {
        let mut pace = Pace::of(NonZeroU32::new(200).expect("not zero"));
        let (begin, mut started) = (Instant::now(), 0);
        while begin.elapsed() < Duration::from_millis(600) {
            let now = pace.allows();
            pace.started(now);
            started += now;
            tokio::time::sleep_until(pace.next()).await;
        }
        let most = usize::try_from(begin.elapsed().as_millis() / 5 + 22).expect("small");
        assert!((60..=most).contains(&started), "{started} of {most}");
    }
}
