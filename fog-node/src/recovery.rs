//! Compare, scrub, refetch, record: a node that no longer holds what was agreed finds it out, stops answering, and mends itself.
//!
//! Two tasks for ever. The *comparison* (Algorithm 2) asks every peer for its signed head at a height and looks for the
//! majority: a node outside it stops answering until it agrees again. The *scrub* reads everything on this node's disk again,
//! past all memory: chain, payloads, index. What is damaged is made good from other copies: blocks from peers by the digest
//! that was agreed on, state by applying the blocks, payloads by content identifier, rows by projecting. **Invariant:** nothing
//! a peer says is believed but what hashes to what two thirds voted for; the majority only says that something is wrong.

mod incident;
mod pace;
mod peers;
mod rows;
mod scrub;

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use ledger::{
    agreement::{self, SignedHead, Verdict},
    block::Height,
};
use record::signature::SigningKey;
use serde::{Deserialize, Serialize};
use tokio::{runtime::Handle, sync::watch, task::spawn_blocking, time::sleep};

pub use incident::{FoundBy, Incident, Incidents, Kind, Open};
pub(crate) use peers::limited;
pub use peers::{Given, Miss, Peers};
pub use rows::mend_rows;

use crate::{
    chain::{self, Chain},
    projection::{self, Projection},
    vault::{self, Vault},
};
use peers::FromPeers;

/// Heads are compared this far below our own, so that peers that are a moment behind can answer.
const LAG_BLOCKS: u64 = 8;
/// The longest pause between two comparisons while something cannot be mended.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// How often is compared and scrubbed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Between two comparisons with the peers.
    pub compare_every_ms: u64,
    /// A peer may take this long to answer.
    pub answer_timeout_ms: u64,
    /// Between the end of a scrub and the next one.
    pub scrub_every_ms: u64,
    /// What a scrub reads in a second, at most: it has to leave disk and processor to the traffic. A node that holds keys also
    /// opens what it reads and checks every signature in it. More is read only for `scrub_within_h`.
    pub scrub_bytes_per_s_max: u64,
    /// A pass has an end within so many hours, whatever the size: if it would not, more is read in a second, up to 8 MiB.
    pub scrub_within_h: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            compare_every_ms: 2_000,
            answer_timeout_ms: 2_000,
            scrub_every_ms: 600_000,
            scrub_bytes_per_s_max: 256 << 10,
            scrub_within_h: 168,
        }
    }
}

impl Config {
    /// What is wrong with it, each with the key to change.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let values = [
            ("compare_every_ms", self.compare_every_ms),
            ("answer_timeout_ms", self.answer_timeout_ms),
            ("scrub_every_ms", self.scrub_every_ms),
            ("scrub_bytes_per_s_max", self.scrub_bytes_per_s_max),
            ("scrub_within_h", self.scrub_within_h),
        ];
        let zero = values.iter().filter(|(_, value)| *value == 0);
        zero.map(|(key, _)| format!("recovery.{key} must be at least 1"))
            .collect()
    }
}

/// Whether this node may answer for the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing speaks against it.
    Answering,
    /// A majority has another chain or state.
    Diverged,
    /// Its chain is being made anew.
    Repairing,
}

/// Why something could not be mended now; it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The chain.
    #[error("the chain: {0}")]
    Chain(#[from] chain::Error),
    /// The vault.
    #[error("the vault: {0}")]
    Vault(#[from] vault::Error),
    /// The index.
    #[error("the index: {0}")]
    Index(#[from] projection::Failure),
}

/// The rooms that are looked after.
#[derive(Debug)]
pub struct Rooms {
    /// Blocks and state.
    pub chain: Chain,
    /// Payloads.
    pub vault: Vault,
    /// What makes rows.
    pub projection: Projection,
}

#[derive(Debug)]
struct Shared {
    config: Config,
    key: SigningKey,
    rooms: Rooms,
    peers: Peers,
    incidents: Incidents,
    standing: watch::Sender<Standing>,
    /// The comparison and the scrub mend one after the other.
    mending: tokio::sync::Mutex<()>,
    // The divergence that is open, and what it was mended from; a lock for a moment, held by one task.
    outside: Mutex<Option<(Open, Vec<String>)>>,
}

/// What a comparison came to.
enum Compared {
    /// Nothing is known to be wrong.
    Sound,
    /// Something was, and was mended.
    Mended,
}

/// The room; clones share it.
#[derive(Clone, Debug)]
pub struct Recovery(Arc<Shared>);

impl Recovery {
    /// Opens the room. The client carries this node's certificate.
    #[must_use]
    pub fn new(
        config: Config,
        key: SigningKey,
        rooms: Rooms,
        (client, peers): (reqwest::Client, &[vault::Peer]),
        incidents: Incidents,
    ) -> Self {
        let timeout = Duration::from_millis(config.answer_timeout_ms);
        Self(Arc::new(Shared {
            peers: Peers::new(client, peers, timeout),
            config,
            key,
            rooms,
            incidents,
            standing: watch::Sender::new(Standing::Answering),
            mending: tokio::sync::Mutex::default(),
            outside: Mutex::default(),
        }))
    }

    /// Compares with these and the configured peers from now on, and with nobody else.
    pub fn keep(&self, seated: &[vault::Peer]) {
        self.0.peers.keep(seated);
    }

    /// Whether this node may answer.
    #[must_use]
    pub fn standing(&self) -> Standing {
        *self.0.standing.borrow()
    }

    /// What went wrong here, the newest first.
    #[must_use]
    pub fn incidents(&self) -> Vec<Incident> {
        self.0.incidents.list()
    }

    /// This node's signed word on its chain at a height; `None` above its head.
    ///
    /// # Errors
    /// [`chain::Error`].
    pub fn signed_head(&self, height: Height) -> Result<Option<SignedHead>, chain::Error> {
        let position = self.0.rooms.chain.position_at(height)?;
        let network = self.0.rooms.chain.state().network;
        Ok(position.map(|position| SignedHead::sign(network, position, &self.0.key)))
    }

    /// Runs for ever.
    pub async fn run(self) {
        let rows = mend_rows(self.0.rooms.projection.clone(), self.0.incidents.clone());
        tokio::join!(self.compare(), self.scrub(), rows);
    }

    async fn compare(&self) {
        let every = Duration::from_millis(self.0.config.compare_every_ms);
        let mut pause = every;
        loop {
            sleep(pause).await;
            // What cannot be mended now, or was mended in vain, is looked at ever more rarely.
            pause = match self.compare_once().await {
                Ok(Compared::Sound) => every,
                Ok(Compared::Mended) => (pause * 2).min(PAUSE_MAX),
                Err(error) => {
                    tracing::warn!(%error, "the comparison with the peers found what cannot be mended now");
                    (pause * 2).min(PAUSE_MAX)
                }
            };
        }
    }

    /// Algorithm 2, once.
    async fn compare_once(&self) -> Result<Compared, Error> {
        let chain = &self.0.rooms.chain;
        let height = Height(chain.head().height.0.saturating_sub(LAG_BLOCKS));
        let heads = self.0.peers.heads(height).await;
        let own = match chain.position_at(height) {
            Ok(Some(own)) => own,
            Ok(None) => return Ok(Compared::Sound),
            Err(chain::Error::Damaged(what)) => {
                self.mend_chain(FoundBy::Comparison, "chain.redb".to_owned(), what)
                    .await?;
                return Ok(Compared::Mended);
            }
            Err(error) => return Err(error.into()),
        };
        let committees = chain.state().committees();
        match agreement::compare((&self.0.key.public(), &own), &heads, committees.newest()) {
            Verdict::Undecided => Ok(Compared::Sound),
            Verdict::Agrees => {
                metrics::gauge!("fog_recovery_compared_height").set(height.0 as f64);
                self.agrees();
                Ok(Compared::Sound)
            }
            Verdict::Diverges { majority, holders } => {
                let what = format!(
                    "{} validators have block {} and state {} at height {height}, this node block {} and state {}",
                    holders.len(),
                    majority.digest,
                    majority.state_digest,
                    own.digest,
                    own.state_digest
                );
                self.0.standing.send_replace(Standing::Diverged);
                let open = self
                    .0
                    .incidents
                    .found(Kind::Diverged, FoundBy::Comparison, "the head".to_owned(), what);
                let from = self.rebuild().await?;
                // Mended it is when the comparison says so.
                self.0.standing.send_replace(Standing::Diverged);
                *self.outside() = Some((open, from));
                Ok(Compared::Mended)
            }
        }
    }

    fn outside(&self) -> MutexGuard<'_, Option<(Open, Vec<String>)>> {
        self.0
            .outside
            .lock()
            .expect("nobody panics while it holds the divergence")
    }

    /// The majority has what this node has: it answers (again).
    fn agrees(&self) {
        self.0.standing.send_if_modified(|standing| {
            let was_outside = *standing == Standing::Diverged;
            if was_outside {
                *standing = Standing::Answering;
            }
            was_outside
        });
        if let Some((open, from)) = self.outside().take() {
            self.0.incidents.mended(open, from);
        }
    }

    /// Records damage and makes the chain's file anew.
    async fn mend_chain(&self, found_by: FoundBy, place: String, what: String) -> Result<(), Error> {
        let open = self.0.incidents.found(Kind::ChainDamaged, found_by, place, what);
        let from = self.rebuild().await?;
        self.0.incidents.mended(open, from);
        Ok(())
    }

    /// Makes the chain's file anew, one at a time; this node does not answer meanwhile. Gives whom blocks came from.
    async fn rebuild(&self) -> Result<Vec<String>, Error> {
        let _alone = self.0.mending.lock().await;
        self.0.standing.send_replace(Standing::Repairing);
        let chain = self.0.rooms.chain.clone();
        let source = FromPeers {
            peers: self.0.peers.clone(),
            runtime: Handle::current(),
        };
        let rebuilt = spawn_blocking(move || chain.rebuild(&source)).await;
        let rebuilt = rebuilt.expect("a rebuilding contains panics").inspect_err(|_| {
            self.0.standing.send_replace(Standing::Diverged);
        })?;
        // Each of its blocks was agreed on, and the state is what they make.
        self.0.standing.send_replace(Standing::Answering);
        tracing::warn!(
            blocks = rebuilt.fetched.len(),
            evidence = %rebuilt.evidence.display(),
            "the chain's file was made anew; the damaged one is kept"
        );
        let mut from: Vec<_> = rebuilt.sources.into_iter().collect();
        if from.is_empty() {
            from.push("this node".to_owned());
        }
        Ok(from)
    }
}
