//! The committees of a network as a third party knows them: the founders, and each handover proven by the votes of the
//! committee before it.
//!
//! Every header of an epoch names the next epoch's committee. So one header that the committee of epoch e voted for, and the
//! keys that it names by their digest, prove who votes in epoch e + 1; an epoch without a handover keeps its committee.
//! **What it rests on:** no more than a third of any committee that is known here ever lies, not even after it has left. Who
//! wants less than that fetches the handovers anew, as a gateway does.

use std::{collections::BTreeSet, ops::RangeInclusive};

use record::{ids::NetworkId, signature::PublicKey};
use serde::{Deserialize, Serialize};

use crate::{
    block::Header,
    committee::Era,
    genesis::Genesis,
    member::{VALIDATORS_MAX, digest_of},
    quorum::{NotFinal, ValidatorSet},
    votes::Finalization,
};

/// Bytes of JSON of [`Handovers`], at most: some hundred committees of the largest kind.
pub const HANDOVERS_BYTES_MAX: usize = 4 << 20;

/// The proof that a committee took over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Handover {
    /// A header of the epoch before; it names the new committee.
    pub header: Header,
    /// The old committee's votes on it.
    pub finalization: Finalization,
    /// The new committee, sorted.
    pub validators: Vec<PublicKey>,
}

/// What `--validators` reads and `/api/v1/chain/validators` serves: nothing in it is believed before
/// [`Committees::of`] has checked it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Handovers {
    /// The network.
    pub network: NetworkId,
    /// The founders' keys, sorted: who reads this trusts them.
    pub validators: Vec<PublicKey>,
    /// The committees after them, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub handovers: Vec<Handover>,
}

impl Handovers {
    /// Of a network whose committee never changed.
    #[must_use]
    pub fn none(genesis: &Genesis) -> Self {
        Self {
            network: genesis.network(),
            validators: genesis.committee(),
            handovers: Vec::new(),
        }
    }
}

/// Who votes in which epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committees {
    eras: Vec<(u64, ValidatorSet)>,
}

/// Handovers that prove nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandoverError {
    /// The votes on it do not hold.
    #[error("the handover after epoch {epoch}: {source}")]
    Votes {
        /// The epoch whose committee should have voted.
        epoch: u64,
        /// What is wrong with them.
        source: NotFinal,
    },
    /// The header is of another network, or names another committee.
    #[error("the handover after epoch {0}: its header is of another network, or names another committee")]
    OtherCommittee(u64),
    /// Of another network, or of one with other founders.
    #[error("the committees are those of another network, or of other founders")]
    OtherFounders,
    /// Not in their order, the same one twice, or more validators than there can be.
    #[error("the committees are not in their order, one stands there twice, or one is empty or too large")]
    Disorder,
}

impl Committees {
    /// The founders alone.
    #[must_use]
    pub fn founding(genesis: &Genesis) -> Self {
        Self {
            eras: vec![(0, ValidatorSet::of(genesis))],
        }
    }

    /// As a node's own register has them: each was decided by blocks that were final.
    #[must_use]
    pub fn registered(network: NetworkId, eras: &[Era]) -> Self {
        let set = |era: &Era| ValidatorSet {
            network,
            validators: era.validators.clone(),
        };
        Self {
            eras: eras.iter().map(|era| (era.from, set(era))).collect(),
        }
    }

    /// The founders of a file, and each handover in it checked.
    ///
    /// # Errors
    /// [`HandoverError`] names the first that does not hold.
    pub fn of(handovers: Handovers) -> Result<Self, HandoverError> {
        let founders = ValidatorSet {
            network: handovers.network,
            validators: handovers.validators,
        };
        if !founders.is_well_formed() {
            return Err(HandoverError::Disorder);
        }
        let mut committees = Self {
            eras: vec![(0, founders)],
        };
        for handover in handovers.handovers {
            committees.hand_over(handover)?;
        }
        Ok(committees)
    }

    /// What somebody tells of the same network, from our own founders on, each handover checked. Whether it is to be
    /// believed rather than what is known here, [`Committees::supersede`] says.
    ///
    /// # Errors
    /// [`HandoverError`].
    pub fn told(&self, handovers: Handovers) -> Result<Self, HandoverError> {
        let founders = self.at(0);
        if handovers.network != founders.network || handovers.validators != founders.validators {
            return Err(HandoverError::OtherFounders);
        }
        Self::of(handovers)
    }

    /// Takes one more handover.
    ///
    /// # Errors
    /// [`HandoverError`]; nothing was taken then.
    pub fn hand_over(&mut self, handover: Handover) -> Result<(), HandoverError> {
        let Handover {
            header,
            finalization,
            validators,
        } = handover;
        let set = ValidatorSet {
            network: self.network(),
            validators,
        };
        let from = header.epoch.saturating_add(1);
        let is_later = self.eras.last().is_some_and(|(last, _)| *last < from);
        // One committee has one entry: a liar could else fill the list with what every header says.
        if !is_later || !set.is_well_formed() || *self.newest() == set {
            return Err(HandoverError::Disorder);
        }
        if header.network != set.network || header.next_validators != digest_of(&set.validators) {
            return Err(HandoverError::OtherCommittee(header.epoch));
        }
        finalization
            .check(&header, self.at(header.epoch))
            .map_err(|source| HandoverError::Votes {
                epoch: header.epoch,
                source,
            })?;
        self.eras.push((from, set));
        Ok(())
    }

    /// The network.
    #[must_use]
    pub fn network(&self) -> NetworkId {
        self.at(0).network
    }

    /// Who votes in an epoch, as far as is known here.
    ///
    /// # Panics
    /// Never: there are founders.
    #[must_use]
    pub fn at(&self, epoch: u64) -> &ValidatorSet {
        let known = self.eras.iter().rev().find(|(from, _)| *from <= epoch);
        &known.expect("the founders vote from epoch 0 on").1
    }

    /// Everybody who votes, as far as is known here, in any of these epochs.
    #[must_use]
    pub fn between(&self, epochs: RangeInclusive<u64>) -> BTreeSet<PublicKey> {
        let later = self.eras.iter().filter(|(from, _)| *from > *epochs.start());
        let later = later.take_while(|(from, _)| from <= epochs.end()).map(|(_, set)| set);
        let sitting = std::iter::once(self.at(*epochs.start())).chain(later);
        sitting.flat_map(|set| set.validators.iter().copied()).collect()
    }

    /// How many committees there were, the founders included.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.eras.len()
    }

    /// Whether these are to be believed rather than the other ones: they go on from them, or tell of a change earlier. Both are
    /// proven, and no honest header names a committee before it was decided on; who leaves a change out, or tells of it
    /// later (by the votes of a quorum of the old committee that stayed), tells of the next one too late.
    #[must_use]
    pub fn supersede(&self, other: &Self) -> bool {
        let eras = self.eras.iter().zip(&other.eras);
        let same = eras.take_while(|(ours, theirs)| ours == theirs).count();
        match (self.eras.get(same), other.eras.get(same)) {
            (Some(_), None) => true,
            (Some((ours, _)), Some((theirs, _))) => ours < theirs,
            _ => false,
        }
    }

    /// The newest committee that is known.
    #[must_use]
    pub fn newest(&self) -> &ValidatorSet {
        self.at(u64::MAX)
    }
}

impl ValidatorSet {
    fn is_well_formed(&self) -> bool {
        let sorted = self.validators.windows(2).all(|pair| pair[0] < pair[1]);
        sorted && (1..=VALIDATORS_MAX).contains(&self.validators.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        block::{Block, tests::founded},
        quorum::vote_message,
        votes::Vote,
    };
    use record::{canonical::Digest, signature::SigningKey};

    struct World {
        keys: Vec<SigningKey>,
        genesis: Genesis,
    }

    impl World {
        fn new() -> Self {
            let mut keys: Vec<_> = (0..4).map(|_| SigningKey::random()).collect();
            keys.sort_by_key(SigningKey::public);
            Self {
                genesis: founded(&keys),
                keys,
            }
        }

        /// Signed by `voters`, to `validators`, after `epoch`.
        fn handover(&self, epoch: u64, voters: &[SigningKey], validators: &[SigningKey]) -> Handover {
            let validators: Vec<_> = validators.iter().map(SigningKey::public).collect();
            let mut header = Block::genesis(&self.genesis).header;
            header.epoch = epoch;
            header.next_validators = digest_of(&validators);
            let message = vote_message(&header);
            let vote = |key: &SigningKey| Vote {
                validator: key.public(),
                signature: key.sign_raw(&message),
            };
            Handover {
                finalization: Finalization {
                    votes: voters.iter().map(vote).collect(),
                },
                header,
                validators,
            }
        }
    }

    #[test]
    fn each_committee_hands_over_to_the_next_and_the_old_one_counts_no_more() {
        let world = World::new();
        let mut new: Vec<_> = (0..4).map(|_| SigningKey::random()).collect();
        new.sort_by_key(SigningKey::public);
        let mut committees = Committees::founding(&world.genesis);
        let to_new = world.handover(3, &world.keys[..3], &new);
        committees.hand_over(to_new.clone()).expect("proven");
        let public = |keys: &[SigningKey]| keys.iter().map(SigningKey::public).collect::<Vec<_>>();
        assert_eq!(committees.at(3).validators, public(&world.keys));
        assert_eq!(committees.at(4).validators, public(&new));
        assert_eq!(committees.hand_over(to_new), Err(HandoverError::Disorder));
        let by_the_old = world.handover(5, &world.keys, &world.keys);
        assert!(matches!(
            committees.hand_over(by_the_old),
            Err(HandoverError::Votes { epoch: 5, .. })
        ));
        committees
            .hand_over(world.handover(5, &new[1..], &world.keys[..1]))
            .expect("the new committee hands over");
        assert_eq!(committees.newest().validators.len(), 1);
    }

    #[test]
    fn who_pads_leaves_out_or_delays_a_change_is_superseded_by_who_does_not() {
        let world = World::new();
        let founders = &world.keys;
        let mut five = world.keys.clone();
        five.push(SigningKey::random());
        five.sort_by_key(SigningKey::public);
        let known = |handovers: &[(u64, &[SigningKey], &[SigningKey])]| {
            let mut committees = Committees::founding(&world.genesis);
            for (epoch, voters, to) in handovers {
                committees
                    .hand_over(world.handover(*epoch, voters, to))
                    .expect("proven");
            }
            committees
        };
        let mut padded = Committees::founding(&world.genesis);
        let same = world.handover(0, founders, founders);
        assert_eq!(padded.hand_over(same), Err(HandoverError::Disorder));
        let true_one = known(&[(1, founders, &five)]);
        let delayed = known(&[(5, &founders[..3], &five)]);
        let (none, three) = (known(&[]), &founders[..3]);
        let skipped = known(&[(7, &founders[..3], three)]);
        for worse in [&delayed, &none, &skipped] {
            assert!(true_one.supersede(worse) && !worse.supersede(&true_one));
        }
        assert!(!true_one.supersede(&true_one));
    }

    #[test]
    fn too_few_votes_another_committee_or_another_network_prove_nothing() {
        let world = World::new();
        let mut committees = Committees::founding(&world.genesis);
        let good = world.handover(0, &world.keys[..3], &world.keys[..1]);
        let mut thin = good.clone();
        thin.finalization.votes.pop();
        let mut other = good.clone();
        other.validators = vec![SigningKey::random().public()];
        let mut elsewhere = good.clone();
        elsewhere.header.network = NetworkId(Digest::ZERO);
        let mut empty = good.clone();
        empty.validators.clear();
        for bad in [thin, other, elsewhere, empty] {
            committees.hand_over(bad).expect_err("proves nothing");
        }
        committees.hand_over(good).expect("and the good one does");
    }

    #[test]
    fn a_file_of_the_founders_alone_reads_as_before() {
        let world = World::new();
        let none = Handovers::none(&world.genesis);
        let text = serde_json::to_string(&none).expect("encodes");
        assert!(!text.contains("handovers"));
        assert_eq!(serde_json::from_str::<Handovers>(&text).expect("decodes"), none);
        assert_eq!(
            Committees::of(none).expect("founders"),
            Committees::founding(&world.genesis)
        );
        let mut twice = Handovers::none(&world.genesis);
        twice.validators[1] = twice.validators[0];
        assert_eq!(Committees::of(twice), Err(HandoverError::Disorder));
    }
}
