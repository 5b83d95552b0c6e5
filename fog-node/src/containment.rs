//! What a store's library says or does over a file that was altered outside of it: errors that mean damage, and panics that
//! do not end the process.
//!
//! Everywhere else a panic is a broken invariant of ours, and the process stops (`command`).

use std::{
    cell::Cell,
    panic::{self, AssertUnwindSafe},
};

thread_local! {
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// Whether a panic of the current thread is contained; the process's panic hook asks before it aborts.
#[must_use]
pub fn is_contained() -> bool {
    CONTAINED.get()
}

/// Calls into a library over a file that may be damaged; `None` if it panicked. Whatever it was working on is not used again:
/// the caller opens the file anew, or sets it aside.
pub fn contained<T>(work: impl FnOnce() -> T) -> Option<T> {
    let before = CONTAINED.replace(true);
    let done = panic::catch_unwind(AssertUnwindSafe(work));
    CONTAINED.set(before);
    done.ok()
}

/// The file is not what redb wrote: it says so, or it misses a table or a type that we made.
#[must_use]
pub fn is_corrupt(error: &redb::Error) -> bool {
    match error {
        redb::Error::Io(e) => e.kind() == std::io::ErrorKind::InvalidData,
        redb::Error::Corrupted(_)
        | redb::Error::UpgradeRequired(_)
        | redb::Error::TableTypeMismatch { .. }
        | redb::Error::TableIsMultimap(_)
        | redb::Error::TypeDefinitionChanged { .. }
        | redb::Error::TableDoesNotExist(_) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_contained_only_inside() {
        assert!(!is_contained());
        assert_eq!(contained(is_contained), Some(true));
        assert_eq!(contained(|| -> u8 { panic!("over a file") }), None);
        assert!(!is_contained());
    }
}
