//! Whose votes count for an observer: the founders of the genesis, and each committee that the one before it has voted in.

use std::sync::{Arc, PoisonError, RwLock};

use ledger::{
    handover::{Committees, Handovers},
    light::LightError,
};

/// The committees that are known; clones share them.
#[derive(Clone, Debug)]
// Read by every check of an answer, written once when the committee has changed.
pub(super) struct Voters(Arc<RwLock<Committees>>);

impl Voters {
    pub(super) fn new(founding: Committees) -> Self {
        Self(Arc::new(RwLock::new(founding)))
    }

    /// As far as they are known.
    pub(super) fn known(&self) -> Committees {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What a node tells, if each handover is proven from our own founders on.
    pub(super) fn proven(&self, told: Handovers) -> Result<Committees, LightError> {
        Ok(self.known().told(told)?)
    }

    /// Takes committees that are to be believed rather than the known ones.
    pub(super) fn learn(&self, told: Committees) {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if told.supersede(&known) {
            tracing::info!(committees = told.count(), "the committee of the network has changed");
            *known = told;
        }
    }
}
