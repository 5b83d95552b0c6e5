//! Gap reports in SQLite: one row a report; a question gets the newest of each device.

use ledger::block::Height;
use record::{
    canonical,
    gaps::{REPORT_BYTES_MAX, Start},
    ids::{BundleId, DeviceId, KeyId},
};
use sqlx::{QueryBuilder, Transaction, sqlite::SqliteRow};

use super::{super::Reported, Error, Sqlite, column, digest, height};

/// Numbers of a start that are there though they were reported missing, at most: beyond it the report holds.
const HELD_MAX: u32 = 10_000;

impl Sqlite {
    pub(in super::super) async fn gaps(
        &self,
        keys: &[KeyId],
        snapshot: Height,
        count: u32,
    ) -> Result<Vec<Reported>, Error> {
        let snapshot = snapshot.min(self.projected().await?);
        let mut query = QueryBuilder::new(
            // The reports themselves are read of the newest alone.
            "SELECT gap_report.* FROM (SELECT bundle, entry, ranges, ROW_NUMBER() OVER (PARTITION BY device \
             ORDER BY reported_ms DESC, bundle DESC, entry DESC) AS age FROM gap_report WHERE visible_from <= ",
        );
        query.push_bind(snapshot.0.cast_signed()).push(" AND subject_key IN (");
        let mut list = query.separated(", ");
        for key in keys {
            list.push_bind(key.0.as_bytes().to_vec());
        }
        query
            .push(
                ")) AS newest JOIN gap_report USING (bundle, entry) WHERE age = 1 AND newest.ranges > 0 \
                 ORDER BY device LIMIT ",
            )
            .push_bind(count);
        let rows = query.build().persistent(false).fetch_all(&self.pool).await?;
        rows.iter().map(reported).collect()
    }

    pub(in super::super) async fn held(
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
        let mut query = QueryBuilder::new("SELECT DISTINCT seq FROM observation WHERE device = ");
        query.push_bind(device.as_str().to_owned());
        query.push(" AND boot = ").push_bind(start.boot.to_string());
        query.push(" AND seq >= ").push_bind(from.cast_signed());
        query.push(" AND seq <= ").push_bind(to);
        query.push(" AND visible_from <= ").push_bind(snapshot.0.cast_signed());
        query.push(" AND subject_key IN (");
        let mut list = query.separated(", ");
        for key in keys {
            list.push_bind(key.0.as_bytes().to_vec());
        }
        query.push(") ORDER BY seq LIMIT ").push_bind(HELD_MAX);
        let held: Vec<i64> = query
            .build_query_scalar()
            .persistent(false)
            .fetch_all(&self.pool)
            .await?;
        Ok(held.into_iter().map(i64::cast_unsigned).collect())
    }

    /// The reports of a block that queries see, and how many cannot be read or are hidden.
    pub(in super::super) async fn gaps_at(&self, at: Height) -> Result<(Vec<Reported>, u64), Error> {
        let rows = sqlx::query("SELECT * FROM gap_report WHERE height = ?")
            .bind(at.0.cast_signed())
            .fetch_all(&self.pool)
            .await?;
        // A bundle that is settled later becomes visible with the next height.
        let visible = self.projected().await?.next();
        let is_seen = |of: &&SqliteRow| column(of, "visible_from").is_ok_and(|from| height(from) <= visible);
        let read: Vec<_> = rows.iter().filter(is_seen).filter_map(|of| reported(of).ok()).collect();
        let unread = (rows.len() - read.len()) as u64;
        Ok((read, unread))
    }
}

/// Inserts what is new; a report has one place, in one bundle that is final once.
pub(super) async fn insert(
    transaction: &mut Transaction<'static, sqlx::Sqlite>,
    gaps: &[Reported],
    visible_from: Height,
) -> Result<(), Error> {
    for one in gaps {
        sqlx::query(
            "INSERT INTO gap_report (bundle, entry, subject_key, device, reported_ms, ranges, report, height, \
             visible_from) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        )
        .bind(one.bundle.0.as_bytes().to_vec())
        .bind(one.entry)
        .bind(one.key.0.as_bytes().to_vec())
        .bind(one.report.device.as_str())
        .bind(one.report.at_ms)
        .bind(ranges(one))
        .bind(canonical::encode(&one.report))
        .bind(one.height.0.cast_signed())
        .bind(visible_from.0.cast_signed())
        .execute(&mut **transaction)
        .await?;
    }
    Ok(())
}

/// Puts these reports in the place of all reports of a block.
pub(super) async fn replace(
    transaction: &mut Transaction<'static, sqlx::Sqlite>,
    at: Height,
    gaps: &[Reported],
) -> Result<(), Error> {
    sqlx::query("DELETE FROM gap_report WHERE height = ?")
        .bind(at.0.cast_signed())
        .execute(&mut **transaction)
        .await?;
    for one in gaps {
        // A row that was moved to another height stands in the way.
        sqlx::query("DELETE FROM gap_report WHERE bundle = ? AND entry = ?")
            .bind(one.bundle.0.as_bytes().to_vec())
            .bind(one.entry)
            .execute(&mut **transaction)
            .await?;
    }
    insert(transaction, gaps, at).await
}

/// How many ranges are missing, named or not.
fn ranges(of: &Reported) -> i64 {
    let missing = &of.report.missing;
    i64::try_from((missing.ranges() as u64).saturating_add(missing.more_ranges)).unwrap_or(i64::MAX)
}

/// The columns that a question goes by must be those of the report: a row with others is damaged.
fn reported(of: &SqliteRow) -> Result<Reported, Error> {
    let report = canonical::decode(&column::<Vec<u8>>(of, "report")?, REPORT_BYTES_MAX);
    let read = Reported {
        key: KeyId(digest(of, "subject_key")?),
        bundle: BundleId(digest(of, "bundle")?),
        entry: column(of, "entry")?,
        height: height(column(of, "height")?),
        report: report.map_err(|_| Error::Damaged("report"))?,
    };
    if column::<String>(of, "device")? != read.report.device.as_str() {
        return Err(Error::Damaged("device"));
    }
    if column::<i64>(of, "reported_ms")? != read.report.at_ms {
        return Err(Error::Damaged("reported_ms"));
    }
    if column::<i64>(of, "ranges")? != ranges(&read) {
        return Err(Error::Damaged("ranges"));
    }
    Ok(read)
}
