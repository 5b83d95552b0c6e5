//! What the store has, by identifier, without reading a payload; what somebody names of it is marked, and the rest may go.

use std::time::{Duration, Instant};

use bytes::Bytes;
use cid::Cid;
use futures::future::try_join_all;
use record::canonical::DAG_CBOR;

use super::{
    Error, Held, Peer, Vault,
    store::{cid_of, digest},
    tenure::Mark,
};

/// Payloads that are removed in one go, while nobody may hold one.
const REMOVED_AT_ONCE: usize = 64;

/// What the vault had when it was asked: 33 bytes of memory a payload. Whoever knows what is wanted names it; [`Vault::collect`] lets
/// go of the others.
#[derive(Debug)]
pub struct Inventory {
    /// SHA-256 of each payload, sorted.
    digests: Vec<[u8; 32]>,
    named: Vec<bool>,
    mark: Mark,
}

impl Inventory {
    /// Whether a payload was there; it is named from now on.
    pub fn name(&mut self, cid: &Cid) -> bool {
        let found = self.digests.binary_search(&digest(cid));
        if let Ok(at) = found {
            self.named[at] = true;
        }
        found.is_ok()
    }

    /// How many payloads there were.
    #[must_use]
    pub fn len(&self) -> usize {
        self.digests.len()
    }

    /// Whether there were none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.digests.is_empty()
    }

    /// How many of them nobody has named.
    #[must_use]
    pub fn unnamed(&self) -> usize {
        self.named.iter().filter(|named| !**named).count()
    }
}

impl Vault {
    /// Keeps a payload that is within the limits.
    pub(super) async fn keep_one(&self, cid: Cid, payload: Bytes) -> Result<Held, Error> {
        let _turn = self.tenure.hold(&cid).await;
        self.store.put(cid, payload).await?;
        Ok(Held(cid))
    }

    /// The proof that a payload is here, if it is: from now on it stays.
    pub(super) async fn held(&self, cid: &Cid) -> Result<Option<Held>, Error> {
        let _turn = self.tenure.hold(cid).await;
        Ok(self.holds(cid).await?.then_some(Held(*cid)))
    }

    /// Whether anything lies here under this identifier, intact or not.
    ///
    /// # Errors
    /// The store has failed, or cannot be asked now.
    pub async fn has(&self, cid: &Cid) -> Result<bool, Error> {
        self.store.has(cid).await
    }

    /// Bytes of all payloads.
    ///
    /// # Errors
    /// As [`Vault::has`].
    pub async fn bytes(&self) -> Result<u64, Error> {
        self.store.bytes().await
    }

    /// The height up to which the pass of the scrub that is under way has come; 0 between two, and in a vault that had to begin anew.
    ///
    /// # Errors
    /// As [`Vault::has`].
    pub async fn scrubbed(&self) -> Result<u64, Error> {
        self.store.scrubbed().await
    }

    /// Notes how far a pass of the scrub has come.
    ///
    /// # Errors
    /// As [`Vault::has`].
    pub async fn note_scrubbed(&self, height: u64) -> Result<(), Error> {
        self.store.note_scrubbed(height).await
    }

    /// Who payloads are exchanged with now.
    #[must_use]
    pub fn peers(&self) -> Vec<Peer> {
        self.exchange.delivered().into_iter().map(|(peer, ..)| peer).collect()
    }

    /// Lists what is here. What was held less than `grace` ago, or will be, stays whatever is named.
    ///
    /// # Errors
    /// The store has failed, or cannot be asked now.
    pub async fn inventory(&self, grace: Duration) -> Result<Inventory, Error> {
        let mark = self.tenure.begin(Instant::now(), grace);
        let digests = self.store.names().await?;
        debug_assert!(digests.is_sorted(), "a store gives them in order");
        Ok(Inventory {
            named: vec![false; digests.len()],
            digests,
            mark,
        })
    }

    /// Lets go of what nobody has named, and was not held lately: durably, a few at a time, so that others hold payloads in
    /// between. Gives how many went.
    ///
    /// # Errors
    /// The store has failed, or cannot be asked now; what went before is gone.
    pub async fn collect(&self, inventory: &Inventory) -> Result<u64, Error> {
        let unnamed = inventory.digests.iter().zip(&inventory.named);
        let unnamed: Vec<_> = unnamed.filter(|(_, named)| !**named).map(|(key, _)| *key).collect();
        let mut gone = 0;
        for some in unnamed.chunks(REMOVED_AT_ONCE) {
            let _alone = self.tenure.alone().await;
            let going = some.iter().filter(|key| self.tenure.lets_go(key, inventory.mark));
            let going: Vec<_> = going.map(|key| cid_of(DAG_CBOR, key)).collect();
            try_join_all(going.iter().map(|cid| self.store.remove(cid))).await?;
            gone += going.len() as u64;
        }
        self.tenure.collected(gone);
        metrics::counter!("fog_vault_payloads_collected_total").increment(gone);
        Ok(gone)
    }

    /// Payloads that were let go of since the node was started, because nobody named them.
    #[must_use]
    pub fn collected(&self) -> u64 {
        self.tenure.let_go()
    }

    /// Says that somebody waits for [`Vault::until_room_is_wanted`] and collects then: a full vault waits for it.
    pub fn is_looked_after(&self) {
        self.tenure.is_looked_after();
    }

    /// Resolves when a payload was not kept for want of room within the budget.
    pub async fn until_room_is_wanted(&self) {
        self.tenure.until_room_is_wanted().await;
    }
}
