//! What this node keeps at the daemon, in a small file beside it: Kubo has no place for a budget, nor for how far the chain was
//! looked through.
//!
//! A payload is entered before the daemon gets it, in a durable commit that many share: after a crash the book may name a
//! payload that never came, which a read finds out, and never misses one that is pinned; it is struck out when the daemon has
//! let go of it. The book belongs to one daemon; what was noted of another repository counts for nothing, but for what was erased.

mod owners;
mod totals;

use std::{path::PathBuf, sync::Arc, thread};

use cid::Cid;
use record::canonical::{DAG_PB, RAW};
use redb::{ReadableDatabase as _, ReadableTable as _, TableDefinition, WriteTransaction};
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
};

use crate::{
    containment::is_corrupt,
    vault::{
        Error, Refusal, Trouble,
        embedded::storage,
        file::{BYTES, ERASED, File, TOTALS, joined, table},
        objects::is_of_object,
        store::{cid_of, digest, row},
        trouble::{guarded, is_full},
    },
};

/// The file in the data folder.
pub(super) const FILE: &str = "vault-kubo.redb";
/// Bytes of a payload by SHA-256 of it, and of a large record by [`row`]: two records of the same bytes do not share one.
const ENTRIES: TableDefinition<'_, &[u8; 32], u64> = TableDefinition::new("entries");
/// Objects by the SHA-256 of their root: that of each block.
const OBJECTS: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("objects");
/// Blocks of objects: the SHA-256 of the block and, behind it, that of the root.
const BLOCKS: TableDefinition<'_, &[u8; 64], ()> = TableDefinition::new("object_blocks");
/// Whose book it is: one row, the daemon's peer id.
const OWNER: TableDefinition<'_, &str, &str> = TableDefinition::new("owner");
/// The row of [`OWNER`].
const PEER: &str = "peer";
/// Memory for pages of the book, in bytes.
const CACHE_BYTES_MAX: usize = 4 << 20;
/// Entries waiting for the writer, at most; callers wait.
const ENTRIES_MAX: usize = 256;

/// What is to be written of a payload.
enum Work {
    /// It is about to be kept, and has this many bytes.
    Enter(u64),
    /// It is gone; for good if it was erased.
    Strike { for_good: bool },
}

/// A line on its way into the book.
struct Entry {
    cid: Cid,
    work: Work,
    reply: oneshot::Sender<Result<(), Error>>,
}

/// The book; clones share it, and the writer ends with the last of them.
#[derive(Clone)]
pub(super) struct Book {
    entries: mpsc::Sender<Entry>,
    file: Arc<File>,
    runtime: Handle,
}

impl Book {
    pub(super) async fn open(path: PathBuf, bytes_max: u64) -> Result<Self, Error> {
        let runtime = Handle::current();
        let open = move || File::open(path, CACHE_BYTES_MAX, make);
        let file = runtime.spawn_blocking(open).await.map_err(|_| Error::Stopped)?;
        let file = Arc::new(file.map_err(storage)?);
        let (entries, queue) = mpsc::channel(ENTRIES_MAX);
        let writer = Writer {
            queue,
            file: file.clone(),
            bytes_max,
        };
        thread::Builder::new()
            .name("vault-book".to_owned())
            .spawn(move || writer.run())
            .map_err(|e| storage(redb::Error::Io(e)))?;
        Ok(Self { entries, file, runtime })
    }

    /// Enters a payload, durably, if it is within the budget.
    pub(super) async fn enter(&self, cid: &Cid, bytes: usize) -> Result<(), Error> {
        self.order(cid, Work::Enter(bytes as u64)).await
    }

    /// Strikes a payload out, durably, whether it was entered or not. One that was erased is not entered again.
    pub(super) async fn strike(&self, cid: &Cid, for_good: bool) -> Result<(), Error> {
        self.order(cid, Work::Strike { for_good }).await
    }

    async fn order(&self, cid: &Cid, work: Work) -> Result<(), Error> {
        let (reply, done) = oneshot::channel();
        let entry = Entry { cid: *cid, work, reply };
        self.entries.send(entry).await.map_err(|_| Error::Stopped)?;
        done.await.map_err(|_| Error::Stopped)?
    }

    /// Whether a payload was erased.
    pub(super) async fn bars(&self, cid: &Cid) -> Result<bool, Error> {
        let key = row(cid);
        self.blocking(move |file| file.bars(&key)).await
    }

    /// Whether a payload, or a block of an object, was entered.
    pub(super) async fn names(&self, cid: &Cid) -> Result<bool, Error> {
        Ok(self.enters(cid).await? || (is_of_object(cid) && self.owners(cid).await? > 0))
    }

    /// Notes the blocks of an object, durably, before its root is entered; whether it took the place of a raw one of the same bytes. A
    /// raw root is refused while its bytes are a payload, or the root of a larger record.
    pub(super) async fn enter_object(&self, root: &Cid, blocks: Vec<[u8; 32]>) -> Result<bool, Error> {
        let (key, root) = (digest(root), *root);
        let entered = self.blocking(move |file| {
            file.write(|transaction| {
                let kept_as = transaction
                    .open_table(OBJECTS)?
                    .get(&key)?
                    .map(|kept| codec(kept.value()));
                let is_other = kept_as.is_some_and(|kept| kept != root.codec());
                let mut entries = transaction.open_table(ENTRIES)?;
                if root.codec() == RAW && (is_other || entries.get(&key)?.is_some()) {
                    return Ok(None);
                }
                if is_other && let Some(bytes) = entries.remove(&row(&cid_of(RAW, &key)))?.map(|bytes| bytes.value()) {
                    let mut totals = transaction.open_table(TOTALS)?;
                    let before = totals.get(BYTES)?.map_or(0, |total| total.value());
                    totals.insert(BYTES, before.saturating_sub(bytes))?;
                }
                let mut owners = transaction.open_table(BLOCKS)?;
                for block in &blocks {
                    owners.insert(&joined(block, &key), ())?;
                }
                transaction.open_table(OBJECTS)?.insert(&key, &*blocks.concat())?;
                Ok(Some(is_other))
            })
        });
        entered.await?.ok_or(Refusal::Alias(root).into())
    }

    /// The blocks of an object that was noted, each as if it were a leaf.
    pub(super) async fn object(&self, root: &Cid) -> Result<Option<Vec<Cid>>, Error> {
        let (key, root_codec) = (digest(root), root.codec());
        self.blocking(move |file| {
            file.with(|database| {
                let Some(objects) = table(database, OBJECTS)? else {
                    return Ok(None);
                };
                let blocks = objects.get(&key)?;
                let named = |blocks: &[u8]| {
                    blocks
                        .as_chunks::<32>()
                        .0
                        .iter()
                        .map(|block| cid_of(RAW, block))
                        .collect()
                };
                let own = blocks.filter(|blocks| codec(blocks.value()) == root_codec);
                Ok(own.map(|blocks| named(blocks.value())))
            })
        })
        .await
    }

    /// The roots of the objects that were entered.
    pub(super) async fn roots(&self) -> Result<Vec<Cid>, Error> {
        self.blocking(|file| {
            file.with(|database| {
                let (Some(objects), Some(entries)) = (table(database, OBJECTS)?, table(database, ENTRIES)?) else {
                    return Ok(Vec::new());
                };
                let mut roots = Vec::new();
                for entry in objects.iter()? {
                    let (root, blocks) = entry?;
                    let root = cid_of(codec(blocks.value()), root.value());
                    if entries.get(&row(&root))?.is_some() {
                        roots.push(root);
                    }
                }
                Ok(roots)
            })
        })
        .await
    }

    /// Forgets the blocks of an object.
    pub(super) async fn forget_object(&self, root: &Cid) -> Result<(), Error> {
        if self.object(root).await?.is_none() {
            return Ok(());
        }
        let key = digest(root);
        self.blocking(move |file| {
            file.write(|transaction| {
                let mut objects = transaction.open_table(OBJECTS)?;
                let Some(blocks) = objects.remove(&key)? else {
                    return Ok(());
                };
                let mut owners = transaction.open_table(BLOCKS)?;
                for block in blocks.value().as_chunks::<32>().0 {
                    owners.remove(&joined(block, &key))?;
                }
                Ok(())
            })
        })
        .await
    }

    /// Whether a payload was entered, or the root of an object.
    pub(super) async fn enters(&self, cid: &Cid) -> Result<bool, Error> {
        let key = row(cid);
        self.blocking(move |file| {
            file.with(|database| Ok(database.begin_read()?.open_table(ENTRIES)?.get(&key)?.is_some()))
        })
        .await
    }

    /// Says which daemon it is about; begins anew, and says so, if that is another one than before.
    pub(super) async fn belong_to(&self, peer: &str) -> Result<bool, Error> {
        let peer = peer.to_owned();
        self.blocking(move |file| {
            let owner = file.with(|database| {
                let owners = database.begin_read()?.open_table(OWNER)?;
                Ok(owners.get(PEER)?.map(|owner| owner.value().to_owned()))
            })?;
            if owner.as_deref() == Some(&peer) {
                return Ok(false);
            }
            file.write(|transaction| {
                if owner.is_some() {
                    transaction.delete_table(ENTRIES)?;
                    transaction.delete_table(OBJECTS)?;
                    transaction.delete_table(BLOCKS)?;
                    transaction.delete_table(TOTALS)?;
                    make(transaction)?;
                    transaction.open_table(TOTALS)?;
                }
                transaction.open_table(OWNER)?.insert(PEER, &*peer)?;
                Ok(())
            })?;
            Ok(owner.is_some())
        })
        .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&File) -> Result<T, redb::Error> + Send + 'static,
    ) -> Result<T, Error> {
        let file = self.file.clone();
        let done = self.runtime.spawn_blocking(move || answer(&file, || work(&file)));
        done.await.map_err(|_| Error::Stopped)?
    }
}

/// Of which codec the root of these blocks is: a leaf that is all of its object is its own root.
const fn codec(blocks: &[u8]) -> u64 {
    if blocks.len() == 32 { RAW } else { DAG_PB }
}

fn make(transaction: &WriteTransaction) -> Result<(), redb::Error> {
    transaction.open_table(ENTRIES)?;
    transaction.open_table(OWNER)?;
    transaction.open_table(OBJECTS)?;
    transaction.open_table(BLOCKS)?;
    Ok(())
}

/// What a call into the file gives. After trouble the file is opened anew; a corrupt one is set aside, and the book begins
/// again: payloads count as absent until they are put once more.
fn answer<T>(file: &File, work: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, Error> {
    let error = match guarded(work) {
        Ok(done) => return Ok(done),
        Err(error) => error,
    };
    let begin_new = is_corrupt(&error);
    if !begin_new && !is_full(&error) {
        return Err(storage(error));
    }
    tracing::warn!(%error, "the vault's book could not be used; it is opened anew");
    match file.reopen(begin_new) {
        Ok(()) => {}
        Err(error) if is_full(&error) => tracing::warn!(%error, "the vault's book does not open yet"),
        Err(error) => return Err(storage(error)),
    }
    Err(Error::Unavailable(Trouble::DiskFull))
}

/// The thread that owns the entries.
struct Writer {
    queue: mpsc::Receiver<Entry>,
    file: Arc<File>,
    bytes_max: u64,
}

impl Writer {
    fn run(mut self) {
        while let Some(first) = self.queue.blocking_recv() {
            let mut batch = vec![first];
            while batch.len() < ENTRIES_MAX
                && let Ok(next) = self.queue.try_recv()
            {
                batch.push(next);
            }
            let answers = answer(&self.file, || self.write(&batch));
            for (at, entry) in batch.into_iter().enumerate() {
                let told = answers
                    .as_ref()
                    .map_or_else(|error| Err(error.clone()), |each| each[at].clone());
                // A caller that gave up is no failure.
                let _ = entry.reply.send(told);
            }
        }
    }

    fn write(&self, batch: &[Entry]) -> Result<Vec<Result<(), Error>>, redb::Error> {
        let (answers, bytes) = self.file.write(|transaction| {
            let mut entries = transaction.open_table(ENTRIES)?;
            let mut totals = transaction.open_table(TOTALS)?;
            let mut erased = transaction.open_table(ERASED)?;
            let mut bytes = totals.get(BYTES)?.map_or(0, |total| total.value());
            let mut answers = Vec::with_capacity(batch.len());
            for entry in batch {
                let key = row(&entry.cid);
                let before = entries.get(&key)?.map_or(0, |known| known.value());
                let without = bytes.saturating_sub(before);
                let answer = match entry.work {
                    Work::Enter(_) if erased.get(&key)?.is_some() => Err(Refusal::Erased(entry.cid).into()),
                    Work::Enter(more) if without.saturating_add(more) > self.bytes_max => Err(Error::Full {
                        bytes_max: self.bytes_max,
                    }),
                    Work::Enter(more) => {
                        entries.insert(&key, more)?;
                        bytes = without + more;
                        Ok(())
                    }
                    Work::Strike { for_good } => {
                        entries.remove(&key)?;
                        if for_good {
                            erased.insert(&key, ())?;
                        }
                        bytes = without;
                        Ok(())
                    }
                };
                answers.push(answer);
            }
            totals.insert(BYTES, bytes)?;
            Ok((answers, bytes))
        })?;
        metrics::gauge!("fog_vault_payload_bytes").set(bytes as f64);
        Ok(answers)
    }
}
