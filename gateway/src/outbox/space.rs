//! Whether there is room for more: in the spool's own bound and on the disk. Said once when it changes.
//!
//! Three marks of the disk: below the reserve nothing new is taken but alarms, below a half of it not even those, so that what
//! was taken can still be forgotten; below a quarter nothing at all is written, since a write that fails half-way would end the
//! process. What is full stays full until there is clearly room again: devices that are told so at every other reading
//! would keep trying.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::Serialize;

/// How long a look at the disk holds: what arrives meanwhile is far less than the reserve.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A sixteenth of a bound must be free again before it counts as free.
const LOW_WATER: u64 = 16;

/// Why nothing new is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Shortage {
    /// The bundles that are not final, and those set aside, are as many bytes as they may be.
    Spool,
    /// The disk has less free space than must stay free.
    Disk,
}

/// The room that is left.
#[derive(Debug)]
pub(super) struct Space {
    folder: PathBuf,
    reserve_bytes: u64,
    bytes_max: u64,
    full: Option<Shortage>,
    last_look: Option<(Instant, u64)>,
}

impl Space {
    /// The disk under this folder, of which so many bytes must stay free, for a spool of at most so many.
    pub(super) fn of(folder: &Path, reserve_bytes: u64, bytes_max: u64) -> Self {
        Self {
            folder: folder.to_owned(),
            reserve_bytes,
            bytes_max,
            full: None,
            last_look: None,
        }
    }

    /// Why so many more bytes beside those held are not taken now; absent if they are.
    pub(super) fn refuses(&mut self, held_bytes: u64, more_bytes: u64) -> Option<Shortage> {
        let free = self.free();
        let disk_mark = match self.full {
            Some(Shortage::Disk) => self.reserve_bytes.saturating_add(self.reserve_bytes / LOW_WATER),
            _ => self.reserve_bytes,
        };
        let spool_mark = match self.full {
            Some(Shortage::Spool) => self.bytes_max - self.bytes_max / LOW_WATER,
            _ => self.bytes_max,
        };
        let full = if free < disk_mark {
            Some(Shortage::Disk)
        } else if held_bytes.saturating_add(more_bytes) > spool_mark {
            Some(Shortage::Spool)
        } else {
            None
        };
        self.note(full, free);
        full
    }

    /// Whether an alarm is taken all the same, given all bytes with it: a sixteenth beyond the spool's bound and a half of the
    /// reserve are for alarms.
    pub(super) fn bears_an_alarm(&mut self, bytes: u64) -> bool {
        bytes <= self.bytes_max.saturating_add(self.bytes_max / LOW_WATER) && self.free() >= self.reserve_bytes / 2
    }

    /// Whether what must be written may be: a little is left.
    pub(super) fn bears_a_commit(&mut self) -> bool {
        self.last_look = None;
        self.free() >= self.reserve_bytes / 4
    }

    fn free(&mut self) -> u64 {
        if let Some((at, free)) = self.last_look
            && at.elapsed() < LOOK_EVERY
        {
            return free;
        }
        // A file system that cannot say how much is free is trusted; a write that fails ends the process anyway.
        let free = rustix::fs::statvfs(&self.folder).map_or(u64::MAX, |s| s.f_bavail.saturating_mul(s.f_frsize));
        self.last_look = Some((Instant::now(), free));
        free
    }

    fn note(&mut self, full: Option<Shortage>, free_bytes: u64) {
        if full == self.full {
            return;
        }
        metrics::gauge!("gateway_outbox_full").set(if full.is_some() { 1.0 } else { 0.0 });
        match full {
            Some(Shortage::Disk) => tracing::warn!(
                free_bytes,
                reserve_bytes = self.reserve_bytes,
                "the disk is full: new readings are refused and not acknowledged, those taken stay; make room on the disk"
            ),
            Some(Shortage::Spool) => tracing::warn!(
                bytes_max = self.bytes_max,
                "the spool is full: new readings are refused and not acknowledged, those taken stay until they are final"
            ),
            None => tracing::info!("there is room again: new readings are taken"),
        }
        self.full = full;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_full_when_less_than_the_reserve_is_free() {
        let folder = tempfile::tempdir().expect("temporary folder");
        assert_eq!(Space::of(folder.path(), 0, 10).refuses(0, 10), None);
        let mut full = Space::of(folder.path(), u64::MAX, 10);
        assert_eq!(full.refuses(0, 1), Some(Shortage::Disk));
        assert!(!full.bears_a_commit() && !full.bears_an_alarm(1));
    }

    #[test]
    fn a_full_spool_stays_full_until_a_sixteenth_is_free() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let mut space = Space::of(folder.path(), 0, 1_600);
        assert_eq!(space.refuses(1_590, 10), None);
        assert_eq!(space.refuses(1_590, 11), Some(Shortage::Spool));
        assert_eq!(space.refuses(1_495, 6), Some(Shortage::Spool), "not yet");
        assert_eq!(space.refuses(1_490, 10), None);
        assert_eq!(space.refuses(1_590, 10), None, "and full up to the mark again");
        assert!(space.bears_an_alarm(1_700) && !space.bears_an_alarm(1_701));
    }
}
