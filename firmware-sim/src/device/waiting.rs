//! A device behind an outside broker waits for the gateway: what is durable, what is refused, and what the broker has lost.

use tokio::time;

use super::{
    Device, NOT_BELIEVED,
    receipt::{Progress, Refusal},
};

/// "Payload format invalid": the message is the device's, and at fault.
const AT_FAULT: u8 = 0x99;

impl Device {
    /// The gateway says what it has: what the broker took before that, and the gateway has not, the broker has lost.
    pub(super) async fn durable(&mut self, progress: &Progress) {
        if !progress.is_of(self.boot) {
            return;
        }
        self.questions.answered();
        let mut newest = None;
        for ticket in self.journal.tickets(|entry| progress.covers(entry.seq)) {
            newest = self.acknowledged(ticket).await.max(newest);
        }
        if let Some(newest) = newest {
            self.journal.lost(newest);
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

/// The code with which the embedded broker refuses for this reason.
fn code(reason: &str) -> u8 {
    match reason {
        "unknown-device" | "wrong-signature" | "not-opened" | "wrong-topic" | "revoked" | "unassigned" => NOT_BELIEVED,
        _ => AT_FAULT,
    }
}
