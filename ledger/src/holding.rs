//! Proof that a validator has the bytes of payloads at hand: a fresh nonce, and what nobody can compute without those bytes.
//!
//! One validator asks another for payloads that the chain names. The answer has, for each, SHA-256 over the network, the nonce, the
//! answering validator's key and the bytes: it cannot be prepared, kept instead of the bytes, or copied from a third. Who asks has
//! the bytes, too, and compares. **What it does not prove:** that they lie on that validator's own disk, for it may
//! have fetched them since it was asked; nor that they will be there tomorrow.

use cid::Cid;
use record::{
    canonical::{self, CanonicalError, Digest, Domain, SHA2_256},
    ids::NetworkId,
    signature::{PublicKey, Signature, SigningKey},
};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteArray;

use crate::block::Height;

/// Payloads in one challenge, at most: who is asked reads each of them from the disk.
pub const CHALLENGED_MAX: usize = 16;
/// A challenge has at most this many bytes.
pub const CHALLENGE_BYTES_MAX: usize = 2_048;
/// An answer has at most this many bytes.
pub const ANSWER_BYTES_MAX: usize = 2_048;

/// Bytes that are no challenge, or an answer to none.
#[derive(Debug, thiserror::Error)]
pub enum BadHolding {
    /// Not the encoding of one.
    #[error("it is {0}")]
    Malformed(#[from] CanonicalError),
    /// No payloads, too many, one twice, or identifiers by another hash.
    #[error("a challenge names from 1 to {CHALLENGED_MAX} payloads by sha2-256, each once")]
    Payloads,
    /// Not signed by whom it names, to another challenge, or with another number of proofs.
    #[error("the answer is not that validator's to this challenge")]
    NotGenuine,
}

/// What is asked: the payloads, and a nonce that was never used before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Challenge {
    nonce: ByteArray<32>,
    payloads: Vec<Cid>,
}

impl Challenge {
    /// Asks for these payloads; the nonce is random, of this challenge alone.
    ///
    /// # Errors
    /// [`BadHolding::Payloads`].
    pub fn to(nonce: [u8; 32], payloads: Vec<Cid>) -> Result<Self, BadHolding> {
        let challenge = Self {
            nonce: ByteArray::new(nonce),
            payloads,
        };
        challenge.checked()
    }

    /// Reads what came over the wire.
    ///
    /// # Errors
    /// [`BadHolding`].
    pub fn decode(bytes: &[u8]) -> Result<Self, BadHolding> {
        canonical::decode::<Self>(bytes, CHALLENGE_BYTES_MAX)?.checked()
    }

    fn checked(self) -> Result<Self, BadHolding> {
        let hashes: std::collections::BTreeSet<_> = self.payloads.iter().map(|cid| cid.hash().to_bytes()).collect();
        let by_sha256 = |cid: &Cid| cid.hash().code() == SHA2_256 && cid.hash().size() == 32;
        let is_good = (1..=CHALLENGED_MAX).contains(&self.payloads.len())
            && hashes.len() == self.payloads.len()
            && self.payloads.iter().all(by_sha256);
        if is_good { Ok(self) } else { Err(BadHolding::Payloads) }
    }

    /// The bytes to send.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        canonical::encode(self)
    }

    /// Which payloads are asked for.
    #[must_use]
    pub fn payloads(&self) -> &[Cid] {
        &self.payloads
    }

    /// What this validator has to answer for a payload with these bytes. All that comes before the bytes has a fixed length.
    #[must_use]
    pub fn proof(&self, network: &NetworkId, validator: &PublicKey, payload: &[u8]) -> Digest {
        let before: [&[u8]; 3] = [network.0.as_bytes(), &*self.nonce, validator.as_bytes()];
        Digest::of(Domain::HOLDING, &[before[0], before[1], before[2], payload])
    }
}

/// A validator's signed word on a challenge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// Who says so.
    pub validator: PublicKey,
    /// It says that it holds every payload that the chain names up to this height.
    pub holds_up_to: Height,
    /// For each payload of the challenge, in its order; nothing for one that it does not hold intact.
    pub proofs: Vec<Option<Digest>>,
    signature: Signature,
}

impl Answer {
    /// Answers a challenge with one proof, or none, for each of its payloads.
    #[must_use]
    pub fn sign(
        network: &NetworkId,
        challenge: &Challenge,
        (holds_up_to, proofs): (Height, Vec<Option<Digest>>),
        key: &SigningKey,
    ) -> Self {
        let signature = key.sign(Domain::HOLDING, &signed(network, challenge, holds_up_to, &proofs));
        Self {
            validator: key.public(),
            holds_up_to,
            proofs,
            signature,
        }
    }

    /// The bytes to send.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        canonical::encode(self)
    }

    /// Reads an answer to this challenge in this network. Whether its proofs are right, who has the bytes finds out.
    ///
    /// # Errors
    /// [`BadHolding`].
    pub fn decode(bytes: &[u8], network: &NetworkId, challenge: &Challenge) -> Result<Self, BadHolding> {
        let answer: Self = canonical::decode(bytes, ANSWER_BYTES_MAX)?;
        let signed = signed(network, challenge, answer.holds_up_to, &answer.proofs);
        let is_genuine = answer.proofs.len() == challenge.payloads.len()
            && answer
                .validator
                .verify(Domain::HOLDING, &signed, &answer.signature)
                .is_ok();
        if is_genuine {
            Ok(answer)
        } else {
            Err(BadHolding::NotGenuine)
        }
    }
}

fn signed(network: &NetworkId, challenge: &Challenge, holds_up_to: Height, proofs: &[Option<Digest>]) -> Vec<u8> {
    canonical::encode(&(network, challenge, holds_up_to, proofs))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn network(name: &[u8]) -> NetworkId {
        NetworkId(Digest::of(Domain::GENESIS, &[name]))
    }

    fn challenge(nonce: u8) -> Challenge {
        let payloads = vec![canonical::cid_of(b"one"), canonical::cid_of(b"two")];
        Challenge::to([nonce; 32], payloads).expect("good")
    }

    #[test]
    fn a_proof_is_of_one_network_nonce_validator_and_payload() {
        let (key, other) = (SigningKey::random().public(), SigningKey::random().public());
        let proof = challenge(1).proof(&network(b"a"), &key, b"one");
        assert_eq!(proof, challenge(1).proof(&network(b"a"), &key, b"one"));
        for another in [
            challenge(1).proof(&network(b"b"), &key, b"one"),
            challenge(2).proof(&network(b"a"), &key, b"one"),
            challenge(1).proof(&network(b"a"), &other, b"one"),
            challenge(1).proof(&network(b"a"), &key, b"onf"),
            challenge(1).proof(&network(b"a"), &key, b""),
        ] {
            assert_ne!(proof, another);
        }
    }

    #[test]
    fn a_challenge_names_few_payloads_each_once_by_the_hash_of_the_chain() {
        let of = |payloads| Challenge::to([0; 32], payloads);
        let one = canonical::cid_of(b"one");
        let many = |n: usize| (0..n).map(|at| canonical::cid_of(&at.to_be_bytes())).collect();
        assert!(of(vec![]).is_err() && of(vec![one, one]).is_err() && of(many(CHALLENGED_MAX + 1)).is_err());
        // The same bytes under another codec are the same bytes.
        assert!(of(vec![one, Cid::new_v1(canonical::RAW, *one.hash())]).is_err());
        let full = of(many(CHALLENGED_MAX)).expect("as many as may be");
        assert!(full.encode().len() <= CHALLENGE_BYTES_MAX);
        assert_eq!(Challenge::decode(&full.encode()).expect("good"), full);
        let key = SigningKey::random();
        let proofs = vec![Some(Digest::ZERO); CHALLENGED_MAX];
        let answer = Answer::sign(&network(b"a"), &full, (Height(u64::MAX), proofs), &key);
        assert!(answer.encode().len() <= ANSWER_BYTES_MAX);
    }

    #[test]
    fn an_answer_is_to_one_challenge_in_one_network() {
        let (key, asked, here) = (SigningKey::random(), challenge(1), network(b"a"));
        let answer = Answer::sign(&here, &asked, (Height(3), vec![Some(Digest::ZERO), None]), &key);
        let bytes = answer.encode();
        assert_eq!(Answer::decode(&bytes, &here, &asked).expect("good"), answer);
        assert!(Answer::decode(&bytes, &here, &challenge(2)).is_err(), "said before");
        assert!(Answer::decode(&bytes, &network(b"b"), &asked).is_err());
        let short = Answer::sign(&here, &asked, (Height(3), vec![None]), &key);
        assert!(
            Answer::decode(&short.encode(), &here, &asked).is_err(),
            "one is left out"
        );
        let mut stolen = answer;
        stolen.validator = SigningKey::random().public();
        assert!(Answer::decode(&stolen.encode(), &here, &asked).is_err());
    }

    proptest! {
        #[test]
        fn no_changed_byte_of_an_answer_passes(at: usize, with in 1u8..=255) {
            let (key, asked, here) = (SigningKey::random(), challenge(1), network(b"a"));
            let answer = Answer::sign(&here, &asked, (Height(3), vec![Some(Digest::ZERO), None]), &key);
            let mut bytes = answer.encode();
            let at = at % bytes.len();
            bytes[at] ^= with;
            prop_assert!(Answer::decode(&bytes, &here, &asked).is_err());
        }
    }
}
