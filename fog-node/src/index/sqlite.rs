//! The index in SQLite: one file, WAL, `synchronous=NORMAL` (it is rebuilt from the chain, so the last commits may be lost).

use std::{path::Path, time::Duration};

use sqlx::{
    Row as _, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use super::{Config, Error, database::timed_out};

/// The file in the data folder.
const FILE: &str = "index.sqlite";

/// Opens the file and brings it to this version's schema.
pub(super) async fn open(config: &Config, data_dir: &Path) -> Result<SqlitePool, Error> {
    let timeout = Duration::from_millis(config.busy_timeout_ms);
    let options = SqliteConnectOptions::new()
        .filename(data_dir.join(FILE))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Normal)
        // What is erased does not stay on free pages.
        .pragma("secure_delete", "ON")
        .busy_timeout(timeout);
    let pool = SqlitePoolOptions::new()
        .max_connections(config.connections_max)
        .acquire_timeout(timeout)
        .connect_with(options)
        .await?;
    sqlx::migrate!("migrations/sqlite").run(&pool).await?;
    Ok(pool)
}

/// Moves everything from the write-ahead log into the file, whose removed rows are zeros already, and empties the log: it had
/// them, too. Whoever reads meanwhile is waited for as long as for a lock.
pub(super) async fn forget_removed(pool: &SqlitePool) -> Result<(), Error> {
    let checkpointed = sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").fetch_one(pool).await?;
    match checkpointed.try_get::<i64, _>(0)? {
        0 => Ok(()),
        _ => Err(timed_out("the write-ahead log is being read")),
    }
}
