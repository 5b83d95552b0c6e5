//! Payloads between fog nodes over HTTP: fetched by CID as from any IPFS trustless gateway, pushed when they are new.

mod probe;

use std::{
    fmt,
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use cid::Cid;
use futures::{StreamExt as _, stream::FuturesUnordered};
use ledger::admission::SUBMISSION_BYTES_MAX;
use record::canonical;
use reqwest::{StatusCode, header};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinSet,
};

use super::Peer;

/// Media type of a payload's bytes.
const RAW: &str = "application/vnd.ipld.raw";
/// Peers that payloads are exchanged with, at most: as many as there can be validators.
const PEERS_MAX: usize = ledger::genesis::VALIDATORS_MAX;
/// Payloads queued for one peer, at most, whatever their size.
const QUEUE_PAYLOADS_MAX: usize = 4_096;
/// Pushes to one peer at a time, at most: enough that the peer commits many at once.
const PUSHES_IN_FLIGHT_MAX: usize = 16;
/// Pause before the second attempt of a push; doubles.
const PUSH_PAUSE: Duration = Duration::from_millis(200);

/// How payloads travel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The other fog nodes.
    pub peers: Vec<Peer>,
    /// One peer may take this long to deliver one payload.
    pub fetch_timeout_ms: u64,
    /// A peer that has not delivered after this long gets company: the next one is asked as well.
    pub hedge_after_ms: u64,
    /// A query waits this long, over all peers, for a payload that is not here.
    pub get_timeout_ms: u64,
    /// A large record may take this long to be fetched, over all peers; what has come stays for the next time.
    pub object_timeout_ms: u64,
    /// A voter that lacks a payload waits this long for the push that is probably under way, before it asks.
    pub push_grace_ms: u64,
    /// One push may take this long.
    pub push_timeout_ms: u64,
    /// A push is tried this often; then the peer has to fetch.
    pub push_attempts_max: u32,
    /// Bytes queued for one peer, at most; what does not fit is not pushed to it.
    pub push_queue_bytes_max: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            peers: Vec::new(),
            fetch_timeout_ms: 3_000,
            hedge_after_ms: 150,
            get_timeout_ms: 10_000,
            object_timeout_ms: 300_000,
            push_grace_ms: 25,
            push_timeout_ms: 3_000,
            push_attempts_max: 3,
            push_queue_bytes_max: 16 << 20,
        }
    }
}

impl Config {
    pub(super) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for (key, value) in [
            ("fetch_timeout_ms", self.fetch_timeout_ms),
            ("hedge_after_ms", self.hedge_after_ms),
            ("get_timeout_ms", self.get_timeout_ms),
            ("object_timeout_ms", self.object_timeout_ms),
            ("push_timeout_ms", self.push_timeout_ms),
            ("push_attempts_max", self.push_attempts_max.into()),
        ] {
            if value == 0 {
                faults.push(format!("vault.exchange.{key} must be at least 1"));
            }
        }
        if (self.push_queue_bytes_max as usize) < SUBMISSION_BYTES_MAX {
            faults.push(format!(
                "vault.exchange.push_queue_bytes_max must be at least {SUBMISSION_BYTES_MAX}: one payload and its commitment"
            ));
        }
        faults
    }
}

/// A payload with its commitment in a peer's queue; the permit is its share of the queue's bytes.
struct Push {
    submission: Bytes,
    _share: OwnedSemaphorePermit,
}

/// The queue of one peer.
#[derive(Clone)]
struct Queue {
    pushes: mpsc::Sender<Push>,
    bytes: Arc<Semaphore>,
}

/// What one peer has delivered.
#[derive(Debug, Default)]
struct Delivered {
    payloads: AtomicU64,
    bytes: AtomicU64,
}

/// A peer, what waits for it, and what it has given.
#[derive(Clone)]
struct Neighbour {
    peer: Peer,
    queue: Queue,
    delivered: Arc<Delivered>,
}

/// The exchange's handle.
#[derive(Clone)]
pub(super) struct Exchange {
    config: Arc<Config>,
    client: reqwest::Client,
    // Read for a moment by whoever pushes or fetches; written when a node gets a seat.
    peers: Arc<RwLock<Vec<Neighbour>>>,
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// Why a peer did not deliver; the word of the metric.
enum Miss {
    Absent,
    Failed,
    Lied,
}

impl Exchange {
    /// Starts one pushing task per peer on the current runtime; they end when the last handle is gone.
    pub(super) fn new(config: &Config, client: reqwest::Client) -> Self {
        let exchange = Self {
            config: Arc::new(config.clone()),
            client,
            peers: Arc::default(),
        };
        for peer in &config.peers {
            exchange.meet(peer);
        }
        exchange
    }

    /// Exchanges payloads with these and the configured peers from now on, and with nobody else.
    pub(super) fn keep(&self, seated: &[Peer]) {
        let mut peers = self.peers.write().unwrap_or_else(PoisonError::into_inner);
        peers.retain(|known| self.config.peers.contains(&known.peer) || seated.contains(&known.peer));
        drop(peers);
        for peer in seated {
            self.meet(peer);
        }
    }

    fn meet(&self, peer: &Peer) {
        let mut peers = self.peers.write().unwrap_or_else(PoisonError::into_inner);
        if peers.len() >= PEERS_MAX || peers.iter().any(|known| known.peer == *peer) {
            return;
        }
        let (pushes, queue) = mpsc::channel(QUEUE_PAYLOADS_MAX);
        let pusher = Pusher {
            peer: peer.clone(),
            config: self.config.clone(),
            client: self.client.clone(),
        };
        tokio::spawn(pusher.run(queue));
        let bytes = Arc::new(Semaphore::new(self.config.push_queue_bytes_max as usize));
        peers.push(Neighbour {
            peer: peer.clone(),
            queue: Queue { pushes, bytes },
            delivered: Arc::default(),
        });
    }

    fn peers(&self) -> RwLockReadGuard<'_, Vec<Neighbour>> {
        self.peers.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Payloads, and their bytes, that each peer has delivered since the start.
    pub(super) fn delivered(&self) -> Vec<(Peer, u64, u64)> {
        let counts = |neighbour: &Neighbour| {
            let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            let delivered = &neighbour.delivered;
            (
                neighbour.peer.clone(),
                count(&delivered.payloads),
                count(&delivered.bytes),
            )
        };
        self.peers().iter().map(counts).collect()
    }

    pub(super) fn push_grace(&self) -> Duration {
        Duration::from_millis(self.config.push_grace_ms)
    }

    pub(super) fn get_timeout(&self) -> Duration {
        Duration::from_millis(self.config.get_timeout_ms)
    }

    pub(super) fn object_timeout(&self) -> Duration {
        Duration::from_millis(self.config.object_timeout_ms)
    }

    /// Queues a submission for every peer that has room.
    pub(super) fn push(&self, submission: &Bytes) {
        for Neighbour { queue, .. } in self.peers().iter() {
            let share = u32::try_from(submission.len())
                .ok()
                .and_then(|n| queue.bytes.clone().try_acquire_many_owned(n).ok());
            let queued = share.is_some_and(|share| {
                queue
                    .pushes
                    .try_send(Push {
                        submission: submission.clone(),
                        _share: share,
                    })
                    .is_ok()
            });
            if !queued {
                metrics::counter!("fog_vault_pushes_dropped_total").increment(1);
            }
        }
    }

    /// Asks the peers once each, starting at a random one, the next when one fails or is slow; the first payload of at
    /// most so many bytes that hashes to the CID wins.
    pub(super) async fn fetch(&self, cid: &Cid, bytes_max: usize) -> Option<Bytes> {
        let mut order: Vec<_> = self.peers().iter().cloned().collect();
        let start = rand::random_range(0..order.len().max(1));
        order.rotate_left(start);
        let mut next = order.iter();
        let mut asked = FuturesUnordered::new();
        loop {
            match next.next() {
                Some(Neighbour { peer, delivered, .. }) => asked.push(self.ask((peer, delivered), cid, bytes_max)),
                None if asked.is_empty() => return None,
                None => {}
            }
            let may_hedge = next.len() > 0;
            tokio::select! {
                answer = asked.next() => if let Some(Some(payload)) = answer { return Some(payload) },
                () = tokio::time::sleep(Duration::from_millis(self.config.hedge_after_ms)), if may_hedge => {}
            }
        }
    }

    async fn ask(&self, (peer, delivered): (&Peer, &Delivered), cid: &Cid, bytes_max: usize) -> Option<Bytes> {
        let limit = Duration::from_millis(self.config.fetch_timeout_ms);
        let answer = tokio::time::timeout(limit, self.download(peer, cid, bytes_max))
            .await
            .unwrap_or(Err(Miss::Failed));
        let outcome = match &answer {
            Ok(_) => "delivered",
            Err(Miss::Absent) => "absent",
            Err(Miss::Failed) => "failed",
            Err(Miss::Lied) => "lied",
        };
        metrics::counter!("fog_vault_fetches_total", "outcome" => outcome).increment(1);
        if let Err(Miss::Lied) = answer {
            tracing::warn!(%peer, %cid, "a peer answered with bytes that are not this payload");
        }
        let payload = answer.ok()?;
        delivered.payloads.fetch_add(1, Ordering::Relaxed);
        delivered.bytes.fetch_add(payload.len() as u64, Ordering::Relaxed);
        Some(payload)
    }

    async fn download(&self, peer: &Peer, cid: &Cid, bytes_max: usize) -> Result<Bytes, Miss> {
        let request = self
            .client
            .get(format!("{peer}/ipfs/{cid}?format=raw"))
            .header(header::ACCEPT, RAW);
        let mut response = request.send().await.map_err(|_| Miss::Failed)?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND | StatusCode::GONE => return Err(Miss::Absent),
            _ => return Err(Miss::Failed),
        }
        let mut payload = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(|_| Miss::Failed)? {
            if payload.len() + chunk.len() > bytes_max {
                return Err(Miss::Lied);
            }
            payload.extend_from_slice(&chunk);
        }
        let is_it = canonical::cid_of(&payload).hash() == cid.hash();
        if is_it { Ok(payload.freeze()) } else { Err(Miss::Lied) }
    }
}

/// The task that pushes to one peer.
#[derive(Clone)]
struct Pusher {
    peer: Peer,
    config: Arc<Config>,
    client: reqwest::Client,
}

impl Pusher {
    async fn run(self, mut queue: mpsc::Receiver<Push>) {
        let mut pushes = JoinSet::new();
        loop {
            tokio::select! {
                Some(_) = pushes.join_next() => {}
                next = queue.recv(), if pushes.len() < PUSHES_IN_FLIGHT_MAX => match next {
                    Some(push) => {
                        let pusher = self.clone();
                        pushes.spawn(async move { pusher.push(push).await });
                    }
                    None => break,
                },
            }
        }
        while pushes.join_next().await.is_some() {}
    }

    async fn push(&self, push: Push) {
        let mut pause = PUSH_PAUSE;
        for attempt in 1..=self.config.push_attempts_max {
            if attempt > 1 {
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            match self.post(push.submission.clone()).await {
                Ok(()) => return metrics::counter!("fog_vault_pushes_total", "outcome" => "delivered").increment(1),
                Err(failure) => {
                    tracing::debug!(peer = %self.peer, attempt, failure = failure.reason, "a payload was not delivered");
                    if !failure.may_pass_later {
                        break;
                    }
                }
            }
        }
        metrics::counter!("fog_vault_pushes_total", "outcome" => "given-up").increment(1);
    }

    async fn post(&self, submission: Bytes) -> Result<(), PushFailure> {
        let request = self
            .client
            .post(format!("{}/api/v1/payloads", self.peer))
            .timeout(Duration::from_millis(self.config.push_timeout_ms))
            .header(header::CONTENT_TYPE, canonical::MEDIA_TYPE)
            .body(submission);
        let response = request.send().await;
        match response.map(|answer| answer.status()) {
            Ok(status) if status.is_success() => Ok(()),
            Ok(StatusCode::TOO_MANY_REQUESTS | StatusCode::CONFLICT) => Err(PushFailure {
                reason: "busy, or behind us",
                may_pass_later: true,
            }),
            Ok(status) if status.is_client_error() => Err(PushFailure {
                reason: "refused",
                may_pass_later: false,
            }),
            Ok(_) => Err(PushFailure {
                reason: "failing",
                may_pass_later: true,
            }),
            Err(_) => Err(PushFailure {
                reason: "unreachable",
                may_pass_later: true,
            }),
        }
    }
}

/// Why a push did not arrive.
struct PushFailure {
    reason: &'static str,
    may_pass_later: bool,
}
