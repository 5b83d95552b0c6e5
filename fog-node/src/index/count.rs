//! The rows counted, each looked at: when the index is opened or is another one, and when something in it is wrong.

use std::{collections::BTreeSet, sync::atomic::Ordering};

use ledger::block::Height;
use tokio::sync::MutexGuard;

use super::{
    Error, Index,
    database::{Fetched, persistently},
    gaps::reported,
    progress::Progress,
    rows::{height, kept},
    statement::Statement,
    tally::Tally,
};

/// Rows that are looked at, or removed, in one step.
const STEP_ROWS: u32 = 5_000;

/// Which blocks have rows that are not as this node wrote them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Suspects {
    /// These.
    Blocks(BTreeSet<Height>),
    /// It is not known: all are to be compared with the chain.
    All,
    /// Not even how far it was projected is known: it begins anew.
    Anew,
}

/// What a look at all rows has found.
#[derive(Debug, Default)]
struct Survey {
    tally: Tally,
    /// Where rows stand that this node has not written.
    strange: BTreeSet<Height>,
    /// How many there are.
    strangers: u64,
}

impl Index {
    /// Counts the rows, if that has not been done.
    ///
    /// # Errors
    /// [`Error::Database`], [`Error::Unusable`], or [`Error::Altered`] if they are not as many as this node wrote.
    pub async fn ready(&self) -> Result<(), Error> {
        let alone = self.0.writing.lock().await;
        self.counted(&alone).await
    }

    pub(super) async fn counted(&self, _alone: &MutexGuard<'_, ()>) -> Result<(), Error> {
        if self.expect(|_| Ok(())).is_ok() {
            return Ok(());
        }
        if self.0.wrong.load(Ordering::Acquire) == self.database().place() + 1 {
            return Err(Error::Altered("its rows are being mended"));
        }
        let counted = self.count().await.inspect_err(|error| {
            // A look at all rows takes a while, and whoever mends them is to have his turn. Which server they are on is known
            // now: there may have been no connection before.
            if matches!(error, Error::Altered(_)) {
                self.0.wrong.store(self.database().place() + 1, Ordering::Release);
            }
            self.suspect(error);
        });
        *self.tally() = Some(counted?);
        Ok(())
    }

    async fn count(&self) -> Result<(u64, Tally), Error> {
        let progress = persistently!(self.progress())?;
        let place = self.database().place();
        // An index that was put back to an older state may have kept rows of blocks that it will take in again.
        self.remove_above(progress.projected).await?;
        let survey = self.survey().await?;
        if place != self.database().place() {
            return Err(Error::Unusable(
                "it has moved to another server; its rows are counted there".to_owned(),
            ));
        }
        let (tally, expected) = (survey.tally, (progress.observations, progress.gap_reports));
        if survey.strangers > 0 || (tally.observations, tally.gap_reports) != expected {
            return Err(Error::Altered("its rows are not those that this node wrote"));
        }
        Ok((place, tally))
    }

    /// Looks at all rows: which blocks have to be compared with the chain.
    ///
    /// # Errors
    /// [`Error::Database`] or [`Error::Unusable`].
    pub async fn suspects(&self) -> Result<Suspects, Error> {
        let alone = self.0.writing.lock().await;
        match persistently!(self.progress()) {
            Err(Error::Altered(_) | Error::Damaged(_)) => {
                self.begin_anew(&alone).await?;
                return Ok(Suspects::Anew);
            }
            progress => progress?,
        };
        let survey = self.survey().await?;
        let differs = self.expect(|tally| Ok(tally.differs(&survey.tally)));
        Ok(match differs {
            Ok(differs) => Suspects::Blocks(survey.strange.into_iter().chain(differs).collect()),
            Err(_) => Suspects::All,
        })
    }

    /// Takes the rows as they are for those that this node wrote, after each block was compared with the chain.
    ///
    /// # Errors
    /// [`Error::Database`], [`Error::Unusable`], or [`Error::Altered`] if there are others among them.
    pub async fn accept(&self) -> Result<(), Error> {
        let _alone = self.0.writing.lock().await;
        let place = self.database().place();
        let survey = self.survey().await?;
        if survey.strangers > 0 {
            return Err(Error::Altered("there are still rows that this node has not written"));
        }
        let write = async || {
            let mut session = self.database().write().await?;
            let progress = Progress {
                observations: survey.tally.observations,
                gap_reports: survey.tally.gap_reports,
                ..Progress::read(&mut session, self.tags()).await?
            };
            progress.write(&mut session, self.tags()).await?;
            session.commit().await
        };
        persistently!(write())?;
        self.0.wrong.store(0, Ordering::Release);
        *self.tally() = Some((place, survey.tally));
        Ok(())
    }

    /// Begins anew if the rows are of another key: that of a disk that was lost.
    ///
    /// # Errors
    /// [`Error::Database`] or [`Error::Unusable`].
    pub async fn adopt(&self) -> Result<(), Error> {
        match self.projected().await {
            Err(Error::Unusable(_)) => self.clear().await,
            projected => projected.map(|_| ()),
        }
    }

    /// Forgets everything: the chain is projected from its first block on.
    ///
    /// # Errors
    /// [`Error::Database`] or [`Error::Unusable`].
    pub async fn clear(&self) -> Result<(), Error> {
        let alone = self.0.writing.lock().await;
        self.begin_anew(&alone).await
    }

    /// Interrupted, it goes on when the rows are counted: whatever is above the projected height is removed then.
    async fn begin_anew(&self, _alone: &MutexGuard<'_, ()>) -> Result<(), Error> {
        *self.tally() = None;
        let begin = async || {
            let mut session = self.database().write().await?;
            // Whatever stood there; there may be nothing at all.
            session.execute(Statement::new("DELETE FROM progress")).await?;
            let row = "INSERT INTO progress (name, projected, observations, gap_reports, duplicates, owner, tag) VALUES \
                       ('index', 0, 0, 0, 0, x'', x'')";
            session.execute(Statement::new(row)).await?;
            Progress::default().write(&mut session, self.tags()).await?;
            session.execute(Statement::new("DELETE FROM rejected")).await?;
            session.commit().await
        };
        persistently!(begin())?;
        self.0.wrong.store(0, Ordering::Release);
        self.remove_where(["height < 1", "height < 1"], None).await?;
        self.remove_above(Height(0)).await
    }

    async fn remove_above(&self, projected: Height) -> Result<(), Error> {
        self.remove_where(["height > ?", "height > ?"], Some(projected)).await
    }

    /// Removes rows step by step: so many at once would hold everybody up.
    async fn remove_where(&self, [rows, reports]: [&'static str; 2], height: Option<Height>) -> Result<(), Error> {
        for (table, condition) in [("observation", rows), ("gap_report", reports)] {
            let some = self.database().remove_some(table, condition);
            let some = height
                .into_iter()
                .fold(some, |some, height| some.bind(height.0.cast_signed()));
            let statement = some.bind(STEP_ROWS);
            let remove = async || {
                let mut session = self.database().write().await?;
                let removed = session.execute(statement.clone()).await?;
                session.commit().await?;
                Ok(removed)
            };
            while persistently!(remove())? > 0 {}
        }
        Ok(())
    }

    /// Looks at all rows, one step after the other.
    async fn survey(&self) -> Result<Survey, Error> {
        let mut survey = Survey::default();
        let mut last = None;
        loop {
            let statement = self.database().next_rows(last).bind(STEP_ROWS);
            let rows = persistently!(self.answer(statement.clone()))?;
            for of in &rows {
                match kept(of, self.tags()) {
                    Ok(kept) => survey.tally.add(&kept.row),
                    Err(_) => survey.strange(of),
                }
            }
            match rows.last() {
                Some(row) => last = Some(row.position()?),
                None => break,
            }
        }
        let mut last: Option<(Vec<u8>, i64)> = None;
        loop {
            let statement = match &last {
                None => Statement::new("SELECT * FROM gap_report"),
                Some((bundle, entry)) => {
                    Statement::new("SELECT * FROM gap_report WHERE bundle > ? OR (bundle = ? AND entry > ?)")
                        .bind(bundle.clone())
                        .bind(bundle.clone())
                        .bind(*entry)
                }
            };
            let statement = statement.sql(" ORDER BY bundle, entry LIMIT ?").bind(STEP_ROWS);
            let rows = persistently!(self.answer(statement.clone()))?;
            for of in &rows {
                match reported(of, self.tags()) {
                    Ok((one, visible_from)) => survey.tally.add_report(&one, visible_from),
                    Err(_) => survey.strange(of),
                }
            }
            match rows.last() {
                Some(row) => last = Some((row.bytes("bundle")?, row.integer("entry")?)),
                None => break,
            }
        }
        Ok(survey)
    }
}

impl Survey {
    fn strange(&mut self, of: &Fetched) {
        self.strangers += 1;
        self.strange.extend(of.integer("height").ok().map(height));
    }
}
