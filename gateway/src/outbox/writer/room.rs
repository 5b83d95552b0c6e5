//! What the writer does about room: whom it refuses, and which notes wait for the disk.

use std::mem;

use super::{Batch, Measurement, NOTES_MAX, Shortage, Urgency, Writer};

impl Writer {
    /// All bytes that count towards the marks, with so many more.
    pub(super) fn bytes_with(&self, more_bytes: u64) -> u64 {
        self.spooled.bytes + self.aside.bytes() + more_bytes
    }

    pub(super) fn full(&mut self, more_bytes: u64) -> Option<Shortage> {
        self.space.refuses(self.bytes_with(more_bytes))
    }

    pub(super) fn takes(&mut self, measurement: &Measurement, more_bytes: u64) -> bool {
        let bytes = self.bytes_with(more_bytes);
        if measurement.urgency == Urgency::Alarm {
            return self.space.refuses(bytes).is_none() || self.space.bears_an_alarm(bytes);
        }
        if measurement.is_wave && self.space.refuses_a_wave(bytes).is_some() {
            return false;
        }
        self.space.refuses(bytes).is_none()
    }

    pub(super) fn has_notes(&self) -> bool {
        self.notes.finals.len() + self.notes.refused.len() > 0
    }

    /// Keeps notes back while the disk is so full that a commit might fail: nobody waits for them.
    pub(super) fn hold_notes(&mut self, batch: &mut Batch) {
        self.notes.finals.append(&mut batch.finals);
        self.notes.refused.append(&mut batch.refused);
        if batch.writes() || (self.has_notes() && self.space.bears_a_commit()) {
            mem::swap(&mut batch.finals, &mut self.notes.finals);
            mem::swap(&mut batch.refused, &mut self.notes.refused);
        }
        self.notes.finals.truncate(NOTES_MAX);
        self.notes.refused.truncate(NOTES_MAX);
    }
}
