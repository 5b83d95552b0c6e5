//! What keeps a store from answering for a while, and what a failure of redb means: no space, a corrupt file, a bad disk.

use std::{io, sync::Arc};

use super::kubo;
use crate::containment::contained;

/// Why the store cannot be asked now; it resumes by itself.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Trouble {
    /// The disk has no space, or less than its reserve.
    #[error("the disk of this node is full, it keeps nothing new until there is room; hand it to another node")]
    DiskFull,
    /// What was removed is there again, or still.
    #[error("what was removed from the vault lies there again; it is removed once more")]
    StillThere,
    /// The daemon that keeps the payloads does not do what it is asked.
    #[error("the vault's daemon: {0}; the vault resumes by itself")]
    Daemon(#[source] Arc<kubo::Failure>),
}

/// No space, or the file has to be opened anew since there was none, or since redb panicked in another thread.
pub(super) fn is_full(error: &redb::Error) -> bool {
    match error {
        redb::Error::Io(e) => matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded),
        redb::Error::PreviousIo | redb::Error::LockPoisoned(_) => true,
        _ => false,
    }
}

/// Calls into redb; a panic of it is a corrupt file.
pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, redb::Error> {
    contained(work).unwrap_or_else(|| Err(redb::Error::Corrupted("redb panicked over the file".to_owned())))
}
