//! How much room is left on the disk of the data folder, and what is not done any more when it is little.
//!
//! A write that fails half-way for want of room ends the process: the engine's journals and the chain cannot go on without it.
//! So there are two marks. Below the reserve no new payload is kept, and whoever hands one in is told to come later or
//! go elsewhere, while the node goes on voting: blocks are small. Below a half of it the node stops in good order, and starts again
//! when the whole reserve is free. What is short stays short until a sixteenth more than the reserve is free. Said once
//! when it changes.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How long a look at the disk holds.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How often a task that waits looks.
const WATCH_EVERY: Duration = Duration::from_millis(250);
/// This part of the reserve must be free beside it before there counts as room again.
const LOW_WATER: u64 = 16;

/// Why the node stops; for the log.
pub const SPENT: &str = "the disk of data_dir has less room than a half of vault.disk_reserve_bytes: make room, started again it \
                         waits for it and goes on";

/// What the room that is left is enough for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Room {
    /// Not even for going on: a write may fail any time.
    Spent,
    /// For voting, not for new payloads.
    Short,
    /// For everything.
    Enough,
}

/// The disk under a folder; clones share what was seen.
#[derive(Clone, Debug)]
pub struct Space(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    reserve_bytes: u64,
    // Held for one look at the file system, never across an await.
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    at: Option<Instant>,
    room: Room,
}

impl Space {
    /// The disk under this folder, of which so many bytes stay free. With 0 there is always room.
    #[must_use]
    pub fn of(folder: &Path, reserve_bytes: u64) -> Self {
        Self(Arc::new(Shared {
            folder: folder.to_owned(),
            reserve_bytes,
            seen: Mutex::new(Seen {
                at: None,
                room: Room::Enough,
            }),
        }))
    }

    /// What there is room for.
    #[must_use]
    pub fn room(&self) -> Room {
        let mut seen = self.0.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.at.is_none_or(|at| at.elapsed() >= LOOK_EVERY) {
            let free_bytes = self.free_bytes();
            let room = judge(free_bytes, self.0.reserve_bytes, seen.room);
            self.note(seen.room, room, free_bytes);
            *seen = Seen {
                at: Some(Instant::now()),
                room,
            };
        }
        seen.room
    }

    /// Whether new payloads are not kept.
    #[must_use]
    pub fn is_short(&self) -> bool {
        self.room() < Room::Enough
    }

    /// Resolves when there is room for everything.
    pub async fn enough(&self) {
        while self.is_short() {
            tokio::time::sleep(WATCH_EVERY).await;
        }
    }

    /// Resolves when there is not even room for going on.
    pub async fn spent(&self) {
        while self.room() > Room::Spent {
            tokio::time::sleep(WATCH_EVERY).await;
        }
    }

    fn free_bytes(&self) -> u64 {
        // A folder that is not there yet, or a file system that cannot say it, is trusted: a write that fails ends the process
        // all the same.
        rustix::fs::statvfs(&self.0.folder).map_or(u64::MAX, |s| s.f_bavail.saturating_mul(s.f_frsize))
    }

    fn note(&self, before: Room, now: Room, free_bytes: u64) {
        metrics::gauge!("fog_space_free_bytes").set(free_bytes as f64);
        metrics::gauge!("fog_space_short").set(if now < Room::Enough { 1.0 } else { 0.0 });
        let reserve_bytes = self.0.reserve_bytes;
        match (before, now) {
            (Room::Enough, Room::Short | Room::Spent) => tracing::error!(
                free_bytes,
                reserve_bytes,
                "the disk is full: no new payload is kept here, gateways go to other nodes; make room on the disk of data_dir"
            ),
            (Room::Short | Room::Spent, Room::Enough) => {
                tracing::info!(free_bytes, "there is room again: payloads are kept");
            }
            _ => {}
        }
    }
}

/// What so many free bytes are enough for, after what there was room for before.
fn judge(free_bytes: u64, reserve_bytes: u64, before: Room) -> Room {
    let mark = match before {
        Room::Enough => reserve_bytes,
        Room::Short | Room::Spent => reserve_bytes.saturating_add(reserve_bytes / LOW_WATER),
    };
    if free_bytes < reserve_bytes / 2 {
        Room::Spent
    } else if free_bytes < mark {
        Room::Short
    } else {
        Room::Enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_short_stays_short_until_there_is_clearly_room() {
        let reserve = 1_600;
        assert_eq!(judge(1_600, reserve, Room::Enough), Room::Enough);
        assert_eq!(judge(1_599, reserve, Room::Enough), Room::Short);
        assert_eq!(judge(1_699, reserve, Room::Short), Room::Short, "not yet");
        assert_eq!(judge(1_699, reserve, Room::Spent), Room::Short, "it may vote again");
        assert_eq!(judge(1_700, reserve, Room::Spent), Room::Enough);
        assert_eq!(judge(799, reserve, Room::Enough), Room::Spent);
        assert_eq!(judge(0, 0, Room::Enough), Room::Enough, "without a reserve");
    }

    #[tokio::test]
    async fn a_disk_is_short_when_less_than_the_reserve_is_free() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(Space::of(folder.path(), 0).room(), Room::Enough);
        let full = Space::of(folder.path(), u64::MAX);
        assert!(full.is_short());
        full.spent().await;
        let absent = Space::of(&folder.path().join("absent"), u64::MAX);
        absent.enough().await;
    }
}
