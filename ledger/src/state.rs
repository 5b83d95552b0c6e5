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
            organizations: genesis.organizations.iter().map(|o| (o.id.clone(), o.clone())).collect(),
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
        assert_eq!(block.header.height, self.height.next(), "finalized blocks are applied in order, once each");
        let mut here = BTreeSet::new();
        let mut outcomes = Vec::with_capacity(block.transactions.len());
        for transaction in &block.transactions {
            let seen = identifiers(transaction);
            let known = seen.iter().any(|digest| here.contains(digest) || finals.contains(digest));
            let outcome = if known { Err(Refused::AlreadyFinal) } else { self.admit(transaction) };
            if outcome.is_ok() {
                here.extend(seen);
                self.execute(transaction);
            }
            outcomes.push(outcome.map_or_else(Outcome::Refused, |()| Outcome::Applied));
        }
        self.height = block.header.height;
        let block_digest = block.header.digest();
        self.digest = Digest::of(Domain::STATE, &[self.digest.as_bytes(), block_digest.as_bytes(), &canonical::encode(&outcomes)]);
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
            (Author::Gateway(_), Action::Commit(commitment)) => self.may_commit(claims.sequence, commitment),
            (Author::Organization(author), action) => self.may_decide(author, action),
            (Author::Gateway(_), _) => Err(Refused::NotAllowed),
        }
    }

    fn may_commit(&self, sequence: u64, commitment: &Commitment) -> Result<(), Refused> {
        if sequence != 0 {
            return Err(Refused::NotAllowed);
        }
        self.subject_key(&commitment.key).map(|_| ()).ok_or(Refused::UnknownName)
    }

    fn may_decide(&self, author: &OrganizationId, action: &Action) -> Result<(), Refused> {
        let free = |taken: bool| if taken { Err(Refused::NameTaken) } else { Ok(()) };
        match action {
            // Members are founded; adding one is a vote of the members (issue "step 2"), never one member's word.
            Action::Commit(_) | Action::EnrolOrganization(_) => Err(Refused::NotAllowed),
            Action::EnrolGateway(enrolment) => free(self.gateways.contains_key(&enrolment.gateway)),
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
                if announced.custodian == *author { Ok(()) } else { Err(Refused::NotAllowed) }
            }
        }
    }

    fn execute(&mut self, transaction: &SignedTransaction) {
        let Author::Organization(author) = &transaction.claims().author else { return };
        match &transaction.claims().action {
            Action::Commit(_) | Action::EnrolOrganization(_) => {}
            Action::EnrolGateway(enrolment) => {
                let gateway = Gateway { enrolment: enrolment.clone(), operator: author.clone() };
                self.gateways.insert(enrolment.gateway.clone(), gateway);
            }
            Action::EnrolDevice(enrolment) => {
                self.devices.insert(enrolment.device.clone(), enrolment.clone());
            }
            Action::AnnounceKey(key) => {
                let at = self.keys.partition_point(|(id, _)| *id < key.id());
                self.keys.insert(at, (key.id(), AnnouncedKey { key: key.clone(), custodian: author.clone() }));
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

    /// An enrolled device's key.
    #[must_use]
    pub fn device_key(&self, id: &DeviceId) -> Option<PublicKey> {
        self.devices.get(id).map(|d| d.key)
    }

    /// An announced subject key.
    #[must_use]
    pub fn subject_key(&self, id: &KeyId) -> Option<&AnnouncedKey> {
        self.keys.binary_search_by_key(id, |(id, _)| *id).ok().map(|at| &self.keys[at].1)
    }

    /// Whether a grant is in force.
    pub(crate) fn is_granted(&self, key: &KeyId, grantee: &OrganizationId) -> bool {
        self.grants.contains(&Grant { key: *key, grantee: grantee.clone() })
    }
}

/// The digests that may become final once only: the transaction's, and the bundle's it commits to.
#[must_use]
pub fn identifiers(transaction: &SignedTransaction) -> Vec<Digest> {
    [Some(transaction.id().0), transaction.commitment().map(|c| c.bundle.0)].into_iter().flatten().collect()
}
