//! What gateways say is missing, as the index knows it: asked for permits only, like everything else in it.

use ledger::{block::Height, consent::Permit};
use record::{
    canonical,
    gaps::{GapReport, REPORT_BYTES_MAX, Start},
    ids::{BundleId, DeviceId, KeyId},
};

use super::{
    CRITERIA_MAX, Error, Index,
    database::{Fetched, Session, persistently},
    progress::Progress,
    rows::{digest, height, kept},
    statement::Statement,
    tag::TagKey,
};

/// Numbers of a start that are there though they were reported missing, at most: beyond it the report holds.
const HELD_MAX: u32 = 10_000;

/// What a gateway says is missing of a device, and where it says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reported {
    /// The key that opens it.
    pub key: KeyId,
    /// The bundle that holds the report.
    pub bundle: BundleId,
    /// Which of the bundle's contents it is: its readings come first, from 0.
    pub entry: u32,
    /// Block of the commitment.
    pub height: Height,
    /// The report, whose signature was checked.
    pub report: GapReport,
}

impl Index {
    /// What is missing of the devices whose records the permits open, as of a height: of each device the newest report,
    /// if something is missing, at most `count`, in the order of their names.
    ///
    /// # Errors
    /// [`Error::TooBroad`], [`Error::Database`], [`Error::Unusable`] or [`Error::Altered`].
    pub async fn gaps(&self, permits: &[Permit], height: Height, count: u32) -> Result<Vec<Reported>, Error> {
        let keys = keys(permits)?;
        let keys = &keys[..];
        let ask = || async move {
            let (found, snapshot) = persistently!(self.newest(keys, height, count))?;
            let last = found.last().filter(|_| found.len() >= count as usize);
            let last = last.map(|one| one.report.device.as_str());
            let is_complete = self.expect(|tally| Ok(tally.newest(keys, snapshot).is_as(&found, last)))?;
            if is_complete {
                Ok(found)
            } else {
                Err(Error::Altered("a gap report is missing, or is not the newest"))
            }
        };
        self.definitely(ask).await
    }

    async fn newest(&self, keys: &[KeyId], asked: Height, count: u32) -> Result<(Vec<Reported>, Height), Error> {
        let mut session = self.database().read().await?;
        let snapshot = asked.min(Progress::read(&mut session, self.tags()).await?.projected);

        // The reports themselves are read of the newest alone.
        let statement = Statement::new(
            "SELECT gap_report.* FROM (SELECT bundle, entry, ranges, ROW_NUMBER() OVER (PARTITION BY device \
             ORDER BY reported_ms DESC, bundle DESC, entry DESC) AS age FROM gap_report WHERE visible_from <= ?",
        );
        let statement = statement
            .bind(snapshot.0.cast_signed())
            .sql(" AND subject_key IN ")
            .list(keys.iter().map(|key| key.0))
            .sql(
                ") AS newest JOIN gap_report USING (bundle, entry) WHERE age = 1 AND newest.ranges > 0 ORDER BY device \
                 LIMIT ?",
            )
            .bind(count);
        let rows = session.fetch(statement).await?;
        session.end().await?;
        let found = rows
            .iter()
            .map(|of| reported(of, self.tags()).map(|(one, _)| one))
            .collect::<Result<_, _>>();
        let found = found.map_err(|_| Error::Altered("a gap report is not as this node wrote it"))?;
        Ok((found, snapshot))
    }

    /// Which of the numbers that a report names as missing from a start are here all the same, as of a height: their readings
    /// came through another gateway, or before this one lost what it knew.
    ///
    /// # Errors
    /// [`Error::TooBroad`], [`Error::Database`], [`Error::Unusable`] or [`Error::Altered`].
    pub async fn held(
        &self,
        permits: &[Permit],
        height: Height,
        missing: (&DeviceId, &Start),
    ) -> Result<Vec<u64>, Error> {
        let keys = keys(permits)?;
        persistently!(self.numbers(&keys, height, missing)).inspect_err(|error| self.suspect(error))
    }

    async fn numbers(
        &self,
        keys: &[KeyId],
        snapshot: Height,
        (device, start): (&DeviceId, &Start),
    ) -> Result<Vec<u64>, Error> {
        let ends = start.missing.first().zip(start.missing.last());
        // Numbers are kept as the bits of a signed one: those from 2^63 on are not in order.
        let Some((from, to)) = ends.and_then(|(a, b)| Some((a.0, i64::try_from(b.1).ok()?))) else {
            return Ok(Vec::new());
        };
        let statement =
            Statement::new("SELECT * FROM observation WHERE device = ? AND boot = ? AND seq >= ? AND seq <= ?")
                .bind(device.as_str())
                .bind(start.boot.to_string())
                .bind(from.cast_signed())
                .bind(to)
                .sql(" AND visible_from <= ? AND subject_key IN ")
                .bind(snapshot.0.cast_signed())
                .list(keys.iter().map(|key| key.0))
                .sql(" ORDER BY seq LIMIT ?")
                .bind(HELD_MAX);
        let mut session = self.database().read().await?;
        let rows = session.fetch(statement).await?;
        session.end().await?;
        // A row that somebody invented must not make a gap forgotten.
        let numbers = rows
            .iter()
            .map(|of| kept(of, self.tags()).map(|kept| kept.row.reading.seq));
        let mut numbers: Vec<_> = numbers
            .collect::<Result<_, _>>()
            .map_err(|_| Error::Altered("a row is not as this node wrote it"))?;
        numbers.dedup();
        Ok(numbers)
    }
}

/// The keys of the permits, if they are not too many for one question.
fn keys(permits: &[Permit]) -> Result<Vec<KeyId>, Error> {
    if permits.len() > CRITERIA_MAX {
        return Err(Error::TooBroad(permits.len()));
    }
    Ok(permits.iter().map(Permit::key).collect())
}

/// The reports of a block that this node wrote, and how many others stand there.
pub(super) async fn at(session: &mut Session, tags: &TagKey, at: Height) -> Result<(Vec<Reported>, u64), Error> {
    let statement = Statement::new("SELECT * FROM gap_report WHERE height = ?").bind(at.0.cast_signed());
    let found = session.fetch(statement).await?;
    let read: Vec<_> = found
        .iter()
        .filter_map(|of| reported(of, tags).ok().map(|(one, _)| one))
        .collect();
    let strange = (found.len() - read.len()) as u64;
    Ok((read, strange))
}

/// Inserts what is new; a report has one place, in one bundle that is final once. Gives those that are new.
pub(super) async fn insert(
    session: &mut Session,
    tags: &TagKey,
    gaps: &[Reported],
    visible_from: Height,
) -> Result<Vec<Reported>, Error> {
    let mut inserted = Vec::new();
    for one in gaps {
        let there = Statement::new("SELECT * FROM gap_report WHERE bundle = ? AND entry = ?")
            .bind(one.bundle.0)
            .bind(one.entry);
        if let Some(there) = session.fetch(there).await?.first() {
            if reported(there, tags).is_ok() {
                continue;
            }
            remove(session, there).await?;
        }
        let statement = Statement::new(
            "INSERT INTO gap_report (bundle, entry, subject_key, device, reported_ms, ranges, report, height, visible_from, \
             tag) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        );
        let statement = statement
            .bind(one.bundle.0)
            .bind(one.entry)
            .bind(one.key.0)
            .bind(one.report.device.as_str())
            .bind(one.report.at_ms)
            .bind(ranges(one))
            .bind(canonical::encode(&one.report))
            .bind(one.height.0.cast_signed())
            .bind(visible_from.0.cast_signed())
            .bind(tags.of_report(one, visible_from));
        session.execute(statement).await?;
        inserted.push(one.clone());
    }
    Ok(inserted)
}

/// Removes a report that was found.
pub(super) async fn remove(session: &mut Session, of: &Fetched) -> Result<(), Error> {
    let statement = Statement::new("DELETE FROM gap_report WHERE bundle = ? AND entry = ?");
    let statement = statement.bind(of.bytes("bundle")?).bind(of.integer("entry")?);
    session.execute(statement).await.map(|_| ())
}

/// Removes all reports of a block, and those elsewhere that stand in the way of these.
pub(super) async fn clear(session: &mut Session, at: Height, gaps: &[Reported]) -> Result<(), Error> {
    session
        .execute(Statement::new("DELETE FROM gap_report WHERE height = ?").bind(at.0.cast_signed()))
        .await?;
    for one in gaps {
        // A row that was moved to another height stands in the way.
        let statement = Statement::new("DELETE FROM gap_report WHERE bundle = ? AND entry = ?");
        session.execute(statement.bind(one.bundle.0).bind(one.entry)).await?;
    }
    Ok(())
}

/// How many ranges are missing, named or not.
pub(super) fn ranges(of: &Reported) -> i64 {
    let missing = &of.report.missing;
    i64::try_from((missing.ranges() as u64).saturating_add(missing.more_ranges)).unwrap_or(i64::MAX)
}

/// A row that this node wrote, as it wrote it: also the columns that a question goes by. And from which height on it is seen.
pub(super) fn reported(of: &Fetched, tags: &TagKey) -> Result<(Reported, Height), Error> {
    let report = canonical::decode(&of.bytes("report")?, REPORT_BYTES_MAX);
    let read = Reported {
        key: KeyId(digest(of, "subject_key")?),
        bundle: BundleId(digest(of, "bundle")?),
        entry: of.small("entry")?,
        height: height(of.integer("height")?),
        report: report.map_err(|_| Error::Damaged("report"))?,
    };
    let visible_from = height(of.integer("visible_from")?);
    let is_ours = of.bytes("tag")? == tags.of_report(&read, visible_from);
    let is_as_told = of.text("device")? == read.report.device.as_str()
        && of.integer("reported_ms")? == read.report.at_ms
        && of.integer("ranges")? == ranges(&read);
    if is_ours && is_as_told {
        Ok((read, visible_from))
    } else {
        Err(Error::Damaged("tag"))
    }
}
