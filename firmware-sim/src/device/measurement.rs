//! What a device measures, and what it had stored: numbered, timed, signed, and put into the journal.

use std::time::Duration;

use bytes::Bytes;
use record::reading::{Reading, VERSION};

use super::{
    Device, Note, Stored,
    account::acknowledged_line,
    habits::Remembered,
    journal::{Class, Entry},
};
use crate::{
    fault::{self, Fault},
    signal::{Message, Stream},
};

/// Messages that were stored, or are replayed, which wait in the journal at a time; the others are made when they have room.
const STORED_WAITING_MAX: usize = 16;

impl Device {
    /// One step of the signal: each message becomes a numbered, signed reading in the journal.
    pub(super) async fn measure(&mut self) {
        for mut message in self.signal.step() {
            self.seq += 1;
            let fault = self.habits.faults.strike(rand::random());
            if fault == Some(Fault::Drop) {
                self.leave_out("dropped").await;
                continue;
            }
            if message.stream == Stream::Reading && rand::random::<f64>() < self.habits.events {
                message.stream = Stream::Event;
            }
            let class = if message.stream == Stream::Event {
                Class::Alarm
            } else {
                Class::Live
            };
            let (started, before) = self.started;
            let reading = self.reading(self.seq, before + started.elapsed(), &message);
            let entry = self.signed(reading, (message.stream, class), fault);
            if fault == Some(Fault::Forget) {
                self.forget_to_send(entry).await;
            } else if self.journal.keep(entry).is_err() {
                self.leave_out("no-room").await;
            }
        }
    }

    /// The last number is used and will never be sent.
    async fn leave_out(&self, why: &str) {
        self.note(Note::Unkept).await;
        self.miss((self.seq, self.seq), why).await;
    }

    /// What was stored, or is to be replayed, goes to the journal as far as it has room for it.
    pub(super) fn refill(&mut self) {
        while self.journal.has_room_for_stored(STORED_WAITING_MAX) {
            let stored = self.habits.stored.as_mut().map(Stored::step).unwrap_or_default();
            let entries: Vec<_> = if stored.is_empty() {
                let replayed = self.habits.replay.pop_front();
                let entry = |(stream, payload)| Entry::new((0, stream, Class::Replay), payload, String::new(), None);
                replayed.into_iter().map(entry).collect()
            } else {
                let sign = |one: Remembered| {
                    let reading = self.reading(one.seq, one.up, &one.message);
                    self.signed(reading, (one.message.stream, Class::Stored), None)
                };
                stored.into_iter().map(sign).collect()
            };
            if entries.is_empty() {
                return;
            }
            for entry in entries {
                // There is room for one; a step has two at most, and the journal keeps half of its room for what is live.
                let _in_any_case = self.journal.keep(entry);
            }
        }
    }

    /// What is stored and not sent yet is lost with the device.
    pub(super) async fn forget_stored(&mut self) {
        let left = std::iter::from_fn(|| {
            let step = self.habits.stored.as_mut()?.step();
            (!step.is_empty()).then_some(step)
        });
        let numbers: Vec<_> = left.flatten().map(|one| one.seq).collect();
        if let (Some(from), Some(to)) = (numbers.first(), numbers.last()) {
            self.miss((*from, *to), "not-sent").await;
        }
    }

    /// What is measured, at a time since the device was started.
    pub(super) fn reading(&self, seq: u64, up: Duration, message: &Message) -> Reading {
        let (started, before) = self.started;
        let ago = (before + started.elapsed()).saturating_sub(up);
        // Six hundred million years fit.
        let (up_ms, ago_ms) = (up.as_millis() as u64, ago.as_millis() as i64);
        let (wall, time_quality) = self.habits.time(jiff::Timestamp::now().as_millisecond() - ago_ms);
        Reading {
            v: VERSION,
            device: self.id.clone(),
            boot: self.boot,
            seq,
            up_ms,
            wall,
            time_quality,
            observations: message.observations.clone(),
        }
    }

    pub(super) fn signed(&self, reading: Reading, (stream, class): (Stream, Class), fault: Option<Fault>) -> Entry {
        let (seq, line) = (reading.seq, acknowledged_line(&reading));
        let payload = Bytes::from(self.sealed(fault::sign(reading, &self.key, fault), stream, fault));
        Entry::new((seq, stream, class), payload, line, fault)
    }
}
