//! Sealed payloads by content identifier: kept durably here, fetched from peers when missing, pushed to them when new.
//!
//! Invariants: a [`Held`] exists only for a payload that is on this node's disk; every byte that leaves the vault was
//! hashed again on its way out; a payload that does not match its identifier is as good as absent.

mod beginning;
pub mod car;
mod config;
mod embedded;
mod erased;
mod exchange;
mod file;
mod gather;
mod inventory;
pub mod kubo;
mod names;
mod objects;
mod peer;
mod refusal;
mod store;
mod tenure;
mod trouble;
mod unixfs;
mod walk;
mod wanted;

use std::{
    fmt,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use cid::Cid;
use record::{bundle::PAYLOAD_BYTES_MAX, canonical};
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
};
use tokio_util::task::AbortOnDropHandle;

pub use config::{Config, Driver};
pub use erased::Erased;
pub use exchange::Config as ExchangeConfig;
use exchange::Exchange;
use gather::Objects;
pub use inventory::Inventory;
use objects::is_of_object;
pub use objects::{Blocks, Object};
pub use peer::Peer;
pub use refusal::Refusal;
use store::Store;
use tenure::Tenure;
pub use trouble::Trouble;
use wanted::{MESSAGES_MAX, Message, Seeker};

use crate::space::Space;

/// Why a payload cannot be kept or had.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// It is never kept, whoever hands it in and whenever.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The budget is used up; nothing is lost, nothing new is taken.
    #[error("the vault has reached vault.bytes_max = {bytes_max}; raise it or free space")]
    Full {
        /// The budget.
        bytes_max: u64,
    },
    /// The store cannot be asked now; it resumes by itself.
    #[error(transparent)]
    Unavailable(Trouble),
    /// Neither here nor at any peer that answered in time; it may be later.
    #[error("payload {0} is neither here nor at a peer that answered in time")]
    Absent(Cid),
    /// Our own storage failed: the node must not go on.
    #[error("the vault's storage failed: {0}")]
    Storage(#[source] Arc<redb::Error>),
    /// A task of the vault has ended: the node is stopping.
    #[error("the vault has stopped")]
    Stopped,
}

impl Error {
    /// Whether the same call may succeed later without anybody changing the request.
    #[must_use]
    pub const fn may_pass_later(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::Unavailable(_) | Self::Absent(_))
    }
}

/// Proof that a payload is durable on this node; only the vault makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Held(Cid);

impl Held {
    /// Which payload.
    #[must_use]
    pub const fn cid(&self) -> Cid {
        self.0
    }
}

/// The payload store of this node and its exchange with the peers. Clones share it; its tasks end with the last clone.
#[derive(Clone)]
pub struct Vault {
    store: Store,
    objects: Objects,
    tenure: Tenure,
    exchange: Exchange,
    seeker: mpsc::Sender<Message>,
    space: Space,
    runtime: Handle,
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vault")
            .field("exchange", &self.exchange)
            .finish_non_exhaustive()
    }
}

impl Vault {
    /// Opens the store in the data folder and starts its tasks on the current tokio runtime. The client carries this
    /// node's certificate and the network's CA, and follows no redirects.
    ///
    /// # Errors
    /// [`Error::Storage`] if the file cannot be opened; a file that redb finds corrupt is set aside and payloads are
    /// fetched from peers again. A daemon that does not answer yet is none: it is waited for in the background.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub async fn open(config: &Config, data_dir: &Path, client: reqwest::Client) -> Result<Self, Error> {
        let runtime = Handle::current();
        let (seeker, messages) = mpsc::channel(MESSAGES_MAX);
        let store = Store::open(config, data_dir, seeker.downgrade()).await?;
        let exchange = Exchange::new(&config.exchange, client);
        let space = Space::of(data_dir, config.disk_reserve_bytes);
        let objects = Objects::new(store.clone(), exchange.clone(), space.clone(), config.object_bytes_max);
        let tenure = Tenure::starting(Instant::now());
        let sources = (store.clone(), tenure.clone(), objects.clone());
        runtime.spawn(Seeker::new(messages, sources, exchange.clone()).run());
        Ok(Self {
            store,
            objects,
            tenure,
            exchange,
            seeker,
            space,
            runtime,
        })
    }

    /// The room that is left on the disk of the data folder.
    #[must_use]
    pub const fn space(&self) -> &Space {
        &self.space
    }

    /// Exchanges payloads with these and the configured peers from now on, and with nobody else.
    pub fn keep(&self, seated: &[Peer]) {
        self.exchange.keep(seated);
    }

    /// Keeps a payload; on return it is on the disk. Many concurrent calls share one commit.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Full`], [`Error::Unavailable`], or the store has failed.
    pub async fn put(&self, payload: Bytes) -> Result<Held, Error> {
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(Refusal::TooLarge { bytes: payload.len() }.into());
        }
        if self.space.is_short() {
            return Err(Error::Unavailable(Trouble::DiskFull));
        }
        let cid = canonical::cid_of(&payload);
        match self.keep_one(cid, payload.clone()).await {
            Err(Error::Full { .. }) if self.tenure.make_room().await => self.keep_one(cid, payload).await,
            kept => kept,
        }
    }

    /// The payload, if this node holds it intact.
    ///
    /// # Errors
    /// The store has failed.
    pub async fn local(&self, cid: &Cid) -> Result<Option<Bytes>, Error> {
        self.store.read(cid).await
    }

    /// As [`Vault::local`], for who looks after what is kept: the store goes on keeping it, whatever somebody else let go of.
    ///
    /// # Errors
    /// As [`Vault::local`].
    pub async fn attend(&self, cid: &Cid) -> Result<Option<Bytes>, Error> {
        if is_of_object(cid) {
            return self.objects.attend(cid).await;
        }
        self.store.attend(cid).await
    }

    /// Whether the store can be asked now; if not, payloads are still read from peers.
    #[must_use]
    pub fn answers(&self) -> bool {
        self.store.answers()
    }

    /// Resolves when a new payload could be kept: there is room for it, and the store can be asked.
    pub async fn until_it_keeps(&self) {
        self.space.enough().await;
        self.store.until_it_answers().await;
    }

    /// Where payloads lie, as an incident names it.
    #[must_use]
    pub const fn place(&self) -> &'static str {
        self.store.place()
    }

    /// Waits until this node holds the payload: it does already, a push arrives, or a peer delivers it. Needs no tokio
    /// context of its own: the consensus engine calls it from its runtime.
    ///
    /// # Errors
    /// [`Error::Absent`] after `timeout`, [`Error::Refused`] at once for what was erased, or the store has failed.
    pub async fn hold(&self, cid: &Cid, timeout: Duration) -> Result<Held, Error> {
        if let Some(held) = self.held(cid).await? {
            return Ok(held);
        }
        self.expect_wanted(cid).await?;
        self.want(cid, self.exchange.push_grace(), timeout).await
    }

    /// As [`Vault::hold`], for what no push will bring: the peers are asked at once, for `exchange.get_timeout_ms` (`exchange.object_timeout_ms` for a
    /// large record).
    ///
    /// # Errors
    /// As [`Vault::hold`].
    pub async fn fetch(&self, cid: &Cid) -> Result<Held, Error> {
        if let Some(held) = self.held(cid).await? {
            return Ok(held);
        }
        self.expect_wanted(cid).await?;
        let timeout = if is_of_object(cid) {
            self.exchange.object_timeout()
        } else {
            self.exchange.get_timeout()
        };
        self.want(cid, Duration::ZERO, timeout).await
    }

    /// The payload, from here or else from a peer, for whoever reads it now. What comes from a peer is kept here, unless the
    /// store cannot be asked: having read it says nothing about holding it.
    ///
    /// # Errors
    /// [`Error::Absent`], [`Error::Refused`] for what was erased, or the store has failed, or cannot be asked and no peer
    /// delivers.
    pub async fn get(&self, cid: &Cid) -> Result<Bytes, Error> {
        let trouble = match self.local(cid).await {
            Ok(Some(payload)) => return Ok(payload),
            Ok(None) => None,
            Err(error @ Error::Unavailable(_)) => Some(error),
            Err(error) => return Err(error),
        };
        if let Some(trouble) = trouble {
            let fetch = self.exchange.fetch(cid, PAYLOAD_BYTES_MAX);
            let fetched = tokio::time::timeout(self.exchange.get_timeout(), fetch).await;
            return fetched.ok().flatten().ok_or(trouble);
        }
        self.expect_wanted(cid).await?;
        self.want(cid, Duration::ZERO, self.exchange.get_timeout()).await?;
        self.local(cid).await?.ok_or(Error::Absent(*cid))
    }

    /// Lets go of everything in memory: what is read next comes from the disk.
    ///
    /// # Errors
    /// The store has failed, or cannot be asked now.
    pub async fn refresh(&self) -> Result<(), Error> {
        self.store.refresh().await
    }

    /// The height up to which every payload that the chain names was held here. A vault that had to begin anew says 0.
    ///
    /// # Errors
    /// The store has failed, or cannot be asked now.
    pub async fn retained(&self) -> Result<u64, Error> {
        self.store.retained().await
    }

    /// Notes that every payload up to a height is held here.
    ///
    /// # Errors
    /// As [`Vault::retained`].
    pub async fn note_retained(&self, height: u64) -> Result<(), Error> {
        self.store.note_retained(height).await
    }

    /// Payloads, and their bytes, that each peer has delivered here since the start.
    #[must_use]
    pub fn delivered(&self) -> Vec<(Peer, u64, u64)> {
        self.exchange.delivered()
    }

    /// Pushes a submission (a commitment and its payload) to every peer in the background. A peer whose queue is full
    /// misses it and fetches the payload when it needs it.
    pub fn replicate(&self, submission: &Bytes) {
        self.exchange.push(submission);
    }

    /// Asks the seeker. The wait runs on the vault's own runtime, so that the caller's may be any.
    async fn want(&self, cid: &Cid, grace: Duration, timeout: Duration) -> Result<Held, Error> {
        let (reply, arrived) = oneshot::channel();
        let want = Message::Want {
            cid: *cid,
            grace,
            reply,
        };
        let vault = self.clone();
        let wait = async move {
            let told = async {
                // Nothing is fetched that could not be kept.
                vault.until_it_keeps().await;
                vault.seeker.send(want).await.ok()?;
                arrived.await.ok()
            };
            tokio::time::timeout(timeout, told).await.ok().flatten()
        };
        match AbortOnDropHandle::new(self.runtime.spawn(wait)).await {
            Ok(Some(())) => Ok(Held(*cid)),
            Ok(None) => Err(Error::Absent(*cid)),
            Err(_) => Err(Error::Stopped),
        }
    }
}

#[cfg(test)]
mod suite;
#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, time::Instant};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    fn payload(seed: u8, length: usize) -> Bytes {
        let mut state = u64::from(seed) + 1;
        let next = |_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            state.to_be_bytes()[0]
        };
        (0..length).map(next).collect()
    }

    async fn vault(dir: &Path, peers: &[&str]) -> Vault {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let mut config = Config::default();
        config.exchange.peers = peers
            .iter()
            .map(|p| Peer::try_from((*p).to_owned()).expect("a URL"))
            .collect();
        config.exchange.hedge_after_ms = 20;
        open(&config, dir).await
    }

    /// The file's lock is free when the last vault's writer has ended: shortly after it was dropped.
    async fn open(config: &Config, dir: &Path) -> Vault {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match Vault::open(config, dir, reqwest::Client::new()).await {
                Ok(vault) => return vault,
                Err(_) if Instant::now() < deadline => tokio::time::sleep(Duration::from_millis(5)).await,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// A peer that answers every request with this status and body, after a while.
    async fn peer(status: &'static str, body: Bytes, after: Duration) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let body = body.clone();
                tokio::spawn(async move {
                    let mut request = [0; 4_096];
                    let _ = stream.read(&mut request).await;
                    tokio::time::sleep(after).await;
                    let length = body.len();
                    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
                    let _ = stream.write_all(&[head.as_bytes(), &body].concat()).await;
                });
            }
        });
        url
    }

    /// Waits until the vault's file is closed, and reads it.
    async fn closed(dir: &Path) -> Vec<u8> {
        let path = dir.join("vault.redb");
        let deadline = Instant::now() + Duration::from_secs(10);
        while redb::Database::open(&path).is_err() {
            assert!(Instant::now() < deadline, "the writer ends with the last vault");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        fs::read(path).expect("reads")
    }

    fn position_of(file: &[u8], payload: &[u8]) -> usize {
        file.windows(payload.len())
            .position(|window| window == payload)
            .expect("payloads are stored as they are")
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_crash_and_a_rotten_payload_lose_that_payload_alone() {
        let (dir, crashed) = (
            tempfile::tempdir().expect("a folder"),
            tempfile::tempdir().expect("a folder"),
        );
        let sent: Vec<_> = (0..20).map(|seed| payload(seed, 5_000)).collect();
        let first = vault(dir.path(), &[]).await;
        futures::future::try_join_all(sent.iter().map(|p| first.put(p.clone())))
            .await
            .expect("kept");
        // The file as a killed process leaves it: open.
        let mut file = fs::read(dir.path().join("vault.redb")).expect("reads");
        let at = position_of(&file, &sent[7]);
        file[at] ^= 1;
        fs::write(crashed.path().join("vault.redb"), file).expect("writes");
        let second = vault(crashed.path(), &[]).await;
        for (seed, payload) in (0..).zip(&sent) {
            let read = second.local(&canonical::cid_of(payload)).await.expect("reads");
            assert_eq!(read.as_ref(), Some(payload).filter(|_| seed != 7));
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_lying_an_empty_and_a_stalling_peer_do_not_keep_a_payload_away() {
        let dir = tempfile::tempdir().expect("a folder");
        let sent = payload(3, 2_000);
        let liar = peer("200 OK", payload(4, 2_000), Duration::ZERO).await;
        let giant = peer("200 OK", payload(4, PAYLOAD_BYTES_MAX + 1), Duration::ZERO).await;
        let empty = peer("404 Not Found", Bytes::new(), Duration::ZERO).await;
        let stalled = peer("200 OK", sent.clone(), Duration::from_secs(60)).await;
        let honest = peer("200 OK", sent.clone(), Duration::ZERO).await;
        let vault = vault(dir.path(), &[&liar, &giant, &empty, &stalled, &honest]).await;
        let held = vault
            .hold(&canonical::cid_of(&sent), Duration::from_secs(2))
            .await
            .expect("one is honest");
        assert_eq!(vault.local(&held.cid()).await.expect("reads"), Some(sent));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_new_payload_is_pushed_to_every_peer_and_a_failing_peer_is_tried_again() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let dir = tempfile::tempdir().expect("a folder");
        let vault = vault(dir.path(), &[&url]).await;
        let sent = Bytes::from(vec![b'x'; 300]);
        vault.replicate(&sent);
        for status in ["503 Service Unavailable", "204 No Content"] {
            let (mut stream, _) = tokio::time::timeout(Duration::from_secs(5), listener.accept())
                .await
                .expect("pushed in time")
                .expect("accepts");
            let mut request = Vec::new();
            while !request.ends_with(&sent) {
                assert_ne!(
                    stream.read_buf(&mut request).await.expect("reads"),
                    0,
                    "the whole payload comes"
                );
            }
            assert!(request.starts_with(b"POST /api/v1/payloads HTTP/1.1"));
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.expect("answers");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_waits_is_told_when_a_push_arrives_and_in_vain_not_for_ever() {
        let dir = tempfile::tempdir().expect("a folder");
        let vault = vault(dir.path(), &[]).await;
        let pushed = payload(5, 100);
        let waits = (0..10).map(|_| {
            let (vault, cid) = (vault.clone(), canonical::cid_of(&pushed));
            tokio::spawn(async move { vault.hold(&cid, Duration::from_secs(10)).await })
        });
        let waits: Vec<_> = waits.collect();
        tokio::time::sleep(Duration::from_millis(50)).await;
        let held = vault.put(pushed.clone()).await.expect("kept");
        for wait in waits {
            assert_eq!(wait.await.expect("no panic").expect("arrived"), held);
        }
        let absent = vault
            .hold(&canonical::cid_of(b"never"), Duration::from_millis(50))
            .await;
        assert!(matches!(absent, Err(Error::Absent(_))));
    }

    #[test]
    fn waiting_needs_no_tokio_of_the_callers() {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let dir = tempfile::tempdir().expect("a folder");
        let vault = runtime.block_on(vault(dir.path(), &[]));
        let absent = futures::executor::block_on(vault.hold(&canonical::cid_of(b"never"), Duration::from_millis(50)));
        assert!(matches!(absent, Err(Error::Absent(_))));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn damage_anywhere_in_the_file_serves_nothing_wrong_and_heals() {
        let dir = tempfile::tempdir().expect("a folder");
        let sent: Vec<_> = (0..20).map(|seed| payload(seed, 700)).collect();
        let first = vault(dir.path(), &[]).await;
        futures::future::try_join_all(sent.iter().map(|p| first.put(p.clone())))
            .await
            .expect("kept");
        drop(first);
        let file = closed(dir.path()).await;
        let (mut absent, mut intact) = (0, 0);
        for at in (0..file.len()).step_by(file.len() / 150) {
            let case = dir.path().join(at.to_string());
            fs::create_dir(&case).expect("a folder");
            let mut altered = file.clone();
            altered[at] ^= 0x10;
            fs::write(case.join("vault.redb"), altered).expect("writes");
            let vault = vault(&case, &[]).await;
            for payload in &sent {
                match vault
                    .local(&canonical::cid_of(payload))
                    .await
                    .expect("damage is no failure")
                {
                    Some(read) => {
                        assert_eq!(read, *payload);
                        intact += 1;
                    }
                    None => absent += 1,
                }
            }
            futures::future::try_join_all(sent.iter().map(|p| vault.put(p.clone())))
                .await
                .expect("kept again");
            for payload in &sent {
                assert_eq!(
                    vault.local(&canonical::cid_of(payload)).await.expect("reads").as_ref(),
                    Some(payload)
                );
            }
        }
        assert!(absent > 0 && intact > 10 * absent, "absent {absent}, intact {intact}");
    }
}
