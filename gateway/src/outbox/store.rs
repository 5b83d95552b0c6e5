//! The outbox's tables in redb: what one commit writes, and what a start reads back.

mod reader;

use std::sync::Arc;

use record::{
    canonical::{self, Digest},
    ids::BundleId,
};
use redb::{Database, Durability, ReadableDatabase as _, ReadableTable as _, TableDefinition, TableError};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

pub(super) use self::reader::Reader;
use super::{
    Counters, Error, Urgency,
    file::Handle,
    quarantine::Kept,
    refused::Refused,
    seal::Sealer,
    sequence::{self, Stream},
    spooled::Spooled,
};

/// Place in the queue -> [`Ticket`].
const QUEUE: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("queue");
/// Place in the queue -> the bytes to submit.
const SUBMISSIONS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("submissions");
/// Places in the queue that hold alarms: they are found without reading a long queue.
const ALARMS: TableDefinition<'_, u64, ()> = TableDefinition::new("alarms");
/// Place in the queue -> [`SetAside`].
const REFUSED: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("refused");
/// Number of a stream -> [`Stream`].
const STREAMS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("streams");
/// Number of a stream, sequence number -> digest of the message.
const DIGESTS: TableDefinition<'_, (u64, u64), [u8; 32]> = TableDefinition::new("digests");
/// Number -> [`Kept`].
const QUARANTINE: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("quarantine");
/// `owner` -> text, `counters` -> [`Counters`], `next` -> the next place in the queue.
const ABOUT: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("about");

/// How many tables there are.
const TABLES: usize = 8;
/// Rows of our own making are read without a limit of their own; this is far above any of them.
const ROW_BYTES_MAX: usize = 64 << 20;

/// A bundle's place in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ticket {
    /// Its place: older bundles have smaller ones.
    pub order: u64,
    /// The bundle.
    pub bundle: BundleId,
    /// How many readings it holds.
    pub readings: u32,
    /// How many bytes are submitted for it.
    pub bytes: u64,
    /// When it was sealed, in milliseconds since 1970; absent in what was spooled before this was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed_ms: Option<i64>,
    /// How soon it has to reach the fog. Absent if live, as in what was spooled before this was kept.
    #[serde(default, skip_serializing_if = "Urgency::is_live")]
    pub urgency: Urgency,
}

/// The places after the newest bundle and after the newest alarm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Newest {
    /// Of any bundle.
    pub next: u64,
    /// Of an alarm.
    pub next_alarm: u64,
}

/// A bundle that is not sent as it is, with its bytes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SetAside {
    pub(super) ticket: Ticket,
    pub(super) reason: String,
    pub(super) at_ms: i64,
    pub(super) submission: ByteBuf,
}

/// What one commit writes.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) spooled: Vec<(Ticket, Vec<u8>)>,
    pub(super) gone: Vec<u64>,
    pub(super) set_aside: Vec<SetAside>,
    pub(super) sequences: sequence::Changes,
    pub(super) quarantined: Vec<(u64, Kept)>,
    pub(super) released: Vec<u64>,
    pub(super) counters: Counters,
    pub(super) next: u64,
}

/// What a start reads back.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) streams: Vec<(u64, Stream)>,
    pub(super) digests: Vec<((u64, u64), Digest)>,
    pub(super) quarantined: Vec<(u64, Kept)>,
    pub(super) counters: Counters,
    pub(super) newest: Newest,
    pub(super) spooled: Spooled,
    pub(super) refused: Vec<Refused>,
}

/// The store, open for as long as the writer's thread holds it.
#[derive(Debug)]
pub(super) struct Store {
    db: Handle,
}

impl From<Arc<Database>> for Store {
    fn from(db: Arc<Database>) -> Self {
        Self { db: Handle::of(db) }
    }
}

impl Store {
    /// The store in a database, for one gateway on one network.
    pub(super) fn of(db: Database, sealer: &Sealer) -> Result<Self, Error> {
        let store = Self::from(Arc::new(db));
        let expected = format!("gateway {} on network {}", sealer.gateway, sealer.network);
        match store.claim(&expected)? {
            Some(found) if found != expected => Err(Error::Foreign { found, expected }),
            _ => Ok(store),
        }
    }

    /// Makes the tables and writes the owner if there is none; returns the owner that was there. A disk that is full takes no
    /// writes, and the spool on it must open all the same: nothing is written if everything is there.
    fn claim(&self, owner: &str) -> Result<Option<String>, redb::Error> {
        let found = self.owner()?;
        if found.is_some() && self.db.begin_read()?.list_tables()?.count() >= TABLES {
            return Ok(found);
        }
        let write = self.db.begin_write()?;
        for table in [QUEUE, SUBMISSIONS, REFUSED, STREAMS, QUARANTINE] {
            write.open_table(table)?;
        }
        write.open_table(ALARMS)?;
        write.open_table(DIGESTS)?;
        if found.is_none() {
            write.open_table(ABOUT)?.insert("owner", owner.as_bytes())?;
        }
        write.commit()?;
        Ok(found)
    }

    fn owner(&self) -> Result<Option<String>, redb::Error> {
        let about = match self.db.begin_read()?.open_table(ABOUT) {
            Err(TableError::TableDoesNotExist(_)) => return Ok(None),
            about => about?,
        };
        let owner = about.get("owner")?;
        Ok(owner.map(|text| String::from_utf8_lossy(text.value()).into_owned()))
    }

    /// Writes all of it or none of it; durable on return.
    pub(super) fn commit(&self, changes: &Changes) -> Result<(), redb::Error> {
        let mut write = self.db.begin_write()?;
        write.set_durability(Durability::Immediate)?;
        {
            let mut queue = write.open_table(QUEUE)?;
            let mut submissions = write.open_table(SUBMISSIONS)?;
            let mut alarms = write.open_table(ALARMS)?;
            for (ticket, submission) in &changes.spooled {
                queue.insert(ticket.order, canonical::encode(ticket).as_slice())?;
                submissions.insert(ticket.order, submission.as_slice())?;
                if ticket.urgency == Urgency::Alarm {
                    alarms.insert(ticket.order, ())?;
                }
            }
            for order in &changes.gone {
                queue.remove(*order)?;
                submissions.remove(*order)?;
                alarms.remove(*order)?;
            }
            let mut about = write.open_table(ABOUT)?;
            about.insert("counters", canonical::encode(&changes.counters).as_slice())?;
            about.insert("next", canonical::encode(&changes.next).as_slice())?;
        }
        write_aside(&write, changes)?;
        write_sequences(&write, &changes.sequences)?;
        write.commit()?;
        Ok(())
    }

    /// Everything but the bundles themselves.
    pub(super) fn load(&self) -> Result<Loaded, redb::Error> {
        let read = self.db.begin_read()?;
        let mut digests = Vec::new();
        for row in read.open_table(DIGESTS)?.iter()? {
            let (key, digest) = row?;
            digests.push((key.value(), Digest::from_bytes(digest.value())));
        }
        let mut spooled = Spooled::default();
        for row in read.open_table(QUEUE)?.iter()? {
            spooled.add(&decoded(row?.1.value())?);
        }
        let about = read.open_table(ABOUT)?;
        Ok(Loaded {
            streams: rows(&read, STREAMS)?,
            digests,
            quarantined: rows(&read, QUARANTINE)?,
            counters: about
                .get("counters")?
                .map(|row| decoded(row.value()))
                .transpose()?
                .unwrap_or_default(),
            newest: Newest {
                next: about
                    .get("next")?
                    .map(|row| decoded(row.value()))
                    .transpose()?
                    .unwrap_or_default(),
                next_alarm: read
                    .open_table(ALARMS)?
                    .last()?
                    .map_or(0, |(order, _)| order.value() + 1),
            },
            spooled,
            refused: self.refused()?,
        })
    }

    /// What is set aside, the oldest first, without its bytes.
    pub(super) fn refused(&self) -> Result<Vec<Refused>, redb::Error> {
        let refused = self.db.begin_read()?.open_table(REFUSED)?;
        let mut all = Vec::new();
        for row in refused.iter()? {
            all.push(Refused::of(&decoded(row?.1.value())?));
        }
        Ok(all)
    }

    /// Gives one bundle that was set aside, or all, its place in the queue back; durable on return, and how many they are.
    pub(super) fn requeue(&self, only: Option<BundleId>) -> Result<u64, redb::Error> {
        let mut write = self.db.begin_write()?;
        write.set_durability(Durability::Immediate)?;
        let mut requeued = Vec::new();
        {
            let mut queue = write.open_table(QUEUE)?;
            let mut submissions = write.open_table(SUBMISSIONS)?;
            let mut alarms = write.open_table(ALARMS)?;
            let mut refused = write.open_table(REFUSED)?;
            for row in refused.iter()? {
                let (order, value) = row?;
                let aside: SetAside = decoded(value.value())?;
                if only.is_none_or(|bundle| bundle == aside.ticket.bundle) {
                    queue.insert(order.value(), canonical::encode(&aside.ticket).as_slice())?;
                    submissions.insert(order.value(), aside.submission.as_slice())?;
                    if aside.ticket.urgency == Urgency::Alarm {
                        alarms.insert(order.value(), ())?;
                    }
                    requeued.push(order.value());
                }
            }
            for order in &requeued {
                refused.remove(*order)?;
            }
        }
        write.commit()?;
        Ok(requeued.len() as u64)
    }

    /// Up to `limit` tickets from a place on.
    pub(super) fn tickets(&self, from: u64, limit: usize) -> Result<Vec<Ticket>, redb::Error> {
        let queue = self.db.begin_read()?.open_table(QUEUE)?;
        queue
            .range(from..)?
            .take(limit)
            .map(|row| decoded(row?.1.value()))
            .collect()
    }

    /// The ticket at a place.
    pub(super) fn ticket(&self, order: u64) -> Result<Option<Ticket>, redb::Error> {
        let queue = self.db.begin_read()?.open_table(QUEUE)?;
        queue.get(order)?.map(|row| decoded(row.value())).transpose()
    }

    /// The bytes to submit for a place.
    pub(super) fn submission(&self, order: u64) -> Result<Option<Vec<u8>>, redb::Error> {
        let submissions = self.db.begin_read()?.open_table(SUBMISSIONS)?;
        Ok(submissions.get(order)?.map(|row| row.value().to_vec()))
    }

    /// Up to `limit` messages in quarantine from a number on.
    pub(super) fn quarantined(&self, from: u64, limit: usize) -> Result<Vec<(u64, Kept)>, redb::Error> {
        let quarantine = self.db.begin_read()?.open_table(QUARANTINE)?;
        let rows = quarantine.range(from..)?.take(limit);
        rows.map(|row| {
            let (number, kept) = row?;
            Ok((number.value(), decoded(kept.value())?))
        })
        .collect()
    }

    /// A handle for readers.
    pub(super) fn reader(&self) -> Reader {
        Reader::of(&self.db)
    }
}

fn write_aside(write: &redb::WriteTransaction, changes: &Changes) -> Result<(), redb::Error> {
    let mut refused = write.open_table(REFUSED)?;
    for aside in &changes.set_aside {
        refused.insert(aside.ticket.order, canonical::encode(aside).as_slice())?;
    }
    let mut quarantine = write.open_table(QUARANTINE)?;
    for (number, kept) in &changes.quarantined {
        quarantine.insert(*number, canonical::encode(kept).as_slice())?;
    }
    for number in &changes.released {
        quarantine.remove(*number)?;
    }
    Ok(())
}

fn write_sequences(write: &redb::WriteTransaction, changes: &sequence::Changes) -> Result<(), redb::Error> {
    let mut streams = write.open_table(STREAMS)?;
    for (number, stream) in &changes.streams {
        streams.insert(*number, canonical::encode(stream).as_slice())?;
    }
    for number in &changes.streams_cut {
        streams.remove(*number)?;
    }
    let mut digests = write.open_table(DIGESTS)?;
    for (key, digest) in &changes.digests {
        digests.insert(*key, *digest.as_bytes())?;
    }
    for key in &changes.digests_cut {
        digests.remove(*key)?;
    }
    Ok(())
}

fn rows<T: Serialize + for<'de> Deserialize<'de>>(
    read: &redb::ReadTransaction,
    table: TableDefinition<'_, u64, &[u8]>,
) -> Result<Vec<(u64, T)>, redb::Error> {
    let mut all = Vec::new();
    for row in read.open_table(table)?.iter()? {
        let (key, value) = row?;
        all.push((key.value(), decoded(value.value())?));
    }
    Ok(all)
}

/// A row of our own making that does not decode is damage.
fn decoded<T: Serialize + for<'de> Deserialize<'de>>(row: &[u8]) -> Result<T, redb::Error> {
    canonical::decode(row, ROW_BYTES_MAX).map_err(|e| redb::Error::Corrupted(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::{SPOOL, tests::Home};

    /// A ticket as it was written before it had a time and an urgency.
    #[derive(Serialize)]
    struct Old {
        order: u64,
        bundle: BundleId,
        readings: u32,
        bytes: u64,
    }

    #[test]
    fn a_ticket_from_before_it_had_a_time_reads_and_is_written_as_it_was() {
        let bundle = BundleId(Digest::ZERO);
        let old = canonical::encode(&Old {
            order: 7,
            bundle,
            readings: 2,
            bytes: 900,
        });
        let ticket: Ticket = decoded(&old).expect("reads");
        assert_eq!(
            (ticket.order, ticket.sealed_ms, ticket.urgency),
            (7, None, Urgency::Live)
        );
        assert_eq!(canonical::encode(&ticket), old);
    }

    #[tokio::test]
    async fn a_spool_from_before_there_were_alarms_opens() {
        let mut home = Home::open();
        home.spool(&home.oximeter, 1).await;
        home.outbox.stop().await;
        let db = Database::open(home.folder.path().join(SPOOL)).expect("opens");
        let write = db.begin_write().expect("begins");
        assert!(write.delete_table(ALARMS).expect("deletes"), "it was there");
        write.commit().expect("commits");
        drop(db);
        home.reopen().await;
        assert_eq!(home.outbox.alarms(0, 9).expect("reads"), []);
        assert_eq!(home.outbox.tickets(0, 9).expect("reads").len(), 1);
    }
}
