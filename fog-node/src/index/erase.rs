//! The rows of a key whose records are erased: removed for good, and counted no more.

use record::ids::KeyId;

use super::{
    Error, Index, Reported, Row,
    database::{Session, persistently},
    gaps::{self, reported},
    progress::Progress,
    rows::kept,
    statement::Statement,
};

/// Rows of each kind that one step removes, at most.
const STEP_ROWS: u32 = 256;

/// What a step has removed.
#[derive(Debug, Default)]
struct Removed {
    rows: Vec<Row>,
    reports: Vec<Reported>,
    /// Rows that this node had not written.
    strangers: u64,
}

impl Removed {
    fn count(&self) -> u64 {
        self.rows.len() as u64 + self.reports.len() as u64 + self.strangers
    }
}

impl Index {
    /// Removes all that stands under a key, observations and gap reports, step by step; how many rows there were. Interrupted, it is
    /// asked for again: what is gone is gone. Afterwards nothing of it is in a file of SQLite's; a server keeps what it has written
    /// to its own logs for as long as its administrator lets it.
    ///
    /// The key must not be in the keyring any more: what is projected or mended meanwhile would come back.
    ///
    /// # Errors
    /// [`Error::Database`], [`Error::Unusable`], or [`Error::Altered`] while the rows are being mended: later again.
    pub async fn erase(&self, key: KeyId) -> Result<u64, Error> {
        let alone = self.0.writing.lock().await;
        self.counted(&alone).await?;
        let mut erased = 0;
        loop {
            let removed = persistently!(self.erase_some(key));
            match removed.inspect_err(|error| self.suspect(error))? {
                0 => break,
                removed => erased += removed,
            }
        }
        self.database().forget_removed().await?;
        Ok(erased)
    }

    async fn erase_some(&self, key: KeyId) -> Result<u64, Error> {
        let mut session = self.database().write().await?;
        let mut progress = Progress::read(&mut session, self.tags()).await?;
        let mut removed = Removed::default();
        self.remove_rows(&mut session, key, &mut removed).await?;
        self.remove_reports(&mut session, key, &mut removed).await?;
        progress.observations = progress.observations.saturating_sub(removed.rows.len() as u64);
        progress.gap_reports = progress.gap_reports.saturating_sub(removed.reports.len() as u64);
        progress.write(&mut session, self.tags()).await?;
        let tally = self.tally().take();
        session.commit().await?;
        if let Some((place, mut tally)) = tally {
            removed.rows.iter().for_each(|row| tally.remove(row));
            removed.reports.iter().for_each(|one| tally.remove_report(one));
            *self.tally() = Some((place, tally));
        }
        Ok(removed.count())
    }

    async fn remove_rows(&self, session: &mut Session, key: KeyId, removed: &mut Removed) -> Result<(), Error> {
        let statement = Statement::new("SELECT * FROM observation WHERE subject_key = ? LIMIT ?");
        let found = session.fetch(statement.bind(key.0).bind(STEP_ROWS)).await?;
        if found.is_empty() {
            return Ok(());
        }
        let ids = found.iter().map(|of| of.raw("id"));
        let ids = ids.collect::<Result<Vec<_>, _>>()?;
        session
            .execute(Statement::new("DELETE FROM observation WHERE id IN ").list(ids))
            .await?;
        for of in &found {
            match kept(of, self.tags()) {
                Ok(kept) => removed.rows.push(kept.row),
                Err(_) => removed.strangers += 1,
            }
        }
        Ok(())
    }

    /// The newest last, so that a question meanwhile finds what it must.
    async fn remove_reports(&self, session: &mut Session, key: KeyId, removed: &mut Removed) -> Result<(), Error> {
        let statement = Statement::new(
            "SELECT * FROM gap_report WHERE subject_key = ? ORDER BY reported_ms, bundle, entry LIMIT ?",
        );
        let found = session.fetch(statement.bind(key.0).bind(STEP_ROWS)).await?;
        for of in &found {
            gaps::remove(session, of).await?;
            match reported(of, self.tags()) {
                Ok((one, _)) => removed.reports.push(one),
                Err(_) => removed.strangers += 1,
            }
        }
        Ok(())
    }
}
