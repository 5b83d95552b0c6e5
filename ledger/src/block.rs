//! The unit of the ledger. Its state is its type: Block -> VerifiedBlock -> FinalizedBlock.

use std::fmt;

use record::{
    canonical::{self, CanonicalError, Digest, Domain},
    ids::NetworkId,
    merkle,
    signature::PublicKey,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    transaction::{SignedTransaction, TRANSACTION_BYTES_MAX},
    votes::Finalization,
};

/// The protocol's version, in every header.
pub const VERSION: u8 = 1;
/// A block's encoding has at most this many bytes, whatever the policy says.
pub const BLOCK_BYTES_MAX: usize = 512 * (TRANSACTION_BYTES_MAX + 16) + 4_096;

/// Position in the chain; genesis is 0. Two heights cannot be added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Height(pub u64);

impl Height {
    /// The one after.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Height {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What is voted on. Encoded as a list in this order, the nonce last, so that mining hashes only the end anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// Protocol version.
    pub version: u8,
    /// The network.
    pub network: NetworkId,
    /// The engine's epoch: which committee votes.
    pub epoch: u64,
    /// The engine's view: which attempt.
    pub view: u64,
    /// Who proposed it.
    pub leader: PublicKey,
    /// The view in which the parent was proposed.
    pub parent_view: u64,
    /// Position.
    pub height: Height,
    /// Digest of the parent's header.
    pub parent: Digest,
    /// When it was proposed, in milliseconds since 1970; later than the parent's.
    pub timestamp_ms: u64,
    /// Merkle root over the transactions.
    pub transactions_root: Digest,
    /// Identifier of the validity policy.
    pub policy: Digest,
    /// Who votes in the next epoch: the digest of their keys.
    pub next_validators: Digest,
    /// Found by mining until the policy holds.
    pub nonce: u64,
}

impl Header {
    /// Algorithm 1 over the header: the digest that validators vote on.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Self::finish(self.hasher_before_nonce(), self.nonce)
    }

    /// A hasher fed with everything but the nonce.
    pub(crate) fn hasher_before_nonce(&self) -> Sha256 {
        let fields = (
            (
                self.version,
                &self.network,
                self.epoch,
                self.view,
                &self.leader,
                self.parent_view,
            ),
            (
                self.height,
                &self.parent,
                self.timestamp_ms,
                &self.transactions_root,
                &self.policy,
                &self.next_validators,
            ),
        );
        Digest::hasher(Domain::HEADER).chain_update(canonical::encode(&fields))
    }

    pub(crate) fn finish(hasher: Sha256, nonce: u64) -> Digest {
        Digest::finish(hasher.chain_update(nonce.to_be_bytes()))
    }
}

/// A block as proposed: nothing about it is believed yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Block {
    /// What is voted on.
    pub header: Header,
    /// What it orders.
    pub transactions: Vec<SignedTransaction>,
}

impl Block {
    /// The Merkle root over the transactions it holds.
    #[must_use]
    pub fn transactions_root(&self) -> Digest {
        merkle::root(&self.leaves())
    }

    /// Whether its transactions are those that its header names.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.transactions_root() == self.header.transactions_root
    }

    /// The leaves of its Merkle tree.
    #[must_use]
    pub fn leaves(&self) -> Vec<Digest> {
        self.transactions.iter().map(SignedTransaction::leaf).collect()
    }

    /// The block's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        canonical::encode(self)
    }

    /// Reads a block's bytes.
    ///
    /// # Errors
    /// [`CanonicalError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, CanonicalError> {
        canonical::decode(bytes, BLOCK_BYTES_MAX)
    }
}

/// A block that meets every rule of the policy; only [`crate::policy::ValidityPolicy::verify`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedBlock {
    block: Block,
    digest: Digest,
}

impl VerifiedBlock {
    pub(crate) const fn new(block: Block, digest: Digest) -> Self {
        Self { block, digest }
    }

    /// The block.
    #[must_use]
    pub const fn block(&self) -> &Block {
        &self.block
    }

    /// Its digest.
    #[must_use]
    pub const fn digest(&self) -> Digest {
        self.digest
    }
}

/// A block that two thirds of the validators finalized, itself or through a descendant; the engine delivers it in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinalizedBlock {
    /// The block.
    pub block: Block,
    /// Its digest.
    pub digest: Digest,
    /// The votes on this very block; absent if it became final through a descendant.
    pub finalization: Option<Finalization>,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{
        genesis::{Genesis, Organization, Role, Validator},
        policy::{ValidityPolicy, Violation},
    };
    use proptest::prelude::*;
    use record::signature::SigningKey;

    pub(crate) fn founded(keys: &[SigningKey]) -> Genesis {
        let organization = |i: usize| format!("org-{i}").parse().expect("good");
        Genesis {
            name: "test".to_owned(),
            founded_ms: 1_000,
            organizations: (0..keys.len())
                .map(|i| Organization {
                    id: organization(i),
                    name: format!("Org {i}"),
                    role: Role::Provider,
                    key: keys[i].public(),
                })
                .collect(),
            validators: (0..keys.len())
                .map(|i| Validator {
                    organization: organization(i),
                    key: keys[i].public(),
                    tls: Digest::ZERO,
                    address: None,
                })
                .collect(),
            policy: ValidityPolicy::default(),
        }
    }

    pub(crate) fn child(genesis: &Genesis, parent: &Block, transactions: Vec<SignedTransaction>) -> Block {
        let mut block = Block {
            header: parent.header.clone(),
            transactions,
        };
        block.header.height = parent.header.height.next();
        block.header.parent = parent.header.digest();
        block.header.timestamp_ms += 1;
        block.header.view += 1;
        block.header.parent_view = parent.header.view;
        block.header.transactions_root = block.transactions_root();
        block.header = genesis.policy.mine(block.header).0;
        block
    }

    #[test]
    fn a_mined_block_meets_the_policy_and_survives_its_bytes() {
        let keys: Vec<_> = (0..4).map(|_| SigningKey::random()).collect();
        let genesis = founded(&keys);
        let parent = Block::genesis(&genesis);
        let block = child(&genesis, &parent, vec![]);
        assert_eq!(Block::decode(&block.encode()).expect("canonical"), block);
        let verified = genesis
            .policy
            .verify(block.clone(), &parent.header, &genesis.sitting())
            .expect("valid");
        assert!(verified.digest().leading_zero_bits() >= 8);
        assert_eq!(verified.block(), &block);
    }

    #[test]
    fn each_rule_refuses_its_violation() {
        let keys: Vec<_> = (0..4).map(|_| SigningKey::random()).collect();
        let genesis = founded(&keys);
        let parent = Block::genesis(&genesis);
        let good = child(&genesis, &parent, vec![]);
        let refused = |change: &dyn Fn(&mut Header)| {
            let mut block = good.clone();
            change(&mut block.header);
            block.header = genesis.policy.mine(block.header).0;
            genesis
                .policy
                .verify(block, &parent.header, &genesis.sitting())
                .expect_err("violates")
        };
        assert_eq!(refused(&|h| h.network = NetworkId(Digest::ZERO)), Violation::Network);
        assert_eq!(refused(&|h| h.height = Height(2)), Violation::Parent);
        assert_eq!(refused(&|h| h.parent = Digest::ZERO), Violation::Parent);
        assert_eq!(refused(&|h| h.timestamp_ms = 1_000), Violation::Parent);
        assert_eq!(
            refused(&|h| h.transactions_root = Digest::of(Domain::STATE, &[])),
            Violation::Root
        );
        assert_eq!(
            refused(&|h| h.leader = SigningKey::random().public()),
            Violation::Proposer
        );
        let mut unmined = good.clone();
        while unmined.header.digest().leading_zero_bits() >= 8 {
            unmined.header.nonce += 1;
        }
        assert_eq!(
            genesis.policy.verify(unmined, &parent.header, &genesis.sitting()),
            Err(Violation::Nonce)
        );
    }

    proptest! {
        #[test]
        fn a_flipped_byte_is_never_the_same_block(at: usize, with in 1u8..=255) {
            let keys: Vec<_> = (0..4).map(|_| SigningKey::random()).collect();
            let genesis = founded(&keys);
            let block = child(&genesis, &Block::genesis(&genesis), vec![]);
            let mut bytes = block.encode();
            let at = at % bytes.len();
            bytes[at] ^= with;
            if let Ok(other) = Block::decode(&bytes) {
                prop_assert_ne!(other.header.digest(), block.header.digest());
            }
        }
    }
}
