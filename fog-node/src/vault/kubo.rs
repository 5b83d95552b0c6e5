//! The payload store in a Kubo daemon of this host: blocks and pins are the daemon's, the budget is in a book of ours.
//!
//! The daemon is a part of this node, and yet not believed: a payload counts as kept when it was read back from the daemon's
//! own disk and hashed again, and what is read is hashed each time. A daemon that is not there is no failure of the node:
//! every call fails at once and may pass later, one task asks until it is back, and the node's readiness says so.

mod api;
mod book;
mod doctor;
mod objects;
mod rpc;
mod settings;
#[cfg(test)]
pub(crate) mod stand_in;

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use cid::Cid;
use tokio::{
    runtime::Handle,
    sync::{Semaphore, mpsc, watch},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    Error, Trouble,
    objects::is_of_object,
    store::{damaged, digest, is_payload_of},
    wanted::Message,
};
pub use api::{Api, Config};
use book::Book;
pub use doctor::{Finding, examine};
pub(super) use objects::{Had, Part};
pub use rpc::Failure;
use rpc::Rpc;
pub use settings::look_at as look_at_settings;

/// Payloads that are put or removed at a time, at most; two with the same first byte wait for each other.
const TURNS: usize = 256;

/// The store's handle; clones share it, and the task that looks after the daemon ends with the last of them.
#[derive(Clone)]
pub(super) struct Kubo {
    rpc: Rpc,
    book: Book,
    here: watch::Receiver<bool>,
    arrivals: mpsc::WeakSender<Message>,
    /// Who puts and who removes the same payload take turns: the daemon knows no transactions.
    turns: Arc<[Semaphore; TURNS]>,
    runtime: Handle,
    _probe: Arc<AbortOnDropHandle<()>>,
}

impl Kubo {
    /// Opens the book and looks for the daemon once; one that is not there yet is waited for in the background.
    pub(super) async fn open(
        config: &super::Config,
        data_dir: &Path,
        arrivals: mpsc::WeakSender<Message>,
    ) -> Result<Self, Error> {
        let book = Book::open(data_dir.join(book::FILE), config.bytes_max).await?;
        let rpc = Rpc::new(&config.kubo).map_err(|why| daemon(Failure::Said(why)))?;
        let (tell, here) = watch::channel(false);
        let mut probe = Probe {
            rpc: rpc.clone(),
            book: book.clone(),
            every: Duration::from_millis(config.kubo.probe_every_ms),
            api: config.kubo.api.clone(),
            tell,
            was_told: false,
        };
        probe.once().await;
        Ok(Self {
            rpc,
            book,
            here,
            arrivals,
            turns: Arc::new(std::array::from_fn(|_| Semaphore::new(1))),
            runtime: Handle::current(),
            _probe: Arc::new(AbortOnDropHandle::new(tokio::spawn(probe.run()))),
        })
    }

    /// Whether the daemon was there when it was asked last.
    pub(super) fn answers(&self) -> bool {
        *self.here.borrow()
    }

    /// Resolves when the daemon is there.
    pub(super) async fn until_it_answers(&self) {
        let mut here = self.here.clone();
        // The task that tells it lives as long as this handle.
        let _told = here.wait_for(|here| *here).await;
    }

    fn expect_here(&self) -> Result<(), Error> {
        if self.answers() {
            Ok(())
        } else {
            Err(daemon(Failure::Unreachable(None)))
        }
    }

    /// Keeps a payload: entered in the book, put and pinned in one call, read back and hashed.
    pub(super) async fn put(&self, cid: Cid, payload: Bytes) -> Result<(), Error> {
        let store = self.clone();
        self.in_turn(cid, async move { store.put_now(cid, &payload).await })
            .await
    }

    /// Removes a payload from the daemon, whether it is there or not, then from the book. One that goes for good is not kept
    /// again.
    pub(super) async fn remove(&self, cid: Cid, for_good: bool) -> Result<(), Error> {
        let store = self.clone();
        let remove = async move {
            store.expect_here()?;
            // The daemon finds a block by its hash alone: bytes that are another record's as well stay.
            let is_of_another = store.book.is_of_another(&cid).await?;
            if !is_of_another || store.book.enters(&cid).await? {
                store.rpc.unpin(&cid).await.map_err(daemon)?;
            }
            if is_of_object(&cid) {
                store.remove_below(&cid).await?;
            }
            if !is_of_another {
                store.rpc.remove(&cid).await.map_err(daemon)?;
            }
            store.book.strike(&cid, for_good).await?;
            metrics::counter!("fog_vault_payloads_removed_total").increment(1);
            Ok(())
        };
        self.in_turn(cid, remove).await
    }

    /// Whether the daemon has anything under this identifier, whatever the book says, unless it says that the bytes are another
    /// record's.
    pub(super) async fn has(&self, cid: &Cid) -> Result<bool, Error> {
        self.expect_here()?;
        if !self.book.enters(cid).await? && self.book.is_of_another(cid).await? {
            return Ok(false);
        }
        Ok(self.rpc.size_at_once(cid).await.map_err(daemon)?.is_some())
    }

    /// SHA-256 of every payload that is in the book and in the daemon's repository, in order.
    pub(super) async fn names(&self) -> Result<Vec<[u8; 32]>, Error> {
        self.expect_here()?;
        let blocks = self.rpc.blocks().await.map_err(daemon)?;
        let mut names = self.book.all().await?;
        names.retain(|name| blocks.contains(name));
        Ok(names)
    }

    /// Whether a payload was erased.
    pub(super) async fn bars(&self, cid: &Cid) -> Result<bool, Error> {
        self.book.bars(cid).await
    }

    /// A task of its own from the first: who waits in turn and is not looked after would keep the turn from all others.
    async fn in_turn<T: Send + 'static>(
        &self,
        cid: Cid,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let turns = self.turns.clone();
        let done = self.runtime.spawn(async move {
            let turn = &turns[usize::from(digest(&cid)[0]) % TURNS];
            let _turn = turn.acquire().await.expect("the semaphore is never closed");
            work.await
        });
        AbortOnDropHandle::new(done).await.map_err(|_| Error::Stopped)?
    }

    async fn put_now(&self, cid: Cid, payload: &[u8]) -> Result<(), Error> {
        self.expect_here()?;
        self.book.enter(&cid, payload.len()).await?;
        if !self.keep(&cid, payload).await? {
            // Kubo does not write over a block that it believes to have: a rotten one has to go first.
            damaged(&cid, "the daemon gives other bytes than it was given");
            self.rpc.unpin(&cid).await.map_err(daemon)?;
            self.rpc.remove(&cid).await.map_err(daemon)?;
            if !self.keep(&cid, payload).await? {
                return Err(daemon(Failure::Damaged));
            }
        }
        metrics::counter!("fog_vault_payloads_committed_total").increment(1);
        if let Some(arrivals) = self.arrivals.upgrade() {
            // The vault is gone: nobody waits.
            let _told = arrivals.send(Message::Arrived(vec![cid])).await;
        }
        Ok(())
    }

    /// Puts, and says whether the same bytes come back from the daemon's disk.
    async fn keep(&self, cid: &Cid, payload: &[u8]) -> Result<bool, Error> {
        let stored = self.rpc.put(payload).await.map_err(daemon)?;
        if stored != *cid {
            // It was stored in another form: that is not what the chain names, and nobody asks for it.
            self.rpc.unpin(&stored).await.map_err(daemon)?;
            return Err(daemon(Failure::Nonsense("it keeps other bytes than it was given")));
        }
        match self.rpc.get_back(cid).await {
            Ok(Some(bytes)) => Ok(is_payload_of(cid, &bytes)),
            Ok(None) | Err(Failure::Damaged) => Ok(false),
            Err(failure) => Err(daemon(failure)),
        }
    }

    /// The payload, if the daemon has it intact. One that the book does not name was never kept: a daemon that is there is
    /// not asked for it.
    pub(super) async fn read(&self, cid: &Cid) -> Result<Option<Bytes>, Error> {
        self.expect_here()?;
        if !self.book.names(cid).await? {
            return Ok(None);
        }
        match self.rpc.get(cid).await {
            Ok(Some(payload)) if is_payload_of(cid, &payload) => Ok(Some(payload)),
            Ok(Some(_)) => {
                damaged(cid, "its bytes do not match its identifier");
                Ok(None)
            }
            Err(Failure::Damaged) => {
                damaged(cid, "the daemon says so");
                Ok(None)
            }
            Ok(None) => Ok(None),
            Err(failure) => Err(daemon(failure)),
        }
    }

    /// As [`Kubo::read`]; a payload that somebody has unpinned is pinned again.
    pub(super) async fn attend(&self, cid: &Cid) -> Result<Option<Bytes>, Error> {
        let payload = self.read(cid).await?;
        if payload.is_some() && !self.rpc.is_pinned(cid).await.map_err(daemon)? {
            Self::note_unpinned(cid);
            self.rpc.pin(cid).await.map_err(daemon)?;
        }
        Ok(payload)
    }

    fn note_unpinned(cid: &Cid) {
        metrics::counter!("fog_vault_pins_restored_total").increment(1);
        tracing::warn!(%cid, "somebody let go of a payload at the vault's daemon; it is pinned again");
    }

    /// Whether the daemon can be asked; it reads its disk each time.
    pub(super) async fn refresh(&self) -> Result<(), Error> {
        self.expect_here()?;
        self.rpc.id().await.map(drop).map_err(daemon)
    }

    pub(super) async fn bytes(&self) -> Result<u64, Error> {
        self.book.bytes().await
    }

    pub(super) async fn scrubbed(&self) -> Result<u64, Error> {
        self.book.scrubbed().await
    }

    pub(super) async fn note_scrubbed(&self, height: u64) -> Result<(), Error> {
        self.book.note_scrubbed(height).await
    }

    pub(super) async fn retained(&self) -> Result<u64, Error> {
        self.book.retained().await
    }

    pub(super) async fn note_retained(&self, height: u64) -> Result<(), Error> {
        self.book.note_retained(height).await
    }
}

fn daemon(failure: Failure) -> Error {
    match failure {
        Failure::DiskFull => Error::Unavailable(Trouble::DiskFull),
        failure => Error::Unavailable(Trouble::Daemon(Arc::new(failure))),
    }
}

/// The task that looks after the daemon.
struct Probe {
    rpc: Rpc,
    book: Book,
    every: Duration,
    api: Api,
    tell: watch::Sender<bool>,
    /// Whether it was said that the daemon is away: once for each time.
    was_told: bool,
}

impl Probe {
    async fn run(mut self) {
        loop {
            tokio::time::sleep(self.every).await;
            self.once().await;
        }
    }

    async fn once(&mut self) {
        let is_here = match self.look().await {
            Ok(daemon) => {
                if !*self.tell.borrow() {
                    tracing::info!(api = %self.api, agent = %daemon.agent, "the vault's daemon answers");
                    self.was_told = false;
                    self.look_at_settings().await;
                }
                true
            }
            Err(error) => {
                if !self.was_told {
                    let cause = match &error {
                        Error::Unavailable(Trouble::Daemon(failure)) => failure.cause(),
                        _ => String::new(),
                    };
                    tracing::error!(api = %self.api, %error, cause, "the vault's daemon is away: no payload is kept here until it is back");
                    self.was_told = true;
                }
                false
            }
        };
        metrics::gauge!("fog_vault_daemon_answers").set(if is_here { 1.0 } else { 0.0 });
        self.tell
            .send_if_modified(|here| std::mem::replace(here, is_here) != is_here);
    }

    /// Says it when the daemon speaks with the public network; the node goes on: what it keeps is sealed.
    async fn look_at_settings(&self) {
        let Ok(settings) = self.rpc.settings().await else {
            return;
        };
        let faults = settings::judge(&settings).len();
        if faults > 0 {
            tracing::warn!(
                faults,
                "the settings of the vault's daemon let payloads, or words about them, out of the network: \
                 `fog-node check-config` names each"
            );
        }
    }

    async fn look(&self) -> Result<rpc::Daemon, Error> {
        let daemon_here = self.rpc.id().await.map_err(daemon)?;
        if self.book.belong_to(&daemon_here.peer).await? {
            tracing::warn!("another daemon answers than before; the payloads of the chain are looked for again");
        }
        Ok(daemon_here)
    }
}

#[cfg(test)]
mod tests;
