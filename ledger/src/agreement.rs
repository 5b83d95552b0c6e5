//! Algorithm 2: what each node says its chain is at a height, compared; the majority, and who stands outside it.
//!
//! Votes come before a block is final; this comparison comes after, for ever: it finds a node whose disk or memory no longer
//! holds what was agreed. Heads are compared, not chains: each digest stands for everything below it, so the cost of a
//! comparison does not grow with the chain. A majority (> n/2) decides what to repair from, never what is final.

use std::collections::{BTreeMap, BTreeSet};

use record::{
    canonical::{self, Digest, Domain},
    ids::NetworkId,
    signature::{PublicKey, Signature, SigningKey},
};
use serde::{Deserialize, Serialize};

use crate::{block::Height, proof::ValidatorSet};

/// What a chain is at a height: the block, and what all blocks up to it made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// The height.
    pub height: Height,
    /// The block's digest.
    pub digest: Digest,
    /// The state's digest after it.
    pub state_digest: Digest,
}

/// A validator's signed word on its own chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedHead {
    /// The network.
    pub network: NetworkId,
    /// Whose chain.
    pub validator: PublicKey,
    /// What it is.
    pub position: Position,
    /// Over network and position.
    pub signature: Signature,
}

impl SignedHead {
    /// Signs a position.
    #[must_use]
    pub fn sign(network: NetworkId, position: Position, key: &SigningKey) -> Self {
        Self {
            network,
            validator: key.public(),
            signature: key.sign(Domain::HEAD, &canonical::encode(&(&network, &position))),
            position,
        }
    }

    /// Whether the validator it names signed it.
    #[must_use]
    pub fn is_genuine(&self) -> bool {
        let signed = canonical::encode(&(&self.network, &self.position));
        self.validator.verify(Domain::HEAD, &signed, &self.signature).is_ok()
    }
}

/// How a node stands to the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A majority has the same position.
    Agrees,
    /// A majority has another one.
    Diverges {
        /// The majority's.
        majority: Position,
        /// Who has it.
        holders: Vec<PublicKey>,
    },
    /// Nobody has a majority, as far as is known.
    Undecided,
}

/// Compares a validator's own position with what the others signed about the same height. Forged heads, heads by strangers and
/// of other heights or networks do not count; a validator that signed two positions counts for neither.
#[must_use]
pub fn compare(own: (&PublicKey, &Position), heads: &[SignedHead], validators: &ValidatorSet) -> Verdict {
    let (me, own) = own;
    let counts = |head: &&SignedHead| {
        head.network == validators.network
            && head.position.height == own.height
            && head.validator != *me
            && validators.validators.contains(&head.validator)
            && head.is_genuine()
    };
    let mut said: BTreeMap<PublicKey, BTreeSet<Position>> = BTreeMap::new();
    for head in heads.iter().filter(counts) {
        said.entry(head.validator).or_default().insert(head.position);
    }
    let mut holders: BTreeMap<Position, Vec<PublicKey>> = BTreeMap::new();
    if validators.validators.contains(me) {
        holders.entry(*own).or_default().push(*me);
    }
    for (validator, positions) in said {
        if let (Some(position), 1) = (positions.first(), positions.len()) {
            holders.entry(*position).or_default().push(validator);
        }
    }
    let majority = holders
        .into_iter()
        .find(|(_, holders)| 2 * holders.len() > validators.validators.len());
    match majority {
        None => Verdict::Undecided,
        Some((position, _)) if position == *own => Verdict::Agrees,
        Some((majority, holders)) => Verdict::Diverges { majority, holders },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct World {
        keys: Vec<SigningKey>,
        validators: ValidatorSet,
    }

    fn world(n: usize) -> World {
        let mut keys: Vec<_> = (0..n).map(|_| SigningKey::random()).collect();
        keys.sort_by_key(SigningKey::public);
        let validators = ValidatorSet {
            network: NetworkId(Digest::of(Domain::GENESIS, &[b"test"])),
            validators: keys.iter().map(SigningKey::public).collect(),
        };
        World { keys, validators }
    }

    fn position(what: u8) -> Position {
        Position {
            height: Height(7),
            digest: Digest::of(Domain::HEADER, &[&[what]]),
            state_digest: Digest::of(Domain::STATE, &[&[what]]),
        }
    }

    impl World {
        fn head(&self, i: usize, position: Position) -> SignedHead {
            SignedHead::sign(self.validators.network, position, &self.keys[i])
        }

        fn judged(&self, own: u8, heads: &[SignedHead]) -> Verdict {
            compare((&self.keys[0].public(), &position(own)), heads, &self.validators)
        }
    }

    #[test]
    fn three_of_four_decide_and_two_do_not() {
        let world = world(4);
        let same = [1, 2].map(|i| world.head(i, position(1)));
        assert_eq!(world.judged(1, &same), Verdict::Agrees);
        assert_eq!(world.judged(2, &same), Verdict::Undecided);
        let three = [1, 2, 3].map(|i| world.head(i, position(1)));
        let Verdict::Diverges { majority, holders } = world.judged(2, &three) else {
            panic!("three others agree on something else");
        };
        assert_eq!((majority, holders.len()), (position(1), 3));
    }

    #[test]
    fn another_state_under_the_same_block_is_a_divergence() {
        let world = world(4);
        let others = [1, 2, 3].map(|i| world.head(i, position(1)));
        let own = Position {
            state_digest: Digest::ZERO,
            ..position(1)
        };
        let judged = compare((&world.keys[0].public(), &own), &others, &world.validators);
        assert!(matches!(judged, Verdict::Diverges { .. }));
    }

    #[test]
    fn who_says_two_things_counts_for_neither() {
        let world = world(4);
        let mut heads = vec![
            world.head(1, position(1)),
            world.head(2, position(1)),
            world.head(3, position(1)),
        ];
        heads.push(world.head(3, position(2)));
        assert_eq!(world.judged(2, &heads), Verdict::Undecided);
        assert_eq!(world.judged(1, &heads), Verdict::Agrees);
    }

    #[test]
    fn forgers_strangers_repeaters_and_other_heights_do_not_count() {
        let (world, strangers) = (world(4), world(4));
        let genuine = world.head(1, position(1));
        let mut forged = world.head(2, position(2));
        forged.position = position(1);
        let stranger = SignedHead::sign(world.validators.network, position(1), &strangers.keys[2]);
        let elsewhere = SignedHead::sign(NetworkId(Digest::ZERO), position(1), &world.keys[3]);
        let higher = Position {
            height: Height(8),
            ..position(1)
        };
        let heads = [
            genuine.clone(),
            genuine,
            forged,
            stranger,
            elsewhere,
            world.head(3, higher),
        ];
        assert_eq!(world.judged(2, &heads), Verdict::Undecided);
    }

    proptest! {
        #[test]
        fn one_liar_of_four_never_makes_an_honest_node_diverge(lies in proptest::collection::vec(any::<u8>(), 0..6)) {
            let world = world(4);
            let mut heads = vec![world.head(1, position(1)), world.head(2, position(1))];
            heads.extend(lies.into_iter().map(|lie| world.head(3, position(lie))));
            prop_assert_eq!(world.judged(1, &heads), Verdict::Agrees);
        }
    }
}
