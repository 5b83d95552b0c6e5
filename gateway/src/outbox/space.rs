//! Whether the disk still has room: looked at now and then, said once when it changes.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// How long a look holds.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The free space of the disk under a folder.
#[derive(Debug)]
pub(super) struct Space {
    folder: PathBuf,
    reserve_bytes: u64,
    last_look: Option<(Instant, bool)>,
}

impl Space {
    /// The disk under this folder, of which so many bytes must stay free.
    pub(super) fn of(folder: &Path, reserve_bytes: u64) -> Self {
        Self {
            folder: folder.to_owned(),
            reserve_bytes,
            last_look: None,
        }
    }

    /// Whether less is free than must be.
    pub(super) fn is_full(&mut self) -> bool {
        if let Some((at, full)) = self.last_look
            && at.elapsed() < LOOK_EVERY
        {
            return full;
        }
        // A file system that cannot say how much is free is trusted; a write that fails ends the process anyway.
        let full =
            rustix::fs::statvfs(&self.folder).is_ok_and(|s| s.f_bavail.saturating_mul(s.f_frsize) < self.reserve_bytes);
        let was_full = self.last_look.is_some_and(|(_, full)| full);
        if full != was_full {
            tracing::warn!(
                full,
                "the disk's free space has crossed the reserve; when full, readings are refused"
            );
        }
        self.last_look = Some((Instant::now(), full));
        full
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_full_when_less_than_the_reserve_is_free() {
        let folder = tempfile::tempdir().expect("temporary folder");
        assert!(!Space::of(folder.path(), 0).is_full());
        assert!(Space::of(folder.path(), u64::MAX).is_full());
    }
}
