//! Searchable metadata of the observations this node can open: a projection of the chain, without measured values.
//!
//! Delete it and it is rebuilt, equal. It answers for permits only: a row whose key no permit names does not exist for
//! the caller, in the page and in the total alike. It is in SQLite, MySQL or MariaDB, and believes none of them: each row has a
//! tag that only this node can make, and how many there must be is known ([`Error::Altered`] otherwise).

mod block;
mod config;
mod count;
mod cursor;
mod database;
mod erase;
mod gaps;
mod mysql;
mod progress;
mod row;
mod rows;
mod search;
mod sqlite;
mod statement;
mod tag;
mod take;
mod tally;
#[cfg(test)]
pub(crate) mod tests;

use std::{
    future::Future,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU64},
    time::Duration,
};

use ledger::{block::Height, consent::Permit};
use record::ids::{BundleId, KeyId};
use tokio::sync::{self, watch};

pub use config::{Config, Driver, Mysql};
pub use count::Suspects;
pub use cursor::{BadCursor, Cursor};
use database::{Database, persistently};
pub use gaps::Reported;
use progress::Progress;
pub use row::{Contents, Counts, Pending, Projected, Rejection, Row};
pub use search::{DateRange, Page, Search};
use statement::Statement;
use tag::TagKey;
use tally::Tally;

/// Rows on one page, at most.
pub const PAGE_ROWS_MAX: u32 = 1_000;
/// Permits, codes, dates and ids in one search, at most, together.
pub const CRITERIA_MAX: usize = 10_000;
/// Whether rows are counted is asked again after what is being taken in, which is a moment.
const MOMENT: Duration = Duration::from_millis(500);
/// A question waits so long for what is being taken in, or counted.
const ALONE_WAIT: Duration = Duration::from_secs(5);

/// Why the index does not answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database is busy, unreachable or failing: later again.
    #[error("the index does not answer: {0}")]
    Database(#[from] sqlx::Error),
    /// The database cannot be brought to this version's schema.
    #[error("the index cannot be migrated (delete it, it will be rebuilt): {0}")]
    Migration(#[from] sqlx::migrate::MigrateError),
    /// The database answers and cannot be used as it is; the sentence says what to change.
    #[error("the index cannot be used: {0}")]
    Unusable(String),
    /// A row does not parse.
    #[error("the index is damaged in column {0}")]
    Damaged(&'static str),
    /// Somebody else has written there: it is mended from the chain.
    #[error("the index was altered: {0}")]
    Altered(&'static str),
    /// The search names more than [`CRITERIA_MAX`] things.
    #[error("the search names {0} keys, codes, dates and ids, at most {CRITERIA_MAX} are allowed: narrow it")]
    TooBroad(usize),
}

#[derive(Debug)]
struct Shared {
    database: Database,
    tags: TagKey,
    /// One after the other: what is taken in, counted or mended.
    writing: sync::Mutex<()>,
    // How many rows there must be, and on which server; a lock for a moment. None: they have to be counted.
    tally: Mutex<Option<(u64, Tally)>>,
    /// The place whose rows were counted and found wrong, plus one: they are counted again when they were mended.
    wrong: AtomicU64,
    alarms: watch::Sender<u64>,
}

/// The index. Clones share it.
#[derive(Clone, Debug)]
pub struct Index(Arc<Shared>);

impl Index {
    /// Opens the database; a file is brought to this version's schema. A server is asked when something is asked of it: a node
    /// runs without its index, too.
    ///
    /// # Errors
    /// [`Error::Database`], [`Error::Migration`], or [`Error::Unusable`] when `index.key` cannot be read or made.
    pub async fn open(config: &Config, data_dir: &Path) -> Result<Self, Error> {
        Ok(Self(Arc::new(Shared {
            database: Database::open(config, data_dir).await?,
            tags: TagKey::load(data_dir)?,
            writing: sync::Mutex::default(),
            tally: Mutex::default(),
            wrong: AtomicU64::new(0),
            alarms: watch::Sender::new(0),
        })))
    }

    /// Makes this version's tables on a server, as the user that the configuration names; says what was done.
    ///
    /// # Errors
    /// [`Error::Database`], [`Error::Migration`] or [`Error::Unusable`].
    pub async fn migrate(config: &Config) -> Result<Vec<String>, Error> {
        database::migrate(config).await
    }

    fn database(&self) -> &Database {
        &self.0.database
    }

    fn tags(&self) -> &TagKey {
        &self.0.tags
    }

    fn tally(&self) -> MutexGuard<'_, Option<(u64, Tally)>> {
        // It is taken out before it is changed: a panic leaves none, and rows are counted again.
        self.0.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the rows were counted: nothing is answered from them before.
    pub async fn is_counted(&self) -> bool {
        let is_counted = || self.expect(|_| Ok(())).is_ok();
        if is_counted() {
            return true;
        }
        let _alone = tokio::time::timeout(MOMENT, self.0.writing.lock()).await;
        is_counted()
    }

    /// Compares with how many rows there must be.
    fn expect<T>(&self, compare: impl FnOnce(&Tally) -> Result<T, Error>) -> Result<T, Error> {
        match &*self.tally() {
            Some((place, tally)) if *place == self.database().place() => compare(tally),
            _ => Err(Error::Unusable("its rows are being counted".to_owned())),
        }
    }

    /// Asks, and asks again while nobody writes if the answer is not what it must be: rows may have come between the question
    /// and the comparison. What is wrong then is wrong.
    async fn definitely<T, F: Future<Output = Result<T, Error>>>(&self, ask: impl Fn() -> F) -> Result<T, Error> {
        match ask().await {
            Err(Error::Altered(_) | Error::Unusable(_)) => {}
            answered => return answered,
        }
        let alone = tokio::time::timeout(ALONE_WAIT, self.0.writing.lock()).await;
        let _alone = alone.map_err(|_| Error::Unusable("its rows are being counted".to_owned()))?;
        ask().await.inspect_err(|error| self.suspect(error))
    }

    /// Says that somebody else has written there, to whoever mends it.
    fn suspect(&self, error: &Error) {
        if matches!(error, Error::Altered(_)) {
            self.suspicious();
        }
    }

    /// Says that a row contradicts what it stands for.
    pub fn suspicious(&self) {
        metrics::counter!("fog_index_suspicions_total").increment(1);
        self.0.alarms.send_modify(|alarms| *alarms += 1);
    }

    /// Changes when something was found that is not as this node wrote it.
    #[must_use]
    pub fn alarms(&self) -> watch::Receiver<u64> {
        self.0.alarms.subscribe()
    }

    /// The height up to which the chain is projected.
    ///
    /// # Errors
    /// [`Error::Database`], [`Error::Unusable`] or [`Error::Altered`].
    pub async fn projected(&self) -> Result<Height, Error> {
        let progress = persistently!(self.progress());
        Ok(progress.inspect_err(|error| self.suspect(error))?.projected)
    }

    async fn progress(&self) -> Result<Progress, Error> {
        let mut session = self.database().read().await?;
        let progress = Progress::read(&mut session, self.tags()).await?;
        session.end().await?;
        Ok(progress)
    }

    /// A page of the rows that the permits open: all of them this node's, and none missing.
    ///
    /// # Errors
    /// [`Error::TooBroad`], [`Error::Database`], [`Error::Unusable`] or [`Error::Altered`].
    pub async fn find(&self, permits: &[Permit], search: &Search) -> Result<Page, Error> {
        let keys: Vec<_> = permits.iter().map(Permit::key).collect();
        let criteria = keys.len() + search.codes.len() + search.dates.len() + search.ids.len();
        if criteria > CRITERIA_MAX {
            return Err(Error::TooBroad(criteria));
        }
        let keys = &keys[..];
        let ask = || async move {
            let found = persistently!(self.found(keys, search))?;
            self.expect(|tally| found.complete(tally))
        };
        self.definitely(ask).await
    }

    async fn found(&self, keys: &[KeyId], search: &Search) -> Result<rows::Found, Error> {
        let mut session = self.database().read().await?;
        let found = rows::find(&mut session, self.tags(), keys, search).await?;
        session.end().await?;
        Ok(found)
    }

    /// The rows of a block that this node wrote, whatever they say now, and how many others stand there.
    ///
    /// # Errors
    /// [`Error::Database`] or [`Error::Unusable`].
    pub async fn rows_at(&self, height: Height) -> Result<(Vec<Row>, u64), Error> {
        let read = async || {
            let mut session = self.database().read().await?;
            let found = block::at(&mut session, self.tags(), height).await?;
            session.end().await?;
            Ok(found)
        };
        persistently!(read())
    }

    /// The gap reports of a block that this node wrote, whatever they say now, and how many others stand there.
    ///
    /// # Errors
    /// [`Error::Database`] or [`Error::Unusable`].
    pub async fn gaps_at(&self, height: Height) -> Result<(Vec<Reported>, u64), Error> {
        let read = async || {
            let mut session = self.database().read().await?;
            let found = gaps::at(&mut session, self.tags(), height).await?;
            session.end().await?;
            Ok(found)
        };
        persistently!(read())
    }

    /// Of these rows, the ids of those that stand in the index at another height.
    ///
    /// # Errors
    /// [`Error::Database`] or [`Error::Unusable`].
    pub async fn elsewhere(&self, rows: &[Row]) -> Result<std::collections::HashSet<String>, Error> {
        let read = async || {
            let mut session = self.database().read().await?;
            let found = block::elsewhere(&mut session, self.tags(), rows).await?;
            session.end().await?;
            Ok(found)
        };
        persistently!(read())
    }

    /// Bundles of which something was rejected for one of these reasons, those tried least first.
    ///
    /// # Errors
    /// [`Error::Database`] or [`Error::Unusable`].
    pub async fn pending(&self, reasons: &[&'static str], count: u32) -> Result<Vec<Pending>, Error> {
        let asked = Statement::new("SELECT bundle, height FROM rejected WHERE reason IN ")
            .list(reasons.iter().copied())
            .sql(" GROUP BY bundle, height ORDER BY MIN(attempts), height LIMIT ?")
            .bind(count);
        let rows = persistently!(self.answer(asked.clone()))?;
        let pending = rows.iter().map(|row| {
            Ok(Pending {
                bundle: BundleId(rows::digest(row, "bundle")?),
                height: rows::height(row.integer("height")?),
            })
        });
        pending.collect()
    }

    /// The bundles of a block of which something was rejected for one of these reasons, and may yet be settled.
    ///
    /// # Errors
    /// [`Error::Database`] or [`Error::Unusable`].
    pub async fn pending_at(&self, height: Height, reasons: &[&'static str]) -> Result<Vec<BundleId>, Error> {
        let asked = Statement::new("SELECT DISTINCT bundle FROM rejected WHERE height = ? AND reason IN ")
            .bind(height.0.cast_signed())
            .list(reasons.iter().copied());
        let rows = persistently!(self.answer(asked.clone()))?;
        rows.iter()
            .map(|row| Ok(BundleId(rows::digest(row, "bundle")?)))
            .collect()
    }

    async fn answer(&self, statement: Statement) -> Result<Vec<database::Fetched>, Error> {
        let mut session = self.database().read().await?;
        let rows = session.fetch(statement).await?;
        session.end().await?;
        Ok(rows)
    }

    /// How much is in the index.
    ///
    /// # Errors
    /// [`Error::Database`] or [`Error::Unusable`].
    pub async fn counts(&self) -> Result<Counts, Error> {
        const COUNTS: &str = "SELECT (SELECT COUNT(*) FROM observation) AS observations, \
             (SELECT duplicates FROM progress WHERE name = 'index') AS duplicates, \
             (SELECT COUNT(*) FROM rejected) AS rejected, \
             (SELECT COUNT(*) FROM rejected WHERE reason = 'payload-missing') AS payloads_missing";
        let rows = persistently!(self.answer(Statement::new(COUNTS)))?;
        let row = rows.first().ok_or(Error::Damaged("progress"))?;
        let count = |name| row.integer(name).map(i64::cast_unsigned);
        Ok(Counts {
            observations: count("observations")?,
            duplicates: count("duplicates")?,
            rejected: count("rejected")?,
            payloads_missing: count("payloads_missing")?,
        })
    }
}

#[cfg(test)]
impl Index {
    /// Changes the database behind the index's back.
    pub(crate) async fn execute(&self, statement: &'static str) {
        let mut session = self.database().write().await.expect("a session");
        session.execute(Statement::new(statement)).await.expect("executes");
        session.commit().await.expect("commits");
    }
}
