//! Rows of observations: taken in, asked for page by page, compared with how many there must be.

use std::collections::HashMap;

use ledger::block::Height;
use record::{
    canonical::{self, Digest},
    ids::{BundleId, KeyId, ReadingId},
};

use super::{
    Cursor, DateRange, Error, PAGE_ROWS_MAX, Page, Row, Search,
    database::{Fetched, Session},
    progress::Progress,
    statement::Statement,
    tag::TagKey,
    tally::{self, ALWAYS, Tally},
};

/// Rows that one statement looks for, at most.
pub(super) const CHUNK_ROWS: usize = 256;

/// Rows that one statement inserts, at most; a power of two. They fit into one record of TLS: with the second one the system
/// would wait 40 ms for the server to confirm the first (Nagle's algorithm, which the SQL library leaves on).
const INSERTED_AT_ONCE_MAX: usize = 32;

/// What became of the rows of a block.
#[derive(Debug, Default)]
pub(super) struct Inserted {
    /// Those that are new.
    pub(super) rows: Vec<Row>,
    /// Second occurrences.
    pub(super) duplicates: u64,
    /// Rows in their place that this node had not written.
    pub(super) overwritten: u64,
}

/// Inserts what is new, puts right what somebody put in its place, and counts what was there from another bundle.
pub(super) async fn insert(
    session: &mut Session,
    tags: &TagKey,
    rows: &[Row],
    visible_from: Height,
) -> Result<Inserted, Error> {
    let mut inserted = Inserted::default();
    for chunk in rows.chunks(CHUNK_ROWS) {
        let there = by_id(session, tags, chunk).await?;
        let mut taken: HashMap<&str, &Row> = HashMap::new();
        let mut new = Vec::with_capacity(chunk.len());
        for row in chunk {
            let known = match there.get(&row.id) {
                Some(Some(known)) => Some(known),
                Some(None) | None => taken.get(row.id.as_str()).copied(),
            };
            match known {
                Some(known) if is_same(known, row) => {}
                Some(_) => inserted.duplicates += 1,
                None => {
                    taken.insert(&row.id, row);
                    new.push(row);
                }
            }
        }
        let strange = new.iter().filter(|row| there.contains_key(&row.id));
        let strange: Vec<_> = strange.map(|row| row.id.as_str()).collect();
        if !strange.is_empty() {
            inserted.overwritten += strange.len() as u64;
            session
                .execute(Statement::new("DELETE FROM observation WHERE id IN ").list(strange))
                .await?;
        }
        add(session, tags, &new, visible_from).await?;
        inserted.rows.extend(new.into_iter().cloned());
    }
    Ok(inserted)
}

/// A bundle tried again is no duplicate.
fn is_same(known: &Row, row: &Row) -> bool {
    (known.bundle, known.entry, known.ordinal) == (row.bundle, row.entry, row.ordinal)
}

/// The rows with the ids of these; `None` where one stands that this node has not written.
pub(super) async fn by_id(
    session: &mut Session,
    tags: &TagKey,
    rows: &[Row],
) -> Result<HashMap<String, Option<Row>>, Error> {
    let ids = rows.iter().map(|row| row.id.as_str());
    let found = session
        .fetch(Statement::new("SELECT * FROM observation WHERE id IN ").list(ids))
        .await?;
    found
        .iter()
        .map(|of| Ok((of.text("id")?, kept(of, tags).ok().map(|kept| kept.row))))
        .collect()
}

/// In pieces whose lengths are powers of two: each is a text of its own.
async fn add(session: &mut Session, tags: &TagKey, rows: &[&Row], visible_from: Height) -> Result<(), Error> {
    let mut rest = rows;
    while let Some(log) = rest.len().checked_ilog2() {
        let (piece, later) = rest.split_at(INSERTED_AT_ONCE_MAX.min(1 << log));
        add_piece(session, tags, piece, visible_from).await?;
        rest = later;
    }
    Ok(())
}

async fn add_piece(session: &mut Session, tags: &TagKey, rows: &[&Row], visible_from: Height) -> Result<(), Error> {
    let mut statement = Statement::new(
        "INSERT INTO observation (id, subject_key, subject, code, effective_ms, received_ms, device, boot, seq, ordinal, \
         bundle, cid, entry, height, visible_from, tag) VALUES ",
    );
    for (at, row) in rows.iter().enumerate() {
        let first = if at == 0 { "(" } else { ", (" };
        statement = statement
            .sql(first)
            .sql("?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)")
            .bind(row.id.as_str())
            .bind(row.key.0)
            .bind(row.subject.to_string())
            .bind(row.code.as_str())
            .bind(row.effective_ms)
            .bind(row.received_ms)
            .bind(row.reading.device.as_str())
            .bind(row.reading.boot.to_string())
            .bind(row.reading.seq.cast_signed())
            .bind(u32::from(row.ordinal))
            .bind(row.bundle.0)
            .bind(row.cid.to_string())
            .bind(row.entry)
            .bind(row.height.0.cast_signed())
            .bind(visible_from.0.cast_signed())
            .bind(tags.of_row(row, visible_from));
    }
    session.execute(statement).await.map(|_| ())
}

/// A row that this node wrote, as it wrote it.
pub(super) struct Kept {
    pub(super) row: Row,
    pub(super) visible_from: Height,
}

/// A row of the database, if it is one that this node wrote.
pub(super) fn kept(of: &Fetched, tags: &TagKey) -> Result<Kept, Error> {
    let kept = parsed(of)?;
    let tag = of.bytes("tag")?;
    if tag != tags.of_row(&kept.row, kept.visible_from) {
        return Err(Error::Damaged("tag"));
    }
    Ok(kept)
}

fn parsed(of: &Fetched) -> Result<Kept, Error> {
    let row = Row {
        id: of.text("id")?,
        key: KeyId(digest(of, "subject_key")?),
        subject: of.parsed("subject")?,
        code: of.text("code")?,
        effective_ms: of.integer("effective_ms")?,
        received_ms: of.integer("received_ms")?,
        reading: ReadingId {
            device: of.parsed("device")?,
            boot: of.parsed("boot")?,
            seq: of.integer("seq")?.cast_unsigned(),
        },
        ordinal: of.small("ordinal")?,
        bundle: BundleId(digest(of, "bundle")?),
        cid: canonical::parse_cid(&of.text("cid")?).map_err(|_| Error::Damaged("cid"))?,
        entry: of.small("entry")?,
        height: height(of.integer("height")?),
    };
    Ok(Kept {
        row,
        visible_from: height(of.integer("visible_from")?),
    })
}

pub(super) fn digest(of: &Fetched, name: &'static str) -> Result<Digest, Error> {
    let bytes = of.bytes(name)?;
    bytes
        .try_into()
        .map(Digest::from_bytes)
        .map_err(|_| Error::Damaged(name))
}

pub(super) fn height(value: i64) -> Height {
    Height(value.cast_unsigned())
}

/// A page and the numbers of rows that it rests on.
pub(super) struct Found {
    pub(super) page: Page,
    /// Rows of whole slots that there are.
    counted: Vec<Counted>,
}

/// How many rows there are in whole slots.
struct Counted {
    keys: Vec<KeyId>,
    codes: Vec<String>,
    span: DateRange,
    rows: u64,
}

impl Found {
    /// The page, if all rows are there that must be.
    pub(super) fn complete(self, tally: &Tally) -> Result<Page, Error> {
        for counted in &self.counted {
            if tally.rows(&counted.keys, &counted.codes, counted.span) != counted.rows {
                return Err(Error::Altered("rows are missing, or some are too many"));
            }
        }
        Ok(self.page)
    }
}

/// A page, each of its rows one that this node wrote.
pub(super) async fn find(
    session: &mut Session,
    tags: &TagKey,
    keys: &[KeyId],
    search: &Search,
) -> Result<Found, Error> {
    let asked = search.cursor.as_ref().map_or(search.height, Cursor::height);
    let projected = Progress::read(session, tags).await?.projected;
    let snapshot = asked.min(projected);
    let span = search.span();
    let known = Known {
        keys,
        visible: projected.next(),
    };
    let (total, mut counted) = totals(session, (known, snapshot), search, span).await?;
    let count = search.count.min(PAGE_ROWS_MAX);
    let mut rows = if count == 0 {
        Vec::new()
    } else {
        page(session, tags, (keys, snapshot, count + 1), search).await?
    };
    // One more than asked for: whether there is a next page.
    let has_more = rows.len() > count as usize;
    rows.truncate(count as usize);
    let next = rows
        .last()
        .filter(|_| has_more)
        .map(|row| Cursor::after(row, snapshot))
        .transpose()?;
    let misses = !search.ids.is_empty() && (total as usize) < search.ids.len();
    if search.ids.is_empty() {
        // What was moved within the search would be missed on this page, and not in the total.
        let from_ms = rows
            .last()
            .filter(|_| has_more)
            .map_or(span.from_ms, |row| row.effective_ms);
        let to_ms = search.cursor.as_ref().map_or(span.to_ms, |cursor| {
            span.to_ms.min(cursor.effective_ms.saturating_add(1))
        });
        let window = DateRange { from_ms, to_ms };
        if window != span && from_ms < to_ms {
            counted.push(count_in(session, known, search, window).await?);
        }
    } else if misses {
        // An id that is not there may be one that was deleted.
        let everything = Search::default();
        counted = vec![count_in(session, known, &everything, ALWAYS).await?];
    }
    Ok(Found {
        page: Page {
            rows,
            total,
            next,
            height: snapshot,
        },
        counted,
    })
}

/// Whose rows are counted, and the last height that any of them becomes visible with: what is settled waits for the next one.
#[derive(Clone, Copy)]
struct Known<'a> {
    keys: &'a [KeyId],
    visible: Height,
}

/// How many rows the search has, and how many there are in the slots that it touches.
async fn totals(
    session: &mut Session,
    (known, snapshot): (Known<'_>, Height),
    search: &Search,
    span: DateRange,
) -> Result<(u64, Vec<Counted>), Error> {
    if !search.ids.is_empty() {
        let seen = of(Statement::new("SELECT COUNT(*) AS seen"), known.keys, search).sql(" AND visible_from <= ?");
        let seen = within(seen.bind(snapshot.0.cast_signed()), span);
        return Ok((session.one(seen).await?.integer("seen")?.cast_unsigned(), Vec::new()));
    }
    let select = Statement::new(
        "SELECT COUNT(CASE WHEN visible_from <= ? THEN 1 END) AS held, \
         COUNT(CASE WHEN visible_from <= ? AND effective_ms >= ? AND effective_ms < ? THEN 1 END) AS seen",
    );
    let select = select
        .bind(known.visible.0.cast_signed())
        .bind(snapshot.0.cast_signed())
        .bind(span.from_ms)
        .bind(span.to_ms);
    let row = session.one(within(of(select, known.keys, search), whole(span))).await?;
    let counted = Counted {
        keys: known.keys.to_vec(),
        codes: search.codes.clone(),
        span,
        rows: row.integer("held")?.cast_unsigned(),
    };
    Ok((row.integer("seen")?.cast_unsigned(), vec![counted]))
}

async fn count_in(session: &mut Session, known: Known<'_>, search: &Search, span: DateRange) -> Result<Counted, Error> {
    let select = Statement::new("SELECT COUNT(CASE WHEN visible_from <= ? THEN 1 END) AS held");
    let select = select.bind(known.visible.0.cast_signed());
    let statement = within(of(select, known.keys, search), whole(span));
    Ok(Counted {
        keys: known.keys.to_vec(),
        codes: search.codes.clone(),
        span,
        rows: session.one(statement).await?.integer("held")?.cast_unsigned(),
    })
}

fn whole(span: DateRange) -> DateRange {
    if span == ALWAYS {
        ALWAYS
    } else {
        tally::whole_slots(span)
    }
}

async fn page(
    session: &mut Session,
    tags: &TagKey,
    (keys, snapshot, count): (&[KeyId], Height, u32),
    search: &Search,
) -> Result<Vec<Row>, Error> {
    let statement = of(Statement::new("SELECT *"), keys, search)
        .sql(" AND visible_from <= ?")
        .bind(snapshot.0.cast_signed());
    let mut statement = within(statement, search.span());
    if let Some(cursor) = &search.cursor {
        statement = statement
            .sql(" AND effective_ms <= ? AND (effective_ms < ? OR id < ?)")
            .bind(cursor.effective_ms)
            .bind(cursor.effective_ms)
            .bind(hex::encode(cursor.id));
    }
    let statement = statement
        .sql(" ORDER BY effective_ms DESC, id DESC LIMIT ?")
        .bind(count);
    let found = session.fetch(statement).await?;
    let rows = found.iter().map(|of| kept(of, tags).map(|kept| kept.row));
    rows.collect::<Result<_, _>>()
        .map_err(|_| Error::Altered("a row is not as this node wrote it"))
}

/// The rows of these keys that the search is about, whenever they hold and wherever they become visible. No key, no row.
fn of(select: Statement, keys: &[KeyId], search: &Search) -> Statement {
    let mut statement = select
        .sql(" FROM observation WHERE subject_key IN ")
        .list(keys.iter().map(|key| key.0));
    if !search.codes.is_empty() {
        let codes = search.codes.iter().map(String::as_str);
        statement = statement.sql(" AND code IN ").list(codes);
    }
    if !search.ids.is_empty() {
        statement = statement.sql(" AND id IN ").list(search.ids.iter().map(String::as_str));
    }
    statement
}

fn within(mut statement: Statement, span: DateRange) -> Statement {
    if span.from_ms != i64::MIN {
        statement = statement.sql(" AND effective_ms >= ?").bind(span.from_ms);
    }
    if span.to_ms != i64::MAX {
        statement = statement.sql(" AND effective_ms < ?").bind(span.to_ms);
    }
    statement
}
