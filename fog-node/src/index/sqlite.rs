//! The index in SQLite: one file, WAL, `synchronous=NORMAL` (it is rebuilt from the chain, so the last commits may be lost).

use std::{path::Path, time::Duration};

use sqlx::{
    SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use super::{Config, Error};

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
        .busy_timeout(timeout);
    let pool = SqlitePoolOptions::new()
        .max_connections(config.connections_max)
        .acquire_timeout(timeout)
        .connect_with(options)
        .await?;
    sqlx::migrate!("migrations/sqlite").run(&pool).await?;
    Ok(pool)
}
