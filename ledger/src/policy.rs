//! The hash validation policy P of the paper's Algorithm 3: named rules a block must meet, and the search for its nonce.

use record::canonical::{self, Digest, Domain};
use serde::{Deserialize, Serialize};

use crate::{
    block::{Block, Header, Height, VerifiedBlock},
    committee::Sitting,
};

/// The rules of a network, fixed in its genesis. Safety never rests on them: it rests on the votes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ValidityPolicy {
    /// How many leading bits of a block's digest must be zero; 0 switches mining off.
    pub leading_zero_bits: u8,
    /// Transactions in a block, at most.
    pub transactions_max: u32,
    /// A block may be stamped this much ahead of a voter's clock, in milliseconds.
    pub skew_ms_max: u64,
    /// Blocks of an epoch: the committee may change at its end.
    pub epoch_blocks: u64,
}

impl Default for ValidityPolicy {
    fn default() -> Self {
        Self {
            leading_zero_bits: 8,
            transactions_max: 512,
            skew_ms_max: 2_000,
            epoch_blocks: 1_000,
        }
    }
}

/// The rule a block breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Made for another network, version or policy.
    #[error("network: the block is for another network, version or policy")]
    Network,
    /// Too few leading zero bits.
    #[error("leading-zero-bits: the nonce does not satisfy the policy")]
    Nonce,
    /// More transactions than allowed, or one of them twice.
    #[error("transactions: too many, or one of them twice")]
    Transactions,
    /// The Merkle root is not that of the transactions.
    #[error("root: the Merkle root is not that of the transactions")]
    Root,
    /// Not the child of the parent it names, or not later than it.
    #[error("parent: not the next height, the parent's digest or a later time")]
    Parent,
    /// The leader is no validator.
    #[error("proposer: the leader is not in the committee")]
    Proposer,
    /// Another epoch than the height's, or another next committee than was decided.
    #[error("committee: the epoch is not the height's, or the next committee not the one that was decided")]
    Committee,
}

/// More leading zero bits than these would keep a leader searching for seconds.
pub const LEADING_ZERO_BITS_MAX: u8 = 24;
/// In a shorter epoch a committee would do little else than hand over, and a node that catches up could not know who votes in
/// all the epochs whose blocks it asks for at a time.
pub const EPOCH_BLOCKS_MIN: u64 = 64;
/// More transactions than these do not fit in a block of [`crate::block::BLOCK_BYTES_MAX`].
pub const TRANSACTIONS_MAX: u32 = 512;

impl ValidityPolicy {
    /// What makes the policy impossible to meet, with the key to change.
    pub(crate) fn checked(&self) -> Result<(), String> {
        if self.leading_zero_bits > LEADING_ZERO_BITS_MAX {
            return Err(format!("policy.leading_zero_bits is at most {LEADING_ZERO_BITS_MAX}"));
        }
        if !(1..=TRANSACTIONS_MAX).contains(&self.transactions_max) {
            return Err(format!("policy.transactions_max is from 1 to {TRANSACTIONS_MAX}"));
        }
        if self.epoch_blocks < EPOCH_BLOCKS_MIN {
            return Err(format!("policy.epoch_blocks is at least {EPOCH_BLOCKS_MIN}"));
        }
        Ok(())
    }

    /// The epoch of a height.
    #[must_use]
    pub const fn epoch_of(&self, height: Height) -> u64 {
        height.0 / self.epoch_blocks
    }

    /// The last height of an epoch.
    #[must_use]
    pub const fn last_of(&self, epoch: u64) -> Height {
        Height((epoch + 1).saturating_mul(self.epoch_blocks) - 1)
    }

    /// The policy's identifier, named in every header.
    #[must_use]
    pub fn id(&self) -> Digest {
        Digest::of(Domain::POLICY, &[&canonical::encode(self)])
    }

    /// Algorithm 3: "mine again" until policy P holds. Returns the header with its nonce, and the digest.
    ///
    /// Only the nonce changes, and it stands last in the header's encoding, so each try hashes a few bytes.
    #[must_use]
    pub fn mine(&self, mut header: Header) -> (Header, Digest) {
        let prefix = header.hasher_before_nonce();
        loop {
            let digest = Header::finish(prefix.clone(), header.nonce);
            if digest.leading_zero_bits() >= u32::from(self.leading_zero_bits) {
                return (header, digest);
            }
            header.nonce = header.nonce.wrapping_add(1);
        }
    }

    /// Checks every rule that needs no clock and no state; what passes is a [`VerifiedBlock`].
    ///
    /// # Errors
    /// The first [`Violation`].
    pub fn verify(&self, block: Block, parent: &Header, sitting: &Sitting) -> Result<VerifiedBlock, Violation> {
        let header = &block.header;
        let digest = header.digest();
        if header.version != parent.version || header.network != parent.network || header.policy != self.id() {
            return Err(Violation::Network);
        }
        if digest.leading_zero_bits() < u32::from(self.leading_zero_bits) {
            return Err(Violation::Nonce);
        }
        if header.height != parent.height.next()
            || header.parent != parent.digest()
            || header.timestamp_ms <= parent.timestamp_ms
        {
            return Err(Violation::Parent);
        }
        let epoch = self.epoch_of(header.height);
        if header.epoch != epoch || sitting.epoch != epoch || header.next_validators != sitting.next {
            return Err(Violation::Committee);
        }
        if !sitting.voting.contains(&header.leader) {
            return Err(Violation::Proposer);
        }
        let mut ids: Vec<_> = block
            .transactions
            .iter()
            .map(crate::transaction::SignedTransaction::id)
            .collect();
        ids.sort_unstable();
        ids.dedup();
        let too_many = u32::try_from(block.transactions.len()).map_or(true, |n| n > self.transactions_max);
        if too_many || ids.len() != block.transactions.len() {
            return Err(Violation::Transactions);
        }
        if !block.is_whole() {
            return Err(Violation::Root);
        }
        Ok(VerifiedBlock::new(block, digest))
    }
}
