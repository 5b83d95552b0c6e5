//! Who may do what: members, validators, gateways, devices, announced keys, grants. What a snapshot of the state holds.

mod gateways;

use std::collections::{BTreeMap, BTreeSet};

use record::{
    bundle::SubjectKey,
    canonical::{self, Digest, Domain},
    ids::{DeviceId, GatewayId, KeyId, NetworkId, OrganizationId},
    signature::PublicKey,
};
use serde::{Deserialize, Serialize};

use crate::{
    committee::{Change, Seats, Unheard},
    genesis::{Genesis, Organization, Validator},
    handover::Committees,
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

/// The custodian's last word on one key and one reader. It stays after a revocation: an older word must not come after it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Decision {
    grant: Grant,
    /// The sequence of the transaction that said it; the next one's is higher.
    sequence: u64,
    in_force: bool,
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
    /// A later word on the same key and reader took effect: a grant that was held back cannot undo a revocation.
    #[error("its sequence is not above the last decision's on this key and reader; sign it again with a higher one")]
    Stale,
    /// A change of the members that cannot be made as things stand.
    #[error(
        "the change names what is not there or is there already, or is decided; a validator leaves before its member"
    )]
    Impossible,
    /// A voice of another epoch: it counts in the one it names and the next.
    #[error("the voice is of another epoch; raise it again")]
    OtherEpoch,
    /// The organisation asks for too many changes at once.
    #[error("too many changes of this organisation are open; wait until they are decided or have lapsed")]
    TooMany,
}

impl From<Unheard> for Refused {
    fn from(unheard: Unheard) -> Self {
        match unheard {
            Unheard::NoElector => Self::NotAllowed,
            Unheard::Impossible => Self::Impossible,
            Unheard::Stale => Self::OtherEpoch,
            Unheard::TooMany => Self::TooMany,
        }
    }
}

impl Refused {
    /// Whether it was right a little earlier, perhaps: a name that was taken, a decision or a voice that was overtaken. Such a
    /// transaction may be ordered; it is refused when it is executed.
    #[must_use]
    pub const fn depends_on_when(self) -> bool {
        matches!(
            self,
            Self::NameTaken | Self::AlreadyFinal | Self::Stale | Self::Impossible | Self::OtherEpoch | Self::TooMany
        )
    }

    /// Whether it may become right when the chain has moved on.
    #[must_use]
    pub const fn may_pass_later(self) -> bool {
        matches!(self, Self::NotAllowed | Self::UnknownName)
    }
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
    devices: BTreeMap<DeviceId, DeviceEnrolment>,
    /// Sorted by id; a list, because a map of the canonical encoding has text keys only.
    keys: Vec<(KeyId, AnnouncedKey)>,
    /// Sorted by grant, for the same reason.
    decisions: Vec<Decision>,
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
        match (&claims.author, &claims.action) {
            (Author::Gateway(author), Action::Commit(commitment)) => {
                self.may_commit(author, claims.sequence, commitment)
            }
            (Author::Organization(author), action) => self.may_decide(author, claims.sequence, action),
            (Author::Gateway(_), _) => Err(Refused::NotAllowed),
        }
    }

    /// Whether a commitment in a final block took effect there, as far as a later state can tell: what a former member's
    /// gateway committed stands, so membership is not asked.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn committed(&self, transaction: &SignedTransaction) -> Result<(), Refused> {
        let claims = transaction.claims();
        let (Author::Gateway(author), Action::Commit(commitment)) = (&claims.author, &claims.action) else {
            return Err(Refused::NotAllowed);
        };
        let gateway = self.gateways.get(author).ok_or(Refused::NotAllowed)?;
        if claims.network != self.network || !transaction.is_signed_by(&gateway.enrolment.key) {
            return Err(Refused::WrongSignature);
        }
        self.may_commit(author, claims.sequence, commitment)
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

    fn may_decide(&self, author: &OrganizationId, sequence: u64, action: &Action) -> Result<(), Refused> {
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
            Action::Voice(voice) => {
                if let Change::Admit(organization) = &voice.change
                    && self.dismissed.contains(&organization.id)
                {
                    return Err(Refused::Impossible);
                }
                Ok(self.seats.hear(author, voice, &self.organizations)?)
            }
            Action::Grant(grant) | Action::Revoke(grant) => {
                let announced = self.subject_key(&grant.key).ok_or(Refused::UnknownName)?;
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

    /// What follows from a transaction that was admitted.
    pub(crate) fn execute(&mut self, transaction: &SignedTransaction) {
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
                let is_members = self.organizations.contains_key(&gateway.operator);
                is_members.then_some(gateway.enrolment.key)
            }
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
        let grant = Grant {
            key: *key,
            grantee: grantee.clone(),
        };
        self.decision(&grant).is_some_and(|decision| decision.in_force)
    }
}
