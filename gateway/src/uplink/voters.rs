//! Whose votes count: the founders of the genesis, and each committee that the one before it has voted in.
//!
//! A word that does not verify may be a lie, or a committee that this gateway does not know yet: then the node is asked for
//! the handovers, each of which is checked here, from the founders on.

use std::sync::{Arc, PoisonError, RwLock};

use ledger::{
    handover::{Committees, Handovers},
    proof::{Receipt, VerifiedReceipt},
};
use record::signature::PublicKey;

use super::node::Node;

/// The committees that are known; clones share them.
#[derive(Clone, Debug)]
// Read by every flight, written once when the committee has changed.
pub struct Voters(Arc<RwLock<Committees>>);

impl Voters {
    pub(crate) fn new(committees: Committees) -> Self {
        Self(Arc::new(RwLock::new(committees)))
    }

    fn known(&self) -> Committees {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many of the newest committee may lie.
    #[must_use]
    pub fn liars_max(&self) -> usize {
        self.known().newest().liars_max()
    }

    /// Whether a key votes, in the newest committee or the founders'.
    pub(super) fn include(&self, key: &PublicKey) -> bool {
        let known = self.known();
        [known.newest(), known.at(0)]
            .iter()
            .any(|set| set.validators.contains(key))
    }

    /// The receipt, if all of it holds.
    pub(super) fn verify(&self, text: &str) -> Option<VerifiedReceipt> {
        Receipt::verify(text, &self.known()).ok()
    }

    /// Asks a node for the handovers; whether committees became known by that.
    pub(super) async fn follow(&self, node: &Node) -> bool {
        let Some(text) = node.validators().await else {
            return false;
        };
        let Ok(handovers) = serde_json::from_slice::<Handovers>(&text) else {
            return false;
        };
        let known = self.known();
        let Ok(told) = known.told(handovers) else {
            return false;
        };
        let follows = told.supersede(&known);
        if follows {
            tracing::info!(committees = told.count(), "the committee of the network has changed");
            *self.0.write().unwrap_or_else(PoisonError::into_inner) = told;
        }
        follows
    }
}
