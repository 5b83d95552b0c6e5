//! The store as those read it who do not own it: what is queued, while the writer goes on.

use std::sync::{Arc, Weak};

use redb::{Database, ReadableDatabase as _};

use super::{ALARMS, QUEUE, Store, Ticket, decoded};

/// The store for readers, who do not keep it open: a database that is not closed costs a repair at the next start.
#[derive(Clone, Debug)]
pub(in super::super) struct Reader(Weak<Database>);

impl Reader {
    /// Of a database that somebody else keeps open.
    pub(super) fn of(db: &Arc<Database>) -> Self {
        Self(Arc::downgrade(db))
    }

    /// Up to `limit` tickets from a place on; none once the store is closed.
    pub(in super::super) fn tickets(&self, from: u64, limit: usize) -> Result<Vec<Ticket>, redb::Error> {
        let db = self.0.upgrade();
        db.map_or(Ok(Vec::new()), |db| Store::from(db).tickets(from, limit))
    }

    /// The same of the alarms alone.
    pub(in super::super) fn alarms(&self, from: u64, limit: usize) -> Result<Vec<Ticket>, redb::Error> {
        let Some(db) = self.0.upgrade() else {
            return Ok(Vec::new());
        };
        let read = db.begin_read()?;
        let (alarms, queue) = (read.open_table(ALARMS)?, read.open_table(QUEUE)?);
        let mut found = Vec::new();
        for row in alarms.range(from..)?.take(limit) {
            if let Some(ticket) = queue.get(row?.0.value())? {
                found.push(decoded(ticket.value())?);
            }
        }
        Ok(found)
    }

    /// The place of the first bundle, from a place on, behind which all were sealed since a time; the end if the last was not.
    pub(in super::super) fn first_since(&self, from: u64, since_ms: i64) -> Result<u64, redb::Error> {
        let Some(db) = self.0.upgrade() else {
            return Ok(from);
        };
        let queue = db.begin_read()?.open_table(QUEUE)?;
        let mut first = None;
        for row in queue.range(from..)?.rev() {
            let ticket: Ticket = decoded(row?.1.value())?;
            if ticket.sealed_ms.is_none_or(|at| at < since_ms) {
                return Ok(first.unwrap_or(ticket.order + 1));
            }
            first = Some(ticket.order);
        }
        Ok(first.unwrap_or(from))
    }

    /// The bytes to submit for a place; `None` once the store is closed.
    pub(in super::super) fn submission(&self, order: u64) -> Result<Option<Vec<u8>>, redb::Error> {
        let db = self.0.upgrade();
        db.map_or(Ok(None), |db| Store::from(db).submission(order))
    }
}
