//! Whose votes count in which epoch: one scheme for each committee, as the chain's state decided it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use commonware_consensus::types::Epoch;
use commonware_cryptography::certificate::{Provider, Scoped};
use record::signature::SigningKey;

use super::{fence::Fence, scheme::Scheme};
use crate::chain::Chain;

/// Schemes that are kept at hand; an older one is made again when it is asked for.
const KEPT_MAX: usize = 8;

/// The schemes of a network's committees, for one node; clones share them.
#[derive(Clone, Debug)]
pub struct Schemes {
    chain: Chain,
    key: SigningKey,
    fence: Fence,
    // A lock for a lookup: marshal, the voting engine and delivery ask for schemes from their own tasks.
    kept: Arc<Mutex<BTreeMap<u64, Arc<Scheme>>>>,
}

impl Schemes {
    /// Those of a node with this key, which signs as far as the fence permits.
    #[must_use]
    pub fn new(chain: Chain, key: SigningKey, fence: Fence) -> Self {
        Self {
            chain,
            key,
            fence,
            kept: Arc::default(),
        }
    }

    /// The scheme of an epoch; `None` while its committee is not decided here.
    ///
    /// # Panics
    /// Never, unless another caller panicked.
    #[must_use]
    pub fn at(&self, epoch: Epoch) -> Option<Arc<Scheme>> {
        let epoch = epoch.get();
        let mut kept = self.kept.lock().expect("nobody panics while it holds the schemes");
        if let Some(scheme) = kept.get(&epoch) {
            return Some(Arc::clone(scheme));
        }
        let state = self.chain.state();
        if epoch > state.seats().epoch() + 1 {
            return None;
        }
        let committees = state.committees();
        let scheme = Arc::new(Scheme::signer(committees.at(epoch), &self.key, self.fence.clone()));
        kept.insert(epoch, Arc::clone(&scheme));
        while kept.len() > KEPT_MAX {
            kept.pop_first();
        }
        Some(scheme)
    }
}

impl Provider for Schemes {
    type Scope = Epoch;
    type Scheme = Scheme;

    fn scoped(&self, epoch: Epoch) -> Option<Scoped<Scheme>> {
        self.at(epoch).map(Scoped::scheme)
    }
}
