//! Who votes in which epoch, and how the members change that: by their voices, two thirds of them, with an epoch between the
//! decision and its effect.
//!
//! An epoch is a fixed number of blocks. What has been decided when epoch e ends is the committee of epoch e + 2, and every
//! header of epoch e + 1 names it by its digest: the votes on any of them hand the voting over, and who follows the
//! headers needs nothing else to know who may vote next ([`crate::handover`]).

use std::collections::{BTreeMap, BTreeSet};

use record::{canonical::Digest, ids::OrganizationId, signature::PublicKey};
use serde::{Deserialize, Serialize};

use crate::member::{Organization, VALIDATORS_MAX, Validator, keys_of};

pub use crate::member::{Change, Voice, digest_of};

/// Changes that one organisation may have asked for and that are not decided, at most.
pub const OPEN_CHANGES_MAX: usize = 16;

/// What a header of an epoch must say about committees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sitting {
    /// The epoch.
    pub epoch: u64,
    /// Who votes in it, sorted.
    pub voting: Vec<PublicKey>,
    /// Who votes in the next one: [`digest_of`] their keys.
    pub next: Digest,
}

/// The committee of an epoch and of those after it, until the next change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Era {
    /// The first epoch.
    pub from: u64,
    /// Who votes, sorted.
    pub validators: Vec<PublicKey>,
}

/// A change that is asked for, and by whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Motion {
    change: Change,
    /// Organisation -> the epoch of its voice.
    voices: BTreeMap<OrganizationId, u64>,
}

/// The seats of a network: voting now, voting next, and as decided so far; every committee there was; the open motions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seats {
    epoch_blocks: u64,
    /// The epoch of the next block.
    epoch: u64,
    voting: Vec<Validator>,
    next: Vec<Validator>,
    decided: Vec<Validator>,
    eras: Vec<Era>,
    motions: Vec<Motion>,
}

/// Why a voice does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unheard {
    /// The organisation runs no validator that votes now.
    NoElector,
    /// The change cannot be made as things stand: it names what is not there, or is there already, or must not go yet.
    Impossible,
    /// It was raised in another epoch.
    Stale,
    /// The organisation asks for too many changes at once.
    TooMany,
}

impl Seats {
    pub(crate) fn founding(validators: &[Validator], epoch_blocks: u64) -> Self {
        let founders = validators.to_vec();
        let era = Era {
            from: 0,
            validators: keys_of(&founders),
        };
        Self {
            epoch_blocks,
            epoch: 0,
            voting: founders.clone(),
            next: founders.clone(),
            decided: founders,
            eras: vec![era],
            motions: Vec::new(),
        }
    }

    /// The epoch of the next block.
    #[must_use]
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Who votes in the epoch of the next block.
    #[must_use]
    pub fn voting(&self) -> &[Validator] {
        &self.voting
    }

    /// Everybody with a seat: voting now, next, or as decided. They are let in by their TLS keys.
    pub fn all(&self) -> impl Iterator<Item = &Validator> {
        let mut seen = BTreeSet::new();
        let every = self.voting.iter().chain(&self.next).chain(&self.decided);
        every.filter(move |validator| seen.insert(validator.key))
    }

    /// Every committee there was and is decided, from the founders on.
    #[must_use]
    pub fn eras(&self) -> &[Era] {
        &self.eras
    }

    /// What the next block must say.
    #[must_use]
    pub fn sitting(&self) -> Sitting {
        Sitting {
            epoch: self.epoch,
            voting: keys_of(&self.voting),
            next: digest_of(&keys_of(&self.next)),
        }
    }

    /// Whether an epoch ends with the block at a height.
    pub(crate) const fn ends_with(&self, height: u64) -> bool {
        (height + 1).is_multiple_of(self.epoch_blocks)
    }

    /// The last block of an epoch was applied.
    pub(crate) fn turn(&mut self) {
        self.epoch += 1;
        self.voting = std::mem::replace(&mut self.next, self.decided.clone());
        let validators = keys_of(&self.next);
        if self.eras.last().is_some_and(|era| era.validators != validators) {
            let from = self.epoch + 1;
            self.eras.push(Era { from, validators });
        }
        let oldest = self.epoch - 1;
        for motion in &mut self.motions {
            motion.voices.retain(|_, epoch| *epoch >= oldest);
        }
        self.motions.retain(|motion| !motion.voices.is_empty());
    }

    fn electors(&self) -> BTreeSet<&OrganizationId> {
        self.voting.iter().map(|validator| &validator.organization).collect()
    }

    /// Whether a voice counts now.
    pub(crate) fn hear(
        &self,
        author: &OrganizationId,
        voice: &Voice,
        members: &BTreeMap<OrganizationId, Organization>,
    ) -> Result<(), Unheard> {
        if !self.electors().contains(author) {
            return Err(Unheard::NoElector);
        }
        if voice.epoch > self.epoch || voice.epoch + 1 < self.epoch {
            return Err(Unheard::Stale);
        }
        let backed = |motion: &&Motion| motion.change != voice.change && motion.voices.contains_key(author);
        if self.motions.iter().filter(backed).count() >= OPEN_CHANGES_MAX {
            return Err(Unheard::TooMany);
        }
        if self.is_possible(&voice.change, members) {
            Ok(())
        } else {
            Err(Unheard::Impossible)
        }
    }

    fn is_possible(&self, change: &Change, members: &BTreeMap<OrganizationId, Organization>) -> bool {
        match change {
            Change::Admit(organization) => members
                .values()
                .all(|member| member.id != organization.id && member.key != organization.key),
            // Its nodes lose their votes first.
            Change::Dismiss(id) => members.contains_key(id) && self.all().all(|seat| seat.organization != *id),
            Change::Seat(validator) => {
                let differs = |seat: &Validator| seat.key != validator.key && seat.tls != validator.tls;
                members.contains_key(&validator.organization)
                    && self.all().all(differs)
                    && self.decided.len() < VALIDATORS_MAX
            }
            Change::Unseat(key) => self.decided.len() > 1 && self.decided.iter().any(|seat| seat.key == *key),
        }
    }

    /// Counts a voice that was heard; gives the change if more than two thirds of the organisations that vote are for it.
    pub(crate) fn count(&mut self, author: &OrganizationId, voice: &Voice) -> Option<Change> {
        let at = match self.motions.iter().position(|motion| motion.change == voice.change) {
            Some(at) => at,
            None => {
                self.motions.push(Motion {
                    change: voice.change.clone(),
                    voices: BTreeMap::new(),
                });
                self.motions.len() - 1
            }
        };
        self.motions[at].voices.insert(author.clone(), voice.epoch);
        let electors = self.electors();
        let count = |motion: &Motion| motion.voices.keys().filter(|by| electors.contains(by)).count();
        (3 * count(&self.motions[at]) > 2 * electors.len()).then(|| self.motions.remove(at).change)
    }

    /// Makes a change of seats that was decided; it takes effect with an epoch between.
    pub(crate) fn decide(&mut self, change: &Change) {
        match change {
            Change::Seat(validator) => self.decided.push(validator.clone()),
            Change::Unseat(key) => self.decided.retain(|seat| seat.key != *key),
            Change::Admit(_) | Change::Dismiss(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{block::tests::founded, policy::EPOCH_BLOCKS_MIN};
    use record::{canonical::Domain, signature::SigningKey};

    struct World {
        members: BTreeMap<OrganizationId, Organization>,
        seats: Seats,
        founders: Vec<PublicKey>,
    }

    impl World {
        fn new() -> Self {
            let keys: Vec<_> = (0..4).map(|_| SigningKey::random()).collect();
            let mut genesis = founded(&keys);
            genesis.policy.epoch_blocks = EPOCH_BLOCKS_MIN;
            Self {
                members: genesis
                    .organizations
                    .iter()
                    .map(|o| (o.id.clone(), o.clone()))
                    .collect(),
                founders: genesis.committee(),
                seats: Seats::founding(&genesis.validators, genesis.policy.epoch_blocks),
            }
        }

        /// What becomes of a voice, as the register does it.
        fn raise(&mut self, by: usize, epoch: u64, change: &Change) -> Result<Option<Change>, Unheard> {
            let author: OrganizationId = format!("org-{by}").parse().expect("good");
            let voice = Voice {
                change: change.clone(),
                epoch,
            };
            self.seats.hear(&author, &voice, &self.members)?;
            let decided = self.seats.count(&author, &voice);
            if let Some(change) = &decided {
                self.seats.decide(change);
            }
            Ok(decided)
        }
    }

    fn fifth() -> Validator {
        Validator {
            organization: "org-0".parse().expect("good"),
            key: SigningKey::random().public(),
            tls: Digest::of(Domain::TLS_KEY, &[b"fifth"]),
            address: None,
        }
    }

    #[test]
    fn three_of_four_organizations_decide_and_one_of_them_twice_does_not() {
        let mut world = World::new();
        let seat = Change::Seat(fifth());
        assert_eq!(world.raise(0, 0, &seat), Ok(None));
        assert_eq!(world.raise(0, 0, &seat), Ok(None));
        assert_eq!(world.raise(1, 0, &seat), Ok(None));
        assert_eq!(world.raise(2, 0, &seat), Ok(Some(seat.clone())));
        assert_eq!(
            world.raise(3, 0, &seat),
            Err(Unheard::Impossible),
            "it is decided already"
        );
    }

    #[test]
    fn a_decision_takes_effect_with_an_epoch_between_and_is_named_meanwhile() {
        let mut world = World::new();
        let new = fifth();
        for by in 0..3 {
            world.raise(by, 0, &Change::Seat(new.clone())).expect("heard");
        }
        let five = {
            let mut keys = world.founders.clone();
            keys.push(new.key);
            keys.sort();
            keys
        };
        let (founders, all) = (digest_of(&world.founders), digest_of(&five));
        let said = |world: &World| {
            let sitting = world.seats.sitting();
            (sitting.voting.len(), sitting.next)
        };
        assert_eq!(said(&world), (4, founders));
        world.seats.turn();
        assert_eq!(said(&world), (4, all), "epoch 1 names the committee of epoch 2");
        world.seats.turn();
        assert_eq!(said(&world), (5, all));
        let eras: Vec<_> = world
            .seats
            .eras()
            .iter()
            .map(|era| (era.from, era.validators.len()))
            .collect();
        assert_eq!(eras, [(0, 4), (2, 5)]);
    }

    #[test]
    fn a_voice_lapses_and_an_old_one_is_not_heard() {
        let mut world = World::new();
        let seat = Change::Seat(fifth());
        world.raise(0, 0, &seat).expect("heard");
        world.raise(1, 0, &seat).expect("heard");
        world.seats.turn();
        world.seats.turn();
        assert_eq!(world.raise(2, 0, &seat), Err(Unheard::Stale));
        assert_eq!(
            world.raise(2, 3, &seat),
            Err(Unheard::Stale),
            "nor one of an epoch to come"
        );
        assert_eq!(world.raise(2, 2, &seat), Ok(None), "the first two lapsed with epoch 1");
    }

    #[test]
    fn who_runs_no_voting_validator_is_not_heard_and_a_seat_goes_before_its_member() {
        let mut world = World::new();
        let organization = Organization {
            id: "newcomer".parse().expect("good"),
            name: "Newcomer".to_owned(),
            role: crate::member::Role::Payer,
            key: SigningKey::random().public(),
        };
        world.members.insert(organization.id.clone(), organization.clone());
        let voice = Voice {
            change: Change::Dismiss("org-0".parse().expect("good")),
            epoch: 0,
        };
        let heard = world.seats.hear(&organization.id, &voice, &world.members);
        assert_eq!(heard, Err(Unheard::NoElector));
        assert_eq!(
            world.raise(1, 0, &voice.change),
            Err(Unheard::Impossible),
            "it has a seat"
        );
        assert_eq!(
            world.raise(1, 0, &Change::Admit(organization)),
            Err(Unheard::Impossible)
        );
        let unknown = Change::Unseat(SigningKey::random().public());
        assert_eq!(world.raise(1, 0, &unknown), Err(Unheard::Impossible));
    }

    #[test]
    fn the_last_validator_keeps_its_seat_and_open_changes_are_bounded() {
        let mut world = World::new();
        for key in &world.founders.clone()[..3] {
            for by in 0..3 {
                world.raise(by, 0, &Change::Unseat(*key)).expect("heard");
            }
        }
        let last = Change::Unseat(world.founders[3]);
        assert_eq!(world.raise(0, 0, &last), Err(Unheard::Impossible));
        for _ in 0..OPEN_CHANGES_MAX {
            world.raise(0, 0, &Change::Seat(fifth())).expect("heard");
        }
        assert_eq!(world.raise(0, 0, &Change::Seat(fifth())), Err(Unheard::TooMany));
    }
}
