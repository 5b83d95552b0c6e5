//! The index in SQLite: one file, WAL, `synchronous=NORMAL` (it is rebuilt from the chain, so the last commits may be lost).

mod gaps;

use std::{path::Path, time::Duration};

use ledger::block::Height;
use record::{
    canonical::{self, Digest},
    ids::{BundleId, KeyId, ReadingId},
};
use sqlx::{
    QueryBuilder, Row as _, SqlitePool, Transaction,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous},
};

use super::{Config, Contents, Counts, Cursor, Error, PAGE_ROWS_MAX, Page, Pending, Projected, Rejection, Row, Search};

/// The file in the data folder.
const FILE: &str = "index.sqlite";
/// `rejected.entry` of a bundle as a whole.
const WHOLE_BUNDLE: i64 = -1;

/// The driver.
#[derive(Clone, Debug)]
pub(super) struct Sqlite {
    pool: SqlitePool,
}

impl Sqlite {
    pub(super) async fn open(config: &Config, data_dir: &Path) -> Result<Self, Error> {
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
        Ok(Self { pool })
    }

    pub(super) async fn projected(&self) -> Result<Height, Error> {
        let query = sqlx::query_scalar("SELECT value FROM progress WHERE name = 'projected'");
        Ok(height(query.fetch_one(&self.pool).await?))
    }

    pub(super) async fn project(
        &self,
        height: Height,
        (rows, gaps): Contents<'_>,
        rejections: &[Rejection],
    ) -> Result<Projected, Error> {
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let advanced = sqlx::query("UPDATE progress SET value = ?1 WHERE name = 'projected' AND value < ?1")
            .bind(height.0.cast_signed())
            .execute(&mut *transaction)
            .await?;
        if advanced.rows_affected() == 0 {
            return Ok(Projected::default());
        }
        let projected = insert(&mut transaction, rows, height).await?;
        gaps::insert(&mut transaction, gaps, height).await?;
        reject(&mut transaction, rejections, 1).await?;
        transaction.commit().await?;
        Ok(projected)
    }

    pub(super) async fn settle(
        &self,
        bundle: BundleId,
        (rows, gaps): Contents<'_>,
        rejections: &[Rejection],
    ) -> Result<Projected, Error> {
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let bundle = bundle.0.as_bytes().to_vec();
        let attempts: Option<i64> = sqlx::query_scalar("SELECT MAX(attempts) FROM rejected WHERE bundle = ?")
            .bind(bundle.clone())
            .fetch_one(&mut *transaction)
            .await?;
        let Some(attempts) = attempts else {
            return Ok(Projected::default());
        };
        sqlx::query("DELETE FROM rejected WHERE bundle = ?")
            .bind(bundle)
            .execute(&mut *transaction)
            .await?;
        let projected: i64 = sqlx::query_scalar("SELECT value FROM progress WHERE name = 'projected'")
            .fetch_one(&mut *transaction)
            .await?;
        let next = height(projected).next();
        let projected = insert(&mut transaction, rows, next).await?;
        gaps::insert(&mut transaction, gaps, next).await?;
        reject(&mut transaction, rejections, attempts.saturating_add(1)).await?;
        transaction.commit().await?;
        Ok(projected)
    }

    pub(super) async fn note(&self, rejections: &[Rejection]) -> Result<(), Error> {
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        reject(&mut transaction, rejections, 0).await?;
        Ok(transaction.commit().await?)
    }

    pub(super) async fn pending(&self, reasons: &[&'static str], count: u32) -> Result<Vec<Pending>, Error> {
        let mut query = QueryBuilder::new("SELECT bundle, height FROM rejected WHERE reason IN (");
        let mut list = query.separated(", ");
        for reason in reasons {
            list.push_bind(*reason);
        }
        query
            .push(") GROUP BY bundle, height ORDER BY MIN(attempts), height LIMIT ")
            .push_bind(count);
        let rows = query.build().persistent(false).fetch_all(&self.pool).await?;
        rows.iter()
            .map(|row| {
                Ok(Pending {
                    bundle: BundleId(digest(row, "bundle")?),
                    height: height(column(row, "height")?),
                })
            })
            .collect()
    }

    pub(super) async fn find(&self, keys: &[KeyId], search: &Search) -> Result<Page, Error> {
        let asked = search.cursor.as_ref().map_or(search.height, Cursor::height);
        let snapshot = asked.min(self.projected().await?);
        let total: i64 = filtered("SELECT COUNT(*)", keys, search, snapshot)
            .build_query_scalar()
            .persistent(false)
            .fetch_one(&self.pool)
            .await?;
        let count = search.count.min(PAGE_ROWS_MAX);
        let mut rows = if count == 0 {
            Vec::new()
        } else {
            self.rows(keys, search, snapshot, count + 1).await?
        };
        // One more than asked for: whether there is a next page.
        let has_more = rows.len() > count as usize;
        rows.truncate(count as usize);
        let next = rows
            .last()
            .filter(|_| has_more)
            .map(|row| Cursor::after(row, snapshot))
            .transpose()?;
        Ok(Page {
            rows,
            total: total.cast_unsigned(),
            next,
            height: snapshot,
        })
    }

    async fn rows(&self, keys: &[KeyId], search: &Search, snapshot: Height, count: u32) -> Result<Vec<Row>, Error> {
        let mut query = filtered("SELECT *", keys, search, snapshot);
        if let Some(cursor) = &search.cursor {
            query.push(" AND (effective_ms, id) < (").push_bind(cursor.effective_ms);
            query.push(", ").push_bind(hex::encode(cursor.id)).push(")");
        }
        query
            .push(" ORDER BY effective_ms DESC, id DESC LIMIT ")
            .push_bind(count);
        query
            .build()
            .persistent(false)
            .fetch_all(&self.pool)
            .await?
            .iter()
            .map(row)
            .collect()
    }

    pub(super) async fn rows_at(&self, at: Height) -> Result<(Vec<Row>, u64), Error> {
        let rows = sqlx::query("SELECT * FROM observation WHERE height = ?")
            .bind(at.0.cast_signed())
            .fetch_all(&self.pool)
            .await?;
        // A bundle that is settled later becomes visible with the next height.
        let visible = self.projected().await?.next();
        let is_seen = |of: &&SqliteRow| column(of, "visible_from").is_ok_and(|from| height(from) <= visible);
        let read: Vec<_> = rows.iter().filter(is_seen).filter_map(|of| row(of).ok()).collect();
        let unread = (rows.len() - read.len()) as u64;
        Ok((read, unread))
    }

    pub(super) async fn is_pending(&self, at: Height, reasons: &[&'static str]) -> Result<bool, Error> {
        let mut query = QueryBuilder::new("SELECT EXISTS (SELECT 1 FROM rejected WHERE height = ");
        query.push_bind(at.0.cast_signed()).push(" AND reason IN (");
        let mut list = query.separated(", ");
        for reason in reasons {
            list.push_bind(*reason);
        }
        query.push("))");
        Ok(query
            .build_query_scalar()
            .persistent(false)
            .fetch_one(&self.pool)
            .await?)
    }

    pub(super) async fn has_elsewhere(&self, row: &Row) -> Result<bool, Error> {
        let query = "SELECT EXISTS (SELECT 1 FROM observation WHERE id = ? AND height <> ?)";
        Ok(sqlx::query_scalar(query)
            .bind(&row.id)
            .bind(row.height.0.cast_signed())
            .fetch_one(&self.pool)
            .await?)
    }

    pub(super) async fn replace(&self, height: Height, (rows, gaps): Contents<'_>) -> Result<(), Error> {
        let mut transaction = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        sqlx::query("DELETE FROM observation WHERE height = ?")
            .bind(height.0.cast_signed())
            .execute(&mut *transaction)
            .await?;
        for row in rows {
            // A row that was moved to another height stands in the way.
            sqlx::query("DELETE FROM observation WHERE id = ?")
                .bind(&row.id)
                .execute(&mut *transaction)
                .await?;
        }
        insert(&mut transaction, rows, height).await?;
        gaps::replace(&mut transaction, height, gaps).await?;
        Ok(transaction.commit().await?)
    }

    pub(super) async fn remove_strays(&self, head: Height) -> Result<u64, Error> {
        let mut removed = 0;
        for table in ["observation", "gap_report"] {
            let strays = QueryBuilder::<sqlx::Sqlite>::new("DELETE FROM ")
                .push(table)
                .push(" WHERE height < 1 OR (height > ")
                .push_bind(head.0.cast_signed())
                .push(" AND height > (SELECT value FROM progress WHERE name = 'projected'))")
                .build()
                .execute(&self.pool)
                .await?;
            removed += strays.rows_affected();
        }
        Ok(removed)
    }

    pub(super) async fn counts(&self) -> Result<Counts, Error> {
        let row = sqlx::query(
            "SELECT (SELECT COUNT(*) FROM observation) AS observations, \
             (SELECT value FROM progress WHERE name = 'duplicates') AS duplicates, \
             (SELECT COUNT(*) FROM rejected) AS rejected, \
             (SELECT COUNT(*) FROM rejected WHERE reason = 'payload-missing') AS payloads_missing",
        )
        .fetch_one(&self.pool)
        .await?;
        let count = |name| column::<i64>(&row, name).map(i64::cast_unsigned);
        Ok(Counts {
            observations: count("observations")?,
            duplicates: count("duplicates")?,
            rejected: count("rejected")?,
            payloads_missing: count("payloads_missing")?,
        })
    }
}

#[cfg(test)]
impl Sqlite {
    pub(super) async fn execute(&self, statement: &'static str) {
        sqlx::query(statement).execute(&self.pool).await.expect("executes");
    }
}

/// The rows a caller may see and asked for, up to the snapshot. No permit, no row.
fn filtered(select: &str, keys: &[KeyId], search: &Search, snapshot: Height) -> QueryBuilder<sqlx::Sqlite> {
    let mut query = QueryBuilder::new(select);
    query
        .push(" FROM observation WHERE visible_from <= ")
        .push_bind(snapshot.0.cast_signed());
    query.push(" AND subject_key IN (");
    let mut list = query.separated(", ");
    for key in keys {
        list.push_bind(key.0.as_bytes().to_vec());
    }
    query.push(")");
    if let Some(subject) = search.subject {
        query.push(" AND subject = ").push_bind(subject.to_string());
    }
    for (name, values) in [("code", &search.codes), ("id", &search.ids)] {
        if !values.is_empty() {
            query.push(" AND ").push(name).push(" IN (");
            let mut list = query.separated(", ");
            for value in values {
                list.push_bind(value.clone());
            }
            query.push(")");
        }
    }
    for date in &search.dates {
        query.push(" AND effective_ms >= ").push_bind(date.from_ms);
        query.push(" AND effective_ms < ").push_bind(date.to_ms);
    }
    query
}

/// Inserts what is new and counts what was there already from another place.
async fn insert(
    transaction: &mut Transaction<'static, sqlx::Sqlite>,
    rows: &[Row],
    visible_from: Height,
) -> Result<Projected, Error> {
    let mut projected = Projected::default();
    for row in rows {
        let inserted = sqlx::query(
            "INSERT INTO observation (id, subject_key, subject, code, effective_ms, received_ms, device, boot, seq, \
             ordinal, bundle, cid, entry, height, visible_from) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) \
             ON CONFLICT DO NOTHING",
        )
        .bind(&row.id)
        .bind(row.key.0.as_bytes().to_vec())
        .bind(row.subject.to_string())
        .bind(&row.code)
        .bind(row.effective_ms)
        .bind(row.received_ms)
        .bind(row.reading.device.as_str())
        .bind(row.reading.boot.to_string())
        .bind(row.reading.seq.cast_signed())
        .bind(row.ordinal)
        .bind(row.bundle.0.as_bytes().to_vec())
        .bind(row.cid.to_string())
        .bind(row.entry)
        .bind(row.height.0.cast_signed())
        .bind(visible_from.0.cast_signed())
        .execute(&mut **transaction)
        .await?;
        if inserted.rows_affected() == 1 {
            projected.inserted += 1;
        } else if !is_there(transaction, row).await? {
            projected.duplicates += 1;
        }
    }
    if projected.duplicates > 0 {
        sqlx::query("UPDATE progress SET value = value + ? WHERE name = 'duplicates'")
            .bind(projected.duplicates.cast_signed())
            .execute(&mut **transaction)
            .await?;
    }
    Ok(projected)
}

/// Whether this very row, of the same bundle and entry, is in the index: a bundle tried again is no duplicate.
async fn is_there(transaction: &mut Transaction<'static, sqlx::Sqlite>, row: &Row) -> Result<bool, Error> {
    let query = "SELECT EXISTS (SELECT 1 FROM observation WHERE id = ? AND bundle = ? AND entry = ? AND ordinal = ?)";
    Ok(sqlx::query_scalar(query)
        .bind(&row.id)
        .bind(row.bundle.0.as_bytes().to_vec())
        .bind(row.entry)
        .bind(row.ordinal)
        .fetch_one(&mut **transaction)
        .await?)
}

async fn reject(
    transaction: &mut Transaction<'static, sqlx::Sqlite>,
    rejections: &[Rejection],
    attempts: i64,
) -> Result<(), Error> {
    for rejection in rejections {
        sqlx::query(
            "INSERT INTO rejected (bundle, entry, reason, height, attempts) VALUES (?, ?, ?, ?, ?) \
             ON CONFLICT DO NOTHING",
        )
        .bind(rejection.bundle.0.as_bytes().to_vec())
        .bind(rejection.entry.map_or(WHOLE_BUNDLE, i64::from))
        .bind(rejection.reason)
        .bind(rejection.height.0.cast_signed())
        .bind(attempts)
        .execute(&mut **transaction)
        .await?;
    }
    Ok(())
}

fn row(of: &SqliteRow) -> Result<Row, Error> {
    Ok(Row {
        id: column(of, "id")?,
        key: KeyId(digest(of, "subject_key")?),
        subject: parsed(of, "subject")?,
        code: column(of, "code")?,
        effective_ms: column(of, "effective_ms")?,
        received_ms: column(of, "received_ms")?,
        reading: ReadingId {
            device: parsed(of, "device")?,
            boot: parsed(of, "boot")?,
            seq: column::<i64>(of, "seq")?.cast_unsigned(),
        },
        ordinal: column(of, "ordinal")?,
        bundle: BundleId(digest(of, "bundle")?),
        cid: canonical::parse_cid(&column::<String>(of, "cid")?).map_err(|_| Error::Damaged("cid"))?,
        entry: column(of, "entry")?,
        height: height(column(of, "height")?),
    })
}

fn column<'r, T>(row: &'r SqliteRow, name: &'static str) -> Result<T, Error>
where
    T: sqlx::Decode<'r, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite>,
{
    row.try_get(name).map_err(|_| Error::Damaged(name))
}

fn parsed<T: std::str::FromStr>(row: &SqliteRow, name: &'static str) -> Result<T, Error> {
    column::<String>(row, name)?.parse().map_err(|_| Error::Damaged(name))
}

fn digest(row: &SqliteRow, name: &'static str) -> Result<Digest, Error> {
    let bytes = column::<Vec<u8>>(row, name)?;
    bytes
        .try_into()
        .map(Digest::from_bytes)
        .map_err(|_| Error::Damaged(name))
}

fn height(value: i64) -> Height {
    Height(value.cast_unsigned())
}
