//! An observer's part: it has no vote, and so no word on the chain; what it holds of an erased key goes all the same.

use std::collections::BTreeSet;

use ledger::block::Height;
use record::ids::KeyId;
use tokio::task::spawn_blocking;

use super::{FAILURE_PAUSE, Failure, LOOK_EVERY, erase_payloads};
use crate::{index::Index, keyring::Keyring, proofs::Proofs, vault::Vault};

/// The task of an observer. What it has proven (receipts, which name nobody) stays.
#[derive(Debug)]
pub struct Forgetting {
    proofs: Proofs,
    vault: Vault,
    index: Index,
    keyring: Keyring,
    /// What was looked at in this run.
    done: BTreeSet<KeyId>,
}

impl Forgetting {
    /// Follows what an observer has proven.
    #[must_use]
    pub const fn new(proofs: Proofs, vault: Vault, index: Index, keyring: Keyring) -> Self {
        Self {
            proofs,
            vault,
            index,
            keyring,
            done: BTreeSet::new(),
        }
    }

    /// Runs for ever.
    pub async fn run(mut self) {
        let mut said = String::new();
        loop {
            let pause = match self.step().await {
                Ok(()) => LOOK_EVERY,
                Err(failure) => {
                    let words = failure.to_string();
                    if words != said {
                        tracing::warn!(%failure, "an erasure waits; it goes on by itself");
                        said = words;
                    }
                    FAILURE_PAUSE
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Erases what stands under keys that are erased and that this observer has, or has learned of.
    ///
    /// # Errors
    /// [`Failure`]: make it again.
    pub async fn step(&mut self) -> Result<(), Failure> {
        let state = self.proofs.state();
        let erased = state.tombstones().map(|(key, _)| *key);
        let open: BTreeSet<_> = erased.filter(|key| !self.done.contains(key)).collect();
        if open.is_empty() {
            return Ok(());
        }
        let learned = self.proofs.keys()?;
        let ours = |key: &&KeyId| learned.contains_key(key) || self.keyring.secret(key).is_some();
        for key in open.iter().filter(ours).copied() {
            let keyring = self.keyring.clone();
            spawn_blocking(move || keyring.destroy(&key)).await??;
            self.index.erase(key).await?;
            tracing::info!(%key, "a key is erased here");
        }
        let mut above = Height(0);
        while let Some(height) = self.proofs.next(above)? {
            let included = self.proofs.included(height)?.map(|block| block.included);
            let payloads = included.into_iter().flatten();
            let payloads = payloads.filter_map(|included| included.transaction.payload());
            let cids = payloads
                .filter(|payload| open.contains(&payload.key))
                .map(|payload| payload.cid);
            erase_payloads(&self.vault, cids.collect()).await?;
            above = height;
        }
        self.done.extend(open);
        Ok(())
    }
}
