//! Members, their fog nodes, and what members may change about both.

use record::{
    canonical::{self, Digest, Domain},
    ids::OrganizationId,
    signature::PublicKey,
};
use serde::{Deserialize, Serialize};

/// Validators of a network, at most: messages of the consensus are sized for so many.
pub const VALIDATORS_MAX: usize = 64;

/// What an organisation is in the network. The paper's "distributor" is a [`Role::Supplier`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Hospitals and practices.
    Provider,
    /// Insurers.
    Payer,
    /// Suppliers of medicine.
    Supplier,
    /// Who runs the machines.
    Operator,
}

/// A member of the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Organization {
    /// Its id.
    pub id: OrganizationId,
    /// The name people read.
    pub name: String,
    /// Its role.
    pub role: Role,
    /// The key with which it signs transactions and access tokens.
    pub key: PublicKey,
}

/// A fog node with a vote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Validator {
    /// The organisation that runs it.
    pub organization: OrganizationId,
    /// The key with which it votes and signs admissions.
    pub key: PublicKey,
    /// Its TLS public key: SHA-256 of the SubjectPublicKeyInfo.
    pub tls: Digest,
    /// Where the others reach it; founders give their addresses to each other by their configurations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Address>,
}

/// Where a validator is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Address {
    /// For votes: an IP address and a port.
    pub consensus: String,
    /// For payloads and comparisons: an `https://` URL without a path.
    pub http: String,
}

/// What members may change about themselves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// An organisation becomes a member.
    Admit(Organization),
    /// A member leaves: its signature counts no more, its gateways' neither, and what it was granted ends.
    Dismiss(OrganizationId),
    /// A fog node of a member gets a vote.
    Seat(Validator),
    /// A fog node loses its vote.
    Unseat(PublicKey),
}

/// One organisation's voice for a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Voice {
    /// What it is for.
    pub change: Change,
    /// The epoch in which it was raised; it counts in this one and the next, so that no old voice can be brought up later.
    pub epoch: u64,
}

/// The digest by which headers name a committee: over its keys, sorted.
#[must_use]
pub fn digest_of(keys: &[PublicKey]) -> Digest {
    Digest::of(Domain::COMMITTEE, &[&canonical::encode(&keys)])
}

/// The keys of some validators, sorted: the order in which the engine numbers them.
pub(crate) fn keys_of(validators: &[Validator]) -> Vec<PublicKey> {
    let mut keys: Vec<_> = validators.iter().map(|validator| validator.key).collect();
    keys.sort();
    keys
}
