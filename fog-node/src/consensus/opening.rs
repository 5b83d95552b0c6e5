//! The engine's stores are opened under a mark: what keeps it from starting twice is set aside, and filled again from the
//! chain and the peers.
//!
//! Some damage to its files makes the engine panic, or end, while it opens them; a process that is started again finds the
//! same damage. So a mark stands in the data folder from before the engine opens its files until it has run for a while.
//! Who finds the mark of [`FAILURES_MAX`] starts puts the stores aside as evidence. The vote journal always stays where it is:
//! it is checked by itself (`votes`), and whatever else ends a process while it starts says nothing against it.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Starts that may end while the stores are being opened before these are suspected.
const FAILURES_MAX: u32 = 3;
/// An engine that has run for this long has opened its stores.
pub(super) const OPENED_AFTER: Duration = Duration::from_secs(2);
/// Stores that are kept as evidence; the oldest go first.
const EVIDENCE_MAX: usize = 2;

fn mark(data_dir: &Path) -> PathBuf {
    data_dir.join("consensus.opening")
}

/// The folder of the engine's stores.
pub(super) fn stores(data_dir: &Path) -> PathBuf {
    data_dir.join("consensus")
}

fn failures(data_dir: &Path) -> u32 {
    let text = fs::read_to_string(mark(data_dir)).unwrap_or_default();
    text.trim().parse().unwrap_or_default()
}

/// Notes that the stores are about to be opened.
///
/// # Errors
/// The folder cannot be written.
pub(super) fn begin(data_dir: &Path) -> io::Result<()> {
    let count = failures(data_dir) + 1;
    let file = mark(data_dir);
    fs::write(&file, format!("{count}\n"))?;
    fs::File::open(file)?.sync_all()
}

/// Notes that they are open, or were closed in good order.
pub(super) fn done(data_dir: &Path) {
    if let Err(error) = fs::remove_file(mark(data_dir))
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%error, "the mark of the engine's start cannot be removed");
    }
}

/// Puts stores aside that have kept the engine from starting; gives where they are now.
///
/// # Errors
/// The folder cannot be written.
pub fn set_aside_what_does_not_open(data_dir: &Path) -> io::Result<Option<PathBuf>> {
    let failures = failures(data_dir);
    if failures < FAILURES_MAX || !stores(data_dir).is_dir() {
        return Ok(None);
    }
    let mut suspects = Vec::new();
    for entry in fs::read_dir(stores(data_dir))? {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().contains("-votes-") {
            suspects.push(entry);
        }
    }
    if suspects.is_empty() {
        return Ok(None);
    }
    let now_ms = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis());
    let evidence = data_dir.join(format!("consensus.damaged-{now_ms}"));
    fs::create_dir(&evidence)?;
    for suspect in suspects {
        fs::rename(suspect.path(), evidence.join(suspect.file_name()))?;
    }
    keep_few(data_dir)?;
    Ok(Some(evidence))
}

fn keep_few(data_dir: &Path) -> io::Result<()> {
    let mut kept = Vec::new();
    for entry in fs::read_dir(data_dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("consensus.damaged-") {
            kept.push(entry.path());
        }
    }
    kept.sort();
    for old in kept.iter().rev().skip(EVIDENCE_MAX) {
        fs::remove_dir_all(old)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    fn folder() -> TempDir {
        let folder = TempDir::new().expect("a folder");
        for store in ["fog-blocks-key", "fog-votes-0"] {
            fs::create_dir_all(stores(folder.path()).join(store)).expect("made");
        }
        folder
    }

    fn stands(folder: &TempDir, store: &str) -> bool {
        stores(folder.path()).join(store).exists()
    }

    #[test]
    fn stores_that_do_not_open_again_and_again_are_set_aside_and_the_journal_stays() {
        let folder = folder();
        for _ in 1..FAILURES_MAX {
            begin(folder.path()).expect("noted");
            assert_eq!(set_aside_what_does_not_open(folder.path()).expect("looks"), None);
        }
        begin(folder.path()).expect("noted");
        let evidence = set_aside_what_does_not_open(folder.path()).expect("looks");
        assert!(evidence.expect("set aside").join("fog-blocks-key").is_dir());
        assert!(!stands(&folder, "fog-blocks-key") && stands(&folder, "fog-votes-0"));
        begin(folder.path()).expect("noted");
        let again = set_aside_what_does_not_open(folder.path()).expect("looks");
        assert!(again.is_none() && stands(&folder, "fog-votes-0"), "whatever it was");
    }

    #[test]
    fn a_start_that_went_well_counts_no_failure() {
        let folder = folder();
        for _ in 0..5 {
            begin(folder.path()).expect("noted");
            done(folder.path());
            assert_eq!(set_aside_what_does_not_open(folder.path()).expect("looks"), None);
        }
        assert!(stands(&folder, "fog-blocks-key"));
    }
}
