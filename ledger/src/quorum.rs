//! A committee, and the votes of two thirds of it on a header, checked.
//!
//! The votes are those of Simplex as the engine signs them: ed25519 over `varint(len(ns)) ‖ ns ‖ proposal`, where `ns` is
//! the network's vote namespace with the suffix `_FINALIZE` and the proposal is `varint(epoch) ‖ varint(view) ‖
//! varint(parent view) ‖ digest`. `fog-node/src/consensus` has a test that the engine's own votes pass here.

use record::{ids::NetworkId, signature::PublicKey};
use serde::{Deserialize, Serialize};

use crate::{block::Header, genesis::Genesis, votes::Finalization};

/// Too few valid votes, a vote by a stranger, or one twice.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("votes: {0}")]
pub struct NotFinal(String);

/// One committee of a network; who votes in which epoch is for [`Committees`](crate::handover::Committees) to say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValidatorSet {
    /// The network they vote in.
    pub network: NetworkId,
    /// Their keys, sorted.
    pub validators: Vec<PublicKey>,
}

impl ValidatorSet {
    /// The founding committee.
    #[must_use]
    pub fn of(genesis: &Genesis) -> Self {
        Self {
            network: genesis.network(),
            validators: genesis.committee(),
        }
    }

    /// So many of them may lie.
    #[must_use]
    pub const fn liars_max(&self) -> usize {
        liars_max(self.validators.len())
    }

    /// The votes that finalize: n - f of n = 3f + 1 (the engine's rule).
    #[must_use]
    pub const fn quorum(&self) -> usize {
        self.validators.len() - self.liars_max()
    }
}

/// So many of a committee of `validators` may lie: f of n = 3f + 1.
#[must_use]
pub const fn liars_max(validators: usize) -> usize {
    validators.saturating_sub(1) / 3
}

/// The namespace under which a network's validators sign, before the engine's suffix.
#[must_use]
pub fn vote_namespace(network: &NetworkId) -> Vec<u8> {
    format!("vitalfog/{network}").into_bytes()
}

/// The exact bytes of a vote to finalize this header.
#[must_use]
pub fn vote_message(header: &Header) -> Vec<u8> {
    let namespace = [vote_namespace(&header.network).as_slice(), b"_FINALIZE"].concat();
    let mut message = varint(namespace.len() as u64);
    message.extend(namespace);
    for number in [header.epoch, header.view, header.parent_view] {
        message.extend(varint(number));
    }
    message.extend_from_slice(header.digest().as_bytes());
    message
}

/// LEB128, as the engine writes integers.
fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push((number & 0x7f) as u8 | 0x80); // the mask leaves seven bits
        number >>= 7;
    }
    bytes.push(number as u8); // below 0x80 here
    bytes
}

impl Finalization {
    /// Checks the votes on a header: each by another validator of the set, each signature right, a quorum of them.
    ///
    /// # Errors
    /// [`NotFinal`].
    pub fn check(&self, header: &Header, validators: &ValidatorSet) -> Result<usize, NotFinal> {
        let not_final = |why: &str| Err(NotFinal(why.to_owned()));
        if self.votes.windows(2).any(|pair| pair[0].validator >= pair[1].validator) {
            return not_final("not ordered by validator, or one validator twice");
        }
        let message = vote_message(header);
        for vote in &self.votes {
            if !validators.validators.contains(&vote.validator) {
                return not_final("one is by a key that is no validator of this network");
            }
            if vote.validator.verify_raw(&message, &vote.signature).is_err() {
                return not_final("a signature is wrong");
            }
        }
        if validators.validators.is_empty() || self.votes.len() < validators.quorum() {
            return not_final(&format!(
                "{} of {}, {} are needed",
                self.votes.len(),
                validators.validators.len(),
                validators.quorum()
            ));
        }
        Ok(self.votes.len())
    }
}
