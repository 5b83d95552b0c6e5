//! A device behind an outside broker waits for the gateway: what is durable, what is refused, and what the broker has lost.

use tokio::time;

use super::{
    Device, NOT_BELIEVED,
    receipt::{Progress, Refusal},
};

/// "Payload format invalid": the message is the device's, and at fault.
const AT_FAULT: u8 = 0x99;

impl Device {
    /// The gateway says what it has; if it answers a question, what it had to come across before is lost.
    pub(super) async fn durable(&mut self, progress: &Progress) {
        if !progress.is_of(self.boot) {
            return;
        }
        for ticket in self.journal.tickets(|entry| progress.covers(entry.seq)) {
            self.acknowledged(ticket).await;
        }
        if let Some(asked) = self.questions.answered(progress) {
            self.journal.lost(asked);
        }
    }

    /// The gateway refuses a reading: nothing more to send.
    pub(super) async fn told(&mut self, refusal: &Refusal) {
        let boot = self.boot;
        let meant = self
            .journal
            .tickets(|entry| refusal.means((boot, entry.seq), &entry.payload));
        for ticket in meant {
            if let Some(entry) = self.journal.settle(ticket) {
                self.refused(entry, code(&refusal.reason)).await;
            }
        }
    }

    /// Asks what became of what the broker has, if anything waits there.
    pub(super) fn question(&mut self) {
        if let Some(seq) = self.journal.question() {
            self.questions.ask(seq);
        }
    }

    /// When it asks next.
    pub(super) fn question_at(&self) -> Option<time::Instant> {
        let due = self.questions.due(self.journal.handed_since());
        due.map(time::Instant::from_std)
    }
}

/// The code with which the embedded broker refuses for this reason.
fn code(reason: &str) -> u8 {
    match reason {
        "unknown-device" | "wrong-signature" | "wrong-topic" | "revoked" => NOT_BELIEVED,
        _ => AT_FAULT,
    }
}
