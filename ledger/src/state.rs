//! A finalized block applied: deterministic, once per height, equal on every node; a broken rule is a recorded refusal.

use std::{collections::BTreeSet, ops::Deref, sync::Arc};

use record::canonical::{self, Digest, Domain};
use serde::{Deserialize, Serialize};

use crate::{
    block::{Block, Height},
    device::Moment,
    erasure,
    genesis::Genesis,
    transaction::{Action, Author, SignedTransaction},
};

pub use crate::register::{AnnouncedKey, Gateway, Refused, Register};

/// What became of a transaction when its block was applied: the same on every node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It took effect.
    Applied,
    /// It broke a rule of the state and has no effect.
    Refused(Refused),
}

/// What is known of earlier blocks without holding them: which identifiers are final.
pub trait Finals {
    /// Whether a transaction or bundle with this digest took effect in an earlier block.
    fn contains(&self, digest: &Digest) -> bool;
}

/// The register as it is after a block, and a rolling digest: equal digests mean equal histories of blocks and outcomes,
/// and the same register now. Clones share the register until one of them changes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    height: Height,
    digest: Digest,
    register: Arc<Register>,
    register_digest: Digest,
}

impl Deref for State {
    type Target = Register;

    fn deref(&self) -> &Register {
        &self.register
    }
}

impl State {
    /// The state before the first block.
    #[must_use]
    pub fn genesis(genesis: &Genesis) -> Self {
        let founded = Digest::of(Domain::STATE, &[&canonical::encode(genesis)]);
        Self::resumed(Register::genesis(genesis), Height(0), founded)
    }

    /// A state from what was kept of it. Whether the register belongs to that height and digest is for
    /// [`State::follows`] to say.
    #[must_use]
    pub fn resumed(register: Register, height: Height, digest: Digest) -> Self {
        Self {
            height,
            digest,
            register_digest: register.digest(),
            register: Arc::new(register),
        }
    }

    /// Whether this state is what a block and its outcomes made of the state with the digest `before`: a register that was
    /// changed on the disk does not give the same digest.
    #[must_use]
    pub fn follows(&self, before: &Digest, block: &Digest, outcomes: &[Outcome]) -> bool {
        self.digest == self.rolled(before, block, outcomes)
    }

    fn rolled(&self, before: &Digest, block: &Digest, outcomes: &[Outcome]) -> Digest {
        let parts: [&[u8]; 4] = [
            before.as_bytes(),
            block.as_bytes(),
            &canonical::encode(&outcomes),
            self.register_digest.as_bytes(),
        ];
        Digest::of(Domain::STATE, &parts)
    }

    /// Height of the last block applied.
    #[must_use]
    pub const fn height(&self) -> Height {
        self.height
    }

    /// The rolling digest.
    #[must_use]
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    /// The digest of the register, which the state's digest is made of, too.
    #[must_use]
    pub const fn register_digest(&self) -> Digest {
        self.register_digest
    }

    /// Who may do what.
    #[must_use]
    pub fn register(&self) -> &Register {
        &self.register
    }

    /// Applies the next block and returns what became of each transaction.
    ///
    /// # Panics
    /// If the block is not the next one: the caller applies finalized blocks in order, once each.
    pub fn apply(&mut self, block: &Block, finals: &impl Finals) -> Vec<Outcome> {
        assert_eq!(
            block.header.height,
            self.height.next(),
            "finalized blocks are applied in order, once each"
        );
        let (height, at_ms) = (block.header.height, block.header.timestamp_ms);
        let mut here = BTreeSet::new();
        let mut outcomes = Vec::with_capacity(block.transactions.len());
        let mut changed = false;
        for transaction in &block.transactions {
            let seen = identifiers(transaction);
            let known = seen
                .iter()
                .any(|digest| here.contains(digest) || finals.contains(digest));
            let outcome = if known {
                Err(Refused::AlreadyFinal)
            } else {
                self.register.admit(transaction)
            };
            if outcome.is_ok() {
                here.extend(seen);
                if changes_register(transaction) {
                    Arc::make_mut(&mut self.register).execute(transaction, Moment { height, at_ms });
                    changed = true;
                }
            }
            outcomes.push(outcome.map_or_else(Outcome::Refused, |()| Outcome::Applied));
        }
        if self.register.seats().ends_with(block.header.height.0) {
            Arc::make_mut(&mut self.register).turn();
            changed = true;
        }
        if changed {
            self.register_digest = self.register.digest();
        }
        self.height = block.header.height;
        self.digest = self.rolled(&self.digest, &block.header.digest(), &outcomes);
        outcomes
    }
}

/// Whether a transaction, once it takes effect, changes who may do what; a commitment or confirmation moves height and
/// digest alone.
const fn changes_register(transaction: &SignedTransaction) -> bool {
    !matches!(
        transaction.claims().action,
        Action::Commit(_) | Action::CommitDocument(_) | Action::ConfirmErasure(_)
    )
}

/// The digests that may become final once only: the transaction's, and that of the bundle or document it commits to, of the
/// key it erases, or of the validator's word on an erased key.
#[must_use]
pub fn identifiers(transaction: &SignedTransaction) -> Vec<Digest> {
    let claims = transaction.claims();
    let what = match (&claims.action, &claims.author) {
        (Action::Erase(erasure), _) => Some(erasure::tombstone_id(&erasure.key)),
        (Action::ConfirmErasure(confirmation), Author::Validator(validator)) => {
            Some(erasure::confirmation_id(&confirmation.key, validator))
        }
        _ => transaction.payload().map(|payload| payload.id.0),
    };
    std::iter::once(transaction.id().0).chain(what).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::{
        block::tests::{child, founded},
        consent::authorize,
        member::{Change, Organization, Role, Voice},
        possession::Possession,
        transaction::{Commitment, DeviceEnrolment, GatewayEnrolment, Grant, Rotation, Transaction},
    };
    use proptest::prelude::*;
    use record::{
        bundle::{Bundle, Category, SealedBundle, SubjectKey},
        ids::{DeviceId, GatewayId, NetworkId, OrganizationId},
        signature::SigningKey,
    };

    fn gateway(name: &str) -> GatewayEnrolment {
        GatewayEnrolment {
            gateway: name.parse().expect("good"),
            key: SigningKey::random().public(),
            tls: Digest::ZERO,
        }
    }

    struct Known(HashSet<Digest>);

    impl Finals for Known {
        fn contains(&self, digest: &Digest) -> bool {
            self.0.contains(digest)
        }
    }

    struct World {
        keys: Vec<SigningKey>,
        gateway: SigningKey,
        genesis: Genesis,
        parent: Block,
        state: State,
        known: Known,
        subject: SubjectKey,
    }

    impl World {
        fn new() -> Self {
            let keys: Vec<_> = (0..4).map(|_| SigningKey::random()).collect();
            let genesis = founded(&keys);
            let state = State::genesis(&genesis);
            let subject = record::bundle::SubjectSecret::generate(Category::Vitals, 1)
                .expect("random numbers")
                .1;
            let parent = Block::genesis(&genesis);
            Self {
                keys,
                gateway: SigningKey::random(),
                genesis,
                parent,
                state,
                known: Known(HashSet::new()),
                subject,
            }
        }

        fn org(&self, i: usize, action: Action) -> SignedTransaction {
            self.decided(i, 0, action)
        }

        fn decided(&self, i: usize, sequence: u64, action: Action) -> SignedTransaction {
            let author = Author::Organization(format!("org-{i}").parse().expect("good"));
            Transaction {
                network: self.genesis.network(),
                author,
                sequence,
                action,
            }
            .sign(&self.keys[i])
        }

        fn enrol(&self) -> SignedTransaction {
            let enrolment = GatewayEnrolment {
                key: self.gateway.public(),
                ..gateway("home-1")
            };
            self.org(0, Action::EnrolGateway(enrolment))
        }

        fn announce(&self) -> SignedTransaction {
            self.org(0, Action::AnnounceKey(self.subject.clone()))
        }

        fn commit(&self, count: u32) -> SignedTransaction {
            let author = "home-1".parse().expect("good");
            let bundle = Bundle::new(vec![]);
            let sealed = SealedBundle::seal(&self.genesis.network(), &author, &self.subject, &bundle).expect("seals");
            let commitment = Commitment::to(&sealed.encode(), &sealed, (bundle.root(), count), 0);
            let (network, author) = (self.genesis.network(), Author::Gateway(author));
            Transaction {
                network,
                author,
                sequence: 0,
                action: Action::Commit(commitment),
            }
            .sign(&self.gateway)
        }

        fn apply(&mut self, transactions: Vec<SignedTransaction>) -> Vec<Outcome> {
            let block = child(&self.genesis, &self.parent, transactions);
            let outcomes = self.state.apply(&block, &self.known);
            for (transaction, outcome) in block.transactions.iter().zip(&outcomes) {
                if *outcome == Outcome::Applied {
                    self.known.0.extend(identifiers(transaction));
                }
            }
            self.parent = block;
            outcomes
        }
    }

    #[test]
    fn a_bundle_is_final_once() {
        let mut world = World::new();
        let commit = world.commit(1);
        assert_eq!(
            world.apply(vec![world.enrol(), world.announce(), commit.clone()]),
            [Outcome::Applied; 3]
        );
        assert_eq!(world.apply(vec![commit]), [Outcome::Refused(Refused::AlreadyFinal)]);
    }

    #[test]
    fn only_an_enrolled_gateway_commits_and_only_to_an_announced_key() {
        let mut world = World::new();
        assert_eq!(
            world.apply(vec![world.commit(1)]),
            [Outcome::Refused(Refused::NotAllowed)]
        );
        assert_eq!(
            world.apply(vec![world.enrol(), world.commit(1)])[1],
            Outcome::Refused(Refused::UnknownName)
        );
        world.apply(vec![world.announce()]);
        let thief = SigningKey::random();
        let stolen = world.commit(1).claims().clone().sign(&thief);
        assert_eq!(world.apply(vec![stolen]), [Outcome::Refused(Refused::WrongSignature)]);
    }

    #[test]
    fn what_a_former_members_gateway_committed_stands() {
        let mut world = World::new();
        world.keys.push(SigningKey::random());
        let (id, key): (OrganizationId, _) = ("org-4".parse().expect("good"), world.keys[4].public());
        let (name, role) = ("Org 4".to_owned(), Role::Provider);
        let fifth = Organization {
            id: id.clone(),
            name,
            role,
            key,
        };
        let raised = |world: &mut World, change: &Change| {
            let voice = |i| {
                world.org(
                    i,
                    Action::Voice(Voice {
                        change: change.clone(),
                        epoch: 0,
                    }),
                )
            };
            let voices = (0..3).map(voice).collect();
            assert_eq!(world.apply(voices), [Outcome::Applied; 3]);
        };
        raised(&mut world, &Change::Admit(fifth));
        let of_the_fifth = |world: &World, transaction: SignedTransaction| {
            let action = transaction.claims().action.clone();
            world.org(4, action)
        };
        let [enrol, announce] = [world.enrol(), world.announce()].map(|taken| of_the_fifth(&world, taken));
        let commit = world.commit(1);
        assert_eq!(
            world.apply(vec![enrol, announce, commit.clone()]),
            [Outcome::Applied; 3]
        );
        raised(&mut world, &Change::Dismiss(id));
        assert_eq!(
            world.state.admit(&world.commit(1)),
            Err(Refused::NotAllowed),
            "no more of it"
        );
        assert_eq!(world.state.committed(&commit, Height(1)), Ok(()));
        let forged = commit.claims().clone().sign(&SigningKey::random());
        assert_eq!(world.state.committed(&forged, Height(1)), Err(Refused::WrongSignature));
    }

    #[test]
    fn a_devices_key_is_enrolled_replaced_and_revoked_by_its_operator_alone_and_proves_itself() {
        let mut world = World::new();
        let (old, new, network) = (SigningKey::random(), SigningKey::random(), world.genesis.network());
        let (home, cuff): (GatewayId, DeviceId) = ("home-1".parse().expect("good"), "cuff-1".parse().expect("good"));
        let rotation = Rotation {
            device: "cuff-1".parse().expect("good"),
            from: old.public(),
            to: new.public(),
            proof: Possession::prove(&network, (&home, &cuff), &new),
            overlap_ms: 0,
        };
        let good = DeviceEnrolment::of(&network, (home, cuff.clone()), &old);
        let somebody_elses = DeviceEnrolment {
            key: new.public(),
            ..good.clone()
        };
        let mut refused = |by: usize, action: Action| match world.apply(vec![world.org(by, action)])[0] {
            Outcome::Applied => None,
            Outcome::Refused(why) => Some(why),
        };
        let enrol = |enrolment: &DeviceEnrolment| Action::EnrolDevice(enrolment.clone());
        let (rotate, revoke) = (
            Action::RotateDevice(rotation.clone()),
            Action::RevokeDevice(cuff.clone()),
        );
        assert_eq!(refused(0, enrol(&good)), Some(Refused::UnknownName), "no gateway yet");
        assert_eq!(refused(0, Action::EnrolGateway(gateway("home-1"))), None);
        assert_eq!(refused(1, enrol(&good)), Some(Refused::NotAllowed));
        assert_eq!(refused(0, enrol(&somebody_elses)), Some(Refused::NotPossessed));
        assert_eq!(refused(0, rotate.clone()), Some(Refused::UnknownName));
        assert_eq!(refused(0, enrol(&good)), None);
        assert_eq!(refused(1, rotate.clone()), Some(Refused::NotAllowed));
        assert_eq!(refused(0, rotate.clone()), None);
        assert_eq!(refused(0, rotate), Some(Refused::AlreadyFinal));
        assert_eq!(refused(1, revoke.clone()), Some(Refused::NotAllowed));
        assert_eq!(refused(0, revoke), None);
        let next = Rotation {
            from: new.public(),
            ..rotation
        };
        assert_eq!(refused(0, Action::RotateDevice(next)), Some(Refused::Revoked));
        let again = DeviceEnrolment { ..good };
        assert_eq!(
            refused(0, Action::EnrolDevice(again)),
            Some(Refused::AlreadyFinal),
            "the name is used up"
        );
        let keys = world.state.device(&cuff).expect("known").keys();
        assert_eq!(
            keys.iter().map(|period| period.key).collect::<Vec<_>>(),
            [old.public(), new.public()]
        );
    }

    #[test]
    fn a_gateway_is_told_what_was_changed_and_of_its_own_devices_alone() {
        let mut world = World::new();
        let network = world.genesis.network();
        let device = |place: (&str, &str)| {
            let place = (place.0.parse().expect("good"), place.1.parse().expect("good"));
            Action::EnrolDevice(DeviceEnrolment::of(&network, place, &SigningKey::random()))
        };
        let (home, away): (GatewayId, GatewayId) = ("home-1".parse().expect("good"), "home-2".parse().expect("good"));
        let second = GatewayEnrolment {
            tls: Digest::of(Domain::TLS_KEY, &[b"second"]),
            ..gateway("home-2")
        };
        let actions = [
            Action::EnrolGateway(gateway("home-1")),
            Action::EnrolGateway(second),
            device(("home-1", "cuff-1")),
            device(("home-2", "cuff-2")),
            device(("home-1", "cuff-3")),
        ];
        for action in actions {
            assert_eq!(world.apply(vec![world.org(0, action)]), [Outcome::Applied]);
        }
        let told = |world: &World, id: &GatewayId, above| {
            let roll = world.state.roll(id, Height(above));
            let names: Vec<_> = roll.devices.keys().map(ToString::to_string).collect();
            (roll.through.0, names.join(" "))
        };
        assert_eq!(told(&world, &home, 0), (5, "cuff-1 cuff-3".to_owned()));
        assert_eq!(told(&world, &home, 3), (5, "cuff-3".to_owned()));
        assert_eq!(told(&world, &home, 5), (5, String::new()));
        assert_eq!(
            told(&world, &home, 9),
            (9, String::new()),
            "from a height that is not there yet"
        );
        assert_eq!(told(&world, &away, 0), (4, "cuff-2".to_owned()));
        assert_eq!(told(&world, &"nobody".parse().expect("good"), 0), (0, String::new()));
        let revoke = world.org(0, Action::RevokeDevice("cuff-1".parse().expect("good")));
        world.apply(vec![revoke]);
        assert_eq!(told(&world, &home, 5), (6, "cuff-1".to_owned()));
        let many =
            (0..crate::device::ROLL_DEVICES_ENOUGH + 5).map(|n| world.org(0, device(("home-1", &format!("d-{n}")))));
        let mut many: Vec<_> = many.collect();
        let rest = many.split_off(crate::device::ROLL_DEVICES_ENOUGH - 2);
        world.apply(many);
        world.apply(rest);
        let (through, names) = told(&world, &home, 6);
        assert_eq!(through, 8, "a page ends with the height that it has begun");
        assert_eq!(names.split(' ').count(), crate::device::ROLL_DEVICES_ENOUGH + 5);
        let (through, _) = told(&world, &home, 0);
        assert_eq!(through, 7, "the rest is asked for");
    }

    #[test]
    fn a_revoked_gateway_commits_nothing_more_and_what_it_committed_stands() {
        let mut world = World::new();
        let before = world.commit(1);
        world.apply(vec![world.enrol(), world.announce(), before.clone()]);
        let home: GatewayId = "home-1".parse().expect("good");
        let tls = world.state.gateway(&home).expect("known").enrolment.tls;
        assert!(world.state.gateway_with_tls(&tls).is_some());
        let revoke = |world: &World, by| world.org(by, Action::RevokeGateway("home-1".parse().expect("good")));
        assert_eq!(
            world.apply(vec![revoke(&world, 1), revoke(&world, 0)]),
            [Outcome::Refused(Refused::NotAllowed), Outcome::Applied]
        );
        assert_eq!(
            world.apply(vec![world.commit(2)]),
            [Outcome::Refused(Refused::NotAllowed)]
        );
        assert!(
            world.state.gateway_with_tls(&tls).is_none(),
            "its connections are nobody's"
        );
        assert_eq!(world.state.committed(&before, Height(1)), Ok(()));
        let after = world.state.height().next();
        assert_eq!(world.state.committed(&before, after), Err(Refused::Revoked));
        let network = world.genesis.network();
        let device = DeviceEnrolment::of(&network, (home, "cuff-1".parse().expect("good")), &world.gateway);
        let enrol = world.org(0, Action::EnrolDevice(device));
        assert_eq!(world.apply(vec![enrol]), [Outcome::Refused(Refused::Revoked)]);
    }

    #[test]
    fn only_the_custodian_grants_and_a_revoked_grant_permits_nothing() {
        let mut world = World::new();
        world.apply(vec![world.announce()]);
        let key = world.subject.id();
        let reader: OrganizationId = "org-1".parse().expect("good");
        let grant = Grant {
            key,
            grantee: reader.clone(),
        };
        assert!(authorize(&world.state, &"org-0".parse().expect("good"), &key).is_ok());
        assert!(authorize(&world.state, &reader, &key).is_err());
        assert_eq!(
            world.apply(vec![world.org(1, Action::Grant(grant.clone()))]),
            [Outcome::Refused(Refused::NotAllowed)]
        );
        world.apply(vec![world.org(0, Action::Grant(grant.clone()))]);
        assert_eq!(
            authorize(&world.state, &reader, &key).expect("granted").reader(),
            &reader
        );
        world.apply(vec![world.decided(0, 1, Action::Revoke(grant))]);
        assert!(authorize(&world.state, &reader, &key).is_err());
    }

    #[test]
    fn a_transaction_for_another_network_is_refused() {
        let mut world = World::new();
        let foreign = Transaction {
            network: NetworkId(Digest::ZERO),
            ..world.announce().claims().clone()
        }
        .sign(&world.keys[0]);
        assert_eq!(world.apply(vec![foreign]), [Outcome::Refused(Refused::WrongNetwork)]);
    }

    #[test]
    fn a_snapshot_goes_on_where_the_state_stood() {
        let mut world = World::new();
        world.apply(vec![world.enrol(), world.announce()]);
        let snapshot = canonical::encode(world.state.register());
        let register: Register = canonical::decode(&snapshot, 1 << 20).expect("canonical");
        assert_eq!(
            State::resumed(register, world.state.height(), world.state.digest()),
            world.state
        );
    }

    #[test]
    fn a_register_that_was_changed_on_the_disk_does_not_follow() {
        let mut world = World::new();
        world.apply(vec![world.announce()]);
        let (before, honest) = (world.state.digest(), world.state.clone());
        let grant = Grant {
            key: world.subject.id(),
            grantee: "org-1".parse().expect("good"),
        };
        let outcomes = world.apply(vec![world.commit(1)]);
        let block = world.parent.header.digest();
        assert!(world.state.follows(&before, &block, &outcomes));
        let mut intruded = honest.register().clone();
        intruded.execute(&world.org(0, Action::Grant(grant)), Moment::default());
        let intruded = State::resumed(intruded, world.state.height(), world.state.digest());
        assert!(!intruded.follows(&before, &block, &outcomes));
    }

    #[test]
    fn a_grant_that_was_held_back_does_not_undo_a_revocation() {
        let mut world = World::new();
        world.apply(vec![world.announce()]);
        let reader: OrganizationId = "org-1".parse().expect("good");
        let key = world.subject.id();
        let grant = Grant {
            key,
            grantee: reader.clone(),
        };
        let held_back = world.decided(0, 1, Action::Grant(grant.clone()));
        let revoked = world.decided(0, 2, Action::Revoke(grant.clone()));
        assert_eq!(world.apply(vec![revoked]), [Outcome::Applied]);
        assert_eq!(world.apply(vec![held_back]), [Outcome::Refused(Refused::Stale)]);
        assert!(authorize(&world.state, &reader, &key).is_err());
        let again = world.decided(0, 3, Action::Grant(grant));
        assert_eq!(world.apply(vec![again]), [Outcome::Applied]);
        assert!(authorize(&world.state, &reader, &key).is_ok());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn the_same_blocks_give_the_same_state(order in proptest::collection::vec(0usize..4, 1..12)) {
            let mut world = World::new();
            let mut twin = world.state.clone();
            for step in order {
                let transaction = match step {
                    0 => world.enrol(),
                    1 => world.announce(),
                    2 => world.commit(1),
                    _ => world.org(2, Action::AnnounceKey(world.subject.clone())),
                };
                let before = Known(world.known.0.clone());
                world.apply(vec![transaction]);
                twin.apply(&world.parent, &before);
                prop_assert_eq!(&twin, &world.state);
            }
        }
    }
}
