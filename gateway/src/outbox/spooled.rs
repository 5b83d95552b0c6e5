//! How much is spooled: counted with each bundle that comes or goes, so that nobody reads the queue for it.

use super::store::Ticket;

/// What is not final, counted.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spooled {
    pub(super) bundles: u64,
    pub(super) readings: u64,
    pub(super) bytes: u64,
}

impl Spooled {
    pub(super) fn add(&mut self, ticket: &Ticket) {
        self.bundles += 1;
        self.readings += u64::from(ticket.readings);
        self.bytes += ticket.bytes;
    }

    /// Takes out what was added before.
    pub(super) fn remove(&mut self, ticket: &Ticket) {
        self.bundles -= 1;
        self.readings -= u64::from(ticket.readings);
        self.bytes -= ticket.bytes;
    }
}
