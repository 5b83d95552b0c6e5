//! What the chain says is erased, erased here: private half, rows, payloads; then this node's word on it, on the chain.
//!
//! One task follows the state. For each tombstone, in this order: the private half is destroyed (so that nothing can be
//! opened any more, whatever else happens), the rows that were made with it are removed, every payload that a block commits to the
//! key is erased, and only then the node signs that it holds nothing. A private half goes only when the organisation that erased
//! the key is this node's own: whoever has seen a public half can announce it first. **The chain is the only memory of it:** at each start
//! everything that was ever erased is looked at once more, so that a kill at any point, or an old copy of the data folder, or of a
//! part of it, is made good by the same path. What is absent already costs a look.

mod late;
mod observed;
mod probe;
mod word;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use cid::Cid;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use ledger::{block::Height, register::Tombstone, state::State, transaction::PrivateHalf};
use record::{
    ids::{KeyId, OrganizationId},
    signature::SigningKey,
};
use tokio::{
    task::{JoinError, spawn_blocking},
    time::Instant,
};

use crate::{
    chain::{self, Chain},
    index::{self, Index},
    keyring::{self, Keyring},
    mempool::{Mempool, Pending},
    proofs,
    recovery::{FoundBy, Incidents, Kind},
    vault::{self, Erased, Vault},
};
use late::Late;
pub use observed::{Forgetting, Forgotten};
use probe::Probe;
use word::Word;

/// Blocks that are looked through at a time.
const STRETCH_BLOCKS: u64 = 512;
/// Payloads that are erased at a time.
const ERASED_AT_A_TIME: usize = 64;
/// How often is looked whether a word is on the chain already, or the peers have what they should not.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Pause after a room did not answer; doubles.
const FAILURE_PAUSE: Duration = Duration::from_secs(1);
/// Up to this: each try looks through the whole chain again.
const FAILURE_PAUSE_MAX: Duration = Duration::from_secs(60);

/// Why a step could not be made; it is made again.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The chain cannot be read.
    #[error("the chain: {0}")]
    Chain(#[from] chain::Error),
    /// What an observer has proven cannot be read.
    #[error(transparent)]
    Proofs(#[from] proofs::Error),
    /// A payload cannot be erased now.
    #[error("the vault: {0}")]
    Vault(#[from] vault::Error),
    /// Rows cannot be removed now.
    #[error("the index: {0}")]
    Index(#[from] index::Error),
    /// The private half cannot be destroyed now.
    #[error("the keyring: {0}")]
    Keyring(#[from] keyring::Error),
    /// The node is stopping.
    #[error("it was interrupted: {0}")]
    Interrupted(#[from] JoinError),
}

/// What erases, and what is erased from.
#[derive(Clone, Debug)]
pub struct Rooms {
    /// What is erased, and who has confirmed.
    pub chain: Chain,
    /// Payloads.
    pub vault: Vault,
    /// Rows.
    pub index: Index,
    /// Private halves.
    pub keyring: Keyring,
    /// What waits to be ordered; this node's word is handed in there.
    pub mempool: Mempool,
    /// Where a peer is named that does not keep its word.
    pub incidents: Incidents,
}

/// The room, and its task.
#[derive(Debug)]
pub struct Erasure {
    rooms: Rooms,
    /// Whose node this is, and so whose private halves.
    organization: OrganizationId,
    /// Signs the words: the key that this node votes with.
    key: SigningKey,
    /// What was erased in this run: this node's word on each.
    words: BTreeMap<KeyId, Word>,
    late: Late,
    probe: Probe,
}

impl Erasure {
    /// Opens the room of an organisation's node.
    #[must_use]
    pub fn new(rooms: Rooms, organization: OrganizationId, key: SigningKey) -> Self {
        Self {
            probe: Probe::new(),
            rooms,
            organization,
            key,
            words: BTreeMap::new(),
            late: Late::default(),
        }
    }

    /// Runs until the chain is gone.
    pub async fn run(mut self) {
        let mut states = self.rooms.chain.states();
        let mut patience = Patience::default();
        loop {
            let state = Arc::clone(&states.borrow_and_update());
            let pause = patience.after(&self.step(&state).await);
            // A new state is looked at when it comes, if it erases something; many come in a second.
            let known = state.tombstones().len();
            let more = states.wait_for(|state| state.tombstones().len() > known);
            tokio::select! {
                changed = more => if changed.is_err() { return },
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Does what there is to do.
    ///
    /// # Errors
    /// [`Failure`]: make it again.
    pub async fn step(&mut self, state: &State) -> Result<(), Failure> {
        let open: BTreeMap<_, _> = state
            .tombstones()
            .filter(|(key, _)| !self.words.contains_key(key))
            .map(|(key, tombstone)| (*key, tombstone.clone()))
            .collect();
        // What waits for one key keeps no word on another back.
        let erased = if open.is_empty() {
            Ok(())
        } else {
            self.erase(open, state.height()).await
        };
        self.late.erase(&self.rooms, state).await?;
        self.confirm(state)?;
        self.probe.look(&self.rooms, &self.words, state).await?;
        erased
    }

    /// Erases what stands under some keys, as of a height. Of several failures it gives the first; the keys that had none are
    /// done.
    async fn erase(&mut self, mut open: BTreeMap<KeyId, Tombstone>, as_of: Height) -> Result<(), Failure> {
        let started = Instant::now();
        let (mut halves, mut failed) = (BTreeMap::new(), Ok(()));
        for (key, tombstone) in &open {
            match self.end_half(*key, tombstone).await {
                Ok(half) => _ = halves.insert(*key, half),
                Err(failure) => failed = failed.and(Err(failure)),
            }
        }
        open.retain(|key, _| halves.contains_key(key));
        if open.is_empty() {
            return failed;
        }
        // A database that does not answer keeps no payload.
        let mut has_rows = BTreeSet::new();
        for key in open.keys() {
            match self.rooms.index.erase(*key).await {
                Ok(removed) => metrics::counter!("fog_erasure_rows_total").increment(removed),
                Err(error) => {
                    has_rows.insert(*key);
                    failed = failed.and(Err(error.into()));
                }
            }
        }
        let keys = Arc::new(open.keys().copied().collect::<BTreeSet<_>>());
        let mut erased: BTreeMap<KeyId, BTreeSet<Erased>> = BTreeMap::new();
        let mut from = Height(1);
        while from <= as_of {
            let to = Height(as_of.0.min(from.0 + STRETCH_BLOCKS - 1));
            let committed = self.rooms.chain.committed_to(keys.clone(), (from, to)).await?;
            let cids = committed.iter().map(|committed| committed.cid).collect();
            let gone = erase_payloads(&self.rooms.vault, cids).await?;
            for (committed, gone) in committed.iter().zip(gone) {
                if committed.took_effect {
                    erased.entry(committed.key).or_default().insert(gone);
                }
            }
            from = to.next();
        }
        for (key, tombstone) in open.into_iter().filter(|(key, _)| !has_rows.contains(key)) {
            let erased = erased.remove(&key).unwrap_or_default();
            tracing::info!(
                %key,
                payloads = erased.len(),
                height = %tombstone.at.height,
                took_ms = started.elapsed().as_millis(),
                "a key is erased here"
            );
            metrics::counter!("fog_erasure_keys_total").increment(1);
            self.late.watch(key, tombstone.at.height, as_of);
            self.words.insert(key, Word::on(&tombstone, halves[&key], erased));
        }
        failed
    }

    /// Destroys the private half of a key that this node's organisation has erased. One that another organisation had announced,
    /// and has erased, stays, and there is no word on it then: this node still holds something.
    async fn end_half(&self, key: KeyId, tombstone: &Tombstone) -> Result<Option<PrivateHalf>, Failure> {
        let Rooms { keyring, incidents, .. } = &self.rooms;
        if tombstone.custodian != self.organization && keyring.secret(&key).is_some() {
            strangely_erased(incidents, &key, tombstone);
            return Ok(None);
        }
        let keyring = keyring.clone();
        Ok(Some(spawn_blocking(move || keyring.destroy(&key)).await??))
    }

    /// Hands in this node's word on each key, until it is on the chain.
    fn confirm(&mut self, state: &State) -> Result<(), Failure> {
        let rooms = &self.rooms;
        for (key, word) in self.words.iter_mut().filter(|(_, word)| !word.is_final) {
            let Some(signed) = word.signed(state.network, *key, &self.key) else {
                continue;
            };
            if rooms.chain.has_confirmed(key, &self.key.public())? {
                word.is_final = true;
                continue;
            }
            // A node without a seat has no word, and one whose seat comes later says it then.
            if rooms.mempool.contains(&signed.id()) || state.admit(&signed).is_err() {
                continue;
            }
            let pending = Pending::plain(signed).expect("it commits to nothing");
            // A full mempool has room again soon.
            let _handed_in = rooms.mempool.insert(pending);
        }
        let unsaid = self.words.values().filter(|word| !word.is_final).count();
        metrics::gauge!("fog_erasure_unconfirmed").set(unsaid as f64);
        Ok(())
    }
}

/// A private half stays here whose key somebody else has erased.
fn strangely_erased(incidents: &Incidents, key: &KeyId, tombstone: &Tombstone) {
    let what = format!(
        "{} announced key {key}, whose private half this node holds, as its own, and has erased it (at height {}): the private half \
         stays here, and payloads and rows are gone. If the key was theirs, end this copy of it; if it was yours, make its \
         patient a new one",
        tombstone.custodian, tombstone.at.height
    );
    let _stays_open = incidents.found(Kind::ErasedByAnother, FoundBy::Erasure, format!("key {key}"), what);
}

/// How long the next step waits; what failed is tried again ever more seldom, and said once.
#[derive(Debug)]
struct Patience {
    said: String,
    next: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            said: String::new(),
            next: FAILURE_PAUSE,
        }
    }
}

impl Patience {
    fn after(&mut self, step: &Result<(), Failure>) -> Duration {
        let Err(failure) = step else {
            *self = Self::default();
            return LOOK_EVERY;
        };
        // A disk that is full for an hour is said once.
        let words = failure.to_string();
        if words != self.said {
            tracing::warn!(%failure, "an erasure waits; it goes on by itself");
            self.said = words;
        }
        let pause = self.next;
        self.next = (pause * 2).min(FAILURE_PAUSE_MAX);
        pause
    }
}

/// Erases payloads, many at a time; the proofs are in their order.
async fn erase_payloads(vault: &Vault, cids: Vec<Cid>) -> Result<Vec<Erased>, vault::Error> {
    stream::iter(cids)
        .map(|cid| async move { vault.erase(&cid).await })
        .buffered(ERASED_AT_A_TIME)
        .try_collect()
        .await
}

#[cfg(test)]
mod tests;
