//! Who holds what: this node proves to the others what it has, asks them for the same, and keeps what it has in order.
//!
//! Two tasks for ever. The *challenge* asks each peer for proof that it has some payloads, picked at random from the chain
//! (`ledger::holding`); a peer that proves something else, or nothing, is an incident here until it has proven just those. The *sweep*
//! compares what the chain names with what the store lists, without reading a payload: what is missing is ordered from the one queue of
//! `retention`, and what nobody names any more is let go of. It runs at the start, at intervals, when the vault is
//! full, and as soon as this node cannot prove something that it is asked for. **What all this does not say:** that the bytes of a payload that
//! is listed are intact, which is for the scrub; nor that a peer which proves something keeps it on its own disk.

mod account;
mod allowance;
mod asking;
mod challenge;
mod suspicion;
mod sweep;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use cid::Cid;
use ledger::{
    block::Height,
    holding::{Answer, CHALLENGED_MAX, Challenge},
};
use record::{
    ids::KeyId,
    signature::{PublicKey, SigningKey},
};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, Semaphore};

pub use account::Account;
pub use asking::Identify;
pub use challenge::{Holder, Inquiry};
pub use sweep::Swept;

use crate::{
    chain::{self, Chain},
    mempool::Mempool,
    recovery::{Incidents, Recovery},
    retention::{Figures, Repairs},
    vault::{self, Vault},
};
use allowance::{Allowance, Minute};
use asking::Asking;

/// How often is asked and swept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Between two challenges of each peer.
    pub challenge_every_ms: u64,
    /// Payloads in one challenge.
    pub challenge_payloads: usize,
    /// A peer may take this long to answer.
    pub answer_timeout_ms: u64,
    /// Between two sweeps, if nothing calls for one before.
    pub sweep_every_ms: u64,
    /// A payload that nothing names goes when nobody has held it for so long.
    pub garbage_grace_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            challenge_every_ms: 30_000,
            challenge_payloads: 8,
            answer_timeout_ms: 10_000,
            sweep_every_ms: 3_600_000,
            garbage_grace_ms: 600_000,
        }
    }
}

impl Config {
    /// What is wrong with it, each with the key to change.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let least = [
            ("challenge_every_ms", self.challenge_every_ms, 1_000),
            ("answer_timeout_ms", self.answer_timeout_ms, 1),
            ("sweep_every_ms", self.sweep_every_ms, 1_000),
            // Between being handed in and being named by a block lie seconds, or minutes when views are lost.
            ("garbage_grace_ms", self.garbage_grace_ms, 60_000),
        ];
        let too_small = least.iter().filter(|(_, value, least)| value < least);
        let mut faults: Vec<_> = too_small
            .map(|(key, _, least)| format!("possession.{key} must be at least {least}"))
            .collect();
        if !(1..=CHALLENGED_MAX).contains(&self.challenge_payloads) {
            faults.push(format!("possession.challenge_payloads is from 1 to {CHALLENGED_MAX}"));
        }
        faults
    }
}

/// Why something could not be looked after now; it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The chain.
    #[error("the chain: {0}")]
    Chain(#[from] chain::Error),
    /// The vault.
    #[error("the vault: {0}")]
    Vault(#[from] vault::Error),
    /// A block below the head cannot be had: the chain is being made anew.
    #[error("block {0} cannot be read now")]
    Unread(Height),
}

/// Whoever asks does so too often; the answer is the same a minute later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this validator asks for more proofs than are read for it in a minute")]
pub struct TooOften;

/// The rooms that are worked with.
#[derive(Clone, Debug)]
pub struct Rooms {
    /// What names payloads.
    pub chain: Chain,
    /// What names payloads that no block names yet.
    pub mempool: Mempool,
    /// What holds them.
    pub vault: Vault,
    /// Where what is missing is ordered.
    pub repairs: Repairs,
    /// Whether this node's chain is the majority's.
    pub recovery: Recovery,
    /// What was found.
    pub incidents: Incidents,
}

#[derive(Debug)]
struct Shared {
    config: Config,
    key: SigningKey,
    rooms: Rooms,
    asking: Asking,
    /// Somebody has found something missing here.
    suspicion: Notify,
    inquiries: Semaphore,
    // Each is held for a few map operations, never across an await: handlers and both tasks look in.
    seen: Mutex<Seen>,
    allowance: Mutex<Allowance>,
    inquired: Mutex<Minute>,
}

/// A payload, as the chain names it.
#[derive(Clone, Copy, Debug)]
struct Named {
    cid: Cid,
    height: Height,
    /// The subject key that opens it: what was sealed to an erased key is nowhere meant to be.
    key: KeyId,
}

/// What is known.
#[derive(Debug, Default)]
struct Seen {
    /// By the peer's address.
    accounts: BTreeMap<String, Account>,
    /// Payloads that every node should have, picked evenly by the last sweep from what the chain names; no large records.
    sample: Vec<Named>,
    swept: Option<Swept>,
    /// What the last sweep found missing here, and is not here yet.
    missing: HashMap<Cid, Height>,
}

/// What is known of this node and its peers, for whoever asks.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The last sweep; nothing before the first.
    pub sweep: Option<Swept>,
    /// Payloads that it found missing here, and that are not here yet.
    pub missing: usize,
    /// Some of them.
    pub missing_payloads: Vec<String>,
    /// The queue of what is fetched.
    pub repair: Figures,
    /// Payloads that were let go of since the start, because nothing named them.
    pub collected: u64,
    /// What each peer has proven.
    pub peers: Vec<Account>,
}

/// Payloads that are listed by name, at most.
const LISTED_MAX: usize = 64;
/// Inquiries after one payload at a time, at most.
const INQUIRIES_MAX: usize = 2;
/// Inquiries in a minute, at most: what they take of this node's allowance at its peers is missing to its own challenges.
const INQUIRIES_A_MINUTE: u32 = 32;

/// The room; clones share it.
#[derive(Clone, Debug)]
pub struct Possession(Arc<Shared>);

impl Possession {
    /// Opens the room. The client carries this node's certificate; the key signs what this node proves.
    #[must_use]
    pub fn new(config: Config, key: SigningKey, rooms: Rooms, (client, identify): (reqwest::Client, Identify)) -> Self {
        let timeout = Duration::from_millis(config.answer_timeout_ms);
        Self(Arc::new(Shared {
            asking: Asking::new(client, identify, timeout),
            config,
            key,
            rooms,
            suspicion: Notify::new(),
            inquiries: Semaphore::new(INQUIRIES_MAX),
            seen: Mutex::default(),
            allowance: Mutex::default(),
            inquired: Mutex::default(),
        }))
    }

    /// Runs for ever.
    pub async fn run(self) {
        tokio::join!(self.challenge_for_ever(), self.sweep_for_ever());
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Proves what this node has of a challenge, to a validator. Something that it has not is looked for in the whole vault.
    ///
    /// # Errors
    /// [`TooOften`] within, or the vault cannot be asked.
    pub async fn answer(&self, by: PublicKey, challenge: &Challenge) -> Result<Result<Answer, TooOften>, vault::Error> {
        let Rooms { chain, vault, .. } = &self.0.rooms;
        let payloads = u32::try_from(challenge.payloads().len()).unwrap_or(u32::MAX);
        let is_allowed = {
            let mut allowance = self.0.allowance.lock().unwrap_or_else(PoisonError::into_inner);
            allowance.takes(by, payloads, Instant::now())
        };
        if !is_allowed {
            metrics::counter!("fog_possession_answers_total", "outcome" => "refused").increment(1);
            return Ok(Err(TooOften));
        }
        let (network, me) = (chain.state().network, self.0.key.public());
        let holds_up_to = Height(vault.retained().await?);
        let mut proofs = Vec::with_capacity(challenge.payloads().len());
        for cid in challenge.payloads() {
            let payload = vault.local(cid).await?;
            if payload.is_none() {
                self.suspect(cid).await?;
            }
            proofs.push(payload.map(|payload| challenge.proof(&network, &me, &payload)));
        }
        let is_whole = proofs.iter().all(Option::is_some);
        let outcome = if is_whole { "proven" } else { "not-held" };
        metrics::counter!("fog_possession_answers_total", "outcome" => outcome).increment(1);
        Ok(Ok(Answer::sign(
            &network,
            challenge,
            (holds_up_to, proofs),
            &self.0.key,
        )))
    }

    /// Has the whole vault looked through soon, because a payload is not here; one that was erased is not meant to be.
    async fn suspect(&self, cid: &Cid) -> Result<(), vault::Error> {
        if !self.0.rooms.vault.is_erased(cid).await? {
            self.0.suspicion.notify_one();
        }
        Ok(())
    }

    /// What is known of this node and its peers.
    #[must_use]
    pub fn report(&self) -> Report {
        let (repair, collected) = (self.0.rooms.repairs.figures(), self.0.rooms.vault.collected());
        let seen = self.seen();
        Report {
            sweep: seen.swept,
            missing: seen.missing.len(),
            missing_payloads: seen.missing.keys().take(LISTED_MAX).map(Cid::to_string).collect(),
            repair,
            collected,
            peers: seen.accounts.values().cloned().collect(),
        }
    }
}

#[cfg(test)]
mod tests;
