//! A redb file of the vault: opened, opened anew after trouble, set aside when it is corrupt; and the sums in it.
//!
//! Commits save redb's allocator state (quick repair): after a crash a large file opens at once, and one rotten page does
//! not keep it from opening.

use std::{
    fs,
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
    sync::{PoisonError, RwLock},
    time::{SystemTime, UNIX_EPOCH},
};

use redb::{Database, ReadOnlyTable, ReadableDatabase as _, TableDefinition, TableError, WriteTransaction};

use super::trouble::guarded;
use crate::containment::is_corrupt;

/// Sums over what the file holds, changed in the same commit.
pub(super) const TOTALS: TableDefinition<'_, &str, u64> = TableDefinition::new("totals");
/// The row of [`TOTALS`] that holds the bytes of all payloads.
pub(super) const BYTES: &str = "payload_bytes";
/// The row of [`TOTALS`] that holds the height up to which every payload of the chain is held; it goes with the file.
const RETAINED: &str = "retained_height";
/// The row of [`TOTALS`] that holds the height up to which the pass of the scrub that is under way has come; 0 between two.
const SCRUBBED: &str = "scrubbed_height";
/// The row of [`TOTALS`] that holds how long the file was when it was compacted last.
const COMPACTED: &str = "compacted_bytes";
/// A file is compacted that is so many times as long as its payloads, and twice as long as it was after the last time.
const SLACK: u64 = 3;
/// SHA-256 of each payload that was erased: it is not kept again. What was erased in an older copy of the file is erased anew.
pub(super) const ERASED: TableDefinition<'_, &[u8; 32], ()> = TableDefinition::new("erased");

/// The file.
pub(super) struct File {
    path: PathBuf,
    cache_bytes_max: usize,
    /// Makes the tables that the owner of the file needs besides [`TOTALS`].
    make: fn(&WriteTransaction) -> Result<(), redb::Error>,
    /// Readers share it; it is taken exclusively only to open the file anew after the disk was full or the file was found
    /// corrupt. `None` while that has not succeeded.
    database: RwLock<Option<Database>>,
}

impl File {
    /// Opens or creates it.
    pub(super) fn open(
        path: PathBuf,
        cache_bytes_max: usize,
        make: fn(&WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<Self, redb::Error> {
        let file = Self {
            path,
            cache_bytes_max,
            make,
            database: RwLock::new(None),
        };
        file.reopen(false)?;
        Ok(file)
    }

    /// Works with the open file.
    pub(super) fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, redb::Error> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        work(database.as_ref().ok_or(redb::Error::PreviousIo)?)
    }

    /// Writes in one durable commit.
    pub(super) fn write<T>(
        &self,
        work: impl FnOnce(&WriteTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, redb::Error> {
        self.with(|database| {
            let mut transaction = database.begin_write()?;
            transaction.set_quick_repair(true);
            let done = work(&transaction)?;
            transaction.commit()?;
            Ok(done)
        })
    }

    fn total(&self, row: &str) -> Result<u64, redb::Error> {
        self.with(|database| {
            let totals = database.begin_read()?.open_table(TOTALS)?;
            Ok(totals.get(row)?.map_or(0, |total| total.value()))
        })
    }

    fn note(&self, row: &str, total: u64) -> Result<(), redb::Error> {
        self.write(|transaction| {
            transaction.open_table(TOTALS)?.insert(row, total)?;
            Ok(())
        })
    }

    /// Bytes of all payloads.
    pub(super) fn bytes(&self) -> Result<u64, redb::Error> {
        self.total(BYTES)
    }

    pub(super) fn retained(&self) -> Result<u64, redb::Error> {
        self.total(RETAINED)
    }

    pub(super) fn note_retained(&self, height: u64) -> Result<(), redb::Error> {
        self.note(RETAINED, height)
    }

    pub(super) fn scrubbed(&self) -> Result<u64, redb::Error> {
        self.total(SCRUBBED)
    }

    pub(super) fn note_scrubbed(&self, height: u64) -> Result<(), redb::Error> {
        self.note(SCRUBBED, height)
    }

    /// Gives the file system back what removed payloads have left, if that is much of a file of at least so many bytes; says how
    /// long the file was, and is. Some of the bytes may lie `elsewhere` than in it. It reads and writes most of the file, and nobody else
    /// may use it: for the start.
    pub(super) fn give_back(&self, bytes_min: u64, elsewhere: u64) -> Result<Option<(u64, u64)>, redb::Error> {
        let long = fs::metadata(&self.path)?.len();
        let last = self.total(COMPACTED)?;
        let inside = self.bytes()?.saturating_sub(elsewhere);
        if long < bytes_min || long / SLACK < inside || long / 2 < last {
            return Ok(None);
        }
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        database.as_mut().ok_or(redb::Error::PreviousIo)?.compact()?;
        drop(database);
        let short = fs::metadata(&self.path)?.len();
        self.note(COMPACTED, short)?;
        Ok(Some((long, short)))
    }

    /// Whether a payload was erased.
    pub(super) fn bars(&self, key: &[u8; 32]) -> Result<bool, redb::Error> {
        self.with(|database| match database.begin_read()?.open_table(ERASED) {
            Ok(erased) => Ok(erased.get(key)?.is_some()),
            // The file is older than the table.
            Err(TableError::TableDoesNotExist(_)) => Ok(false),
            Err(error) => Err(error.into()),
        })
    }

    /// Closes the file if it is open and opens it anew, or sets it aside and begins a new one; so it does as well if it
    /// finds the file corrupt.
    pub(super) fn reopen(&self, begin_new: bool) -> Result<(), redb::Error> {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        // Closing after a panic may panic once more.
        let closed = guarded(|| {
            *database = None;
            Ok(())
        });
        if begin_new || closed.is_err() {
            self.set_aside()?;
        }
        let opened = match guarded(|| self.create()) {
            Err(error) if is_corrupt(&error) => {
                self.set_aside()?;
                self.create()?
            }
            opened => opened?,
        };
        *database = Some(opened);
        Ok(())
    }

    fn create(&self) -> Result<Database, redb::Error> {
        // Made here rather than by redb, so that nobody else may read it.
        fs::OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&self.path)?;
        let database = Database::builder()
            .set_cache_size(self.cache_bytes_max)
            .create(&self.path)?;
        // A full disk takes no tables, but what is on it can be read.
        if database.begin_read()?.open_table(TOTALS).is_ok() {
            return Ok(database);
        }
        let mut transaction = database.begin_write()?;
        transaction.set_quick_repair(true);
        (self.make)(&transaction)?;
        transaction.open_table(TOTALS)?;
        transaction.commit()?;
        Ok(database)
    }

    fn set_aside(&self) -> Result<(), redb::Error> {
        let now_ms = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_millis());
        let aside = self.path.with_extension(format!("redb.corrupt-{now_ms}"));
        fs::rename(&self.path, &aside)?;
        metrics::counter!("fog_vault_files_set_aside_total").increment(1);
        tracing::error!(aside = %aside.display(), "the vault's file is corrupt and was set aside; payloads come from peers");
        Ok(())
    }
}

/// A table, if the file is not older than it.
pub(super) fn table<K: redb::Key + 'static, V: redb::Value + 'static>(
    database: &Database,
    definition: TableDefinition<'_, K, V>,
) -> Result<Option<ReadOnlyTable<K, V>>, redb::Error> {
    match database.begin_read()?.open_table(definition) {
        Ok(table) => Ok(Some(table)),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The key of a block in an object: its SHA-256, and that of the root.
pub(super) fn joined(block: &[u8; 32], root: &[u8; 32]) -> [u8; 64] {
    let mut key = [0; 64];
    key[..32].copy_from_slice(block);
    key[32..].copy_from_slice(root);
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAYLOADS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("payloads");

    #[test]
    fn what_was_removed_leaves_no_long_file_behind() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("vault.redb");
        let make = |transaction: &WriteTransaction| transaction.open_table(PAYLOADS).map(drop).map_err(Into::into);
        let file = File::open(path.clone(), 1 << 20, make).expect("opens");
        let fill = |range: std::ops::Range<u64>, bytes: u64| {
            file.write(|transaction| {
                let mut payloads = transaction.open_table(PAYLOADS)?;
                for at in range.clone() {
                    payloads.insert(at, vec![7_u8; 4_000].as_slice())?;
                }
                transaction.open_table(TOTALS)?.insert(BYTES, bytes)?;
                Ok(())
            })
        };
        fill(0..2_000, 8_000_000).expect("writes");
        assert_eq!(
            file.give_back(1 << 20, 0).expect("looks"),
            None,
            "it is full of payloads"
        );
        let remove = file.write(|transaction| {
            transaction.open_table(PAYLOADS)?.retain(|at, _| at % 100 == 0)?;
            // Large records count, and lie elsewhere.
            transaction.open_table(TOTALS)?.insert(BYTES, 90_080_000)?;
            Ok(())
        });
        remove.expect("writes");
        assert_eq!(file.give_back(1 << 20, 0).expect("looks"), None);
        let (before, after) = file
            .give_back(1 << 20, 90_000_000)
            .expect("compacts")
            .expect("it is worth it");
        assert!(after < before / 4, "{before} and then {after}");
        assert!(fs::metadata(&path).expect("there").len() < before / 4);
        assert_eq!(
            file.give_back(1 << 20, 90_000_000).expect("looks"),
            None,
            "once is enough"
        );
        let kept = file.with(|database| Ok(database.begin_read()?.open_table(PAYLOADS)?.get(1_900)?.is_some()));
        assert!(kept.expect("reads"));
    }

    #[test]
    fn how_far_a_pass_has_come_is_there_after_a_restart() {
        let dir = tempfile::tempdir().expect("a folder");
        let open = || File::open(dir.path().join("vault.redb"), 1 << 20, |_| Ok(())).expect("opens");
        let file = open();
        assert_eq!(file.scrubbed().expect("reads"), 0);
        file.note_scrubbed(7).expect("notes");
        file.note_retained(9).expect("notes");
        drop(file);
        let file = open();
        assert_eq!(
            (file.scrubbed().expect("reads"), file.retained().expect("reads")),
            (7, 9)
        );
    }
}
