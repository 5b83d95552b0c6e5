//! Who may do what: members, validators, gateways, devices, announced keys, grants. What a snapshot of the state holds.

mod edge;
mod erasure;

use std::collections::{BTreeMap, BTreeSet};

use record::{
    bundle::SubjectKey,
    canonical::{self, Digest, Domain},
    ids::{DeviceId, GatewayId, KeyId, NetworkId, OrganizationId},
    signature::PublicKey,
};
use serde::{Deserialize, Serialize};

pub use crate::refused::Refused;
use crate::{
    block::Height,
    committee::{Change, Seats},
    device::{Device, Moment},
    genesis::{Genesis, Organization, Validator},
    handover::Committees,
    transaction::{Action, Author, GatewayEnrolment, Grant, SignedTransaction},
};
pub use erasure::Tombstone;

/// An enrolled gateway and who operates it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gateway {
    /// As enrolled.
    pub enrolment: GatewayEnrolment,
    /// Who enrolled it.
    pub operator: OrganizationId,
    /// When it, or a device that reports to it, was changed last.
    pub changed: Height,
    /// Since when it may not commit any more; for good.
    pub revoked: Option<Moment>,
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

/// The custodian's last word on one key and one reader. It stays after a revocation: an older word must not come after it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Decision {
    grant: Grant,
    /// The sequence of the transaction that said it; the next one's is higher.
    sequence: u64,
    in_force: bool,
}

/// Everything that decides what a transaction may do, of one network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Register {
    /// The network.
    pub network: NetworkId,
    organizations: BTreeMap<OrganizationId, Organization>,
    /// Names of former members: whoever took one would take the rights that go with it.
    dismissed: BTreeSet<OrganizationId>,
    seats: Seats,
    gateways: BTreeMap<GatewayId, Gateway>,
    devices: BTreeMap<DeviceId, Device>,
    /// Sorted by id; a list, because a map of the canonical encoding has text keys only.
    keys: Vec<(KeyId, AnnouncedKey)>,
    /// Sorted by grant, for the same reason.
    decisions: Vec<Decision>,
    /// Erased keys, sorted by id; a network in which nothing was erased has the digest that it had before there were any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    erased: Vec<(KeyId, Tombstone)>,
}

impl Register {
    /// What the founders agreed on.
    #[must_use]
    pub fn genesis(genesis: &Genesis) -> Self {
        let member = |o: &Organization| (o.id.clone(), o.clone());
        Self {
            network: genesis.network(),
            organizations: genesis.organizations.iter().map(member).collect(),
            dismissed: BTreeSet::new(),
            seats: Seats::founding(&genesis.validators, genesis.policy.epoch_blocks),
            gateways: BTreeMap::new(),
            devices: BTreeMap::new(),
            keys: Vec::new(),
            decisions: Vec::new(),
            erased: Vec::new(),
        }
    }

    /// The digest of all of it: whoever changes a grant on a disk changes this.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(Domain::REGISTER, &[&canonical::encode(self)])
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
        match (&claims.author, transaction.payload()) {
            (Author::Gateway(author), Some(payload)) => self.may_commit(author, claims.sequence, &payload.key),
            (Author::Organization(author), _) => self.may_decide(author, claims.sequence, &claims.action),
            (Author::Validator(_), _) => self.may_confirm(claims.sequence, &claims.action),
            (Author::Gateway(_), None) => Err(Refused::NotAllowed),
        }
    }

    /// Whether a commitment in the final block at a height took effect there, as far as a later state can tell: what a former
    /// member's gateway committed stands, so membership is not asked. In the very block that revokes its gateway it may have
    /// come before or after that.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn committed(&self, transaction: &SignedTransaction, at: Height) -> Result<(), Refused> {
        let claims = transaction.claims();
        let (Author::Gateway(author), Some(payload)) = (&claims.author, transaction.payload()) else {
            return Err(Refused::NotAllowed);
        };
        let gateway = self.gateways.get(author).ok_or(Refused::NotAllowed)?;
        if claims.network != self.network || !transaction.is_signed_by(&gateway.enrolment.key) {
            return Err(Refused::WrongSignature);
        }
        if gateway.revoked.is_some_and(|revoked| at > revoked.height) {
            return Err(Refused::Revoked);
        }
        self.may_commit(author, claims.sequence, &payload.key)
    }

    /// A gateway commits for the people of its own operator, to bundles and to documents: nobody else's gateway can write into
    /// their records.
    fn may_commit(&self, author: &GatewayId, sequence: u64, key: &KeyId) -> Result<(), Refused> {
        let operator = self.gateways.get(author).map(|gateway| &gateway.operator);
        let announced = self.announced(key)?;
        if sequence == 0 && operator == Some(&announced.custodian) {
            Ok(())
        } else {
            Err(Refused::NotAllowed)
        }
    }

    fn may_decide(&self, author: &OrganizationId, sequence: u64, action: &Action) -> Result<(), Refused> {
        let free = |taken: bool| if taken { Err(Refused::NameTaken) } else { Ok(()) };
        match action {
            Action::Commit(_) | Action::CommitDocument(_) | Action::ConfirmErasure(_) => Err(Refused::NotAllowed),
            Action::EnrolGateway(enrolment) => {
                // A copied TLS or signing key would lock its owner out.
                let copied =
                    |other: &Gateway| other.enrolment.tls == enrolment.tls || other.enrolment.key == enrolment.key;
                free(self.gateways.contains_key(&enrolment.gateway) || self.gateways.values().any(copied))
            }
            Action::EnrolDevice(enrolment) => {
                self.operated(author, &enrolment.gateway)?;
                if !enrolment.is_proven(&self.network) {
                    return Err(Refused::NotPossessed);
                }
                free(self.devices.contains_key(&enrolment.device))
            }
            Action::RotateDevice(rotation) => self
                .device_of(author, &rotation.device)?
                .may_rotate(&self.network, rotation),
            Action::RevokeDevice(device) => self.device_of(author, device).map(|_| ()),
            Action::RevokeGateway(gateway) => self.operated(author, gateway),
            Action::AnnounceKey(key) => match self.announced(&key.id()) {
                Err(Refused::UnknownName) => Ok(()),
                known => known.and(Err(Refused::NameTaken)),
            },
            Action::Erase(erasure) => self.may_erase(author, erasure),
            Action::Voice(voice) => {
                if let Change::Admit(organization) = &voice.change
                    && self.dismissed.contains(&organization.id)
                {
                    return Err(Refused::Impossible);
                }
                Ok(self.seats.hear(author, voice, &self.organizations)?)
            }
            Action::Grant(grant) | Action::Revoke(grant) => {
                let announced = self.announced(&grant.key)?;
                if !self.organizations.contains_key(&grant.grantee) {
                    return Err(Refused::UnknownName);
                }
                if announced.custodian != *author {
                    return Err(Refused::NotAllowed);
                }
                match self.decision(grant) {
                    Some(last) if sequence <= last.sequence => Err(Refused::Stale),
                    _ => Ok(()),
                }
            }
        }
    }

    /// What follows from a transaction that was admitted, in the block of this moment.
    pub(crate) fn execute(&mut self, transaction: &SignedTransaction, at: Moment) {
        let Author::Organization(author) = &transaction.claims().author else {
            return;
        };
        match &transaction.claims().action {
            Action::Commit(_) | Action::CommitDocument(_) | Action::ConfirmErasure(_) => {}
            Action::Erase(erasure) => self.erase(erasure, transaction.id(), at),
            Action::EnrolGateway(enrolment) => {
                let gateway = Gateway {
                    enrolment: enrolment.clone(),
                    operator: author.clone(),
                    changed: at.height,
                    revoked: None,
                };
                self.gateways.insert(enrolment.gateway.clone(), gateway);
            }
            Action::EnrolDevice(enrolment) => self.enrol(enrolment, at),
            Action::RotateDevice(rotation) => {
                self.change_device(&rotation.device, at, |device| device.rotate(rotation, at))
            }
            Action::RevokeDevice(device) => self.change_device(device, at, |device| device.revoke(at)),
            Action::RevokeGateway(id) => {
                if let Some(gateway) = self.gateways.get_mut(id) {
                    (gateway.revoked, gateway.changed) = (Some(at), at.height);
                }
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
            Action::Grant(grant) => self.decide(grant, transaction.claims().sequence, true),
            Action::Revoke(grant) => self.decide(grant, transaction.claims().sequence, false),
            Action::Voice(voice) => {
                if let Some(change) = self.seats.count(author, voice) {
                    self.change(&change);
                }
            }
        }
    }

    /// The last block of an epoch was applied: the next committee sits.
    pub(crate) fn turn(&mut self) {
        self.seats.turn();
    }

    fn change(&mut self, change: &Change) {
        match change {
            Change::Admit(organization) => {
                self.organizations.insert(organization.id.clone(), organization.clone());
            }
            Change::Dismiss(id) => {
                self.organizations.remove(id);
                self.dismissed.insert(id.clone());
                let theirs = |decision: &&mut Decision| decision.grant.grantee == *id;
                for decision in self.decisions.iter_mut().filter(theirs) {
                    decision.in_force = false;
                }
            }
            Change::Seat(_) | Change::Unseat(_) => self.seats.decide(change),
        }
    }

    fn decide(&mut self, grant: &Grant, sequence: u64, in_force: bool) {
        let decision = Decision {
            grant: grant.clone(),
            sequence,
            in_force,
        };
        match self.decisions.binary_search_by(|known| known.grant.cmp(grant)) {
            Ok(at) => self.decisions[at] = decision,
            Err(at) => self.decisions.insert(at, decision),
        }
    }

    fn decision(&self, grant: &Grant) -> Option<&Decision> {
        let at = self.decisions.binary_search_by(|known| known.grant.cmp(grant));
        at.ok().map(|at| &self.decisions[at])
    }

    fn key_of(&self, author: &Author) -> Option<PublicKey> {
        match author {
            Author::Organization(id) => self.organizations.get(id).map(|o| o.key),
            Author::Gateway(id) => {
                let gateway = self.gateways.get(id)?;
                let may = gateway.revoked.is_none() && self.organizations.contains_key(&gateway.operator);
                may.then_some(gateway.enrolment.key)
            }
            Author::Validator(key) => self.seats.all().any(|seated| seated.key == *key).then_some(*key),
        }
    }

    /// A member.
    #[must_use]
    pub fn organization(&self, id: &OrganizationId) -> Option<&Organization> {
        self.organizations.get(id)
    }

    /// Who votes, now and next.
    #[must_use]
    pub const fn seats(&self) -> &Seats {
        &self.seats
    }

    /// Who votes in which epoch, as far as it is decided.
    #[must_use]
    pub fn committees(&self) -> Committees {
        Committees::registered(self.network, self.seats.eras())
    }

    /// The validator whose TLS key this is.
    #[must_use]
    pub fn validator_with_tls(&self, tls: &Digest) -> Option<&Validator> {
        self.seats.all().find(|v| v.tls == *tls)
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
        let grant = Grant {
            key: *key,
            grantee: grantee.clone(),
        };
        self.decision(&grant).is_some_and(|decision| decision.in_force)
    }
}
