//! Erased keys in the register: who may erase one, what is left of it, and who may confirm.

use record::ids::{KeyId, OrganizationId};
use serde::{Deserialize, Serialize};

use super::{AnnouncedKey, Refused, Register};
use crate::{
    device::Moment,
    transaction::{Action, Erasure, TransactionId},
};

/// What is left of an erased key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tombstone {
    /// Who was its custodian, and erased it.
    pub custodian: OrganizationId,
    /// The transaction that did.
    pub transaction: TransactionId,
    /// When.
    pub at: Moment,
}

impl Register {
    /// An announced key that is not erased.
    pub(super) fn announced(&self, key: &KeyId) -> Result<&AnnouncedKey, Refused> {
        match self.subject_key(key) {
            Some(announced) => Ok(announced),
            None if self.tombstone(key).is_some() => Err(Refused::Erased),
            None => Err(Refused::UnknownName),
        }
    }

    pub(super) fn may_erase(&self, author: &OrganizationId, erasure: &Erasure) -> Result<(), Refused> {
        if self.announced(&erasure.key)?.custodian == *author {
            Ok(())
        } else {
            Err(Refused::NotAllowed)
        }
    }

    /// That a validator confirms once is for the identifiers to say ([`crate::erasure::confirmation_id`]).
    pub(super) fn may_confirm(&self, sequence: u64, action: &Action) -> Result<(), Refused> {
        let Action::ConfirmErasure(confirmation) = action else {
            return Err(Refused::NotAllowed);
        };
        let tombstone = self.tombstone(&confirmation.key).ok_or(Refused::UnknownName)?;
        if sequence == 0 && tombstone.transaction == confirmation.tombstone {
            Ok(())
        } else {
            Err(Refused::NotAllowed)
        }
    }

    /// The key goes, and every word on who may read with it; that it was there stays, so that it never is again.
    pub(super) fn erase(&mut self, erasure: &Erasure, transaction: TransactionId, at: Moment) {
        let Ok(known) = self.keys.binary_search_by_key(&erasure.key, |(id, _)| *id) else {
            return;
        };
        let (key, announced) = self.keys.remove(known);
        self.decisions.retain(|decision| decision.grant.key != key);
        let tombstone = Tombstone {
            custodian: announced.custodian,
            transaction,
            at,
        };
        let place = self.erased.partition_point(|(id, _)| *id < key);
        self.erased.insert(place, (key, tombstone));
    }

    /// What is left of a key, if it was erased.
    #[must_use]
    pub fn tombstone(&self, key: &KeyId) -> Option<&Tombstone> {
        let at = self.erased.binary_search_by_key(key, |(id, _)| *id);
        at.ok().map(|at| &self.erased[at].1)
    }

    /// Every key that was erased.
    pub fn tombstones(&self) -> impl ExactSizeIterator<Item = (&KeyId, &Tombstone)> {
        self.erased.iter().map(|(key, tombstone)| (key, tombstone))
    }
}
