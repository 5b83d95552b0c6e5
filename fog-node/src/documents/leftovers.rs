//! Documents that nobody has committed to: of an upload that ended too early, or of a commitment that was lost. They go after
//! a while, so that they take no room for ever; at once, when the key that they are sealed to is erased.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use cid::Cid;
use ledger::{
    document::DocumentCommitment,
    state::{Outcome, State},
};
use record::document::{HEAD_BYTES_MAX, head_of};

use super::Error;
use crate::{
    chain::Chain,
    mempool::Mempool,
    vault::{self, Vault},
};

/// So long a document may be here while its commitment is neither final nor waits here: longer than any way to the others, and
/// than a node needs to catch up, which would fetch what it has let go of once more.
pub const GRACE: Duration = Duration::from_secs(2 * 3_600);
/// How often they are looked for.
const LOOK_EVERY: Duration = Duration::from_secs(600);

/// The task that looks for them.
#[derive(Debug)]
pub struct Leftovers {
    chain: Chain,
    mempool: Mempool,
    vault: Vault,
    /// Roots that a final commitment names: looked up once.
    named: HashSet<Cid>,
    /// Since when the others were seen.
    since: HashMap<Cid, Instant>,
}

impl Leftovers {
    /// Looks after this vault.
    #[must_use]
    pub fn new(chain: Chain, mempool: Mempool, vault: Vault) -> Self {
        Self {
            chain,
            mempool,
            vault,
            named: HashSet::new(),
            since: HashMap::new(),
        }
    }

    /// Runs as long as the chain.
    pub async fn run(mut self) {
        let mut states = self.chain.states();
        loop {
            let known = self.chain.state().tombstones().len();
            if let Err(error) = self.look(Instant::now()).await {
                tracing::warn!(%error, "documents without a commitment could not be looked for; again later");
            }
            // What is sealed to a key that was erased does not wait.
            let erased = states.wait_for(|state| state.tombstones().len() > known);
            if let Ok(Err(_)) = tokio::time::timeout(LOOK_EVERY, erased).await {
                return;
            }
        }
    }

    /// Looks once, and lets go of those that have been seen for [`GRACE`], or are sealed to a key that was erased.
    ///
    /// # Errors
    /// Vault or chain could not be asked.
    pub async fn look(&mut self, now: Instant) -> Result<(), Error> {
        let roots: HashSet<_> = self.vault.roots().await?.into_iter().collect();
        self.named.retain(|root| roots.contains(root));
        self.since.retain(|root, _| roots.contains(root));
        for root in roots.difference(&self.named.clone()) {
            if self.is_named(root).await? {
                self.since.remove(root);
                continue;
            }
            let since = *self.since.entry(*root).or_insert(now);
            if now.duration_since(since) >= GRACE || self.is_erased(root).await? {
                self.vault.let_go(root).await?;
                self.since.remove(root);
                metrics::counter!("fog_documents_let_go_total").increment(1);
                tracing::info!(cid = %root, "a document that nobody committed to was let go");
            }
        }
        Ok(())
    }

    async fn is_named(&mut self, root: &Cid) -> Result<bool, Error> {
        // The mempool first: what leaves it is in the chain by then.
        if self.mempool.bundle(&DocumentCommitment::id_of(root)) {
            return Ok(true);
        }
        let is_final = is_final(&self.chain, root).await?;
        if is_final {
            self.named.insert(*root);
        }
        Ok(is_final)
    }

    /// Whether its head, which says so in the clear, names a key that was erased.
    async fn is_erased(&self, root: &Cid) -> Result<bool, Error> {
        let state: Arc<State> = self.chain.state();
        if state.tombstones().len() == 0 {
            return Ok(false);
        }
        let (start, bytes) = match self.vault.beginning(root, HEAD_BYTES_MAX).await {
            Ok(beginning) => beginning,
            // Nobody has its first blocks any more, or it is no document: it goes when its time has come.
            Err(vault::Error::Absent(_) | vault::Error::Refused(_)) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        Ok(head_of(&start, bytes).is_ok_and(|head| state.tombstone(&head.key).is_some()))
    }
}

/// Whether a commitment to the document with this root took effect.
pub(super) async fn is_final(chain: &Chain, root: &Cid) -> Result<bool, Error> {
    let placed = chain.bundle(&DocumentCommitment::id_of(root)).await?;
    Ok(placed.is_some_and(|placed| placed.outcome == Outcome::Applied))
}
