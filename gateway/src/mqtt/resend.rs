//! Asks devices for numbers that are missing: not at once, not for ever, and not for more than they can send.
//!
//! A gap that is a few seconds old, of a device that is there, is asked for on its `cmd` topic. While numbers of it come it is
//! left alone. Without an answer the next question waits twice as long, and after a few nothing is asked before the device
//! connects anew or misses something else. What the device says on its `state` that it does not have is not asked for again;
//! the gap stays, and is reported: nobody has signed that word. A gap vanishes when its readings come, by no other way.

use std::{
    collections::{HashMap, HashSet},
    num::NonZeroU32,
    time::Duration,
};

use record::{
    ids::{BootId, DeviceId, GatewayId},
    topic::{Channel, Topic},
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use super::{broker::Sessions, presence::Presence, subscriber};
use crate::outbox::{Gap, Outbox};

/// How often gaps are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Between two questions to one device, at least.
const PAUSE: Duration = Duration::from_secs(10);
/// Questions about the same gap without an effect, at most.
const TRIES_MAX: u32 = 5;
/// Devices that are asked at a time, at most: answers of a whole fleet are not to come at once.
const ASKED_AT_ONCE_MAX: usize = 32;
/// Ranges in one question, at most.
const RANGES_MAX: usize = 64;
/// Numbers in one question, at most: the rest is asked for when these have come.
const NUMBERS_MAX: u64 = 1_000;
/// Starts of one device that are asked for by hand, at most: those used last.
const STARTS_BY_HAND_MAX: usize = 8;
/// Who is not there within this time does not get the question.
const EXPIRY_S: NonZeroU32 = NonZeroU32::new(60).expect("not zero");
/// Questions by hand that wait, at most.
const BY_HAND_MAX: usize = 16;
/// A question by hand is answered within this time.
const BY_HAND_TIMEOUT: Duration = Duration::from_secs(5);

/// Numbers of one start that a device is asked to send again, or for the first time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resend {
    /// The start.
    pub boot: BootId,
    /// Ranges, both ends included.
    pub ranges: Vec<(u64, u64)>,
}

/// The JSON on `vitalfog/v1/{gateway}/{device}/cmd`.
#[derive(Serialize)]
struct Command<'a> {
    resend: &'a Resend,
}

impl Resend {
    /// What fits in one question of what is missing; `None` if nothing is.
    fn of(boot: BootId, missing: &[(u64, u64)]) -> Option<Self> {
        let (mut ranges, mut left) = (Vec::new(), NUMBERS_MAX);
        for (from, to) in missing.iter().take(RANGES_MAX) {
            let to = (*to).min(from.saturating_add(left - 1));
            ranges.push((*from, to));
            left -= to - from + 1;
            if left == 0 {
                break;
            }
        }
        (!ranges.is_empty()).then_some(Self { boot, ranges })
    }

    fn text(&self) -> String {
        serde_json::to_string(&Command { resend: self }).expect("plain fields")
    }
}

/// How a device hears the gateway.
#[derive(Clone, Debug)]
pub(super) enum Voice {
    /// On the embedded broker.
    Embedded(Sessions),
    /// Through the outside one.
    External(subscriber::Voice),
}

impl Voice {
    async fn say(&self, topic: String, text: String) {
        match self {
            Self::Embedded(sessions) => sessions.say(topic, text, EXPIRY_S).await,
            Self::External(voice) => voice.ask(topic, text, EXPIRY_S),
        }
    }
}

/// How one gap is being asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Asked {
    missing: Vec<(u64, u64)>,
    /// Questions since it changed, or the device connected.
    tries: u32,
    connections: u64,
    next: Instant,
}

/// A question by hand, and where what was asked for is told.
type ByHand = (DeviceId, oneshot::Sender<Vec<Resend>>);

/// Asks, while the gateway runs.
pub(super) struct Asking {
    pub(super) gateway: GatewayId,
    pub(super) outbox: Outbox,
    pub(super) presence: Presence,
    pub(super) voice: Voice,
    /// How old a gap is that is asked for; `None`: by hand alone.
    pub(super) after: Option<Duration>,
}

/// Has a device asked by hand.
#[derive(Clone, Debug)]
pub struct Asker(mpsc::Sender<ByHand>);

impl Asker {
    /// Asks a device at once for all that is missing of it, as far as it fits in a question for each start; says for what it
    /// was asked. `None` if the gateway is too busy to ask.
    pub async fn ask(&self, device: DeviceId) -> Option<Vec<Resend>> {
        let (answer, answered) = oneshot::channel();
        self.0.try_send((device, answer)).ok()?;
        timeout(BY_HAND_TIMEOUT, answered).await.ok()?.ok()
    }
}

impl Asking {
    /// The loop, and who has it ask by hand.
    pub(super) fn start(self) -> (impl Future<Output = ()>, Asker) {
        let (sender, by_hand) = mpsc::channel(BY_HAND_MAX);
        (self.run(by_hand), Asker(sender))
    }

    async fn run(self, mut by_hand: mpsc::Receiver<ByHand>) {
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut questions = Questions::default();
        loop {
            tokio::select! {
                Some((device, answer)) = by_hand.recv() => {
                    let asked = self.ask_by_hand(&device).await;
                    // Whoever asked may have given up waiting; the device is asked all the same.
                    let _unheard = answer.send(asked);
                }
                _ = look.tick() => if let Some(after) = self.after {
                    let gaps = self.outbox.recent_gaps().await;
                    for (device, resend) in questions.due(gaps, &self.presence, (after, Instant::now())) {
                        self.ask(&device, &resend).await;
                    }
                },
            }
        }
    }

    async fn ask_by_hand(&self, device: &DeviceId) -> Vec<Resend> {
        let mut asked = Vec::new();
        let gaps = self.outbox.recent_gaps().await;
        for gap in gaps.iter().filter(|gap| gap.device == *device).take(STARTS_BY_HAND_MAX) {
            if let Some(resend) = Resend::of(gap.boot, &gap.missing) {
                self.ask(device, &resend).await;
                asked.push(resend);
            }
        }
        asked
    }

    async fn ask(&self, device: &DeviceId, resend: &Resend) {
        metrics::counter!("gateway_mqtt_resends_asked_total").increment(1);
        tracing::debug!(%device, boot = %resend.boot, ranges = resend.ranges.len(), "asked for what is missing");
        let topic = Topic {
            device: device.clone(),
            channel: Channel::Command,
        };
        self.voice.say(topic.name(&self.gateway), resend.text()).await;
    }
}

/// What is being asked for.
#[derive(Debug, Default)]
struct Questions {
    asked: HashMap<(DeviceId, BootId), Asked>,
    /// When each device was asked last, of those in `asked`.
    devices: HashMap<DeviceId, Instant>,
}

impl Questions {
    /// Whom to ask for what now.
    fn due(
        &mut self,
        gaps: Vec<Gap>,
        presence: &Presence,
        (after, now): (Duration, Instant),
    ) -> Vec<(DeviceId, Resend)> {
        self.forget_all_but(&gaps);
        let mut due = Vec::new();
        for gap in gaps {
            let (connections, lost) = presence.said_of(&gap.device, gap.boot);
            let wanted = without(&gap.missing, &lost);
            let key = (gap.device.clone(), gap.boot);
            let asked = self.asked.entry(key).or_insert_with(|| Asked {
                missing: Vec::new(),
                tries: 0,
                connections,
                next: now,
            });
            asked.look(wanted, connections, (after, now));
            let is_paced = self.devices.get(&gap.device).is_none_or(|at| now - *at >= PAUSE);
            if due.len() == ASKED_AT_ONCE_MAX || !is_paced || !asked.is_due(now) || !presence.is_there(&gap.device) {
                continue;
            }
            if let Some(resend) = Resend::of(gap.boot, &asked.missing) {
                asked.tries += 1;
                asked.next = now + PAUSE * 2_u32.pow(asked.tries);
                self.devices.insert(gap.device.clone(), now);
                due.push((gap.device, resend));
            }
        }
        due
    }

    /// Remembers nothing of gaps that are closed.
    fn forget_all_but(&mut self, gaps: &[Gap]) {
        let open: HashSet<_> = gaps.iter().map(|gap| (&gap.device, gap.boot)).collect();
        self.asked.retain(|(device, boot), _| open.contains(&(device, *boot)));
        let devices: HashSet<_> = gaps.iter().map(|gap| &gap.device).collect();
        self.devices.retain(|device, _| devices.contains(device));
    }
}

impl Asked {
    /// Compares what is missing now with what was.
    fn look(&mut self, missing: Vec<(u64, u64)>, connections: u64, (after, now): (Duration, Instant)) {
        if missing != self.missing {
            let was_asked = self.tries > 0;
            let is_narrower = count(&missing) < count(&self.missing);
            if self.missing.is_empty() || is_narrower {
                // New, or numbers are coming by themselves.
                self.next = now + after;
            } else if was_asked {
                self.next = self.next.min(now + after.max(PAUSE));
            }
            self.tries = 0;
            self.missing = missing;
        }
        if connections != self.connections {
            self.connections = connections;
            self.tries = 0;
            // What it has not sent it sends now by itself.
            self.next = now + after;
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        self.tries < TRIES_MAX && now >= self.next
    }
}

/// How many numbers there are in ranges.
fn count(ranges: &[(u64, u64)]) -> u64 {
    ranges
        .iter()
        .fold(0, |sum, (from, to)| sum.saturating_add(to - from).saturating_add(1))
}

/// Ranges without the numbers of others.
fn without(ranges: &[(u64, u64)], others: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut left = ranges.to_vec();
    for (low, high) in others {
        let split = |(from, to): (u64, u64)| {
            let before = low.checked_sub(1).map(|end| (from, to.min(end)));
            let behind = high.checked_add(1).map(|begin| (from.max(begin), to));
            before.into_iter().chain(behind).filter(|(from, to)| from <= to)
        };
        let is_apart = |(from, to): &(u64, u64)| to < low || high < from;
        left = left
            .into_iter()
            .flat_map(|range| {
                let (whole, parts) = if is_apart(&range) {
                    (Some(range), None)
                } else {
                    (None, Some(split(range)))
                };
                whole.into_iter().chain(parts.into_iter().flatten())
            })
            .collect();
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        mqtt::presence::Arrival,
        outbox::{Way, tests::Home},
    };

    const AFTER: Duration = Duration::from_secs(5);
    const FRESH: Arrival = Arrival::Fresh(Way::Direct);

    fn boot(counter: u32) -> BootId {
        BootId { counter, random: 1 }
    }

    fn gap(missing: &[(u64, u64)]) -> Gap {
        Gap {
            device: "oximeter-1".parse().expect("good"),
            boot: boot(7),
            missing: missing.to_vec(),
        }
    }

    /// What is asked in each second in which the same gap is there.
    fn seconds(
        questions: &mut Questions,
        presence: &Presence,
        start: Instant,
        span: std::ops::Range<u64>,
        gap: &Gap,
    ) -> Vec<u64> {
        let asks = |s: &u64| {
            let now = start + Duration::from_secs(*s);
            !questions.due(vec![gap.clone()], presence, (AFTER, now)).is_empty()
        };
        span.filter(asks).collect()
    }

    fn presence(home: &Home) -> Presence {
        Presence::of(home.intake.clone(), Duration::from_secs(900))
    }

    #[tokio::test]
    async fn a_gap_is_asked_for_after_a_while_and_more_and_more_seldom() {
        let home = Home::open();
        let (presence, start) = (presence(&home), Instant::now());
        let mut questions = Questions::default();
        let open = gap(&[(4, 5)]);
        let asked = seconds(&mut questions, &presence, start, 0..100, &open);
        assert!(asked.is_empty(), "nobody is there");
        presence.stated(&open.device, br#"{"online":true}"#, FRESH);
        let asked = seconds(&mut questions, &presence, start, 100..10_000, &open);
        assert_eq!(asked, [105, 125, 165, 245, 405], "and then no more");
        // It misses something else: asked again.
        let wider = gap(&[(4, 5), (9, 9)]);
        let asked = seconds(&mut questions, &presence, start, 10_000..10_050, &wider);
        assert_eq!(asked.first(), Some(&10_000));
        // It connects anew: it may have what it had not.
        let asked = seconds(&mut questions, &presence, start, 20_000..30_000, &wider);
        assert_eq!(asked.len(), 3, "{asked:?}");
        presence.stated(&open.device, br#"{"online":true}"#, FRESH);
        let asked = seconds(&mut questions, &presence, start, 30_000..30_010, &wider);
        assert!(asked.is_empty(), "it was there all the time");
        presence.stated(&open.device, br#"{"online":false}"#, Arrival::Kept);
        presence.stated(&open.device, br#"{"online":true}"#, FRESH);
        let asked = seconds(&mut questions, &presence, start, 30_010..30_020, &wider);
        assert_eq!(asked, [30_015]);
        // Closed, it is forgotten.
        assert!(
            questions
                .due(Vec::new(), &presence, (AFTER, start + Duration::from_secs(40_000)))
                .is_empty()
        );
        assert!(questions.asked.is_empty() && questions.devices.is_empty());
    }

    #[tokio::test]
    async fn what_comes_by_itself_and_what_is_lost_is_not_asked_for() {
        let home = Home::open();
        let (presence, start) = (presence(&home), Instant::now());
        presence.stated(&gap(&[]).device, br#"{"online":true}"#, FRESH);
        let mut questions = Questions::default();
        for second in 0..600 {
            let draining = gap(&[(1 + second, 86_400)]);
            let asked = seconds(&mut questions, &presence, start, second..second + 1, &draining);
            assert!(asked.is_empty(), "each second brings one");
        }
        let stuck = gap(&[(600, 86_400)]);
        assert_eq!(seconds(&mut questions, &presence, start, 600..606, &stuck), [604]);
        let lost = br#"{"online":true,"lost":{"boot":"7-0000000000000001","ranges":[[600,86400]]}}"#;
        presence.stated(&stuck.device, lost, FRESH);
        assert!(seconds(&mut questions, &presence, start, 606..10_000, &stuck).is_empty());
    }

    #[tokio::test]
    async fn a_question_is_bounded_and_so_is_how_many_are_asked() {
        let ranges: Vec<_> = (0..500).map(|n| (n * 10 + 1, n * 10 + 5)).collect();
        let resend = Resend::of(boot(7), &ranges).expect("something");
        assert_eq!(resend.ranges.len(), RANGES_MAX);
        let resend = Resend::of(boot(7), &[(1, 10), (20, u64::MAX)]).expect("something");
        assert_eq!(resend.ranges, [(1, 10), (20, 20 + 990 - 1)]);
        assert_eq!(
            resend.text(),
            r#"{"resend":{"boot":"7-0000000000000001","ranges":[[1,10],[20,1009]]}}"#
        );
        assert_eq!(
            Resend::of(boot(7), &[(1, u64::MAX)]).expect("something").ranges,
            [(1, 1_000)]
        );
        assert_eq!(Resend::of(boot(7), &[]), None);
        // One device with many starts is asked for one at a time.
        let home = Home::open();
        let (presence, start) = (presence(&home), Instant::now());
        presence.stated(&gap(&[]).device, br#"{"online":true}"#, FRESH);
        let starts: Vec<_> = (0..100)
            .map(|n| Gap {
                boot: boot(n),
                ..gap(&[(1, 1)])
            })
            .collect();
        let mut questions = Questions::default();
        let mut due = |s| {
            questions
                .due(starts.clone(), &presence, (AFTER, start + Duration::from_secs(s)))
                .len()
        };
        assert_eq!([0, 5, 6, 15].map(&mut due), [0, 1, 0, 1]);
    }

    #[test]
    fn ranges_are_taken_from_ranges() {
        assert_eq!(without(&[(1, 10)], &[(3, 4), (9, 20)]), [(1, 2), (5, 8)]);
        assert_eq!(without(&[(1, 10), (20, 30)], &[(1, 10)]), [(20, 30)]);
        assert_eq!(without(&[(5, 5)], &[(6, 9), (1, 4)]), [(5, 5)]);
        assert_eq!(without(&[(0, u64::MAX)], &[(0, u64::MAX)]), []);
        assert_eq!(count(&[(0, u64::MAX), (1, 1)]), u64::MAX);
    }
}
