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

/// The file is not what redb wrote: it says so, or it misses a table or a type that we made.
pub(super) fn is_corrupt(error: &redb::Error) -> bool {
    match error {
        redb::Error::Io(e) => e.kind() == io::ErrorKind::InvalidData,
        redb::Error::Corrupted(_)
        | redb::Error::UpgradeRequired(_)
        | redb::Error::TableTypeMismatch { .. }
        | redb::Error::TableIsMultimap(_)
        | redb::Error::TypeDefinitionChanged { .. }
        | redb::Error::TableDoesNotExist(_) => true,
        _ => false,
    }
}

/// Calls into redb; a panic of it is a corrupt file.
pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, redb::Error> {
    contained(work).unwrap_or_else(|| Err(redb::Error::Corrupted("redb panicked over the file".to_owned())))
}
