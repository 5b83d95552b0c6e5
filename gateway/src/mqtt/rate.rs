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
    /// Messages besides, with each new connection.
    backlog: u32,
    // Held for one look, never across an await: messages of all devices are counted side by side.
    buckets: Arc<Mutex<HashMap<String, Bucket>>>,
}

/// What one device may still publish at once.
#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
    /// What is left of the messages besides, and of which connection.
    backlog: u32,
    connections: u64,
}

impl Rates {
    /// So many messages a second for each device, and so many at once after a pause.
    pub(super) fn of(messages_per_s: u32, burst: u32) -> Self {
        Self {
            messages_per_s: messages_per_s.into(),
            burst: burst.into(),
            backlog: 0,
            buckets: Arc::default(),
        }
    }

    /// And so many besides with each new connection to a broker that keeps messages meanwhile: what was published slowly comes
    /// at once then.
    pub(super) fn with_backlog(self, backlog: u32) -> Self {
        Self { backlog, ..self }
    }

    /// Whether this device may publish one more message now, which then counts.
    pub(super) fn take(&self, whose: &str) -> bool {
        self.take_at(whose, Instant::now(), 0)
    }

    /// The same, with so many connections made until now.
    pub(super) fn take_over(&self, whose: &str, connections: u64) -> bool {
        self.take_at(whose, Instant::now(), connections)
    }

    /// Under which name a message of a device counts. An alarm, and whether the device is there, are not held back by what the
    /// same device measures: they have a bucket of their own each.
    pub(super) fn name(topic: &Topic) -> String {
        match topic.channel {
            // No device's name has a colon.
            Channel::Event => format!("alarm:{}", topic.device),
            Channel::State => format!("state:{}", topic.device),
            _ => topic.device.to_string(),
        }
    }

    /// How many messages a second are allowed.
    pub(super) const fn messages_per_s(&self) -> f64 {
        self.messages_per_s
    }

    fn take_at(&self, whose: &str, now: Instant, connections: u64) -> bool {
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
                backlog: self.backlog,
                connections,
            };
            buckets.insert(whose.to_owned(), full);
        }
        let bucket = buckets.get_mut(whose).expect("it was just put there");
        if bucket.connections != connections {
            (bucket.backlog, bucket.connections) = (self.backlog, connections);
        }
        (bucket.tokens, bucket.at) = (self.filled(bucket, now), now);
        if bucket.tokens >= 1.0 {
            bucket.tokens -= 1.0;
        } else if bucket.backlog > 0 {
            bucket.backlog -= 1;
        } else {
            return false;
        }
        true
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
            times.filter(|at| rates.take_at(whose, *at, 0)).count()
        };
        // A message each millisecond: the burst, and then ten a second.
        assert_eq!(taken("hot", 0, 1_000), 5 + 9);
        assert_eq!(taken("scale", 500, 505), 5, "another device is not held back");
        assert_eq!(taken("hot", 1_000, 2_000), 10);
        // After a pause there is a burst again, and no more than one.
        assert_eq!(taken("hot", 60_000, 60_010), 5);
    }

    #[test]
    fn what_a_broker_kept_is_taken_once_with_each_connection() {
        let (rates, now) = (Rates::of(1, 2).with_backlog(3), Instant::now());
        let taken = |connections| (0..10).filter(|_| rates.take_at("scale", now, connections)).count();
        assert_eq!((taken(1), taken(1)), (5, 0));
        assert_eq!((taken(2), taken(2)), (3, 0));
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
            assert!(rates.take_at(&name(channel), now, 0));
        }
        assert!(!rates.take_at(&name("wave"), now, 0) && !rates.take_at(&name("reading"), now, 0));
        assert!(rates.take_at(&name("event"), now, 0));
    }

    #[test]
    fn buckets_are_bounded_and_those_that_rest_go_first() {
        let (rates, start) = (Rates::of(1, 2), Instant::now());
        for device in 0..BUCKETS_MAX {
            assert!(rates.take_at(&format!("device-{device}"), start, 0));
        }
        assert!(!rates.take_at("one-more", start, 0), "all of them are busy");
        assert!(
            rates.take_at("one-more", start + Duration::from_secs(2), 0),
            "they rest"
        );
        assert_eq!(rates.lock().len(), 1);
    }
}
