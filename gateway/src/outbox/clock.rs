//! What is known of the tick counter of one start of a device without a wall clock: the pair that took the least time.
//!
//! A message that was held back says nothing of the counter: its pair is as wrong as it is late, and nothing in it tells.
//! So a pair is used only when it is *live*: another message came that was later by the counter and by the gateway's clock
//! alike. Messages that were held back come faster than they were measured. A pair gives way to any that took less time,
//! and to one that is live and took hardly longer, since counters drift.
//!
//! What a device says of its counter when it connects, on its state topic, is such a pair too, and better than none: what it
//! measured without a connection comes next, and has no right times otherwise. Straight from its connection it is live by
//! itself, since DEVICES.md has it made after the CONNACK; through an outside broker it may have waited there, and has to be
//! proven. Nobody has signed it, so it counts only until signed messages prove each other, and is kept apart from them.

use record::{clock::Coincidence, observation::WALL_MS_MIN};
use serde::{Deserialize, Serialize};

/// By the counter, this much lies between two messages that prove each other live, at least.
const APART_MS: u64 = 1_000;
/// What clocks and ways may differ meanwhile, as a part of it.
const APART_PARTS: i128 = 10;

/// The best pair of a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Clock {
    best: Coincidence,
    /// Of a message before, against which the next is compared.
    last: Coincidence,
    is_live: bool,
}

impl Clock {
    /// Takes in the pair of a message; gives what is known after it.
    pub(super) fn after(known: Option<Self>, now: Coincidence) -> Option<Self> {
        if now.gateway_ms < WALL_MS_MIN {
            // A gateway that has no time itself cannot give one.
            return known;
        }
        let Some(known) = known else {
            return Some(Self {
                best: now,
                last: now,
                is_live: false,
            });
        };
        let apart = now.up_ms.saturating_sub(known.last.up_ms);
        let is_apart = apart >= APART_MS;
        let is_live = is_apart && prove_each_other(&known.last, &now);
        let is_better = now.delay_beside(&known.best) <= 0 || (is_live && now.is_no_later_than(&known.best));
        Some(Self {
            best: if is_better { now } else { known.best },
            last: if is_apart { now } else { known.last },
            is_live: known.is_live || is_live,
        })
    }

    /// The pair that readings are timed with, if it is live.
    pub(super) fn pair(self) -> Option<Coincidence> {
        self.is_live.then_some(self.best)
    }

    /// Whether something of it was read later than at a time.
    pub(super) fn is_after(self, now_ms: i64) -> bool {
        self.best.gateway_ms.max(self.last.gateway_ms) > now_ms
    }
}

/// How a state came to the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the device's own connection, just now.
    Direct,
    /// Through a broker that may have held it back.
    Relayed,
}

/// What a device said of its counter, unsigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stated {
    pair: Coincidence,
    is_live: bool,
}

impl Stated {
    /// Takes in what it says next; gives what is known after it.
    pub(super) fn after(known: Option<Self>, now: Coincidence, way: Way) -> Option<Self> {
        if now.gateway_ms < WALL_MS_MIN {
            return known;
        }
        let is_live = way == Way::Direct || known.is_some_and(|known| prove_each_other(&known.pair, &now));
        match known {
            // One that was held back does not spoil one that was not.
            Some(known) if known.is_live && !(is_live && now.is_no_later_than(&known.pair)) => Some(known),
            _ => Some(Self { pair: now, is_live }),
        }
    }

    /// A signed message came: the two may prove each other live.
    pub(super) fn meet(&mut self, signed: Coincidence) {
        self.is_live |= prove_each_other(&self.pair, &signed);
    }

    /// The pair that readings are timed with while signed messages have proven none: of those that are known the one that
    /// took less time.
    pub(super) fn pair(self, signed: Option<Clock>) -> Option<Coincidence> {
        let quicker = signed.map(|clock| clock.best);
        let quicker = quicker.filter(|best| best.delay_beside(&self.pair) < 0);
        self.is_live.then_some(quicker.unwrap_or(self.pair))
    }
}

/// Whether one came later than the other by the counter and by the gateway's clock alike.
fn prove_each_other(one: &Coincidence, other: &Coincidence) -> bool {
    let apart = one.up_ms.abs_diff(other.up_ms);
    apart >= APART_MS && one.delay_beside(other).abs() <= i128::from(apart) / APART_PARTS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::{
        CounterState, Measurement, Stored, Urgency, Verdict, now_ms,
        sequence::Sequences,
        tests::{Home, measured},
    };
    use ledger::admission::Submission;
    use record::{
        bundle::{Category, Entry, SealedBundle, SubjectKey, SubjectSecret},
        canonical::Digest,
        decimal::Decimal,
        ids::{BootId, ReadingId},
        observation::Observation,
        reading::{Reading, SignedReading, TimeQuality},
    };
    use std::time::{Duration, Instant};

    const BOOTED: i64 = 1_790_000_000_000;
    const DAY: u64 = 86_400_000;

    fn pair(up_ms: u64, late_ms: u64) -> Coincidence {
        Coincidence {
            gateway_ms: BOOTED + i64::try_from(up_ms + late_ms).expect("small"),
            up_ms,
        }
    }

    /// What is known after messages, each measured at `up_ms` and `late_ms` under way.
    fn after(messages: impl IntoIterator<Item = (u64, u64)>) -> Option<Coincidence> {
        let pairs = messages.into_iter().map(|(up, late)| pair(up, late));
        pairs.fold(None, Clock::after).and_then(Clock::pair)
    }

    #[test]
    fn two_live_messages_prove_each_other_and_the_quicker_one_is_used() {
        assert_eq!(after([(5_000, 40)]), None);
        assert_eq!(after([(5_000, 40), (5_500, 40)]), None, "too close to tell");
        assert_eq!(after([(5_000, 40), (6_000, 90)]), Some(pair(5_000, 40)));
        assert_eq!(after([(5_000, 90), (6_000, 40)]), Some(pair(6_000, 40)));
        assert_eq!(after([(5_000, 90), (6_000, 90), (7_000, 9_000)]), Some(pair(6_000, 90)));
    }

    #[test]
    fn what_was_held_back_is_never_live_and_does_not_spoil_what_is() {
        // Two days of readings, one a minute, handed in within seconds.
        let held_back = (0..2_880).map(|n| (n * 60_000, 2 * DAY - n * 60_000 + n * 5));
        assert_eq!(after(held_back.clone()), None);
        // A fast sensor, four a second.
        assert_eq!(after((0..400).map(|n| (n * 250, 100_000 - n * 250 + n * 5))), None);
        let before = [(1_000, 50), (2_000, 50)];
        let all = before.into_iter().chain(held_back.map(|(up, late)| (up + 3_000, late)));
        let used = after(all.clone()).expect("live");
        assert!(
            used.delay_beside(&pair(2_000, 50)).abs() <= 50,
            "no held back message is used that took longer"
        );
        let live_again = (1..60).map(|n| (2 * DAY + 20_000 + n * 1_000, 60));
        let used = after(all.chain(live_again)).expect("live");
        assert!(used.delay_beside(&pair(2_000, 50)).abs() <= 50);
    }

    #[test]
    fn a_counter_that_drifts_is_followed() {
        // 100 parts in a million slow: a message a minute for ten days.
        let messages = (0..14_400).map(|n| (n * 60_000, 50 + n * 6));
        let used = after(messages).expect("live");
        let truth = pair(14_399 * 60_000, 50 + 14_399 * 6);
        assert!(used.delay_beside(&truth).abs() < 50);
    }

    /// A message of a device without a clock, with what it and the gateway counted when it came.
    fn of_ticks(id: ReadingId, subject: &SubjectKey, now: Coincidence) -> Measurement {
        Measurement {
            id,
            subject: subject.clone(),
            entry: Entry::new(now.gateway_ms, SignedReading::receive(b"x").expect("small")),
            wall_ms: None,
            ticks_ms: Some(now.up_ms),
            urgency: Urgency::Live,
            is_wave: false,
        }
    }

    /// Sends a reading of the scale, received now and measured when its counter stood at `up_ms`.
    async fn send(home: &Home, seq: u64, up_ms: u64) {
        let reading = Reading {
            up_ms,
            wall: None,
            ..home
                .scale
                .unsigned(seq, vec![measured("29463-7", Decimal::whole(80), "kg")])
        };
        let measurement = Measurement {
            id: reading.id(),
            subject: home.scale.subject.clone(),
            entry: Entry::new(now_ms(), reading.sign(&home.scale.key)),
            wall_ms: None,
            ticks_ms: Some(up_ms),
            urgency: Urgency::Live,
            is_wave: false,
        };
        assert!(matches!(home.outbox.append(measurement).await, Ok(Verdict::Spooled(_))));
    }

    /// The times of all readings of the scale, in their order, and how good they are.
    fn times(home: &Home) -> Vec<(i64, TimeQuality)> {
        let tickets = home.outbox.tickets(0, 1_000).expect("reads");
        let entries = tickets.iter().flat_map(|ticket| {
            let Stored::Intact(bytes) = home.outbox.submission(ticket).expect("reads") else {
                panic!("not there")
            };
            let (_, payload) = Submission::decode(&bytes).expect("matched").into_parts();
            let sealed = SealedBundle::decode(&payload).expect("sealed");
            sealed
                .open(&home.sealer.network, &home.scale.secret)
                .expect("opens")
                .entries
        });
        entries
            .map(|entry| {
                let reading = entry.reading.decode(|_| Some(home.scale.key.public())).expect("signed");
                let one = Observation::of(&reading, entry.reception()).expect("good").remove(0);
                (one.effective_ms, one.time_quality)
            })
            .collect()
    }

    /// How far off a time may be on a busy machine; the time of receipt would be off by hours.
    const OFF_MS: i64 = 60_000;

    fn is_right(time: (i64, TimeQuality), expected_ms: i64) -> bool {
        time.1 == TimeQuality::Corrected && (time.0 - expected_ms).abs() < OFF_MS
    }

    #[tokio::test]
    async fn a_pair_survives_a_restart_and_travels_with_what_was_held_back() {
        let mut home = Home::open();
        let booted_ms = now_ms() - 2 * 86_400_000;
        let up_ms = || u64::try_from(now_ms() - booted_ms).expect("after the start");
        // Two that do not wait anywhere prove each other; on a busy machine one may wait.
        let mut live = 0;
        while !times(&home)
            .last()
            .is_some_and(|(_, quality)| *quality == TimeQuality::Corrected)
        {
            assert!(live < 60, "no two live messages in a minute");
            live += 1;
            send(&home, live, up_ms()).await;
            tokio::time::sleep(Duration::from_millis(APART_MS + 100)).await;
        }
        home.reopen().await;
        for (at, up_ms) in (1..).zip([20_000, 80_000, 140_000]) {
            send(&home, live + at, up_ms).await;
        }
        let times = times(&home);
        assert_eq!(times[0].1, TimeQuality::Relative);
        let held_back = &times[times.len() - 3..];
        for (time, up_ms) in held_back.iter().zip([20_000, 80_000, 140_000]) {
            assert!(is_right(*time, booted_ms + up_ms), "{time:?}");
        }
        assert_eq!(held_back[1].0 - held_back[0].0, 60_000, "one pair for all");
    }

    #[tokio::test]
    async fn what_a_device_measured_before_it_ever_connected_has_its_times_by_its_state() {
        let home = Home::open();
        let booted_ms = now_ms() - 2 * 86_400_000;
        // On a busy machine a state may wait for the writer, and is told again, as devices do.
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut seq = 0;
        while !times(&home)
            .last()
            .is_some_and(|time| is_right(*time, booted_ms + 60_000))
        {
            assert!(Instant::now() < deadline, "{:?}", times(&home));
            let now_ms = now_ms();
            home.outbox.state(CounterState {
                device: home.scale.id.clone(),
                boot: home.scale.unsigned(1, vec![]).boot,
                pair: Coincidence {
                    gateway_ms: now_ms,
                    up_ms: u64::try_from(now_ms - booted_ms).expect("positive"),
                },
                way: Way::Direct,
            });
            seq += 1;
            send(&home, seq, 60_000).await;
        }
    }

    #[test]
    fn pairs_are_forgotten_on_the_disk_too() {
        let id = |seq| ReadingId {
            device: "scale-1".parse().expect("good"),
            boot: BootId { counter: 1, random: 2 },
            seq,
        };
        let mut all = Sequences::default();
        let (_, subject) = SubjectSecret::generate(Category::Vitals, 1).expect("random numbers");
        let timed = |all: &mut Sequences, seq: u64| {
            let now = pair(seq * 1_000, 10);
            all.record(&id(seq), Digest::ZERO);
            let measurement = of_ticks(id(seq), &subject, now);
            all.clock(&measurement, false).is_some()
        };
        assert_eq!([1, 2].map(|seq| timed(&mut all, seq)), [false, true]);
        drop(all.take_changes());
        all.forget_clocks();
        let kept = all.take_changes();
        assert_eq!(kept.streams.len(), 1, "the disk is told");
        let mut all = Sequences::of(kept.streams, vec![]);
        assert_eq!([3, 4].map(|seq| timed(&mut all, seq)), [false, true]);
    }

    /// What readings are timed with that come after a state, each signed, measured at `up_ms` and `late_ms` under way.
    fn after_state(state: (u64, u64), way: Way, readings: &[(u64, u64)]) -> Vec<Option<Coincidence>> {
        let mut stated = Stated::after(None, pair(state.0, state.1), way).expect("there is a date");
        let mut clock = None;
        let timed = readings.iter().map(|(up_ms, late_ms)| {
            let now = pair(*up_ms, *late_ms);
            clock = Clock::after(clock, now);
            let signed = clock.and_then(Clock::pair);
            signed.or_else(|| {
                stated.meet(now);
                stated.pair(clock)
            })
        });
        timed.collect()
    }

    #[test]
    fn what_comes_first_after_a_connection_has_its_time_by_the_state() {
        // Two hours were measured without a connection; then it connects, and sends the oldest first.
        let up = 7_200_000;
        let stored: Vec<_> = (0..100).map(|n| (n * 60_000, up - n * 60_000 + n * 5)).collect();
        let all = after_state((up, 30), Way::Direct, &stored);
        assert_eq!(all, vec![Some(pair(up, 30)); 100]);
        // Through a broker that may have held the state back nothing is believed until something live comes.
        let all = after_state((up, 30), Way::Relayed, &stored);
        assert_eq!(all, vec![None; 100]);
        let live: Vec<_> = [(up + 5_000, 40)].into_iter().chain(stored).collect();
        assert_eq!(
            after_state((up, 30), Way::Relayed, &live),
            vec![Some(pair(up, 30)); 101]
        );
    }

    #[test]
    fn a_state_that_was_held_back_gives_no_time_and_one_that_lies_gives_way() {
        let up = 7_200_000;
        let held_back = after_state(
            (up, 3_600_000),
            Way::Relayed,
            &[(up + 5_000, 3_595_500), (up + 9_000, 3_591_900)],
        );
        assert_eq!(held_back, [None, None], "as late as it is, beside what is late alike");
        // Even one that claims to be straight from the device gives way to a message that took less time,
        let fresh = (up + 3_600_000, 50);
        assert_eq!(
            after_state((up, 3_600_000), Way::Direct, &[fresh]),
            [Some(pair(fresh.0, fresh.1))]
        );
        // and one that makes the device boot too early, to two that are signed and live.
        let early = Coincidence {
            gateway_ms: BOOTED + 10_000,
            up_ms: 90_000_000,
        };
        let stated = Stated::after(None, early, Way::Direct).expect("there is a date");
        let first = Clock::after(None, pair(20_000, 40));
        assert_eq!(stated.pair(first), Some(early));
        let second = Clock::after(first, pair(30_000, 40)).and_then(Clock::pair);
        assert_eq!(second, Some(pair(30_000, 40)));
    }

    #[test]
    fn a_state_that_comes_late_does_not_spoil_what_is_known() {
        let known = Stated::after(None, pair(10_000, 30), Way::Direct);
        assert_eq!(Stated::after(known, pair(20_000, 40_000), Way::Direct), known);
        assert_eq!(Stated::after(known, pair(20_000, 40_000), Way::Relayed), known);
        let next = Stated::after(known, pair(600_000, 60), Way::Direct).expect("known");
        assert_eq!(next.pair(None), Some(pair(600_000, 60)), "counters drift");
        // Two that a broker passed on at once prove each other.
        let one = Stated::after(None, pair(10_000, 30), Way::Relayed);
        assert_eq!(one.and_then(|one| one.pair(None)), None);
        let two = Stated::after(one, pair(20_000, 60), Way::Relayed);
        assert_eq!(two.and_then(|two| two.pair(None)), Some(pair(20_000, 60)));
    }

    #[test]
    fn what_nobody_signed_makes_no_start_known_and_is_of_one_start_alone() {
        let (device, boot) = ("scale-1".parse().expect("good"), BootId { counter: 1, random: 2 });
        let mut all = Sequences::default();
        all.state(device, boot, (pair(7_200_000, 30), Way::Direct));
        assert!(all.take_changes().streams.is_empty());
        let (_, subject) = SubjectSecret::generate(Category::Vitals, 1).expect("random numbers");
        let mut timed = |random, has_waited| {
            let boot = BootId { counter: 1, random };
            let id = ReadingId {
                device: "scale-1".parse().expect("good"),
                boot,
                seq: 1,
            };
            all.record(&id, Digest::ZERO);
            let now = pair(1_000, 7_199_000);
            let measurement = of_ticks(id, &subject, now);
            all.clock(&measurement, has_waited)
        };
        assert_eq!(timed(2, false), Some(pair(7_200_000, 30)));
        assert_eq!(timed(2, true), Some(pair(7_200_000, 30)));
        assert_eq!(timed(3, false), None);
    }

    #[test]
    fn what_waited_here_is_no_pair_and_a_clock_that_went_back_makes_all_wrong() {
        let mut all = Sequences::default();
        let (_, subject) = SubjectSecret::generate(Category::Vitals, 1).expect("random numbers");
        let timed = |all: &mut Sequences, seq: u64, has_waited| {
            let boot = BootId { counter: 1, random: 2 };
            let id = ReadingId {
                device: "scale-1".parse().expect("good"),
                boot,
                seq,
            };
            all.record(&id, Digest::ZERO);
            let now = pair(seq * 1_000, 10);
            let measurement = of_ticks(id, &subject, now);
            all.clock(&measurement, has_waited).is_some()
        };
        let said = [(1, false), (2, true), (3, true), (4, false)].map(|(seq, waited)| timed(&mut all, seq, waited));
        assert_eq!(said, [false, false, false, true]);
        all.forget_clocks_after(BOOTED + 4_010);
        assert!(timed(&mut all, 5, true), "nothing is later than that");
        all.forget_clocks_after(BOOTED + 4_009);
        assert!(!timed(&mut all, 6, true));
    }

    #[test]
    fn a_gateway_without_a_date_gives_no_time() {
        let early = |up_ms| Coincidence {
            gateway_ms: 5_000,
            up_ms,
        };
        let known = [1_000, 2_000].map(early).into_iter().fold(None, Clock::after);
        assert_eq!(known, None);
        assert_eq!(Stated::after(None, early(1_000), Way::Direct), None);
    }
}
