//! An observer's part: it has no vote, and so no word on the chain; what it holds of an erased key goes all the same.

use std::collections::BTreeSet;

use ledger::block::Height;
use record::ids::{KeyId, OrganizationId};
use tokio::task::spawn_blocking;

use super::{Failure, Patience, erase_payloads, strangely_erased};
use crate::{index::Index, keyring::Keyring, proofs::Proofs, recovery::Incidents, vault::Vault};

/// What an observer follows, and what it erases from.
#[derive(Clone, Debug)]
pub struct Forgotten {
    /// What it has proven.
    pub proofs: Proofs,
    /// Payloads.
    pub vault: Vault,
    /// Rows.
    pub index: Index,
    /// Private halves.
    pub keyring: Keyring,
    /// Where it is said that a private half stays.
    pub incidents: Incidents,
}

/// The task of an observer. What it has proven (receipts, which name nobody) stays.
#[derive(Debug)]
pub struct Forgetting {
    rooms: Forgotten,
    /// Whose observer this is.
    organization: OrganizationId,
    /// What was looked at in this run.
    done: BTreeSet<KeyId>,
}

impl Forgetting {
    /// Follows what an observer has proven.
    #[must_use]
    pub const fn new(rooms: Forgotten, organization: OrganizationId) -> Self {
        Self {
            rooms,
            organization,
            done: BTreeSet::new(),
        }
    }

    /// Runs for ever.
    pub async fn run(mut self) {
        let mut patience = Patience::default();
        loop {
            let pause = patience.after(&self.step().await);
            tokio::time::sleep(pause).await;
        }
    }

    /// Erases what stands under keys that are erased and that this observer has, or has learned of.
    ///
    /// A private half goes if the observer's organisation was the custodian, or has had the key from it: what was learned of a key
    /// was learned because whoever had announced it, and nobody else can erase it, let this organisation read.
    ///
    /// # Errors
    /// [`Failure`]: make it again.
    pub async fn step(&mut self) -> Result<(), Failure> {
        let Forgotten {
            proofs, vault, keyring, ..
        } = &self.rooms;
        let state = proofs.state();
        let erased = state.tombstones().map(|(key, _)| *key);
        let open: BTreeSet<_> = erased.filter(|key| !self.done.contains(key)).collect();
        if open.is_empty() {
            return Ok(());
        }
        let learned = proofs.keys()?;
        let ours = |key: &&KeyId| learned.contains_key(key) || keyring.secret(key).is_some();
        for key in open.iter().filter(ours).copied() {
            let Some(tombstone) = state.tombstone(&key) else {
                continue;
            };
            if learned.contains_key(&key) || tombstone.custodian == self.organization {
                let keyring = keyring.clone();
                spawn_blocking(move || keyring.destroy(&key)).await??;
            } else {
                strangely_erased(&self.rooms.incidents, &key, tombstone);
            }
            self.rooms.index.erase(key).await?;
            tracing::info!(%key, "a key is erased here");
        }
        let mut above = Height(0);
        while let Some(height) = proofs.next(above)? {
            let included = proofs.included(height)?.map(|block| block.included);
            let payloads = included.into_iter().flatten();
            let payloads = payloads.filter_map(|included| included.transaction.payload());
            let cids = payloads
                .filter(|payload| open.contains(&payload.key))
                .map(|payload| payload.cid);
            erase_payloads(vault, cids.collect()).await?;
            above = height;
        }
        self.done.extend(open);
        Ok(())
    }
}
