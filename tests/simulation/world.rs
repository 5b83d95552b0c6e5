//! Validators in a simulated world: one seed decides every delay, loss and order of events; the application is the real
//! one, with its chain and vault on the real disk.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use cid::Cid;
use commonware_cryptography::ed25519::PublicKey;
use commonware_p2p::simulated::{self, Link, Network, Oracle};
use commonware_runtime::{Clock as _, Handle, Quota, Spawner as _, Supervisor as _, deterministic::Context};
use commonware_utils::{NZU32, NZUsize};
use fog_node::{
    chain::{self, Chain},
    consensus::{
        Payloads,
        application::{Patience, Rooms},
        codec::engine_key,
        engine::{self, Channels, Settings, Timeouts, message_bytes_max},
        fence::Fence,
        scheme::Scheme,
    },
    mempool::{self, Mempool, Pending},
    vault::{self, Held, Vault},
};
use ledger::{admission, block::Height, proof::ValidatorSet, state::identifiers, transaction::SignedTransaction};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::{clinic::Clinic, liar};

const QUOTA: Quota = Quota::per_second(NZU32!(2_048));
const CHANNELS: u64 = 7;

/// Payloads in real vaults. What another vault holds is there at once: the exchange is not what is simulated.
#[derive(Clone)]
pub(crate) struct Vaults {
    all: Arc<[Vault]>,
    me: usize,
    runtime: tokio::runtime::Handle,
    cut_off: Arc<AtomicUsize>,
}

impl Payloads for Vaults {
    async fn hold(&self, cid: &Cid, timeout: Duration) -> Option<Held> {
        // Blocking: for the simulated clock a payload comes in no time.
        self.runtime.block_on(async {
            if self.all[self.me].local(cid).await.expect("reads").is_some() {
                return self.all[self.me].hold(cid, timeout).await.ok();
            }
            if self.cut_off.load(Ordering::Relaxed) == self.me {
                return None;
            }
            for other in self.all.iter() {
                if let Some(payload) = other.local(cid).await.expect("reads") {
                    return self.all[self.me].put(payload).await.ok();
                }
            }
            None
        })
    }

    async fn hold_committed(&self, transaction: &SignedTransaction, timeout: Duration) -> Option<Held> {
        let held = self.hold(&transaction.commitment()?.cid, timeout).await?;
        let payload = self
            .runtime
            .block_on(self.all[self.me].local(&held.cid()))
            .expect("reads")?;
        admission::matched(transaction, &payload).is_ok().then_some(held)
    }
}

/// The disks, which outlive a crash.
pub(crate) struct Disks {
    pub(crate) clinic: Clinic,
    pub(crate) runtime: Runtime,
    folders: Vec<TempDir>,
    vaults: Arc<[Vault]>,
    cut_off: Arc<AtomicUsize>,
}

/// No vault is cut off.
const NONE: usize = usize::MAX;

impl Disks {
    pub(crate) fn of(validators: u8) -> Self {
        // Set already when another test of this process was first.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let clinic = Clinic::of(validators);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("starts");
        let folders: Vec<_> = clinic
            .validators
            .iter()
            .map(|_| TempDir::new().expect("a folder"))
            .collect();
        let vaults = folders.iter().map(|folder| {
            let open = async { Vault::open(&vault::Config::default(), folder.path(), reqwest::Client::new()).await };
            runtime.block_on(open).expect("opens")
        });
        let vaults = vaults.collect();
        Self {
            clinic,
            runtime,
            folders,
            vaults,
            cut_off: Arc::new(AtomicUsize::new(NONE)),
        }
    }

    /// Lets no payload reach this node's vault, until another or none is.
    pub(crate) fn cut_off(&self, node: Option<usize>) {
        self.cut_off.store(node.unwrap_or(NONE), Ordering::Relaxed);
    }

    pub(crate) fn chain(&self, node: usize) -> Chain {
        let folder = self.folders[node].path();
        Chain::open(&chain::Config::default(), folder, &self.clinic.genesis).expect("opens after a crash")
    }

    fn vaults(&self, me: usize) -> Vaults {
        Vaults {
            all: Arc::clone(&self.vaults),
            me,
            runtime: self.runtime.handle().clone(),
            cut_off: Arc::clone(&self.cut_off),
        }
    }

    /// Keeps the payload at a node and queues the commitment there, as intake does.
    pub(crate) fn submit(&self, node: usize, mempool: &Mempool, number: u64) -> SignedTransaction {
        let (transaction, payload) = self.clinic.bundle(number);
        let held = self
            .runtime
            .block_on(self.vaults[node].put(payload.into()))
            .expect("kept");
        mempool
            .insert(Pending::bundle(transaction.clone(), held).expect("its payload"))
            .expect("room");
        transaction
    }
}

/// A running validator.
pub(crate) struct Node {
    task: Handle<()>,
    pub(crate) chain: Chain,
    pub(crate) mempool: Mempool,
}

impl Node {
    pub(crate) fn is_final(&self, transaction: &SignedTransaction) -> bool {
        identifiers(transaction)
            .iter()
            .all(|id| self.chain.took_effect_at(id).expect("reads").is_some())
    }

    /// Ends it between two of its steps; only what it had synced is kept.
    pub(crate) async fn crash(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

/// The network between the validators.
pub(crate) struct World {
    oracle: Oracle<PublicKey, Context>,
    peers: Vec<PublicKey>,
    link: Link,
}

impl World {
    pub(crate) async fn new(context: &Context, clinic: &Clinic, link: Link) -> Self {
        let peers: Vec<_> = clinic.validators.iter().map(|key| engine_key(&key.public())).collect();
        let config = simulated::Config {
            max_size: message_bytes_max(),
            max_peers_per_set: NZUsize!(16),
            disconnect_on_block: true,
            tracked_peer_sets: NZUsize!(1),
        };
        let (network, oracle) = Network::new_with_peers(context.child("network"), config, peers.iter().cloned()).await;
        network.start();
        for from in &peers {
            for to in peers.iter().filter(|to| *to != from) {
                oracle
                    .add_link(from.clone(), to.clone(), link.clone())
                    .await
                    .expect("a new link");
            }
        }
        Self { oracle, peers, link }
    }

    /// Cuts every link between the first `first` validators and the others, both ways.
    pub(crate) async fn part(&self, first: usize) {
        for (from, to) in self.across(first) {
            self.oracle.remove_link(from, to).await.expect("a link");
        }
    }

    /// Joins them again.
    pub(crate) async fn heal(&self, first: usize) {
        for (from, to) in self.across(first) {
            self.oracle
                .add_link(from, to, self.link.clone())
                .await
                .expect("a new link");
        }
    }

    fn across(&self, first: usize) -> Vec<(PublicKey, PublicKey)> {
        let (here, there) = self.peers.split_at(first);
        let pairs = here
            .iter()
            .flat_map(|a| there.iter().map(move |b| (a.clone(), b.clone())));
        pairs.flat_map(|(a, b)| [(a.clone(), b.clone()), (b, a)]).collect()
    }

    /// Starts a validator on its disks.
    pub(crate) async fn start(&self, context: Context, disks: &Disks, node: usize) -> Node {
        let key = disks.clinic.validators[node].clone();
        let control = self.oracle.control(engine_key(&key.public()));
        let mut channels = Vec::new();
        for channel in 0..CHANNELS {
            channels.push(control.register(channel, QUOTA).await.expect("registers"));
        }
        let [
            votes,
            certificates,
            resolver,
            backfill,
            proposals,
            mempool_channel,
            recall,
        ] = channels.try_into().unwrap_or_else(|_| unreachable!("seven channels"));
        let channels = Channels {
            votes,
            certificates,
            resolver,
            backfill,
            proposals,
            mempool: mempool_channel,
            recall,
        };
        let (chain, mempool) = (disks.chain(node), Mempool::new(&mempool::Config::default()));
        let rooms = Rooms {
            chain: chain.clone(),
            mempool: mempool.clone(),
            payloads: disks.vaults(node),
        };
        let settings = Settings {
            genesis: disks.clinic.genesis.clone(),
            key,
            rooms,
            patience: Patience {
                idle: Duration::from_millis(100),
                state: Duration::from_secs(1),
                payload: Duration::from_millis(500),
            },
            timeouts: Timeouts {
                leader: Duration::from_millis(500),
                certification: Duration::from_secs(1),
                absence: Duration::from_secs(3),
            },
            fence: Fence::shut(),
            partition: format!("validator-{node}"),
        };
        let members = self.oracle.manager();
        let task = context.spawn(move |context| async move {
            let running = engine::start(context, settings, channels, control, members)
                .await
                .expect("its stores open");
            panic!("validator {node}: {}", running.stopped().await);
        });
        Node { task, chain, mempool }
    }

    /// Starts a validator that lies instead.
    pub(crate) async fn start_liar(&self, context: Context, clinic: &Clinic, node: usize) {
        let key = &clinic.validators[node];
        let votes = self
            .oracle
            .control(engine_key(&key.public()))
            .register(0, QUOTA)
            .await
            .expect("registers");
        let scheme = Scheme::signer(&ValidatorSet::of(&clinic.genesis), key, Fence::open());
        context.spawn(move |_| liar::contradict(scheme, votes));
    }
}

/// Waits, in simulated time, until every node has reached a height and every transaction is final there.
pub(crate) async fn settled(context: &Context, nodes: &[Node], height: u64, submitted: &[SignedTransaction]) {
    let done = |node: &Node| node.chain.head().height >= Height(height) && submitted.iter().all(|t| node.is_final(t));
    while !nodes.iter().all(done) {
        context.sleep(Duration::from_millis(100)).await;
    }
}
