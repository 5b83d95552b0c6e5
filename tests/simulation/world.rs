//! Validators in a simulated world: one seed decides every delay, loss and order of events; the application is the real
//! one, with its chain and vault on the real disk.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use commonware_cryptography::ed25519::PublicKey;
use commonware_p2p::simulated::{self, Link, Network, Oracle, SplitTarget};
use commonware_runtime::{Clock as _, Handle, Quota, Spawner as _, Supervisor as _, deterministic::Context};
use commonware_utils::{NZU32, NZUsize};
use fog_node::{
    chain::Chain,
    consensus::{
        application::{Patience, Rooms},
        codec::engine_key,
        engine::{self, Channels, Settings, Timeouts, message_bytes_max},
        fence::Fence,
    },
    mempool::{self, Mempool},
};
use futures::FutureExt as _;
use ledger::{block::Height, state::identifiers, transaction::SignedTransaction};

use crate::{
    disks::Disks,
    wire::{Ear, Mouth},
};

const QUOTA: Quota = Quota::per_second(NZU32!(2_048));
/// Votes, certificates, resolver, backfill, proposals, mempool, recall.
const CHANNELS: u64 = 7;

/// Simulated time in which every part of a validator that was ended has ended.
pub(crate) const ENDED_AFTER: Duration = Duration::from_millis(10);

/// A running validator.
pub(crate) struct Node {
    pub(crate) validator: usize,
    task: Handle<String>,
    /// Why it has ended, once that was asked.
    end: Option<String>,
    pub(crate) chain: Chain,
    pub(crate) mempool: Mempool,
}

impl Node {
    pub(crate) fn is_final(&self, transaction: &SignedTransaction) -> bool {
        identifiers(transaction)
            .iter()
            .all(|id| self.chain.took_effect_at(id).expect("reads").is_some())
    }

    /// Why it has ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<String> {
        if self.end.is_none() {
            let end = (&mut self.task).now_or_never()?;
            self.end = Some(end.unwrap_or_else(|error| error.to_string()));
        }
        self.end.clone()
    }

    /// Ends it between two of its steps; only what it had synced is kept.
    pub(crate) async fn crash(self, context: &Context) {
        if self.end.is_none() {
            self.task.abort();
            let _ = self.task.await;
        }
        // Its parts end each at their next turn; then nothing of it has a file open.
        context.sleep(ENDED_AFTER).await;
    }
}

/// The ends of a validator's channels, in their order.
type Ends = [(Mouth, Ear); CHANNELS as usize];

/// The network between the validators.
pub(crate) struct World {
    pub(crate) oracle: Oracle<PublicKey, Context>,
    pub(crate) peers: Vec<PublicKey>,
    link: Link,
    /// Whether some messages arrive twice.
    duplicates: bool,
    /// Validators that were started so far: names each start, and seeds its duplicates.
    starts: AtomicU64,
}

impl World {
    pub(crate) async fn new(context: &Context, disks: &Disks, link: Link) -> Self {
        let keys = disks.clinic.validators.iter();
        let peers: Vec<_> = keys.map(|key| engine_key(&key.public())).collect();
        let config = simulated::Config {
            max_size: message_bytes_max(),
            max_peers_per_set: NZUsize!(16),
            disconnect_on_block: true,
            tracked_peer_sets: NZUsize!(1),
        };
        let (network, oracle) = Network::new_with_peers(context.child("network"), config, peers.iter().cloned()).await;
        network.start();
        let world = Self {
            oracle,
            peers,
            link,
            duplicates: false,
            starts: AtomicU64::new(0),
        };
        for (from, to) in world.pairs() {
            world.join(from, to, &world.link).await;
        }
        world
    }

    /// Lets some messages arrive twice, at every validator that is started from now on.
    pub(crate) const fn with_duplicates(mut self) -> Self {
        self.duplicates = true;
        self
    }

    /// Every ordered pair of validators.
    fn pairs(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let count = self.peers.len();
        let all = (0..count).flat_map(move |from| (0..count).map(move |to| (from, to)));
        all.filter(|(from, to)| from != to)
    }

    /// Sets the link in one direction.
    pub(crate) async fn join(&self, from: usize, to: usize, link: &Link) {
        self.cut(from, to).await;
        let [from, to] = [from, to].map(|validator| self.peers[validator].clone());
        self.oracle.add_link(from, to, link.clone()).await.expect("a link");
    }

    /// Cuts the link in one direction.
    pub(crate) async fn cut(&self, from: usize, to: usize) {
        let [from, to] = [from, to].map(|validator| self.peers[validator].clone());
        // An error says that it is cut already.
        let _ = self.oracle.remove_link(from, to).await;
    }

    /// Cuts every link between the first `first` validators and the others, both ways.
    pub(crate) async fn part(&self, first: usize) {
        for (from, to) in self.pairs().filter(|(from, to)| (*from < first) != (*to < first)) {
            self.cut(from, to).await;
        }
    }

    /// Gives every link of a validator, both ways, other properties.
    pub(crate) async fn relink(&self, validator: usize, link: &Link) {
        for (from, to) in self.pairs().filter(|(from, to)| *from == validator || *to == validator) {
            self.join(from, to, link).await;
        }
    }

    /// Joins everybody again.
    pub(crate) async fn heal(&self) {
        for (from, to) in self.pairs() {
            self.join(from, to, &self.link).await;
        }
    }

    /// Who has shut out whom, as indexes of validators.
    pub(crate) async fn shut_out(&self) -> Vec<(usize, usize)> {
        let index = |key: &PublicKey| self.peers.iter().position(|peer| peer == key).expect("a validator");
        let blocked = self.oracle.blocked().await.expect("the network runs");
        blocked.iter().map(|(by, whom)| (index(by), index(whom))).collect()
    }

    /// The ends of a validator's channels.
    pub(crate) async fn ends(&self, validator: usize) -> Ends {
        let control = self.oracle.control(self.peers[validator].clone());
        let mut ends = Vec::new();
        for channel in 0..CHANNELS {
            let (outlet, inlet) = control.register(channel, QUOTA).await.expect("registers");
            let duplicates = self.starts.load(Ordering::Relaxed) * CHANNELS + channel;
            let ear = Ear::new(inlet, self.duplicates.then_some(duplicates));
            ends.push((Mouth::new(outlet), ear));
        }
        ends.try_into().unwrap_or_else(|_| unreachable!("seven channels"))
    }

    /// Starts a validator on its disks.
    pub(crate) async fn start(&self, context: &Context, disks: &Disks, validator: usize) -> Node {
        self.start_behind(context, disks, validator, disks.fence(validator))
            .await
    }

    /// Starts a validator on its disks, behind a fence that is watched.
    pub(crate) async fn start_behind(&self, context: &Context, disks: &Disks, validator: usize, fence: Fence) -> Node {
        let ends = self.ends(validator).await;
        self.run(context, disks, (validator, validator), (ends, fence))
    }

    /// Starts one validator twice, on disks that know nothing of each other: the first self talks with some of the others,
    /// the second self, on the disk `spare`, with some as well.
    pub(crate) async fn start_twins(
        &self,
        context: &Context,
        disks: &Disks,
        (validator, spare): (usize, usize),
        (first, second): (&[usize], &[usize]),
    ) -> [Node; 2] {
        let control = self.oracle.control(self.peers[validator].clone());
        let keys = |of: &[usize]| of.iter().map(|peer| self.peers[*peer].clone()).collect::<Vec<_>>();
        let (first, second) = (keys(first), keys(second));
        let (mut one, mut other) = (Vec::new(), Vec::new());
        for channel in 0..CHANNELS {
            let (outlet, inlet) = control.register(channel, QUOTA).await.expect("registers");
            let (near, far) = (first.clone(), second.clone());
            let child = context.child("twins").with_attribute("validator", validator);
            let child = child.with_attribute("channel", channel);
            let (left, right) = inlet.split_with(child, move |(from, _)| {
                match (near.contains(from), far.contains(from)) {
                    (true, true) => SplitTarget::Both,
                    (true, false) => SplitTarget::Primary,
                    (false, true) => SplitTarget::Secondary,
                    (false, false) => SplitTarget::None,
                }
            });
            one.push((Mouth::new(outlet.clone()).only_to(&first), Ear::new(left, None)));
            other.push((Mouth::new(outlet).only_to(&second), Ear::new(right, None)));
        }
        [(one, validator), (other, spare)].map(|(ends, disk)| {
            let ends = ends.try_into().unwrap_or_else(|_| unreachable!("seven channels"));
            // Twins are one liar: neither asks what the other has voted.
            self.run(context, disks, (validator, disk), (ends, Fence::open()))
        })
    }

    pub(crate) fn run(
        &self,
        context: &Context,
        disks: &Disks,
        (validator, disk): (usize, usize),
        (ends, fence): (Ends, Fence),
    ) -> Node {
        let key = disks.clinic.validators[validator].clone();
        let control = self.oracle.control(self.peers[validator].clone());
        let [
            votes,
            certificates,
            resolver,
            backfill,
            proposals,
            mempool_channel,
            recall,
        ] = ends;
        let channels = Channels {
            votes,
            certificates,
            resolver,
            backfill,
            proposals,
            mempool: mempool_channel,
            recall,
        };
        let (chain, mempool) = (disks.chain(disk), Mempool::new(&mempool::Config::default()));
        let settings = Settings {
            genesis: disks.clinic.genesis.clone(),
            key,
            rooms: Rooms {
                chain: chain.clone(),
                mempool: mempool.clone(),
                payloads: disks.vaults(disk),
            },
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
            fence,
            partition: format!("validator-{disk}"),
        };
        let members = self.oracle.manager();
        let start = self.starts.fetch_add(1, Ordering::Relaxed);
        let context = context.child("validator").with_attribute("start", start);
        let task = context.spawn(move |context| async move {
            match engine::start(context, settings, channels, control, members).await {
                Ok(running) => running.stopped().await,
                Err(error) => error.to_string(),
            }
        });
        Node {
            validator,
            task,
            end: None,
            chain,
            mempool,
        }
    }
}

/// Waits, in simulated time, until every node has reached a height and every transaction is final there.
pub(crate) async fn settled(context: &Context, nodes: &mut [Node], height: u64, submitted: &[SignedTransaction]) {
    let done = |node: &Node| node.chain.head().height >= Height(height) && submitted.iter().all(|t| node.is_final(t));
    while !nodes.iter().all(done) {
        for node in nodes.iter_mut() {
            if let Some(end) = node.ended() {
                panic!("validator {} has stopped: {end}", node.validator);
            }
        }
        context.sleep(Duration::from_millis(100)).await;
    }
}
