//! The databases that the index may be in, as one: sessions that read or write, statements, rows; how often is tried again.

use std::{future::Future, path::Path, time::Duration};

use sqlx::{
    AssertSqlSafe, Executor as _, Row as _, SqlitePool,
    mysql::{MySqlConnection, MySqlDatabaseError, MySqlRow},
    sqlite::SqliteRow,
};

use super::{
    Config, Driver, Error,
    mysql::{self, Lease, Servers},
    sqlite,
    statement::{Statement, Value},
};

/// How often a step is made again that the database ended for its own reasons: a deadlock, a lock, a lost connection.
const TRIES_MAX: u32 = 5;
/// Before it is made again; doubles.
const TRY_PAUSE: Duration = Duration::from_millis(20);
/// How long a statement in SQLite may take: counting and replacing rows are cut into many.
const SQLITE_STATEMENT: Duration = Duration::from_secs(60);
/// MySQL: the transaction was rolled back because of a deadlock.
const DEADLOCK: u16 = 1213;
/// MySQL: another transaction has held a row for too long.
const LOCK_WAIT: u16 = 1205;
/// MariaDB: the row was changed since the transaction's snapshot.
const CHANGED: u16 = 1020;
/// What it says when it ends a connection: shutting down, killed.
const ENDED: [u16; 3] = [1053, 1317, 1927];

/// Does a step, and again if the database has ended it for its own reasons.
macro_rules! persistently {
    ($step:expr) => {{
        let mut tries = crate::index::database::Tries::default();
        loop {
            match $step.await {
                Err(error) if tries.again(&error).await => {}
                ended => break ended,
            }
        }
    }};
}
pub(super) use persistently;

/// Where the index is. Clones share it.
#[derive(Clone, Debug)]
pub(super) enum Database {
    Sqlite(SqlitePool),
    Mysql(Servers),
}

impl Database {
    /// A file is opened; servers are asked when something is asked of them: a node runs without its index, too.
    pub(super) async fn open(config: &Config, data_dir: &Path) -> Result<Self, Error> {
        match config.driver {
            Driver::Sqlite => sqlite::open(config, data_dir).await.map(Self::Sqlite),
            Driver::Mysql => Ok(Self::Mysql(Servers::new(config))),
        }
    }

    /// A session that sees one state of the index.
    pub(super) async fn read(&self) -> Result<Session, Error> {
        Ok(match self {
            Self::Sqlite(pool) => Session::Sqlite(pool.begin().await?),
            Self::Mysql(servers) => {
                let mut lease = servers.lease().await?;
                lease.text("START TRANSACTION WITH CONSISTENT SNAPSHOT").await?;
                Session::Mysql(lease)
            }
        })
    }

    /// A session that writes; there is one at a time.
    pub(super) async fn write(&self) -> Result<Session, Error> {
        Ok(match self {
            Self::Sqlite(pool) => Session::Sqlite(pool.begin_with("BEGIN IMMEDIATE").await?),
            Self::Mysql(servers) => {
                let mut lease = servers.lease().await?;
                lease.text("START TRANSACTION").await?;
                let mut session = Session::Mysql(lease);
                // Before the snapshot is taken, as SQLite does.
                session
                    .fetch(Statement::new(
                        "SELECT projected FROM progress WHERE name = 'index' FOR UPDATE",
                    ))
                    .await?;
                session
            }
        })
    }

    /// Where rows are now: another server has other rows.
    pub(super) fn place(&self) -> u64 {
        match self {
            Self::Sqlite(_) => 0,
            Self::Mysql(servers) => servers.place(),
        }
    }

    /// Removes some of the rows of a table for which a condition holds; the last `?` is how many, at most. SQLite knows no LIMIT
    /// there, and MySQL would look at every row for a subquery.
    pub(super) fn remove_some(&self, table: &'static str, condition: &'static str) -> Statement {
        let statement = Statement::new("DELETE FROM ").sql(table);
        match self {
            Self::Sqlite(_) => statement
                .sql(" WHERE rowid IN (SELECT rowid FROM ")
                .sql(table)
                .sql(" WHERE ")
                .sql(condition)
                .sql(" LIMIT ?)"),
            Self::Mysql(_) => statement.sql(" WHERE ").sql(condition).sql(" LIMIT ?"),
        }
    }

    /// The rows of `observation` after a [`Fetched::position`], in the order in which they lie there; the next `?` is how many, at most.
    pub(super) fn next_rows(&self, after: Option<Value>) -> Statement {
        let (select, beyond, order) = match self {
            Self::Sqlite(_) => (
                "SELECT rowid AS lies_at, * FROM observation",
                " WHERE rowid > ?",
                " ORDER BY rowid LIMIT ?",
            ),
            Self::Mysql(_) => (
                "SELECT id AS lies_at, observation.* FROM observation",
                " WHERE id > ?",
                " ORDER BY id LIMIT ?",
            ),
        };
        let select = Statement::new(select);
        let select = after
            .into_iter()
            .fold(select, |select, after| select.sql(beyond).bind(after));
        select.sql(order)
    }

    /// Leaves nothing of removed rows in the files, as far as the database is this node's own.
    pub(super) async fn forget_removed(&self) -> Result<(), Error> {
        match self {
            Self::Sqlite(pool) => sqlite::forget_removed(pool).await,
            Self::Mysql(_) => Ok(()),
        }
    }
}

/// A statement, within its time: a database that stands still, or is slow beyond measure, is not waited for.
pub(super) async fn in_time<T>(
    limit: Duration,
    statement: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, Error> {
    let ended = tokio::time::timeout(limit, statement).await;
    Ok(ended.map_err(|_| timed_out("no answer in time"))??)
}

pub(super) fn timed_out(what: &'static str) -> Error {
    Error::Database(sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, what)))
}

/// How often a step was tried.
#[derive(Debug, Default)]
pub(super) struct Tries(u32);

impl Tries {
    /// Whether the step is to be made again; after a pause, then.
    pub(super) async fn again(&mut self, error: &Error) -> bool {
        let Error::Database(error) = error else { return false };
        let passes = match error {
            sqlx::Error::Io(error) => error.kind() != std::io::ErrorKind::TimedOut,
            sqlx::Error::Database(error) => error
                .try_downcast_ref::<MySqlDatabaseError>()
                .map(MySqlDatabaseError::number)
                .is_some_and(|number| [DEADLOCK, LOCK_WAIT, CHANGED].contains(&number) || ENDED.contains(&number)),
            _ => false,
        };
        if !passes || self.0 + 1 >= TRIES_MAX {
            return false;
        }
        metrics::counter!("fog_index_retries_total").increment(1);
        // Two that met once shall not meet again.
        let pause = TRY_PAUSE * 2u32.pow(self.0);
        tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.5))).await;
        self.0 += 1;
        true
    }
}

/// A transaction in one of the databases. Dropped, it is rolled back.
#[derive(Debug)]
pub(super) enum Session {
    Sqlite(sqlx::Transaction<'static, sqlx::Sqlite>),
    Mysql(Lease),
}

macro_rules! query {
    ($statement:expr) => {{
        let (text, values) = $statement.into_parts();
        // Its text is made of texts of this program alone.
        let mut query = sqlx::query(AssertSqlSafe(text));
        for value in values {
            query = match value {
                Value::Integer(value) => query.bind(value),
                Value::Text(value) => query.bind(value),
                Value::Bytes(value) => query.bind(value),
            };
        }
        query
    }};
}

impl Session {
    /// Rows that the statement changed.
    pub(super) async fn execute(&mut self, statement: Statement) -> Result<u64, Error> {
        Ok(match self {
            Self::Sqlite(transaction) => in_time(SQLITE_STATEMENT, transaction.execute(query!(statement)))
                .await?
                .rows_affected(),
            Self::Mysql(lease) => {
                let limit = lease.statement_timeout();
                let done = in_time(limit, lease.connection()?.execute(query!(statement)));
                done.await?.rows_affected()
            }
        })
    }

    pub(super) async fn fetch(&mut self, statement: Statement) -> Result<Vec<Fetched>, Error> {
        Ok(match self {
            Self::Sqlite(transaction) => {
                let rows = in_time(SQLITE_STATEMENT, transaction.fetch_all(query!(statement))).await?;
                rows.into_iter().map(Fetched::Sqlite).collect()
            }
            Self::Mysql(lease) => {
                let limit = lease.statement_timeout();
                let connection: &mut MySqlConnection = lease.connection()?;
                let rows = in_time(limit, connection.fetch_all(query!(statement))).await?;
                rows.into_iter().map(Fetched::Mysql).collect()
            }
        })
    }

    /// The one row of a statement that always has one.
    pub(super) async fn one(&mut self, statement: Statement) -> Result<Fetched, Error> {
        let mut rows = self.fetch(statement).await?;
        rows.pop().ok_or(Error::Damaged("progress"))
    }

    pub(super) async fn commit(self) -> Result<(), Error> {
        match self {
            Self::Sqlite(transaction) => in_time(SQLITE_STATEMENT, transaction.commit()).await?,
            Self::Mysql(mut lease) => {
                lease.text("COMMIT").await?;
                lease.give_back();
            }
        }
        Ok(())
    }

    /// Ends a session that has written nothing that is to stay.
    pub(super) async fn end(self) -> Result<(), Error> {
        match self {
            Self::Sqlite(transaction) => in_time(SQLITE_STATEMENT, transaction.rollback()).await?,
            Self::Mysql(mut lease) => {
                lease.text("ROLLBACK").await?;
                lease.give_back();
            }
        }
        Ok(())
    }
}

/// A row of an answer.
#[derive(Debug)]
pub(super) enum Fetched {
    Sqlite(SqliteRow),
    Mysql(MySqlRow),
}

impl Fetched {
    pub(super) fn integer(&self, name: &'static str) -> Result<i64, Error> {
        let value = match self {
            Self::Sqlite(row) => row.try_get(name),
            Self::Mysql(row) => row.try_get(name),
        };
        value.map_err(|_| Error::Damaged(name))
    }

    /// A number that is not negative and fits.
    pub(super) fn small<T: TryFrom<i64>>(&self, name: &'static str) -> Result<T, Error> {
        self.integer(name)?.try_into().map_err(|_| Error::Damaged(name))
    }

    pub(super) fn bytes(&self, name: &'static str) -> Result<Vec<u8>, Error> {
        let value = match self {
            Self::Sqlite(row) => row.try_get(name),
            Self::Mysql(row) => row.try_get(name),
        };
        value.map_err(|_| Error::Damaged(name))
    }

    pub(super) fn text(&self, name: &'static str) -> Result<String, Error> {
        let value = match self {
            Self::Sqlite(row) => row.try_get(name),
            // A text there is bytes that compare byte by byte.
            Self::Mysql(row) => {
                return String::from_utf8(row.try_get(name).map_err(|_| Error::Damaged(name))?)
                    .map_err(|_| Error::Damaged(name));
            }
        };
        value.map_err(|_| Error::Damaged(name))
    }

    /// A text as it is, whatever bytes it is made of.
    pub(super) fn raw(&self, name: &'static str) -> Result<Value, Error> {
        match self {
            Self::Sqlite(_) => self.text(name).map(Value::Text),
            Self::Mysql(_) => self.bytes(name).map(Value::Bytes),
        }
    }

    /// Where to go on from.
    pub(super) fn position(&self) -> Result<Value, Error> {
        match self {
            Self::Sqlite(_) => self.integer("lies_at").map(Value::Integer),
            Self::Mysql(_) => self.bytes("lies_at").map(Value::Bytes),
        }
    }

    pub(super) fn parsed<T: std::str::FromStr>(&self, name: &'static str) -> Result<T, Error> {
        self.text(name)?.parse().map_err(|_| Error::Damaged(name))
    }
}

/// Makes the tables, as a user that may: a server's alone, a file's are made when it is opened.
pub(super) async fn migrate(config: &Config) -> Result<Vec<String>, Error> {
    match config.driver {
        Driver::Sqlite => Ok(Vec::new()),
        Driver::Mysql => mysql::migrate(config).await,
    }
}
