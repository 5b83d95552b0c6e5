//! Whether there is room for more: in the spool's own bound and on the disk. Said once when it changes.
//!
//! Who gives way is a matter of rank: waveforms first, then single values, alarms last. Each rank has a mark in the spool, a
//! share of `bytes_max`, and one on the disk, a share of the reserve that must stay free; [`Marks`] has both. Below a quarter
//! of the reserve nothing at all is written, since a write that fails half-way would end the process. What is full stays full
//! until there is clearly room again: devices that are told so at every other reading would keep trying.

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

/// Up to where each rank is taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Marks {
    /// What single values may fill, in bytes; the others are shares of it.
    pub(super) bytes_max: u64,
    /// What must stay free on the disk for single values to be taken, in bytes. Waveforms need twice as much, alarms a half.
    pub(super) reserve_bytes: u64,
    /// Waveforms are taken up to this share of `bytes_max`, in percent.
    pub(super) waves_percent: u16,
    /// Alarms are taken up to this share of `bytes_max`, in percent: above 100.
    pub(super) alarms_percent: u16,
}

impl Marks {
    const fn share(&self, percent: u16) -> u64 {
        // Not the product first: a bound may be all of 64 bits.
        (self.bytes_max / 100)
            .saturating_mul(percent as u64)
            .saturating_add((self.bytes_max % 100) * percent as u64 / 100)
    }
}

/// One rank's mark, and whether it is passed.
#[derive(Debug)]
struct Mark {
    spool_bytes: u64,
    disk_bytes: u64,
    full: Option<Shortage>,
}

impl Mark {
    /// Why a spool of so many bytes is not borne with so many free on the disk; whether that is news.
    fn judge(&mut self, bytes: u64, free: u64) -> (Option<Shortage>, bool) {
        let disk = match self.full {
            Some(Shortage::Disk) => self.disk_bytes.saturating_add(self.disk_bytes / LOW_WATER),
            _ => self.disk_bytes,
        };
        let spool = match self.full {
            Some(Shortage::Spool) => self.spool_bytes - self.spool_bytes / LOW_WATER,
            _ => self.spool_bytes,
        };
        let full = if free < disk {
            Some(Shortage::Disk)
        } else if bytes > spool {
            Some(Shortage::Spool)
        } else {
            None
        };
        let is_news = full != self.full;
        self.full = full;
        (full, is_news)
    }
}

/// The room that is left.
#[derive(Debug)]
pub(super) struct Space {
    folder: PathBuf,
    marks: Marks,
    values: Mark,
    waves: Mark,
    last_look: Option<(Instant, u64)>,
}

impl Space {
    /// The disk under this folder, with these marks.
    pub(super) fn of(folder: &Path, marks: Marks) -> Self {
        let mark = |spool_bytes, disk_bytes| Mark {
            spool_bytes,
            disk_bytes,
            full: None,
        };
        Self {
            folder: folder.to_owned(),
            marks,
            values: mark(marks.bytes_max, marks.reserve_bytes),
            waves: mark(marks.share(marks.waves_percent), marks.reserve_bytes.saturating_mul(2)),
            last_look: None,
        }
    }

    /// Why a single value is not taken now, given all bytes with it; absent if it is.
    pub(super) fn refuses(&mut self, bytes: u64) -> Option<Shortage> {
        let free = self.free();
        let (full, is_news) = self.values.judge(bytes, free);
        if is_news {
            self.note(full, free);
        }
        full
    }

    /// Why a waveform is not taken now, given all bytes with it; absent if it is.
    pub(super) fn refuses_a_wave(&mut self, bytes: u64) -> Option<Shortage> {
        let free = self.free();
        let (full, is_news) = self.waves.judge(bytes, free);
        if is_news {
            metrics::gauge!("gateway_outbox_waves_refused").set(if full.is_some() { 1.0 } else { 0.0 });
            match full {
                Some(shortage) => tracing::warn!(
                    ?shortage,
                    waves_percent = self.marks.waves_percent,
                    "room runs short: waveforms are refused and not acknowledged, single values and alarms are taken"
                ),
                None => tracing::info!("there is room again: waveforms are taken"),
            }
        }
        full
    }

    /// Whether somebody is refused, as it was judged last.
    pub(super) const fn is_short(&self) -> bool {
        self.values.full.is_some() || self.waves.full.is_some()
    }

    /// Whether an alarm is taken all the same, given all bytes with it.
    pub(super) fn bears_an_alarm(&mut self, bytes: u64) -> bool {
        bytes <= self.marks.share(self.marks.alarms_percent) && self.free() >= self.marks.reserve_bytes / 2
    }

    /// Whether what must be written may be: a little is left.
    pub(super) fn bears_a_commit(&mut self) -> bool {
        self.last_look = None;
        self.free() >= self.marks.reserve_bytes / 4
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

    fn note(&self, full: Option<Shortage>, free_bytes: u64) {
        metrics::gauge!("gateway_outbox_full").set(if full.is_some() { 1.0 } else { 0.0 });
        match full {
            Some(Shortage::Disk) => tracing::warn!(
                free_bytes,
                reserve_bytes = self.marks.reserve_bytes,
                "the disk is full: new readings are refused and not acknowledged, those taken stay; make room on the disk"
            ),
            Some(Shortage::Spool) => tracing::warn!(
                bytes_max = self.marks.bytes_max,
                "the spool is full: new readings are refused and not acknowledged, those taken stay until they are final"
            ),
            None => tracing::info!("there is room again: new readings are taken"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(reserve_bytes: u64, bytes_max: u64) -> (tempfile::TempDir, Space) {
        let folder = tempfile::tempdir().expect("temporary folder");
        let marks = Marks {
            bytes_max,
            reserve_bytes,
            waves_percent: 75,
            alarms_percent: 106,
        };
        let space = Space::of(folder.path(), marks);
        (folder, space)
    }

    #[test]
    fn a_disk_is_full_when_less_than_the_reserve_is_free() {
        let (_folder, mut empty) = space(0, 10);
        assert_eq!(empty.refuses(10), None);
        let (_folder, mut full) = space(u64::MAX, 10);
        assert_eq!(full.refuses(1), Some(Shortage::Disk));
        assert_eq!(full.refuses_a_wave(1), Some(Shortage::Disk));
        assert!(!full.bears_a_commit() && !full.bears_an_alarm(1));
    }

    #[test]
    fn a_full_spool_stays_full_until_a_sixteenth_is_free() {
        let (_folder, mut space) = space(0, 1_600);
        assert_eq!(space.refuses(1_600), None);
        assert_eq!(space.refuses(1_601), Some(Shortage::Spool));
        assert_eq!(space.refuses(1_501), Some(Shortage::Spool), "not yet");
        assert_eq!(space.refuses(1_500), None);
        assert_eq!(space.refuses(1_600), None, "and full up to the mark again");
    }

    #[test]
    fn waveforms_give_way_first_and_alarms_last() {
        let (_folder, mut space) = space(0, 1_600);
        assert_eq!((space.refuses_a_wave(1_200), space.refuses(1_200)), (None, None));
        assert_eq!(
            (space.refuses_a_wave(1_201), space.refuses(1_201)),
            (Some(Shortage::Spool), None)
        );
        assert_eq!(space.refuses_a_wave(1_126), Some(Shortage::Spool), "not yet");
        assert_eq!(space.refuses_a_wave(1_125), None, "by itself");
        assert_eq!(space.refuses(1_601), Some(Shortage::Spool));
        assert!(space.bears_an_alarm(1_696) && !space.bears_an_alarm(1_697));
    }

    #[test]
    fn shares_of_any_bound_are_exact() {
        let share = |bytes_max, percent| {
            let marks = Marks {
                bytes_max,
                reserve_bytes: 0,
                waves_percent: 0,
                alarms_percent: 0,
            };
            marks.share(percent)
        };
        assert_eq!((share(1, 75), share(1, 106), share(199, 50)), (0, 1, 99));
        assert_eq!((share(u64::MAX, 100), share(u64::MAX, 106)), (u64::MAX, u64::MAX));
    }

    #[test]
    fn a_disk_that_runs_full_takes_single_values_longer_than_waveforms() {
        let (folder, _) = space(0, 10);
        let free = rustix::fs::statvfs(folder.path())
            .map(|s| s.f_bavail.saturating_mul(s.f_frsize))
            .expect("a disk");
        // What others write to it meanwhile is far less than a quarter of it.
        let marks = Marks {
            bytes_max: 1 << 40,
            reserve_bytes: free / 4 * 3,
            waves_percent: 75,
            alarms_percent: 106,
        };
        let mut space = Space::of(folder.path(), marks);
        assert_eq!(
            (space.refuses_a_wave(1), space.refuses(1)),
            (Some(Shortage::Disk), None)
        );
    }
}
