//! How fast each device may publish: a bucket of tokens for each, so that a hot one slows nobody but itself.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use record::topic::{Channel, Topic};

/// Buckets that are kept, at most. One that is full says nothing and is dropped first.
const BUCKETS_MAX: usize = 20_000;

/// The buckets of all devices.
#[derive(Clone, Debug)]
pub(super) struct Rates {
    messages_per_s: f64,
    burst: f64,
    // Held for one look, never across an await: messages of all devices are counted side by side.
    buckets: Arc<Mutex<HashMap<String, Bucket>>>,
}

/// What one device may still publish at once.
#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Rates {
    /// So many messages a second for each device, and so many at once after a pause.
    pub(super) fn of(messages_per_s: u32, burst: u32) -> Self {
        Self {
            messages_per_s: messages_per_s.into(),
            burst: burst.into(),
            buckets: Arc::default(),
        }
    }

    /// Whether this device may publish one more message now, which then counts.
    pub(super) fn take(&self, whose: &str) -> bool {
        self.take_at(whose, Instant::now())
    }

    /// Under which name a message of a device counts. An alarm, and whether the device is there, are not held back by what the
    /// same device measures: they have a bucket of their own.
    pub(super) fn name(topic: &Topic) -> String {
        match topic.channel {
            // No device's name has a colon.
            Channel::Event | Channel::State => format!("alarm:{}", topic.device),
            _ => topic.device.to_string(),
        }
    }

    /// How many messages a second are allowed.
    pub(super) const fn messages_per_s(&self) -> f64 {
        self.messages_per_s
    }

    fn take_at(&self, whose: &str, now: Instant) -> bool {
        let mut buckets = self.lock();
        if !buckets.contains_key(whose) {
            if buckets.len() >= BUCKETS_MAX {
                buckets.retain(|_, bucket| self.filled(bucket, now) < self.burst);
            }
            if buckets.len() >= BUCKETS_MAX {
                // That many devices are busy at once: whoever comes now waits until one of them rests.
                return false;
            }
            let full = Bucket {
                tokens: self.burst,
                at: now,
            };
            buckets.insert(whose.to_owned(), full);
        }
        let bucket = buckets.get_mut(whose).expect("it was just put there");
        let tokens = self.filled(bucket, now);
        let may = tokens >= 1.0;
        *bucket = Bucket {
            tokens: if may { tokens - 1.0 } else { tokens },
            at: now,
        };
        may
    }

    fn filled(&self, bucket: &Bucket, now: Instant) -> f64 {
        let since = now.saturating_duration_since(bucket.at).as_secs_f64();
        (bucket.tokens + since * self.messages_per_s).min(self.burst)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Bucket>> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_hot_device_gets_its_rate_and_the_others_theirs() {
        let (rates, start) = (Rates::of(10, 5), Instant::now());
        let taken = |whose: &str, from_ms: u64, to_ms: u64| {
            let times = (from_ms..to_ms).map(|ms| start + Duration::from_millis(ms));
            times.filter(|at| rates.take_at(whose, *at)).count()
        };
        // A message each millisecond: the burst, and then ten a second.
        assert_eq!(taken("hot", 0, 1_000), 5 + 9);
        assert_eq!(taken("scale", 500, 505), 5, "another device is not held back");
        assert_eq!(taken("hot", 1_000, 2_000), 10);
        // After a pause there is a burst again, and no more than one.
        assert_eq!(taken("hot", 60_000, 60_010), 5);
    }

    #[test]
    fn an_alarm_is_not_held_back_by_what_its_device_measures() {
        let gateway = "home-1".parse().expect("good");
        let name = |channel: &str| {
            let topic = Topic::parse(&gateway, &format!("vitalfog/v1/home-1/hot/{channel}"));
            Rates::name(&topic.expect("good"))
        };
        let (rates, now) = (Rates::of(1, 2), Instant::now());
        for channel in ["wave", "reading"] {
            assert!(rates.take_at(&name(channel), now));
        }
        assert!(!rates.take_at(&name("wave"), now) && !rates.take_at(&name("reading"), now));
        assert!(rates.take_at(&name("event"), now));
    }

    #[test]
    fn buckets_are_bounded_and_those_that_rest_go_first() {
        let (rates, start) = (Rates::of(1, 2), Instant::now());
        for device in 0..BUCKETS_MAX {
            assert!(rates.take_at(&format!("device-{device}"), start));
        }
        assert!(!rates.take_at("one-more", start), "all of them are busy");
        assert!(rates.take_at("one-more", start + Duration::from_secs(2)), "they rest");
        assert_eq!(rates.lock().len(), 1);
    }
}
