//! The embedded payload store: one redb file, one writer thread that commits many payloads at once, a hash on every read.
//!
//! Commits save redb's allocator state (quick repair): after a crash a large vault opens at once, and one rotten payload
//! does not keep the file from opening. Damage to the pages that lead to payloads makes redb report corruption or panic,
//! so its panics are caught here: a read finds nothing then, and a write sets the file aside as evidence and begins a new
//! one; what the old one held is fetched from peers again when it is needed.

mod trouble;

use std::{
    fs,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use cid::Cid;
use record::canonical;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
};

use super::{Config, Error, wanted::Message};
use crate::containment::is_corrupt;
use trouble::{guarded, is_full};

/// The file in the data folder.
const FILE: &str = "vault.redb";
/// Payload by SHA-256 of its bytes: the digest inside every CID of it, whatever the codec.
const PAYLOADS: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("payloads");
/// Sums over [`PAYLOADS`], changed in the same commit.
const TOTALS: TableDefinition<'_, &str, u64> = TableDefinition::new("totals");
/// The row of [`TOTALS`] that holds the bytes of all payloads.
const BYTES: &str = "payload_bytes";
/// The row of [`TOTALS`] that holds the height up to which every payload of the chain is held; it goes with the file.
const RETAINED: &str = "retained_height";
/// Puts waiting for the writer, at most; callers wait.
const PUTS_MAX: usize = 256;
/// Payloads in one commit, at most.
const BATCH_PAYLOADS_MAX: usize = 256;
/// Bytes in one commit, at most (the payload that passes it is the last).
const BATCH_BYTES_MAX: usize = 16 << 20;
/// Pause after the disk was full, before anything is written again.
const FULL_PAUSE: Duration = Duration::from_millis(200);

/// A payload on its way to the disk.
struct Put {
    cid: Cid,
    payload: Bytes,
    reply: oneshot::Sender<Result<(), Error>>,
}

/// The store's handle: puts go to the writer thread, reads run beside it.
#[derive(Clone)]
pub(super) struct Embedded {
    puts: mpsc::Sender<Put>,
    file: Arc<File>,
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
        let file = File {
            path: data_dir.join(FILE),
            cache_bytes_max: config.cache_bytes_max,
            bytes_max: config.bytes_max,
            database: RwLock::new(None),
        };
        let opened = runtime.spawn_blocking(move || file.reopen(false).map(|()| file)).await;
        let file = Arc::new(opened.map_err(|_| Error::Stopped)?.map_err(storage)?);
        let (puts, queue) = mpsc::channel(PUTS_MAX);
        let writer = Writer {
            queue,
            file: file.clone(),
            arrivals,
        };
        thread::Builder::new()
            .name("vault-writer".to_owned())
            .spawn(move || writer.run())
            .map_err(|e| storage(redb::Error::Io(e)))?;
        Ok(Self { puts, file, runtime })
    }

    /// Keeps a payload whose identifier the caller has computed or checked.
    pub(super) async fn put(&self, cid: Cid, payload: Bytes) -> Result<(), Error> {
        let (reply, done) = oneshot::channel();
        self.puts
            .send(Put { cid, payload, reply })
            .await
            .map_err(|_| Error::Stopped)?;
        done.await.map_err(|_| Error::Stopped)?
    }

    /// Closes the file and opens it again, so that what is read next comes from the disk.
    pub(super) async fn refresh(&self) -> Result<(), Error> {
        self.blocking(|file| file.reopen(false)).await
    }

    /// The height up to which every payload that the chain names was held.
    pub(super) async fn retained(&self) -> Result<u64, Error> {
        self.blocking(|file| file.retained()).await
    }

    /// Notes that every payload up to a height is held.
    pub(super) async fn note_retained(&self, height: u64) -> Result<(), Error> {
        self.blocking(move |file| file.note_retained(height)).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&File) -> Result<T, redb::Error> + Send + 'static,
    ) -> Result<T, Error> {
        let file = self.file.clone();
        let done = self.runtime.spawn_blocking(move || guarded(|| work(&file)));
        done.await.map_err(|_| Error::Stopped)?.map_err(|error| {
            // The writer meets the same, and heals the file or ends the process.
            if is_full(&error) || is_corrupt(&error) {
                Error::DiskFull
            } else {
                storage(error)
            }
        })
    }

    /// The payload, if it is here and intact.
    pub(super) async fn read(&self, cid: &Cid) -> Result<Option<Bytes>, Error> {
        let (file, cid) = (self.file.clone(), *cid);
        self.runtime
            .spawn_blocking(move || file.read(&cid))
            .await
            .map_err(|_| Error::Stopped)?
    }
}

/// The redb file.
struct File {
    path: PathBuf,
    cache_bytes_max: usize,
    bytes_max: u64,
    /// Readers share it; the writer takes it exclusively only to open the file anew after the disk was full or the file
    /// was found corrupt. `None` while that has not succeeded.
    database: RwLock<Option<Database>>,
}

impl File {
    fn read(&self, cid: &Cid) -> Result<Option<Bytes>, Error> {
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
                self.reopen(false).map_err(storage)?;
                Ok(None)
            }
            // Closed, or useless until the writer opens it anew.
            Err(error) if is_full(&error) => Err(Error::DiskFull),
            Err(error) => Err(storage(error)),
        }
    }

    fn fetch(&self, cid: &Cid) -> Result<Option<Bytes>, redb::Error> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let payloads = database
            .as_ref()
            .ok_or(redb::Error::PreviousIo)?
            .begin_read()?
            .open_table(PAYLOADS)?;
        Ok(payloads
            .get(&digest(cid))?
            .map(|payload| Bytes::copy_from_slice(payload.value())))
    }

    fn retained(&self) -> Result<u64, redb::Error> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let database = database.as_ref().ok_or(redb::Error::PreviousIo)?;
        let totals = database.begin_read()?.open_table(TOTALS)?;
        Ok(totals.get(RETAINED)?.map_or(0, |height| height.value()))
    }

    fn note_retained(&self, height: u64) -> Result<(), redb::Error> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let mut transaction = database.as_ref().ok_or(redb::Error::PreviousIo)?.begin_write()?;
        transaction.set_quick_repair(true);
        transaction.open_table(TOTALS)?.insert(RETAINED, height)?;
        Ok(transaction.commit()?)
    }

    /// Writes a batch in one durable commit; the answers are in the order of the batch.
    fn write(&self, batch: &[Put]) -> Result<Vec<Result<(), Error>>, redb::Error> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let mut transaction = database.as_ref().ok_or(redb::Error::PreviousIo)?.begin_write()?;
        transaction.set_quick_repair(true);
        let mut answers = Vec::with_capacity(batch.len());
        let mut bytes;
        {
            let mut payloads = transaction.open_table(PAYLOADS)?;
            let mut totals = transaction.open_table(TOTALS)?;
            bytes = totals.get(BYTES)?.map_or(0, |total| total.value());
            for put in batch {
                let key = digest(&put.cid);
                let replaced = match payloads.get(&key)? {
                    Some(kept) if is_payload_of(&put.cid, kept.value()) => {
                        answers.push(Ok(()));
                        continue;
                    }
                    Some(rotten) => rotten.value().len() as u64,
                    None => 0,
                };
                let after = bytes.saturating_sub(replaced).saturating_add(put.payload.len() as u64);
                if after > self.bytes_max {
                    answers.push(Err(Error::Full {
                        bytes_max: self.bytes_max,
                    }));
                    continue;
                }
                payloads.insert(&key, put.payload.as_ref())?;
                bytes = after;
                answers.push(Ok(()));
            }
            totals.insert(BYTES, bytes)?;
        }
        transaction.commit()?;
        metrics::gauge!("fog_vault_payload_bytes").set(bytes as f64);
        Ok(answers)
    }

    /// Closes the file if it is open and opens it anew, or sets it aside and begins a new one; so it does as well if it
    /// finds the file corrupt.
    fn reopen(&self, begin_new: bool) -> Result<(), redb::Error> {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        // Closing after a panic may panic once more.
        let closed = guarded(|| {
            *database = None;
            Ok(())
        });
        if begin_new || closed.is_err() {
            self.set_aside()?;
        }
        let opened = match guarded(|| self.create()) {
            Err(error) if is_corrupt(&error) => {
                self.set_aside()?;
                self.create()?
            }
            opened => opened?,
        };
        *database = Some(opened);
        Ok(())
    }

    fn create(&self) -> Result<Database, redb::Error> {
        // Made here rather than by redb, so that nobody else may read it.
        fs::OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&self.path)?;
        let database = Database::builder()
            .set_cache_size(self.cache_bytes_max)
            .create(&self.path)?;
        // A full disk takes no tables, but what is on it can be read.
        if database.begin_read()?.open_table(PAYLOADS).is_ok() {
            return Ok(database);
        }
        let mut transaction = database.begin_write()?;
        transaction.set_quick_repair(true);
        transaction.open_table(PAYLOADS)?;
        transaction.open_table(TOTALS)?;
        transaction.commit()?;
        Ok(database)
    }

    fn set_aside(&self) -> Result<(), redb::Error> {
        let now_ms = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_millis());
        let aside = self.path.with_extension(format!("redb.corrupt-{now_ms}"));
        fs::rename(&self.path, &aside)?;
        metrics::counter!("fog_vault_files_set_aside_total").increment(1);
        tracing::error!(aside = %aside.display(), "the vault's file is corrupt and was set aside; payloads come from peers");
        Ok(())
    }
}

/// The thread that owns all writing.
struct Writer {
    queue: mpsc::Receiver<Put>,
    file: Arc<File>,
    arrivals: mpsc::WeakSender<Message>,
}

impl Writer {
    fn run(mut self) {
        while let Some(first) = self.queue.blocking_recv() {
            let mut bytes = first.payload.len();
            let mut batch = vec![first];
            while batch.len() < BATCH_PAYLOADS_MAX && bytes < BATCH_BYTES_MAX {
                let Ok(next) = self.queue.try_recv() else { break };
                bytes += next.payload.len();
                batch.push(next);
            }
            self.commit(batch);
        }
    }

    fn commit(&self, batch: Vec<Put>) {
        let started = Instant::now();
        match self.write(&batch) {
            Ok(answers) => {
                metrics::histogram!("fog_vault_commit_seconds").record(started.elapsed());
                metrics::counter!("fog_vault_payloads_committed_total").increment(batch.len() as u64);
                let arrived = batch
                    .iter()
                    .zip(&answers)
                    .filter(|(_, a)| a.is_ok())
                    .map(|(put, _)| put.cid)
                    .collect();
                for (put, answer) in batch.into_iter().zip(answers) {
                    // A caller that gave up is no failure.
                    let _ = put.reply.send(answer);
                }
                if let Some(arrivals) = self.arrivals.upgrade() {
                    let _ = arrivals.blocking_send(Message::Arrived(arrived));
                }
            }
            Err(error) if is_full(&error) => {
                tracing::warn!(%error, "the vault could not write; it goes on when there is space");
                for put in batch {
                    let _ = put.reply.send(Err(Error::DiskFull));
                }
                if let Err(error) = self.file.reopen(false) {
                    tracing::warn!(%error, "the vault's file does not open yet");
                }
                thread::sleep(FULL_PAUSE);
            }
            // After any other failure (fsync among them) what is on the disk is unknown: the process must not go on.
            Err(error) => panic!("the vault's disk failed: {error}"),
        }
    }

    /// Writes a batch, in a new file if the old one is corrupt.
    fn write(&self, batch: &[Put]) -> Result<Vec<Result<(), Error>>, redb::Error> {
        match guarded(|| self.file.write(batch)) {
            Err(error) if is_corrupt(&error) => {
                tracing::error!(%error, "the vault cannot write to its file");
                self.file.reopen(true)?;
                self.file.write(batch)
            }
            written => written,
        }
    }
}

/// The SHA-256 inside a CID. CIDs with other hashes never get past `canonical::parse_cid`; were one to come, nothing
/// would be found under its shortened bytes, and nothing kept, because both are compared with the payload's own CID.
fn digest(cid: &Cid) -> [u8; 32] {
    let mut key = [0; 32];
    let bytes = cid.hash().digest();
    let length = bytes.len().min(32);
    key[..length].copy_from_slice(&bytes[..length]);
    key
}

fn is_payload_of(cid: &Cid, payload: &[u8]) -> bool {
    canonical::cid_of(payload).hash() == cid.hash()
}

fn damaged(cid: &Cid, how: &str) {
    metrics::counter!("fog_vault_payloads_damaged_total").increment(1);
    tracing::warn!(%cid, how, "a payload on this node's disk is damaged; it counts as absent until it is fetched again");
}

fn storage(error: redb::Error) -> Error {
    Error::Storage(Arc::new(error))
}
