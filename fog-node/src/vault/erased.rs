//! What was kept, or never was, and is erased for good.

use cid::Cid;

use super::{Error, Peer, Refusal, Trouble, Vault};

/// Proof that a payload is gone from this node for good: durably, and nothing was there when it was looked for. Only the
/// vault makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Erased(Cid);

impl Erased {
    /// Which payload.
    #[must_use]
    pub const fn cid(&self) -> Cid {
        self.0
    }
}

impl Vault {
    /// Erases a payload, whether it is here or not: it is removed durably, looked for once more, and never kept again.
    ///
    /// # Errors
    /// The store has failed, or cannot be asked now; nothing may be said of the payload then.
    pub async fn erase(&self, cid: &Cid) -> Result<Erased, Error> {
        if !self.store.bars(cid).await? || self.store.has(cid).await? {
            self.store.erase(cid).await?;
        }
        self.objects.forget(cid);
        if self.store.has(cid).await? {
            return Err(Error::Unavailable(Trouble::StillThere));
        }
        metrics::counter!("fog_vault_payloads_erased_total").increment(1);
        Ok(Erased(*cid))
    }

    /// Whether a payload was erased here.
    ///
    /// # Errors
    /// The store has failed, or cannot be asked now.
    pub async fn is_erased(&self, cid: &Cid) -> Result<bool, Error> {
        self.store.bars(cid).await
    }

    /// Asks every peer for a payload that none should have: those that deliver it all the same, and those that say they have it
    /// not. Nothing is kept here.
    pub async fn holders(&self, cid: &Cid) -> (Vec<Peer>, Vec<Peer>) {
        self.exchange.holders(cid).await
    }

    /// Nobody is asked for what was erased.
    pub(super) async fn expect_wanted(&self, cid: &Cid) -> Result<(), Error> {
        match self.store.bars(cid).await {
            Ok(true) => Err(Refusal::Erased(*cid).into()),
            // What cannot be asked now is waited for.
            Ok(false) | Err(Error::Unavailable(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
