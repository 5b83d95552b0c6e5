//! Agreement: the validators order transactions in blocks, mined to policy P, and two thirds of them vote each final.
//!
//! The engine (Simplex, with marshal for ordered delivery) stays behind this door: nothing outside names its types.
//! [`application`] proposes and verifies, `ballot` lets no vote to finalize pass without the payloads, [`scheme`] says
//! which votes count, `delivery` writes what is final to the chain, `gossip` spreads waiting transactions, [`engine`]
//! wires them, `network` connects them. It runs on a thread and a runtime of its own. **Invariants:** a vote is given only
//! for a block whose payloads are held here; a block is acknowledged only when the chain has it on disk; when one actor
//! ends, the node stops.

pub mod application;
mod ballot;
pub mod codec;
mod delivery;
pub mod engine;
mod epochs;
pub mod fence;
pub mod finalization;
mod gossip;
mod network;
mod opening;
mod payloads;
mod recall;
pub mod scheme;
pub mod schemes;
mod stores;
mod unvoted;
mod votes;

use std::{
    future::Future,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    pin::pin,
    time::Duration,
};

use cid::Cid;
use commonware_macros::select;
use commonware_p2p::Address;
use commonware_runtime::{Clock as _, Runner as _, Spawner as _, Supervisor as _, tokio as runtime};
use futures::{StreamExt as _, stream::FuturesUnordered};
use ledger::{genesis::Genesis, transaction::SignedTransaction};
use record::signature::{PublicKey, SigningKey};
use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};

use application::{Patience, Rooms};
use codec::{engine_key, engine_signer};
use engine::{Settings, Timeouts};
use fence::Fence;
use network::{Connected, Peers};

pub use opening::set_aside_what_does_not_open;
pub use unvoted::{declare_unvoted, fence_of};

use crate::{
    chain::Chain,
    mempool::Mempool,
    vault::{Held, Vault},
};

/// Threads for the engine's short blocking calls (its files), at most.
const BLOCKING_THREADS_MAX: usize = 32;
/// A link on which nothing was sent or received for so long is given up, and dialled anew: several times
/// [`network::PING_EVERY`]. Without it a link whose packets were lost for a while is taken up again only when TCP has the
/// patience, about as long after the mending as it was cut.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// Where another validator is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// Its validator key.
    pub key: PublicKey,
    /// Its `consensus.listen`, as seen from here.
    pub address: SocketAddr,
}

/// How this node takes part in the agreement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where the other validators reach this node.
    pub listen: SocketAddr,
    /// The other validators; this node itself may be among them.
    pub peers: Vec<Peer>,
    /// This node is none of the founders: it follows, and votes when the members have given it a seat.
    pub newcomer: bool,
    /// An idle leader waits for work this long, then proposes an empty block: the heartbeat.
    pub idle_ms: u64,
    /// A leader that has proposed nothing for this long is skipped; longer than `idle_ms`.
    pub leader_timeout_ms: u64,
    /// A view without a quorum after this long is skipped; longer than `leader_timeout_ms`.
    pub certification_timeout_ms: u64,
    /// A leader that was silent for this long is skipped at once; longer than `certification_timeout_ms`.
    pub absence_timeout_ms: u64,
    /// How long a vote waits for a payload that is not held here yet.
    pub payload_timeout_ms: u64,
    /// Threads of the engine's runtime.
    pub worker_threads: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8501)),
            peers: Vec::new(),
            newcomer: false,
            idle_ms: 1_000,
            leader_timeout_ms: 2_000,
            certification_timeout_ms: 3_000,
            absence_timeout_ms: 5_000,
            payload_timeout_ms: 2_000,
            worker_threads: 2,
        }
    }
}

impl Config {
    /// What is wrong with it, each with the key to change.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let rising = [
            ("idle_ms", self.idle_ms, "leader_timeout_ms", self.leader_timeout_ms),
            (
                "leader_timeout_ms",
                self.leader_timeout_ms,
                "certification_timeout_ms",
                self.certification_timeout_ms,
            ),
            (
                "certification_timeout_ms",
                self.certification_timeout_ms,
                "absence_timeout_ms",
                self.absence_timeout_ms,
            ),
        ];
        for (short, short_ms, long, long_ms) in rising {
            if short_ms >= long_ms {
                faults.push(format!(
                    "consensus.{long} ({long_ms}) must be longer than consensus.{short} ({short_ms})"
                ));
            }
        }
        for (name, value) in [
            ("idle_ms", self.idle_ms),
            ("worker_threads", self.worker_threads as u64),
        ] {
            if value == 0 {
                faults.push(format!("consensus.{name} must be at least 1"));
            }
        }
        let mut keys: Vec<_> = self.peers.iter().map(|peer| peer.key).collect();
        keys.sort();
        keys.dedup();
        if keys.len() != self.peers.len() {
            faults.push("consensus.peers names one key twice".to_owned());
        }
        faults
    }

    /// Validators of the genesis that the config gives no address for.
    #[must_use]
    pub fn missing_peers(&self, genesis: &Genesis, me: &PublicKey) -> Vec<PublicKey> {
        let known = |key: &PublicKey| key == me || self.peers.iter().any(|peer| peer.key == *key);
        genesis.committee().into_iter().filter(|key| !known(key)).collect()
    }

    fn patience(&self) -> Patience {
        Patience {
            idle: Duration::from_millis(self.idle_ms),
            state: Duration::from_millis(self.certification_timeout_ms),
            payload: Duration::from_millis(self.payload_timeout_ms),
        }
    }

    fn timeouts(&self) -> Timeouts {
        Timeouts {
            leader: Duration::from_millis(self.leader_timeout_ms),
            certification: Duration::from_millis(self.certification_timeout_ms),
            absence: Duration::from_millis(self.absence_timeout_ms),
        }
    }

    /// Every validator's address; this node's own is where it listens.
    fn addresses(&self, me: &PublicKey) -> Peers {
        let others = self
            .peers
            .iter()
            .filter(|peer| peer.key != *me)
            .map(|peer| (peer.key, peer.address));
        let all = others.chain([(*me, self.listen)]);
        Peers::from_iter_dedup(all.map(|(key, address)| (engine_key(&key), Address::from(address))))
    }
}

/// Why the engine cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Change the configuration.
    #[error("{}", .0.join("; "))]
    Config(Vec<String>),
    /// The address is taken or not this machine's.
    #[error("consensus.listen {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The data folder cannot be written.
    #[error("the engine's folder: {0}")]
    Folder(#[source] std::io::Error),
    /// The system gives no thread.
    #[error("the engine's thread: {0}")]
    Thread(#[source] std::io::Error),
}

/// What the engine works with.
#[derive(Debug)]
pub struct Parts {
    /// The node's data folder; the engine's stores are in its `consensus` folder.
    pub data_dir: PathBuf,
    /// The network.
    pub genesis: Genesis,
    /// The validator's key.
    pub key: SigningKey,
    /// What waits.
    pub mempool: Mempool,
    /// What is final.
    pub chain: Chain,
    /// What is held.
    pub vault: Vault,
}

/// Proof, on request, that a payload is held here: the vault, or its like in a simulation.
pub trait Payloads: Clone + Send + Sync + 'static {
    /// The proof, as soon as the payload is durable here; `None` after the timeout.
    fn hold(&self, cid: &Cid, timeout: Duration) -> impl Future<Output = Option<Held>> + Send;

    /// Like [`Payloads::hold`], for the payload that a commitment names, and only if it is the bundle or document it commits to.
    fn hold_committed(
        &self,
        transaction: &SignedTransaction,
        timeout: Duration,
    ) -> impl Future<Output = Option<Held>> + Send;
}

/// The running engine; it stops when this is dropped.
#[derive(Debug)]
pub struct Consensus {
    stop: oneshot::Sender<()>,
    stopped: watch::Receiver<Option<String>>,
}

/// Starts the engine on a thread of its own.
///
/// # Errors
/// [`Error`].
pub fn start(config: Config, parts: Parts) -> Result<Consensus, Error> {
    let mut faults = config.faults();
    let missing = config.missing_peers(&parts.genesis, &parts.key.public());
    faults.extend(
        missing
            .iter()
            .map(|key| format!("consensus.peers has no address for validator {key}")),
    );
    if !faults.is_empty() {
        return Err(Error::Config(faults));
    }
    // The engine binds later, inside its runtime, and could only panic: find a taken address here.
    let probe = TcpListener::bind(config.listen);
    drop(probe.map_err(|source| Error::Listen {
        address: config.listen,
        source,
    })?);

    opening::begin(&parts.data_dir).map_err(Error::Folder)?;
    let fence = unvoted::fence_of(&parts.data_dir).map_err(Error::Folder)?;
    let (stop, stop_requested) = oneshot::channel();
    let (reason, stopped) = watch::channel(None);
    let thread = std::thread::Builder::new().name("consensus".to_owned());
    let body = move || {
        let runtime = runtime::Config::new()
            .with_worker_threads(config.worker_threads)
            .with_max_blocking_threads(BLOCKING_THREADS_MAX)
            .with_tcp_nodelay(Some(true))
            .with_read_write_timeout(SILENCE_MAX)
            .with_storage_directory(opening::stores(&parts.data_dir));
        let why = runtime::Runner::new(runtime).start(|context| run(context, config, (parts, fence), stop_requested));
        reason.send_replace(Some(why));
    };
    thread.spawn(body).map_err(Error::Thread)?;
    Ok(Consensus { stop, stopped })
}

async fn run(
    context: runtime::Context,
    config: Config,
    (parts, fence): (Parts, Fence),
    stop_requested: oneshot::Receiver<()>,
) -> String {
    let (me, network) = (parts.key.public(), parts.genesis.network());
    let (peers, chain) = (config.addresses(&me), parts.chain.clone());
    let Connected { channels, oracle, task } = network::connect(
        &context,
        engine_signer(&parts.key),
        &network,
        config.listen,
        peers.clone(),
    );
    let data_dir = parts.data_dir;
    let settings = Settings {
        genesis: parts.genesis,
        key: parts.key,
        rooms: Rooms {
            chain: parts.chain,
            mempool: parts.mempool,
            payloads: parts.vault,
        },
        patience: config.patience(),
        timeouts: config.timeouts(),
        fence,
        partition: "fog".to_owned(),
    };
    let seats = network::follow_seats(chain, peers, oracle.clone());
    let seats = context.child("seats").spawn(move |_| seats);
    let mut running = match engine::start(context.child("engine"), settings, channels, oracle.clone(), oracle).await {
        Ok(running) => running,
        Err(error) => return error.to_string(),
    };
    running.watch("network", task);
    running.watch("seats", seats);
    tracing::info!(listen = %config.listen, %network, "consensus started");
    let (stopped, mut stop_requested) = (pin!(running.stopped()), stop_requested);
    let mut stopped = stopped;
    let end = select! {
        _ = &mut stop_requested => Some("stopped on request".to_owned()),
        reason = &mut stopped => return reason,
        () = context.sleep(opening::OPENED_AFTER) => None,
    };
    opening::done(&data_dir);
    if let Some(end) = end {
        return end;
    }
    select! {
        _ = stop_requested => "stopped on request".to_owned(),
        reason = stopped => reason,
    }
}

impl Consensus {
    /// Resolves with the reason when the engine has stopped; the node must stop then.
    pub async fn stopped(&self) -> String {
        let mut stopped = self.stopped.clone();
        match stopped.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().expect("waited until there is a reason"),
            Err(_) => "the engine's thread panicked".to_owned(),
        }
    }

    /// Stops the engine and waits until its thread has let go of its stores.
    pub async fn stop(self) {
        let Self { stop, mut stopped } = self;
        drop(stop);
        // An error means that the thread has ended already.
        let _ = stopped.wait_for(Option::is_some).await;
    }
}

/// The next of some futures that is done; never, while there is none.
async fn next<F: Future>(futures: &mut FuturesUnordered<F>) -> F::Output {
    match futures.next().await {
        Some(output) => output,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use codec::tests::founded;

    #[test]
    fn every_fault_of_a_config_is_named() {
        let config = Config {
            idle_ms: 0,
            leader_timeout_ms: 9_000,
            ..Config::default()
        };
        assert_eq!(config.faults().len(), 2);
        assert!(Config::default().faults().is_empty());
    }

    #[test]
    fn every_validator_needs_an_address() {
        let keys: Vec<_> = (0..4).map(|_| SigningKey::random()).collect();
        let genesis = founded(&keys);
        let address = SocketAddr::from(([127, 0, 0, 1], 8502));
        let config = Config {
            peers: vec![Peer {
                key: keys[1].public(),
                address,
            }],
            ..Config::default()
        };
        let missing = config.missing_peers(&genesis, &keys[0].public());
        assert_eq!(missing.len(), 2);
        assert!(missing.contains(&keys[2].public()) && missing.contains(&keys[3].public()));
        assert_eq!(config.addresses(&keys[0].public()).len(), 2);
    }
}
