//! A device behind an outside broker waits for the gateway: what is durable, what is refused, and what the broker has lost.

use tokio::time;

use super::{
    Device, Note,
    receipt::{Progress, Refusal},
};

impl Device {
    /// The gateway says what it has: what the broker took before that, and the gateway has not, the broker has lost.
    pub(super) async fn durable(&mut self, progress: &Progress) {
        if !progress.is_of(self.boot) {
            return;
        }
        self.questions.answered();
        let mut newest = None;
        for seq in self.journal.numbers(|entry| progress.covers(entry.seq)) {
            newest = self.acknowledged(seq).await.max(newest);
        }
        if let Some(newest) = newest {
            self.journal.lost(newest);
        }
    }

    /// The gateway refuses a reading: nothing more to send.
    pub(super) async fn refused(&mut self, refusal: &Refusal) {
        let boot = self.boot;
        for seq in self
            .journal
            .numbers(|entry| refusal.means((boot, entry.seq), &entry.payload))
        {
            self.journal.settle(seq);
            tracing::warn!(device = %self.id, %boot, seq, reason = refusal.reason, "a reading is refused");
            self.note(Note::Refused).await;
        }
    }

    /// Asks what became of what the broker has, if anything waits there.
    pub(super) fn question(&mut self) {
        if self.journal.question() {
            self.questions.ask();
        }
    }

    /// When it asks next.
    pub(super) fn question_at(&self) -> Option<time::Instant> {
        let due = self.questions.due(self.journal.handed_since());
        due.map(time::Instant::from_std)
    }
}
