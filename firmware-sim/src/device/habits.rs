//! What is special about a device: its faults, its clock, its alarms, what it stored before it had a connection.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use record::reading::TimeQuality;
use serde::{Deserialize, Serialize};

use crate::{
    fault::Faults,
    signal::{Message, Signal, Stream},
};

/// What a device knows of the time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Clock {
    /// It is set from a time service.
    #[default]
    Synced,
    /// It knows the seconds since it was started, and nothing else.
    None,
}

/// What is special about a device.
#[derive(Debug)]
pub(crate) struct Habits {
    /// The name of its profile, if it has one.
    pub(crate) profile: Option<Arc<str>>,
    pub(crate) faults: Faults,
    pub(crate) clock: Clock,
    /// The part of its single values that are alarms.
    pub(crate) events: f64,
    /// Whether it seals, if there is something to seal to.
    pub(crate) seals: bool,
    pub(crate) stored: Option<Stored>,
    /// Messages of an earlier capture that it publishes again.
    pub(crate) replay: VecDeque<(Stream, Bytes)>,
}

/// What a device measured before it had a connection, made when it is sent: days of it need no memory.
#[derive(Debug)]
pub(crate) struct Stored {
    /// The same series as the device's own, from its beginning.
    pub(crate) signal: Box<dyn Signal>,
    /// Steps that were measured.
    pub(crate) steps: u64,
    /// Time between two of them.
    pub(crate) period: Duration,
    /// Steps that are already in the journal.
    taken: u64,
    seq: u64,
    /// The last number; known when the device starts.
    upto: u64,
}

/// A stored message, when it was measured.
#[derive(Debug)]
pub(crate) struct Remembered {
    pub(crate) seq: u64,
    pub(crate) message: Message,
    /// Since the device was started.
    pub(crate) up: Duration,
}

impl Stored {
    /// So many steps of a series.
    pub(crate) const fn of(signal: Box<dyn Signal>, steps: u64, period: Duration) -> Self {
        Self {
            signal,
            steps,
            period,
            taken: 0,
            seq: 0,
            upto: 0,
        }
    }

    /// Whether a number is still to be sent.
    pub(crate) fn has(&self, seq: u64) -> bool {
        (self.seq + 1..=self.upto).contains(&seq)
    }

    /// How long the device had been running when it got a connection.
    pub(crate) fn span(&self) -> Duration {
        span(self.period, self.steps)
    }

    /// The messages of the next step; none when all are taken.
    pub(crate) fn step(&mut self) -> Vec<Remembered> {
        if self.taken == self.steps {
            return Vec::new();
        }
        let up = span(self.period, self.taken);
        self.taken += 1;
        let remembered = |(seq, message)| Remembered { seq, message, up };
        let messages: Vec<_> = (self.seq + 1..).zip(self.signal.step()).map(remembered).collect();
        self.seq += messages.len() as u64;
        messages
    }
}

fn span(period: Duration, steps: u64) -> Duration {
    period.mul_f64(steps as f64)
}

impl Habits {
    /// Moves the device's own signal behind what is stored, and returns how many messages that is.
    pub(crate) fn skip_stored(&mut self, signal: &mut dyn Signal) -> u64 {
        let Some(stored) = &mut self.stored else { return 0 };
        stored.upto = (0..stored.steps).map(|_| signal.step().len() as u64).sum();
        stored.upto
    }

    /// What it says of its clock: the wall time and how good it is.
    pub(crate) const fn time(&self, wall_ms: i64) -> (Option<i64>, TimeQuality) {
        match self.clock {
            Clock::Synced => (Some(wall_ms), TimeQuality::Synced),
            Clock::None => (None, TimeQuality::Relative),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fault, signal::Library};

    #[test]
    fn stored_and_live_messages_are_one_series_without_a_gap() {
        let label = "ecg-mitbih-208";
        let open = || Library::embedded().open(label).expect("known").1;
        let mut habits = Habits {
            profile: None,
            faults: fault::Config::default().faults().expect("good"),
            clock: Clock::None,
            events: 0.0,
            seals: true,
            stored: Some(Stored::of(open(), 20, Duration::from_secs(1))),
            replay: VecDeque::new(),
        };
        let mut live = open();
        let skipped = habits.skip_stored(&mut *live);
        let has = |seq| habits.stored.as_ref().is_some_and(|stored| stored.has(seq));
        assert!(has(1) && has(skipped) && !has(skipped + 1));
        let stored = habits.stored.as_mut().expect("just put there");
        let mut remembered: Vec<_> = std::iter::repeat_with(|| stored.step()).take(25).flatten().collect();
        assert_eq!(remembered.len() as u64, skipped);
        assert_eq!(
            remembered.last().map(|last| (last.seq, last.up)),
            Some((skipped, Duration::from_secs(19)))
        );
        let mut expected = Library::embedded().expected(label).expect("known");
        for one in remembered.drain(..) {
            assert_eq!(Some(one.message), expected.next());
        }
        assert_eq!(live.step().into_iter().next(), expected.next());
    }
}
