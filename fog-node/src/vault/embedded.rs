//! The embedded payload store: one redb file, one writer thread that commits many payloads at once, a hash on every read.
//!
//! Damage to the pages that lead to payloads makes redb report corruption or panic,
//! so its panics are caught here: a read finds nothing then, and a write sets the file aside as evidence and begins a new
//! one; what the old one held is fetched from peers again when it is needed.

mod objects;
mod packs;
mod totals;
mod whole;

use std::{
    path::Path,
    sync::{Arc, Mutex, atomic::AtomicU64},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use cid::Cid;
use redb::{ReadableDatabase as _, ReadableTable as _, Table, TableDefinition};
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
};

use super::{
    Config, Error, Refusal, Trouble,
    file::{BYTES, ERASED, File, TOTALS},
    names::{self, NAMES},
    objects::is_of_object,
    store::{damaged, digest, is_payload_of, row},
    trouble::{guarded, is_full},
    wanted::Message,
};
use crate::containment::is_corrupt;
pub(super) use objects::{Had, Part};
use packs::Packs;

/// The file in the data folder.
pub(super) const FILE: &str = "vault.redb";
/// Payload by SHA-256 of its bytes. Only an identifier of a payload finds one: the bytes under another codec are another record.
pub(super) const PAYLOADS: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("payloads");
/// Puts and removals waiting for the writer, at most; callers wait.
const JOBS_MAX: usize = 256;
/// Payloads in one commit, at most.
const BATCH_PAYLOADS_MAX: usize = 256;
/// Bytes in one commit, at most (the payload that passes it is the last).
const BATCH_BYTES_MAX: usize = 16 << 20;
/// Pause after the disk was full, before anything is written again.
const FULL_PAUSE: Duration = Duration::from_millis(200);

/// What is to become of a payload.
enum Work {
    /// It is kept.
    Put(Bytes),
    /// It goes; for good if it is erased.
    Remove { for_good: bool },
}

/// A payload on its way to the disk, or off it.
struct Job {
    cid: Cid,
    work: Work,
    reply: oneshot::Sender<Result<(), Error>>,
}

impl Job {
    /// Bytes that it writes.
    const fn bytes(&self) -> usize {
        match &self.work {
            Work::Put(payload) => payload.len(),
            Work::Remove { .. } => 0,
        }
    }
}

/// The store's handle: puts and removals go to the writer thread, reads run beside it.
#[derive(Clone)]
pub(super) struct Embedded {
    jobs: mpsc::Sender<Job>,
    shelf: Arc<Shelf>,
    runtime: Handle,
}

impl Embedded {
    /// Opens or creates the file and starts the writer, which announces what it has committed.
    pub(super) async fn open(
        config: &Config,
        data_dir: &Path,
        arrivals: mpsc::WeakSender<Message>,
    ) -> Result<Self, Error> {
        let runtime = Handle::current();
        let (data_dir, config) = (data_dir.to_owned(), config.clone());
        let open = move || Shelf::open(&data_dir, &config);
        let shelf = runtime.spawn_blocking(open).await.map_err(|_| Error::Stopped)?;
        let shelf = Arc::new(shelf.map_err(storage)?);
        let (jobs, queue) = mpsc::channel(JOBS_MAX);
        let writer = Writer {
            queue,
            shelf: shelf.clone(),
            arrivals,
        };
        thread::Builder::new()
            .name("vault-writer".to_owned())
            .spawn(move || writer.run())
            .map_err(|e| storage(redb::Error::Io(e)))?;
        Ok(Self { jobs, shelf, runtime })
    }

    /// Keeps a payload whose identifier the caller has computed or checked.
    pub(super) async fn put(&self, cid: Cid, payload: Bytes) -> Result<(), Error> {
        self.order(cid, Work::Put(payload)).await
    }

    /// Removes a payload, whether it is here or not; the commit is durable on return. One that goes for good is not kept again.
    pub(super) async fn remove(&self, cid: Cid, for_good: bool) -> Result<(), Error> {
        self.order(cid, Work::Remove { for_good }).await?;
        if is_of_object(&cid) {
            self.remove_object(&cid).await?;
        }
        Ok(())
    }

    async fn order(&self, cid: Cid, work: Work) -> Result<(), Error> {
        let (reply, done) = oneshot::channel();
        self.jobs
            .send(Job { cid, work, reply })
            .await
            .map_err(|_| Error::Stopped)?;
        done.await.map_err(|_| Error::Stopped)?
    }

    /// Whether anything lies here under this identifier, intact or not.
    pub(super) async fn has(&self, cid: &Cid) -> Result<bool, Error> {
        if is_of_object(cid) {
            return self.has_pack(cid).await;
        }
        let key = digest(cid);
        self.blocking(move |file| {
            file.with(|database| Ok(database.begin_read()?.open_table(PAYLOADS)?.get(&key)?.is_some()))
        })
        .await
    }

    /// Whether a payload was erased.
    pub(super) async fn bars(&self, cid: &Cid) -> Result<bool, Error> {
        let key = row(cid);
        self.blocking(move |file| file.bars(&key)).await
    }

    /// Closes the file and opens it again, so that what is read next comes from the disk.
    pub(super) async fn refresh(&self) -> Result<(), Error> {
        self.blocking(|file| file.reopen(false)).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&File) -> Result<T, redb::Error> + Send + 'static,
    ) -> Result<T, Error> {
        let shelf = self.shelf.clone();
        let done = self.runtime.spawn_blocking(move || guarded(|| work(&shelf.file)));
        done.await.map_err(|_| Error::Stopped)?.map_err(|error| {
            // The writer meets the same, and heals the file or ends the process.
            if is_full(&error) || is_corrupt(&error) {
                Error::Unavailable(Trouble::DiskFull)
            } else {
                storage(error)
            }
        })
    }

    /// The payload, if it is here and intact.
    pub(super) async fn read(&self, cid: &Cid) -> Result<Option<Bytes>, Error> {
        let (shelf, cid) = (self.shelf.clone(), *cid);
        self.runtime
            .spawn_blocking(move || shelf.read(&cid))
            .await
            .map_err(|_| Error::Stopped)?
    }
}

/// The payloads in the file.
struct Shelf {
    file: File,
    packs: Packs,
    /// Held while the pack of an object and its entry are changed, so that they go together.
    changes: Mutex<()>,
    /// Bytes of everything that is kept, as the file has them.
    kept_bytes: AtomicU64,
    bytes_max: u64,
}

impl Shelf {
    fn open(data_dir: &Path, config: &Config) -> Result<Self, redb::Error> {
        let shelf = Self {
            file: File::open(data_dir.join(FILE), config.cache_bytes_max, |transaction| {
                transaction.open_table(PAYLOADS)?;
                packs::make(transaction)
            })?,
            packs: Packs::open(data_dir)?,
            changes: Mutex::default(),
            kept_bytes: AtomicU64::default(),
            bytes_max: config.bytes_max,
        };
        shelf.reconcile()?;
        totals::give_back(&shelf);
        Ok(shelf)
    }

    fn read(&self, cid: &Cid) -> Result<Option<Bytes>, Error> {
        if is_of_object(cid) {
            return self.read_packed(cid);
        }
        match guarded(|| self.fetch(cid)) {
            Ok(Some(payload)) if is_payload_of(cid, &payload) => Ok(Some(payload)),
            Ok(Some(_)) => {
                damaged(cid, "its bytes do not match its identifier");
                Ok(None)
            }
            Ok(None) => Ok(None),
            Err(error) if is_corrupt(&error) => {
                damaged(cid, &error.to_string());
                // What redb has in memory may be half changed after a panic.
                self.file.reopen(false).map_err(storage)?;
                Ok(None)
            }
            // Closed, or useless until the writer opens it anew.
            Err(error) if is_full(&error) => Err(Error::Unavailable(Trouble::DiskFull)),
            Err(error) => Err(storage(error)),
        }
    }

    fn fetch(&self, cid: &Cid) -> Result<Option<Bytes>, redb::Error> {
        self.file.with(|database| {
            let payloads = database.begin_read()?.open_table(PAYLOADS)?;
            let payload = payloads.get(&digest(cid))?;
            Ok(payload.map(|payload| Bytes::copy_from_slice(payload.value())))
        })
    }

    /// Writes a batch in one durable commit; the answers are in the order of the batch.
    fn write(&self, batch: &[Job]) -> Result<Vec<Result<(), Error>>, redb::Error> {
        let (answers, bytes) = self.file.write(|transaction| {
            let mut totals = transaction.open_table(TOTALS)?;
            let mut sheet = Sheet {
                payloads: transaction.open_table(PAYLOADS)?,
                names: transaction.open_table(NAMES)?,
                erased: transaction.open_table(ERASED)?,
                bytes: totals.get(BYTES)?.map_or(0, |total| total.value()),
                bytes_max: self.bytes_max,
            };
            let answers = batch.iter().map(|job| match &job.work {
                Work::Put(payload) => sheet.put(&job.cid, payload),
                Work::Remove { for_good } => sheet.remove(&job.cid, *for_good).map(Ok),
            });
            let answers = answers.collect::<Result<Vec<_>, _>>()?;
            totals.insert(BYTES, sheet.bytes)?;
            Ok((answers, sheet.bytes))
        })?;
        self.note_kept(bytes);
        Ok(answers)
    }
}

/// The tables in one commit, and the bytes of all payloads.
struct Sheet<'txn> {
    payloads: Table<'txn, &'static [u8; 32], &'static [u8]>,
    names: Table<'txn, &'static [u8; 32], u64>,
    erased: Table<'txn, &'static [u8; 32], ()>,
    bytes: u64,
    bytes_max: u64,
}

impl Sheet<'_> {
    fn put(&mut self, cid: &Cid, payload: &Bytes) -> Result<Result<(), Error>, redb::Error> {
        let key = digest(cid);
        if self.erased.get(&key)?.is_some() {
            return Ok(Err(Error::Refused(Refusal::Erased(*cid))));
        }
        let replaced = match self.payloads.get(&key)? {
            Some(kept) if is_payload_of(cid, kept.value()) => return Ok(Ok(())),
            Some(rotten) => rotten.value().len() as u64,
            // Somebody has taken it out of the file, and it counts still.
            None => self.names.get(&key)?.map_or(0, |bytes| bytes.value()),
        };
        let after = self.bytes.saturating_sub(replaced).saturating_add(payload.len() as u64);
        if after > self.bytes_max {
            let bytes_max = self.bytes_max;
            return Ok(Err(Error::Full { bytes_max }));
        }
        self.payloads.insert(&key, payload.as_ref())?;
        self.names.insert(&key, payload.len() as u64)?;
        self.bytes = after;
        Ok(Ok(()))
    }

    fn remove(&mut self, cid: &Cid, for_good: bool) -> Result<(), redb::Error> {
        if for_good {
            self.erased.insert(&row(cid), ())?;
        }
        // The bytes of a payload may have been named under another codec.
        if !is_of_object(cid) {
            let key = digest(cid);
            let listed = self.names.remove(&key)?.map(|bytes| bytes.value());
            let removed = self.payloads.remove(&key)?.map(|payload| payload.value().len() as u64);
            self.bytes = self.bytes.saturating_sub(removed.or(listed).unwrap_or(0));
        }
        Ok(())
    }
}

/// The thread that owns all writing.
struct Writer {
    queue: mpsc::Receiver<Job>,
    shelf: Arc<Shelf>,
    arrivals: mpsc::WeakSender<Message>,
}

impl Writer {
    fn run(mut self) {
        while let Some(first) = self.queue.blocking_recv() {
            let mut bytes = first.bytes();
            let mut batch = vec![first];
            while batch.len() < BATCH_PAYLOADS_MAX && bytes < BATCH_BYTES_MAX {
                let Ok(next) = self.queue.try_recv() else { break };
                bytes += next.bytes();
                batch.push(next);
            }
            self.commit(batch);
        }
    }

    fn commit(&self, batch: Vec<Job>) {
        let started = Instant::now();
        match self.write(&batch) {
            Ok(answers) => {
                metrics::histogram!("fog_vault_commit_seconds").record(started.elapsed());
                let done = || batch.iter().zip(&answers).filter(|(_, answer)| answer.is_ok());
                let (arrived, gone): (Vec<_>, Vec<_>) = done().partition(|(job, _)| matches!(job.work, Work::Put(_)));
                metrics::counter!("fog_vault_payloads_committed_total").increment(arrived.len() as u64);
                metrics::counter!("fog_vault_payloads_removed_total").increment(gone.len() as u64);
                let arrived = arrived.into_iter().map(|(job, _)| job.cid).collect();
                for (job, answer) in batch.into_iter().zip(answers) {
                    // A caller that gave up is no failure.
                    let _ = job.reply.send(answer);
                }
                if let Some(arrivals) = self.arrivals.upgrade() {
                    let _ = arrivals.blocking_send(Message::Arrived(arrived));
                }
            }
            Err(error) if is_full(&error) => {
                tracing::warn!(%error, "the vault could not write; it goes on when there is space");
                for job in batch {
                    let _ = job.reply.send(Err(Error::Unavailable(Trouble::DiskFull)));
                }
                if let Err(error) = self.shelf.file.reopen(false) {
                    tracing::warn!(%error, "the vault's file does not open yet");
                }
                thread::sleep(FULL_PAUSE);
            }
            // After any other failure (fsync among them) what is on the disk is unknown: the process must not go on.
            Err(error) => panic!("the vault's disk failed: {error}"),
        }
    }

    /// Writes a batch, in a new file if the old one is corrupt.
    fn write(&self, batch: &[Job]) -> Result<Vec<Result<(), Error>>, redb::Error> {
        match guarded(|| self.shelf.write(batch)) {
            Err(error) if is_corrupt(&error) => {
                tracing::error!(%error, "the vault cannot write to its file");
                self.shelf.file.reopen(true)?;
                self.shelf.reconcile()?;
                self.shelf.write(batch)
            }
            written => written,
        }
    }
}

pub(super) fn storage(error: redb::Error) -> Error {
    Error::Storage(Arc::new(error))
}
