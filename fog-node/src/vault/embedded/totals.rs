//! What the embedded store says of all its payloads together, and the room that removed ones have left.

use super::{Embedded, Shelf, names};
use crate::vault::{Error, file::File, trouble::guarded};

/// A shorter file is not made shorter.
const COMPACT_BYTES_MIN: u64 = 64 << 20;

impl Embedded {
    /// SHA-256 of every payload, in order.
    pub(in crate::vault) async fn names(&self) -> Result<Vec<[u8; 32]>, Error> {
        self.blocking(names::list).await
    }

    /// Bytes of all payloads.
    pub(in crate::vault) async fn bytes(&self) -> Result<u64, Error> {
        self.blocking(File::bytes).await
    }

    /// The height up to which a pass of the scrub has come.
    pub(in crate::vault) async fn scrubbed(&self) -> Result<u64, Error> {
        self.blocking(File::scrubbed).await
    }

    /// Notes how far a pass of the scrub has come.
    pub(in crate::vault) async fn note_scrubbed(&self, height: u64) -> Result<(), Error> {
        self.blocking(move |file| file.note_scrubbed(height)).await
    }

    /// The height up to which every payload that the chain names was held.
    pub(in crate::vault) async fn retained(&self) -> Result<u64, Error> {
        self.blocking(|file| file.retained()).await
    }

    /// Notes that every payload up to a height is held.
    pub(in crate::vault) async fn note_retained(&self, height: u64) -> Result<(), Error> {
        self.blocking(move |file| file.note_retained(height)).await
    }
}

/// A file that cannot be made shorter serves as it is.
pub(super) fn give_back(shelf: &Shelf) {
    let file = &shelf.file;
    match guarded(|| file.give_back(COMPACT_BYTES_MIN, file.with(|database| shelf.packs.bytes(database))?)) {
        Ok(Some((before, after))) => tracing::info!(before, after, "the vault's file was compacted"),
        Ok(None) => {}
        Err(error) => {
            tracing::warn!(%error, "the vault's file could not be compacted");
            // What redb has in memory may be half changed; who uses the file next says what is wrong with it.
            let _reopened = file.reopen(false);
        }
    }
}
