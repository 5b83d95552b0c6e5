//! What a bad disk makes of the process: it ends at once, and says that it was the disk and not a mistake of ours.

use std::cell::Cell;

thread_local! {
    static IS_READING_BACK: Cell<bool> = const { Cell::new(false) };
}

/// Ends the process because the store failed: nothing is known about what the disk holds, and a restart reads it anew.
pub(super) fn abort(error: &redb::Error) -> ! {
    tracing::error!(%error, "the spool's disk failed; the process ends, what was acknowledged is on the disk");
    if cfg!(test) {
        // The end of this thread, so that a test can look at what is left.
        std::panic::resume_unwind(Box::new(()));
    }
    std::process::abort();
}

/// Reads a spool back. The store's library panics at some of what a bad disk may hold, so whoever hears of a panic must be
/// able to tell that it is damage and not a mistake of ours.
pub(super) fn reading_back<T>(work: impl FnOnce() -> T) -> T {
    let before = IS_READING_BACK.replace(true);
    let result = work();
    IS_READING_BACK.set(before);
    result
}

/// Whether this thread reads a spool back at this moment.
#[must_use]
pub fn is_reading_back() -> bool {
    IS_READING_BACK.get()
}
