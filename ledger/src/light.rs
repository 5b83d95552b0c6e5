//! What a light node is handed and checks by itself: headers with their votes, commitments with their proofs, the state.
//!
//! A light node (an *observer*) holds no chain. It follows headers from the genesis on, each the child of the one before, and
//! believes one that carries two thirds of the votes, and with it all below it. Who may do what it takes whole from any node,
//! and believes it when its digest is the one that more validators signed than can lie. Everything here is data and checks.

use std::collections::BTreeSet;

use record::{
    canonical::{self, CanonicalError, Digest},
    merkle,
};
use serde::{Deserialize, Serialize};

use crate::{
    agreement::{Position, SignedHead},
    block::{Header, Height},
    genesis::VALIDATORS_MAX,
    handover::{Committees, HandoverError},
    policy::TRANSACTIONS_MAX,
    proof::{DESCENT_MAX, Receipt, ReceiptError, ValidatorSet},
    register::Register,
    state::{Outcome, State},
    transaction::{SignedTransaction, TRANSACTION_BYTES_MAX},
    votes::Finalization,
};

/// Headers in one answer, at most: one that becomes final through a descendant is proven within one answer.
pub const HEADERS_MAX: usize = DESCENT_MAX;
/// More than the encoding of a header without votes has.
const HEADER_BYTES_MAX: usize = 1_024;
/// More than the encoding of a vote has.
const VOTE_BYTES_MAX: usize = 256;
/// More bytes than an answer of headers has.
pub const HEADERS_BYTES_MAX: usize = HEADERS_MAX * (HEADER_BYTES_MAX + VALIDATORS_MAX * VOTE_BYTES_MAX);
/// Commitments after which an answer ends with the block they are in.
pub const COMMITMENTS_ENOUGH: usize = 128;
/// More than the encoding of a Merkle path has.
const PATH_BYTES_MAX: usize = 1_024;
/// More bytes than an answer of commitments has.
pub const COMMITMENTS_BYTES_MAX: usize = (COMMITMENTS_ENOUGH + TRANSACTIONS_MAX as usize)
    * (TRANSACTION_BYTES_MAX + PATH_BYTES_MAX)
    + COMMITMENTS_ENOUGH * VALIDATORS_MAX * VOTE_BYTES_MAX
    + CARRIED_HEADERS_MAX * HEADER_BYTES_MAX;
/// Headers in one answer of commitments after which it ends with the block that needed them.
pub const CARRIED_HEADERS_ENOUGH: usize = 4_096;
const CARRIED_HEADERS_MAX: usize = CARRIED_HEADERS_ENOUGH + DESCENT_MAX;
/// Bytes of a carried state, at most: some hundred thousand devices.
pub const STATE_BYTES_MAX: usize = 64 << 20;

/// So many validators that one of them at least is honest: f + 1 of n = 3f + 1.
#[must_use]
pub fn witnesses_needed(validators: &ValidatorSet) -> usize {
    validators.liars_max() + 1
}

/// Why something that was handed over proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum LightError {
    /// Not the encoding that is expected.
    #[error("not readable: {0}")]
    Malformed(#[from] CanonicalError),
    /// The headers are not one chain of this network, or do not begin where they should.
    #[error("the headers are not one chain of this network from height {0} on")]
    BrokenChain(Height),
    /// Votes that do not hold.
    #[error("a header or commitment is not proven: {0}")]
    NotFinal(#[from] ReceiptError),
    /// A committee that the one before it did not vote in.
    #[error(transparent)]
    Handover(#[from] HandoverError),
    /// The register is not the one that the digest of the state stands for.
    #[error("the state does not follow from its parts")]
    OtherState,
}

/// A header as a fog node hands it over, with the votes on it if there are any.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CarriedHeader {
    /// The header.
    pub header: Header,
    /// The votes on this very header.
    pub finalization: Option<Finalization>,
}

/// Headers one after the other; nothing about them is believed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CarriedHeaders(pub Vec<CarriedHeader>);

impl CarriedHeaders {
    /// The bytes to send.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        canonical::encode(self)
    }

    /// Reads the bytes.
    ///
    /// # Errors
    /// [`LightError::Malformed`].
    pub fn decode(bytes: &[u8]) -> Result<Self, LightError> {
        Ok(canonical::decode(bytes, HEADERS_BYTES_MAX)?)
    }

    /// The headers from a height on that are final: they are children of each other, and the last one was voted on. What
    /// comes after the last votes is left out; votes that do not hold make all of it a lie.
    ///
    /// # Errors
    /// [`LightError`].
    pub fn proven(self, from: Height, committees: &Committees) -> Result<ProvenHeaders, LightError> {
        let (mut expected, network) = (from, committees.network());
        for (at, CarriedHeader { header, .. }) in self.0.iter().enumerate() {
            let is_child = at == 0 || {
                let before = &self.0[at - 1].header;
                header.parent == before.digest() && header.epoch >= before.epoch
            };
            if at >= HEADERS_MAX || header.network != network || header.height != expected || !is_child {
                return Err(LightError::BrokenChain(from));
            }
            expected = expected.next();
        }
        let mut final_headers = 0;
        for (at, carried) in self.0.iter().enumerate() {
            if let Some(finalization) = &carried.finalization {
                let committee = committees.at(carried.header.epoch);
                finalization
                    .check(&carried.header, committee)
                    .map_err(ReceiptError::from)?;
                final_headers = at + 1;
            }
        }
        let mut headers = self.0;
        headers.truncate(final_headers);
        Ok(ProvenHeaders(headers))
    }
}

/// Headers that two thirds of the validators finalized; the last one carries their votes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProvenHeaders(Vec<CarriedHeader>);

impl ProvenHeaders {
    /// The headers, the lowest first.
    #[must_use]
    pub fn headers(&self) -> &[CarriedHeader] {
        &self.0
    }

    /// What proves the one at a height: it and its descendants up to the first that was voted on.
    #[must_use]
    pub fn proof_of(&self, height: Height) -> Option<ProvenHeader> {
        let at = self.0.iter().position(|carried| carried.header.height == height)?;
        let voted = at + self.0[at..].iter().position(|carried| carried.finalization.is_some())?;
        Some(ProvenHeader {
            headers: self.0[at..=voted]
                .iter()
                .map(|carried| carried.header.clone())
                .collect(),
            finalization: self.0[voted].finalization.clone()?,
        })
    }
}

/// A header, its descendants up to one that was voted on, and those votes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProvenHeader {
    /// The header first.
    pub headers: Vec<Header>,
    /// The votes on the last one.
    pub finalization: Finalization,
}

/// Two headers of one height, each with two thirds of the votes: more validators lie than the network bears. Anybody can
/// check it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fork {
    /// Where.
    pub height: Height,
    /// The block that was followed.
    pub followed: Digest,
    /// What proved it, if somebody still had it.
    pub proof: Option<ProvenHeader>,
    /// The other one, and what proves it.
    pub other: ProvenHeader,
}

/// A commitment with its way to the root of its block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Included {
    /// The signed commitment.
    pub transaction: SignedTransaction,
    /// From it to the block's Merkle root.
    pub path: merkle::Path,
}

/// Commitments of one block, and what proves that the block is final.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IncludedInBlock {
    /// The block's header and what proves it.
    pub block: ProvenHeader,
    /// Its commitments that were asked for.
    pub included: Vec<Included>,
}

impl IncludedInBlock {
    /// The height of the block; `None` if there is no header.
    #[must_use]
    pub fn height(&self) -> Option<Height> {
        self.block.headers.first().map(|header| header.height)
    }

    /// The receipt of one of its commitments.
    #[must_use]
    pub fn receipt(&self, included: &Included) -> Option<Receipt> {
        Some(Receipt {
            bundle: included.transaction.payload()?.id,
            transaction: included.transaction.clone(),
            path: included.path.clone(),
            headers: self.block.headers.clone(),
            finalization: self.block.finalization.clone(),
        })
    }

    /// The digest of the block, when every commitment has a receipt that holds.
    ///
    /// # Errors
    /// [`LightError`].
    pub fn check(&self, committees: &Committees) -> Result<(Height, Digest), LightError> {
        let broken = || LightError::BrokenChain(Height(0));
        let first = self.block.headers.first().ok_or_else(broken)?;
        for included in &self.included {
            let receipt = self.receipt(included).ok_or(ReceiptError::OtherBundle)?;
            Receipt::verify(&receipt.to_json(), committees)?;
        }
        if self.included.is_empty() {
            return Err(broken());
        }
        Ok((first.height, first.digest()))
    }
}

/// Commitments of some heights, as a fog node hands them over to somebody who may know them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CarriedCommitments {
    /// Who may know what was looked up in the state after this height.
    pub as_of: Height,
    /// All up to this height is here; what is above has to be asked for.
    pub through: Height,
    /// Blocks with commitments that were asked for, the lowest first.
    pub blocks: Vec<IncludedInBlock>,
}

impl CarriedCommitments {
    /// The bytes to send.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        canonical::encode(self)
    }

    /// Reads the bytes.
    ///
    /// # Errors
    /// [`LightError::Malformed`].
    pub fn decode(bytes: &[u8]) -> Result<Self, LightError> {
        Ok(canonical::decode(bytes, COMMITMENTS_BYTES_MAX)?)
    }
}

/// The state after a block, with what its digest was made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CarriedState {
    /// What is claimed.
    pub position: Position,
    /// The state's digest before the block.
    pub before: Digest,
    /// What became of the block's transactions.
    pub outcomes: Vec<Outcome>,
    /// The register, unless whoever asked said that it has it.
    pub register: Option<Register>,
}

impl CarriedState {
    /// The bytes to send.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        canonical::encode(self)
    }

    /// Reads the bytes.
    ///
    /// # Errors
    /// [`LightError::Malformed`].
    pub fn decode(bytes: &[u8]) -> Result<Self, LightError> {
        Ok(canonical::decode(bytes, STATE_BYTES_MAX)?)
    }

    /// The state, if its digest is made of these parts. Whether it is the network's is for [`witnesses`] to say.
    ///
    /// # Errors
    /// [`LightError::OtherState`].
    pub fn state(&self, known: Option<&Register>) -> Result<State, LightError> {
        let register = self.register.as_ref().or(known).ok_or(LightError::OtherState)?;
        let state = State::resumed(register.clone(), self.position.height, self.position.state_digest);
        if state.follows(&self.before, &self.position.digest, &self.outcomes) {
            Ok(state)
        } else {
            Err(LightError::OtherState)
        }
    }
}

/// How many validators signed exactly this position.
#[must_use]
pub fn witnesses(position: &Position, heads: &[SignedHead], validators: &ValidatorSet) -> usize {
    let counts = |head: &&SignedHead| {
        head.network == validators.network
            && head.position == *position
            && validators.validators.contains(&head.validator)
            && head.is_genuine()
    };
    let signed: BTreeSet<_> = heads.iter().filter(counts).map(|head| head.validator).collect();
    signed.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        block::{
            Block,
            tests::{child, founded},
        },
        genesis::Genesis,
        proof::{Vote, vote_message},
        state::Finals,
    };
    use record::signature::SigningKey;

    struct World {
        keys: Vec<SigningKey>,
        genesis: Genesis,
        validators: ValidatorSet,
        committees: Committees,
    }

    impl World {
        fn new() -> Self {
            let mut keys: Vec<_> = (0..4).map(|_| SigningKey::random()).collect();
            keys.sort_by_key(SigningKey::public);
            let genesis = founded(&keys);
            let validators = ValidatorSet::of(&genesis);
            let committees = Committees::founding(&genesis);
            Self {
                keys,
                genesis,
                validators,
                committees,
            }
        }

        fn votes(&self, header: &Header, voters: usize) -> Finalization {
            let message = vote_message(header);
            let vote = |key: &SigningKey| Vote {
                validator: key.public(),
                signature: key.sign_raw(&message),
            };
            Finalization {
                votes: self.keys.iter().take(voters).map(vote).collect(),
            }
        }

        /// Headers from the genesis on; those of `voted` carry votes.
        fn headers(&self, count: u64, voted: &[usize]) -> Vec<CarriedHeader> {
            let mut block = Block::genesis(&self.genesis);
            let mut headers = Vec::new();
            for at in 0..=usize::try_from(count).expect("few") {
                let finalization = voted.contains(&at).then(|| self.votes(&block.header, 3));
                headers.push(CarriedHeader {
                    header: block.header.clone(),
                    finalization,
                });
                block = child(&self.genesis, &block, vec![]);
            }
            headers
        }
    }

    #[test]
    fn headers_are_final_up_to_the_last_votes() {
        let world = World::new();
        let headers = CarriedHeaders(world.headers(6, &[2, 4]));
        let read = CarriedHeaders::decode(&headers.encode()).expect("canonical");
        let proven = read.proven(Height(0), &world.committees).expect("holds");
        assert_eq!(proven.headers(), &headers.0[..=4]);
        assert_eq!(proven.proof_of(Height(0)).expect("voted").headers.len(), 3);
        let unproven = CarriedHeaders(world.headers(6, &[]));
        let proven = unproven.proven(Height(0), &world.committees).expect("no lie");
        assert!(proven.headers().is_empty() && proven.proof_of(Height(0)).is_none());
    }

    #[test]
    fn forged_votes_gaps_and_strangers_are_lies() {
        let world = World::new();
        let good = world.headers(6, &[2, 4]);
        let lies: [fn(&World, &mut Vec<CarriedHeader>); 6] = [
            |world, headers| headers[2].finalization = Some(world.votes(&headers[2].header, 2)),
            |_, headers| headers[2].finalization = headers[4].finalization.clone(),
            |_, headers| drop(headers.remove(3)),
            |_, headers| headers[1].header.timestamp_ms += 1,
            |_, headers| drop(headers.remove(0)),
            |_, headers| headers.swap(1, 2),
        ];
        for (at, lie) in lies.iter().enumerate() {
            let mut headers = good.clone();
            lie(&world, &mut headers);
            let proven = CarriedHeaders(headers).proven(Height(0), &world.committees);
            assert!(proven.is_err(), "lie {at}");
        }
        let other = World::new();
        assert!(CarriedHeaders(good).proven(Height(0), &other.committees).is_err());
    }

    struct Nothing;

    impl Finals for Nothing {
        fn contains(&self, _: &Digest) -> bool {
            false
        }
    }

    #[test]
    fn a_state_is_believed_when_more_sign_it_than_can_lie() {
        let world = World::new();
        let block = child(&world.genesis, &Block::genesis(&world.genesis), vec![]);
        let mut state = State::genesis(&world.genesis);
        let before = state.digest();
        let outcomes = state.apply(&block, &Nothing);
        let position = Position {
            height: block.header.height,
            digest: block.header.digest(),
            state_digest: state.digest(),
        };
        let carried = CarriedState {
            position,
            before,
            outcomes,
            register: Some(state.register().clone()),
        };
        let read = CarriedState::decode(&carried.encode()).expect("canonical");
        assert_eq!(read.state(None).expect("follows"), state);
        let other = State::genesis(&World::new().genesis);
        let swapped = CarriedState {
            register: Some(other.register().clone()),
            ..carried.clone()
        };
        assert!(swapped.state(None).is_err(), "another register");
        let known = CarriedState {
            register: None,
            ..carried
        };
        assert!(known.state(None).is_err() && known.state(Some(state.register())).is_ok());
        let network = world.validators.network;
        let heads: Vec<_> = world
            .keys
            .iter()
            .map(|key| SignedHead::sign(network, position, key))
            .collect();
        assert_eq!(witnesses_needed(&world.validators), 2);
        let twice = [heads[0].clone(), heads[0].clone()];
        assert_eq!(witnesses(&position, &twice, &world.validators), 1, "one voice is one");
        assert_eq!(witnesses(&position, &heads, &world.validators), 4);
        let stranger = [SignedHead::sign(network, position, &SigningKey::random())];
        assert_eq!(witnesses(&position, &stranger, &world.validators), 0);
    }
}
