//! What the index takes in: a block, what was settled later, what is put in the place of damage. One transaction each.

use ledger::block::Height;
use record::ids::BundleId;

use super::{
    Contents, Error, Index, Projected, Rejection, Reported, Row, block,
    database::{Session, persistently},
    gaps,
    progress::Progress,
    rows::{self, Inserted},
    statement::Statement,
};

/// `rejected.entry` of a bundle as a whole.
const WHOLE_BUNDLE: i64 = -1;
/// Rejections that one statement notes, at most.
const CHUNK_REJECTIONS: usize = 500;

/// What a transaction has added.
#[derive(Debug, Default)]
struct Added {
    rows: Vec<Row>,
    reports: Vec<Reported>,
    visible_from: Height,
    projected: Projected,
}

impl Index {
    /// Takes in the block that follows after a height, all of it or nothing. None if the index is not at that height (any more):
    /// the block was taken in before, or the index is another one by now.
    ///
    /// # Errors
    /// [`Error::Database`], [`Error::Unusable`] or [`Error::Altered`].
    pub async fn project(
        &self,
        (after, height): (Height, Height),
        found: Contents<'_>,
        rejections: &[Rejection],
    ) -> Result<Option<Projected>, Error> {
        let alone = self.0.writing.lock().await;
        self.counted(&alone).await?;
        let taken = persistently!(self.project_once((after, height), found, rejections));
        taken.inspect_err(|error| self.suspect(error))
    }

    async fn project_once(
        &self,
        (after, height): (Height, Height),
        found: Contents<'_>,
        rejections: &[Rejection],
    ) -> Result<Option<Projected>, Error> {
        let mut session = self.database().write().await?;
        let mut progress = Progress::read(&mut session, self.tags()).await?;
        if progress.projected != after || height <= after {
            session.end().await?;
            return Ok(None);
        }
        progress.projected = height;
        let added = self.add(&mut session, &mut progress, found, height).await?;
        reject(&mut session, rejections, 1).await?;
        self.commit(session, progress, added).await.map(Some)
    }

    /// Replaces what was rejected of a bundle by what a later attempt gave. Its rows become visible with the next
    /// height, so that pages already handed out stay as they are.
    ///
    /// # Errors
    /// [`Error::Database`], [`Error::Unusable`] or [`Error::Altered`].
    pub async fn settle(
        &self,
        bundle: BundleId,
        found: Contents<'_>,
        rejections: &[Rejection],
    ) -> Result<Projected, Error> {
        let alone = self.0.writing.lock().await;
        self.counted(&alone).await?;
        let settled = persistently!(self.settle_once(bundle, found, rejections));
        settled.inspect_err(|error| self.suspect(error))
    }

    async fn settle_once(
        &self,
        bundle: BundleId,
        found: Contents<'_>,
        rejections: &[Rejection],
    ) -> Result<Projected, Error> {
        let mut session = self.database().write().await?;
        let statement = Statement::new("SELECT attempts FROM rejected WHERE bundle = ? ORDER BY attempts DESC LIMIT 1");
        let attempts = session.fetch(statement.bind(bundle.0)).await?;
        let Some(attempts) = attempts.first() else {
            session.end().await?;
            return Ok(Projected::default());
        };
        let attempts = attempts.integer("attempts")?;
        session
            .execute(Statement::new("DELETE FROM rejected WHERE bundle = ?").bind(bundle.0))
            .await?;
        let mut progress = Progress::read(&mut session, self.tags()).await?;
        let next = progress.projected.next();
        let added = self.add(&mut session, &mut progress, found, next).await?;
        reject(&mut session, rejections, attempts.saturating_add(1)).await?;
        self.commit(session, progress, added).await
    }

    /// Notes what is to be settled later; what is noted already stays as it is.
    ///
    /// # Errors
    /// [`Error::Database`] or [`Error::Unusable`].
    pub async fn note(&self, rejections: &[Rejection]) -> Result<(), Error> {
        let _alone = self.0.writing.lock().await;
        let note = async || {
            let mut session = self.database().write().await?;
            reject(&mut session, rejections, 0).await?;
            session.commit().await
        };
        persistently!(note())
    }

    /// Puts this in the place of everything of a block.
    ///
    /// # Errors
    /// [`Error::Database`], [`Error::Unusable`] or [`Error::Altered`].
    pub async fn replace(&self, height: Height, found: Contents<'_>) -> Result<(), Error> {
        let _alone = self.0.writing.lock().await;
        persistently!(self.replace_once(height, found))
    }

    async fn replace_once(&self, height: Height, (rows, gaps): Contents<'_>) -> Result<(), Error> {
        let mut session = self.database().write().await?;
        let mut progress = Progress::read(&mut session, self.tags()).await?;
        block::clear(&mut session, height, rows).await?;
        gaps::clear(&mut session, height, gaps).await?;
        rows::insert(&mut session, self.tags(), rows, height).await?;
        gaps::insert(&mut session, self.tags(), gaps, height).await?;
        let now = (rows.len() as u64, gaps.len() as u64);
        let before = self.expect(|tally| Ok(tally.at(height))).ok();
        let before = before.map(|(rows, gaps)| (u64::from(rows), u64::from(gaps)));
        // The same rows as this node wrote when it projected the block: their number is right as it stands.
        let is_restored = before == Some(now);
        if let (false, Some((rows, gaps))) = (is_restored, before) {
            progress.observations = (progress.observations + now.0).saturating_sub(rows);
            progress.gap_reports = (progress.gap_reports + now.1).saturating_sub(gaps);
            progress.write(&mut session, self.tags()).await?;
        }
        let tally = self.tally().take();
        session.commit().await?;
        if is_restored {
            *self.tally() = tally;
        }
        Ok(())
    }

    /// Removes rows of heights that no block has, up to and including `head`.
    ///
    /// # Errors
    /// [`Error::Database`] or [`Error::Unusable`].
    pub async fn remove_strays(&self, head: Height) -> Result<u64, Error> {
        let _alone = self.0.writing.lock().await;
        let remove = async || {
            let mut session = self.database().write().await?;
            let progress = Progress::read(&mut session, self.tags()).await?;
            let last = head.max(progress.projected).0.cast_signed();
            let statements = [
                "DELETE FROM observation WHERE height < 1 OR height > ?",
                "DELETE FROM gap_report WHERE height < 1 OR height > ?",
            ];
            let mut removed = 0;
            for statement in statements {
                removed += session.execute(Statement::new(statement).bind(last)).await?;
            }
            session.commit().await?;
            Ok(removed)
        };
        persistently!(remove())
    }

    async fn add(
        &self,
        session: &mut Session,
        progress: &mut Progress,
        (rows, gaps): Contents<'_>,
        visible_from: Height,
    ) -> Result<Added, Error> {
        let Inserted {
            rows,
            duplicates,
            overwritten,
        } = rows::insert(session, self.tags(), rows, visible_from).await?;
        if overwritten > 0 {
            self.suspicious();
        }
        let reports = gaps::insert(session, self.tags(), gaps, visible_from).await?;
        progress.observations += rows.len() as u64;
        progress.gap_reports += reports.len() as u64;
        progress.duplicates += duplicates;
        let projected = Projected {
            inserted: rows.len() as u64,
            duplicates,
        };
        Ok(Added {
            rows,
            reports,
            visible_from,
            projected,
        })
    }

    /// Commits, and counts what was added. If it is not known what became of the commit, rows are counted anew.
    async fn commit(&self, mut session: Session, progress: Progress, added: Added) -> Result<Projected, Error> {
        progress.write(&mut session, self.tags()).await?;
        let tally = self.tally().take();
        session.commit().await?;
        if let Some((place, mut tally)) = tally {
            added.rows.iter().for_each(|row| tally.add(row));
            for one in &added.reports {
                tally.add_report(one, added.visible_from);
            }
            *self.tally() = Some((place, tally));
        }
        Ok(added.projected)
    }
}

async fn reject(session: &mut Session, rejections: &[Rejection], attempts: i64) -> Result<(), Error> {
    for chunk in rejections.chunks(CHUNK_REJECTIONS) {
        let bundles = chunk.iter().map(|rejection| rejection.bundle.0);
        let there = session
            .fetch(Statement::new("SELECT bundle, entry FROM rejected WHERE bundle IN ").list(bundles))
            .await?;
        let mut noted = std::collections::HashSet::new();
        for row in there {
            noted.insert((rows::digest(&row, "bundle")?.as_bytes().to_vec(), row.integer("entry")?));
        }
        for rejection in chunk {
            let entry = rejection.entry.map_or(WHOLE_BUNDLE, i64::from);
            if !noted.insert((rejection.bundle.0.as_bytes().to_vec(), entry)) {
                continue;
            }
            let statement =
                Statement::new("INSERT INTO rejected (bundle, entry, reason, height, attempts) VALUES (?, ?, ?, ?, ?)");
            let statement = statement
                .bind(rejection.bundle.0)
                .bind(entry)
                .bind(rejection.reason)
                .bind(rejection.height.0.cast_signed())
                .bind(attempts);
            session.execute(statement).await?;
        }
    }
    Ok(())
}
