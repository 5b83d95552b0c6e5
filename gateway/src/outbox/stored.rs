//! A bundle's bytes as they were read back: hashed again, and the signature over them verified, before anybody gets them.

use ledger::admission::Submission;
use record::signature::PublicKey;

use super::Ticket;

/// A bundle's bytes as they were read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stored {
    /// Those that were sealed and signed.
    Intact(Vec<u8>),
    /// Others: they must not be sent.
    Damaged,
    /// None: the bundle was forgotten or set aside, or the outbox is closed.
    Gone,
}

impl Stored {
    /// What was read back for a ticket, signed by this author or damaged.
    pub(super) fn checked(bytes: Vec<u8>, ticket: &Ticket, author: &PublicKey) -> Self {
        let is_intact = Submission::decode(&bytes).is_ok_and(|submission| {
            submission.commitment().bundle == ticket.bundle && submission.transaction().is_signed_by(author)
        });
        if is_intact { Self::Intact(bytes) } else { Self::Damaged }
    }
}
