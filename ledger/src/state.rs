//! A finalized block applied: deterministic, once per height, equal on every node; a broken rule is a recorded refusal.

use std::collections::{BTreeMap, BTreeSet};

use record::{
    bundle::SubjectKey,
    canonical::{self, Digest, Domain},
    ids::{DeviceId, GatewayId, KeyId, NetworkId, OrganizationId},
    signature::PublicKey,
};
use serde::{Deserialize, Serialize};

use crate::{
    block::{Block, Height},
    genesis::{Genesis, Organization, Validator},
    transaction::{Action, Author, Commitment, DeviceEnrolment, GatewayEnrolment, Grant, SignedTransaction},
};

/// An enrolled gateway and who operates it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gateway {
    /// As enrolled.
    pub enrolment: GatewayEnrolment,
    /// Who enrolled it.
    pub operator: OrganizationId,
}

/// An announced subject key and its custodian.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnnouncedKey {
    /// The public half.
    pub key: SubjectKey,
    /// The organisation that announced it.
    pub custodian: OrganizationId,
}

/// Why a transaction has no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum Refused {
    /// Meant for another network.
    #[error("meant for another network")]
    WrongNetwork,
    /// The author is not enrolled, or may not do this.
    #[error("the author is not enrolled, or may not do this")]
    NotAllowed,
    /// The signature is not the author's.
    #[error("the signature is not the author's")]
    WrongSignature,
    /// It, or its bundle, is on the chain already.
    #[error("on the chain already")]
    AlreadyFinal,
    /// It names a key, gateway or member that the chain does not know.
    #[error("it names a key, gateway or member that the chain does not know")]
    UnknownName,
    /// The name is taken by somebody else.
    #[error("the name is taken")]
    NameTaken,
}

impl Refused {
    /// Whether it may become right when the chain has moved on.
    #[must_use]
    pub const fn may_pass_later(self) -> bool {
        matches!(self, Self::NotAllowed | Self::UnknownName)
    }
}

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

/// The state: who is enrolled, which keys are announced, which grants are in force, and a rolling digest over all of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// The network.
    pub network: NetworkId,
    /// Height of the last block applied.
    pub height: Height,
    /// Rolling digest: equal digests mean equal histories of outcomes.
    pub digest: Digest,
    organizations: BTreeMap<OrganizationId, Organization>,
    validators: Vec<Validator>,
    gateways: BTreeMap<GatewayId, Gateway>,
    devices: BTreeMap<DeviceId, DeviceEnrolment>,
    /// Sorted by id; a list, because a map of the canonical encoding has text keys only.
    keys: Vec<(KeyId, AnnouncedKey)>,
    grants: BTreeSet<Grant>,
}

impl State {
    /// The state before the first block.
    #[must_use]
    pub fn genesis(genesis: &Genesis) -> Self {
        Self {
            network: genesis.network(),
            height: Height(0),
            digest: Digest::of(Domain::STATE, &[&canonical::encode(genesis)]),
            organizations: genesis
                .organizations
                .iter()
                .map(|o| (o.id.clone(), o.clone()))
                .collect(),
            validators: genesis.validators.clone(),
            gateways: BTreeMap::new(),
            devices: BTreeMap::new(),
            keys: Vec::new(),
            grants: BTreeSet::new(),
        }
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
        let mut here = BTreeSet::new();
        let mut outcomes = Vec::with_capacity(block.transactions.len());
        for transaction in &block.transactions {
            let seen = identifiers(transaction);
            let known = seen
                .iter()
                .any(|digest| here.contains(digest) || finals.contains(digest));
            let outcome = if known {
                Err(Refused::AlreadyFinal)
            } else {
                self.admit(transaction)
            };
            if outcome.is_ok() {
                here.extend(seen);
                self.execute(transaction);
            }
            outcomes.push(outcome.map_or_else(Outcome::Refused, |()| Outcome::Applied));
        }
        self.height = block.header.height;
        let block_digest = block.header.digest();
        self.digest = Digest::of(
            Domain::STATE,
            &[
                self.digest.as_bytes(),
                block_digest.as_bytes(),
                &canonical::encode(&outcomes),
            ],
        );
        outcomes
    }

    /// Whether a transaction would take effect now, its being final already left aside: network, author, signature, rights.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn admit(&self, transaction: &SignedTransaction) -> Result<(), Refused> {
        let claims = transaction.claims();
        if claims.network != self.network {
            return Err(Refused::WrongNetwork);
        }
        let key = self.key_of(&claims.author).ok_or(Refused::NotAllowed)?;
        if !transaction.is_signed_by(&key) {
            return Err(Refused::WrongSignature);
        }
        match (&claims.author, &claims.action) {
            (Author::Gateway(author), Action::Commit(commitment)) => {
                self.may_commit(author, claims.sequence, commitment)
            }
            (Author::Organization(author), action) => self.may_decide(author, action),
            (Author::Gateway(_), _) => Err(Refused::NotAllowed),
        }
    }

    /// A gateway commits for the people of its own operator: nobody else's gateway can write into their records.
    fn may_commit(&self, author: &GatewayId, sequence: u64, commitment: &Commitment) -> Result<(), Refused> {
        let operator = self.gateways.get(author).map(|gateway| &gateway.operator);
        let announced = self.subject_key(&commitment.key).ok_or(Refused::UnknownName)?;
        if sequence == 0 && operator == Some(&announced.custodian) {
            Ok(())
        } else {
            Err(Refused::NotAllowed)
        }
    }

    fn may_decide(&self, author: &OrganizationId, action: &Action) -> Result<(), Refused> {
        let free = |taken: bool| if taken { Err(Refused::NameTaken) } else { Ok(()) };
        match action {
            Action::Commit(_) => Err(Refused::NotAllowed),
            Action::EnrolGateway(enrolment) => {
                // A copied TLS or signing key would lock its owner out.
                let copied =
                    |other: &Gateway| other.enrolment.tls == enrolment.tls || other.enrolment.key == enrolment.key;
                free(self.gateways.contains_key(&enrolment.gateway) || self.gateways.values().any(copied))
            }
            Action::EnrolDevice(enrolment) => {
                let gateway = self.gateways.get(&enrolment.gateway).ok_or(Refused::UnknownName)?;
                if gateway.operator != *author {
                    return Err(Refused::NotAllowed);
                }
                free(self.devices.contains_key(&enrolment.device))
            }
            Action::AnnounceKey(key) => free(self.subject_key(&key.id()).is_some()),
            Action::Grant(grant) | Action::Revoke(grant) => {
                let announced = self.subject_key(&grant.key).ok_or(Refused::UnknownName)?;
                if !self.organizations.contains_key(&grant.grantee) {
                    return Err(Refused::UnknownName);
                }
                if announced.custodian == *author {
                    Ok(())
                } else {
                    Err(Refused::NotAllowed)
                }
            }
        }
    }

    fn execute(&mut self, transaction: &SignedTransaction) {
        let Author::Organization(author) = &transaction.claims().author else {
            return;
        };
        match &transaction.claims().action {
            Action::Commit(_) => {}
            Action::EnrolGateway(enrolment) => {
                let gateway = Gateway {
                    enrolment: enrolment.clone(),
                    operator: author.clone(),
                };
                self.gateways.insert(enrolment.gateway.clone(), gateway);
            }
            Action::EnrolDevice(enrolment) => {
                self.devices.insert(enrolment.device.clone(), enrolment.clone());
            }
            Action::AnnounceKey(key) => {
                let at = self.keys.partition_point(|(id, _)| *id < key.id());
                self.keys.insert(
                    at,
                    (
                        key.id(),
                        AnnouncedKey {
                            key: key.clone(),
                            custodian: author.clone(),
                        },
                    ),
                );
            }
            Action::Grant(grant) => {
                self.grants.insert(grant.clone());
            }
            Action::Revoke(grant) => {
                self.grants.remove(grant);
            }
        }
    }

    fn key_of(&self, author: &Author) -> Option<PublicKey> {
        match author {
            Author::Organization(id) => self.organizations.get(id).map(|o| o.key),
            Author::Gateway(id) => self.gateways.get(id).map(|g| g.enrolment.key),
        }
    }

    /// A member.
    #[must_use]
    pub fn organization(&self, id: &OrganizationId) -> Option<&Organization> {
        self.organizations.get(id)
    }

    /// The validators, as founded.
    #[must_use]
    pub fn validators(&self) -> &[Validator] {
        &self.validators
    }

    /// The validator whose TLS key this is.
    #[must_use]
    pub fn validator_with_tls(&self, tls: &Digest) -> Option<&Validator> {
        self.validators.iter().find(|v| v.tls == *tls)
    }

    /// The enrolled gateway whose TLS key this is.
    #[must_use]
    pub fn gateway_with_tls(&self, tls: &Digest) -> Option<&Gateway> {
        self.gateways.values().find(|g| g.enrolment.tls == *tls)
    }

    /// An enrolled device.
    #[must_use]
    pub fn device(&self, id: &DeviceId) -> Option<&DeviceEnrolment> {
        self.devices.get(id)
    }

    /// An enrolled device's key.
    #[must_use]
    pub fn device_key(&self, id: &DeviceId) -> Option<PublicKey> {
        self.devices.get(id).map(|d| d.key)
    }

    /// An announced subject key.
    #[must_use]
    pub fn subject_key(&self, id: &KeyId) -> Option<&AnnouncedKey> {
        self.keys
            .binary_search_by_key(id, |(id, _)| *id)
            .ok()
            .map(|at| &self.keys[at].1)
    }

    /// Whether a grant is in force.
    pub(crate) fn is_granted(&self, key: &KeyId, grantee: &OrganizationId) -> bool {
        self.grants.contains(&Grant {
            key: *key,
            grantee: grantee.clone(),
        })
    }
}

/// The digests that may become final once only: the transaction's, and the bundle's it commits to.
#[must_use]
pub fn identifiers(transaction: &SignedTransaction) -> Vec<Digest> {
    [Some(transaction.id().0), transaction.commitment().map(|c| c.bundle.0)]
        .into_iter()
        .flatten()
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::{
        block::tests::{child, founded},
        consent::authorize,
        transaction::Transaction,
    };
    use proptest::prelude::*;
    use record::{
        bundle::{Bundle, Category, SealedBundle},
        signature::SigningKey,
    };

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
            let author = Author::Organization(format!("org-{i}").parse().expect("good"));
            Transaction {
                network: self.genesis.network(),
                author,
                sequence: 0,
                action,
            }
            .sign(&self.keys[i])
        }

        fn enrol(&self) -> SignedTransaction {
            let (gateway, key) = ("home-1".parse().expect("good"), self.gateway.public());
            self.org(
                0,
                Action::EnrolGateway(GatewayEnrolment {
                    gateway,
                    key,
                    tls: Digest::ZERO,
                }),
            )
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
        world.apply(vec![world.org(0, Action::Revoke(grant))]);
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
        let snapshot = canonical::encode(&world.state);
        assert_eq!(
            canonical::decode::<State>(&snapshot, 1 << 20).expect("canonical"),
            world.state
        );
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
