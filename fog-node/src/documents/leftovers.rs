//! Documents that nobody has committed to: of an upload that ended too early, or of a commitment that was lost. They go after
//! a while, so that they take no room for ever.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use cid::Cid;
use ledger::{document::DocumentCommitment, state::Outcome};

use super::Error;
use crate::{chain::Chain, mempool::Mempool, vault::Vault};

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

    /// Runs for ever.
    pub async fn run(mut self) {
        loop {
            if let Err(error) = self.look(Instant::now()).await {
                tracing::warn!(%error, "documents without a commitment could not be looked for; again later");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Looks once, and lets go of those that have been seen for [`GRACE`].
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
            if now.duration_since(since) >= GRACE {
                self.vault.let_go(root).await?;
                self.since.remove(root);
                metrics::counter!("fog_documents_let_go_total").increment(1);
                tracing::info!(cid = %root, "a document that nobody committed to was let go");
            }
        }
        Ok(())
    }

    async fn is_named(&mut self, root: &Cid) -> Result<bool, Error> {
        let id = DocumentCommitment::id_of(root);
        // The mempool first: what leaves it is in the chain by then.
        if self.mempool.bundle(&id) {
            return Ok(true);
        }
        let placed = self.chain.bundle(&id).await?;
        let is_final = placed.is_some_and(|placed| placed.outcome == Outcome::Applied);
        if is_final {
            self.named.insert(*root);
        }
        Ok(is_final)
    }
}
