//! What is known of the tick counter of one start of a device without a wall clock: the pair that took the least time.
//!
//! A message that was held back says nothing of the counter: its pair is as wrong as it is late, and nothing in it tells.
//! So a pair is used only when it is *live*: another message came that was later by the counter and by the gateway's clock
//! alike. Messages that were held back come faster than they were measured. A pair gives way to any that took less time,
//! and to one that is live and took hardly longer, since counters drift.

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
        let is_live = is_apart && now.delay_beside(&known.last).abs() <= i128::from(apart) / APART_PARTS;
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::{
        Measurement, Stored, Urgency, Verdict,
        sequence::Sequences,
        tests::{Home, measured},
    };
    use ledger::admission::Submission;
    use record::{
        bundle::{Category, Entry, SealedBundle, SubjectSecret},
        canonical::Digest,
        decimal::Decimal,
        ids::{BootId, ReadingId},
        observation::Observation,
        reading::{Reading, SignedReading, TimeQuality},
    };

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

    #[tokio::test]
    async fn a_pair_survives_a_restart_and_travels_with_what_was_held_back() {
        let mut home = Home::open();
        let send = async |home: &Home, seq, pair: Coincidence| {
            let reading = Reading {
                up_ms: pair.up_ms,
                wall: None,
                ..home
                    .scale
                    .unsigned(seq, vec![measured("29463-7", Decimal::whole(80), "kg")])
            };
            let measurement = Measurement {
                id: reading.id(),
                subject: home.scale.subject.clone(),
                entry: Entry::new(pair.gateway_ms, reading.sign(&home.scale.key)),
                wall_ms: None,
                ticks_ms: Some(pair.up_ms),
                urgency: Urgency::Live,
                is_wave: false,
            };
            assert!(matches!(home.outbox.append(measurement).await, Ok(Verdict::Spooled(_))));
        };
        for (seq, (up, late)) in [(1, (5_000, 30)), (2, (9_000, 20))] {
            send(&home, seq, pair(up, late)).await;
        }
        home.reopen().await;
        for (seq, up) in [(3, 20_000), (4, 80_000), (5, 140_000)] {
            send(&home, seq, pair(up, 2 * DAY - up)).await;
        }
        let tickets = home.outbox.tickets(0, 9).expect("reads");
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
        let times: Vec<_> = entries
            .map(|entry| {
                let reading = entry.reading.decode(|_| Some(home.scale.key.public())).expect("signed");
                let one = Observation::of(&reading, entry.reception()).expect("good").remove(0);
                (one.effective_ms - BOOTED, one.time_quality)
            })
            .collect();
        let corrected = |up: i64| (up + 20, TimeQuality::Corrected);
        let expected = [
            (5_030, TimeQuality::Relative),
            corrected(9_000),
            corrected(20_000),
            corrected(80_000),
        ];
        assert_eq!((&times[..4], times[4]), (&expected[..], corrected(140_000)));
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
            let reading = SignedReading::receive(b"x").expect("small");
            all.record(&id(seq), Digest::ZERO);
            let measurement = Measurement {
                id: id(seq),
                subject: subject.clone(),
                entry: Entry::new(now.gateway_ms, reading),
                wall_ms: None,
                ticks_ms: Some(now.up_ms),
                urgency: Urgency::Live,
                is_wave: false,
            };
            all.clock(&measurement).is_some()
        };
        assert_eq!([1, 2].map(|seq| timed(&mut all, seq)), [false, true]);
        drop(all.take_changes());
        all.forget_clocks();
        let kept = all.take_changes();
        assert_eq!(kept.streams.len(), 1, "the disk is told");
        let mut all = Sequences::of(kept.streams, vec![]);
        assert_eq!([3, 4].map(|seq| timed(&mut all, seq)), [false, true]);
    }

    #[test]
    fn a_gateway_without_a_date_gives_no_time() {
        let early = |up_ms| Coincidence {
            gateway_ms: 5_000,
            up_ms,
        };
        let known = [1_000, 2_000].map(early).into_iter().fold(None, Clock::after);
        assert_eq!(known, None);
    }
}
