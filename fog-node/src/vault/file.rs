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

    pub(super) fn retained(&self) -> Result<u64, redb::Error> {
        self.with(|database| {
            let totals = database.begin_read()?.open_table(TOTALS)?;
            Ok(totals.get(RETAINED)?.map_or(0, |height| height.value()))
        })
    }

    pub(super) fn note_retained(&self, height: u64) -> Result<(), redb::Error> {
        self.write(|transaction| {
            transaction.open_table(TOTALS)?.insert(RETAINED, height)?;
            Ok(())
        })
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
