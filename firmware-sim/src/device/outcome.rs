//! What becomes of a reading in the end: it is acknowledged, refused for good, or can be with nobody.

use super::{
    Device, NOT_BELIEVED, Note,
    account::{missing_line, refused_line},
    journal::{Class, Entry},
};
use crate::fault::Fault;

impl Device {
    pub(super) async fn taken(&mut self, entry: Entry) {
        if entry.class == Class::Replay {
            return self.note(Note::Replayed { is_unexpected: false }).await;
        }
        if entry.fault == Some(Fault::Replay) {
            let again = Entry::new(
                (entry.seq, entry.stream, Class::Replay),
                entry.payload.clone(),
                String::new(),
                None,
            );
            // Without room there is no replay: what is measured now goes first.
            let _no_room = self.journal.keep(again);
        }
        self.keep_acknowledged(&entry).await;
        let waited = entry.waited();
        let is_unexpected = entry.fault.is_some_and(Fault::must_be_refused);
        let line = entry.line;
        self.note(Note::Acknowledged {
            line,
            waited,
            profile: self.habits.profile.clone(),
            is_unexpected,
        })
        .await;
    }

    pub(super) async fn refused(&self, entry: Entry, code: u8) {
        if entry.class == Class::Replay {
            return self.note(Note::Replayed { is_unexpected: true }).await;
        }
        let (seq, is_expected) = (entry.seq, entry.fault.is_some_and(Fault::must_be_refused));
        if is_expected {
            tracing::debug!(device = %self.id, boot = %self.boot, seq, code, "a reading is refused, as it should be");
        } else {
            tracing::warn!(device = %self.id, boot = %self.boot, seq, code, "a reading is refused");
        }
        if code == NOT_BELIEVED || entry.fault.is_some_and(Fault::hides_number) {
            self.miss((seq, seq), "not-believed").await;
        }
        let line = refused_line((&self.id, self.boot, seq), code, is_expected);
        self.note(Note::Refused {
            line,
            is_unexpected: !is_expected,
        })
        .await;
    }

    pub(super) async fn miss(&self, range: (u64, u64), why: &str) {
        self.note(Note::Missing(missing_line((&self.id, self.boot), range, why)))
            .await;
    }
}
