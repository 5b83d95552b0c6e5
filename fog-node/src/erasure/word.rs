//! This node's word on one erased key; it can be given only for payloads that the vault has proven to be gone.

use std::collections::BTreeSet;

use cid::Cid;
use ledger::{
    erasure::digest_of,
    register::Tombstone,
    transaction::{Action, Author, Confirmation, PrivateHalf, SignedTransaction, Transaction, TransactionId},
};
use record::{
    canonical::Digest,
    ids::{KeyId, NetworkId},
    signature::SigningKey,
};

use crate::vault::Erased;

/// Payloads of a key that are remembered, to ask the peers for, at most.
const SAMPLE: usize = 16;

/// What this node has to say of an erased key.
#[derive(Debug)]
pub(super) struct Word {
    tombstone: TransactionId,
    /// None if it is still here, and is to stay.
    private_half: Option<PrivateHalf>,
    payloads: u64,
    cids: Digest,
    /// Some of the payloads.
    pub(super) sample: Vec<Cid>,
    /// Whether it is on the chain.
    pub(super) is_final: bool,
}

impl Word {
    /// On the payloads that a key had when it was erased.
    pub(super) fn on(tombstone: &Tombstone, private_half: Option<PrivateHalf>, erased: BTreeSet<Erased>) -> Self {
        let cids: BTreeSet<_> = erased.into_iter().map(|gone| gone.cid()).collect();
        let step = cids.len().div_ceil(SAMPLE).max(1);
        Self {
            tombstone: tombstone.transaction,
            private_half,
            payloads: cids.len() as u64,
            cids: digest_of(&cids),
            sample: cids.into_iter().step_by(step).collect(),
            is_final: false,
        }
    }

    /// None while the private half is here: there is no word for that.
    pub(super) fn signed(&self, network: NetworkId, key: KeyId, by: &SigningKey) -> Option<SignedTransaction> {
        let confirmation = Confirmation {
            key,
            tombstone: self.tombstone,
            payloads: self.payloads,
            cids: self.cids,
            private_half: self.private_half?,
        };
        let transaction = Transaction {
            network,
            author: Author::Validator(by.public()),
            sequence: 0,
            action: Action::ConfirmErasure(confirmation),
        };
        Some(transaction.sign(by))
    }
}
