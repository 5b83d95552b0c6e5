//! When a suspicion is worth a sweep: whoever asks for what the chain never named makes this node suspect itself, and may not keep it
//! reading the whole chain.

use std::time::{Duration, Instant};

use super::sweep::Cause;

/// From a suspicion that was wrong to the next one that is heard; doubles while they are wrong.
const PAUSE: Duration = Duration::from_secs(60);

/// How long no suspicion is heard. One that comes meanwhile is kept, and heard then.
#[derive(Debug, Default)]
pub(super) struct Deaf {
    until: Option<Instant>,
    pause: Duration,
}

impl Deaf {
    /// Enters what a sweep found missing; no pause is longer than the interval, at which is swept in any case.
    pub(super) fn swept(&mut self, (cause, missing): (Cause, usize), interval: Duration, now: Instant) {
        if missing > 0 {
            *self = Self::default();
        } else if cause == Cause::Suspicion {
            self.pause = (self.pause * 2).max(PAUSE).min(interval);
            self.until = Some(now + self.pause);
        }
    }

    /// From when on suspicions are heard.
    pub(super) fn until(&self, now: Instant) -> Instant {
        self.until.unwrap_or(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_makes_it_suspect_itself_for_nothing_is_heard_ever_more_rarely() {
        let (mut deaf, now, hour) = (Deaf::default(), Instant::now(), Duration::from_secs(3_600));
        assert_eq!(deaf.until(now), now);
        deaf.swept((Cause::Interval, 0), hour, now);
        assert_eq!(deaf.until(now), now, "nobody was wrong");
        for minutes in [1, 2, 4, 8, 16, 32, 60, 60] {
            deaf.swept((Cause::Suspicion, 0), hour, now);
            assert_eq!(deaf.until(now), now + Duration::from_secs(60 * minutes));
        }
        deaf.swept((Cause::Interval, 1), hour, now);
        assert_eq!(deaf.until(now), now, "something was missing");
        deaf.swept((Cause::Suspicion, 0), hour, now);
        assert_eq!(deaf.until(now), now + PAUSE);
        deaf.swept((Cause::Suspicion, 30), hour, now);
        assert_eq!(deaf.until(now), now, "it was right");
    }
}
