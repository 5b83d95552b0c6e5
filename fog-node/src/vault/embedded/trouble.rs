//! What a failure of the store's library means: no space, a corrupt file, or a disk that fails.

use std::io;

use crate::containment::contained;

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
