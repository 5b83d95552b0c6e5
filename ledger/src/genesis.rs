//! The founding document of a network: its members, validators and policy; its digest is the network's name.

use std::collections::BTreeSet;

use record::{
    canonical::{self, Digest, Domain},
    ids::NetworkId,
    merkle,
    signature::PublicKey,
};
use serde::{Deserialize, Serialize};

use crate::{
    block::{Block, Header, Height, VERSION},
    committee::{Seats, Sitting},
    member::{digest_of, keys_of},
    policy::ValidityPolicy,
};

pub use crate::member::{Address, Organization, Role, VALIDATORS_MAX, Validator};

/// The founding document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Genesis {
    /// The name people read.
    pub name: String,
    /// When it was founded, in milliseconds since 1970; no block is older.
    pub founded_ms: u64,
    /// The founding members.
    pub organizations: Vec<Organization>,
    /// The first committee; n = 3f + 1.
    pub validators: Vec<Validator>,
    /// When a block is valid (Algorithm 3).
    pub policy: ValidityPolicy,
}

/// A founding document that cannot found a network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("genesis: {0}")]
pub struct BadGenesis(String);

impl Genesis {
    /// Reads the JSON document and checks it.
    ///
    /// # Errors
    /// [`BadGenesis`] says what to change.
    pub fn from_json(text: &str) -> Result<Self, BadGenesis> {
        let genesis: Self = serde_json::from_str(text).map_err(|e| BadGenesis(e.to_string()))?;
        genesis.checked()
    }

    fn checked(self) -> Result<Self, BadGenesis> {
        let mut keys: Vec<_> = self.validators.iter().map(|v| v.key).collect();
        keys.sort();
        keys.dedup();
        if keys.is_empty() || keys.len() != self.validators.len() {
            return Err(BadGenesis(
                "validators must be at least one, each with a key of its own".to_owned(),
            ));
        }
        if self.validators.len() > VALIDATORS_MAX {
            return Err(BadGenesis(format!("at most {VALIDATORS_MAX} validators can vote")));
        }
        let tls: BTreeSet<_> = self.validators.iter().map(|v| v.tls).collect();
        if tls.len() != self.validators.len() {
            return Err(BadGenesis(
                "validators must each have a TLS key of their own".to_owned(),
            ));
        }
        let ids: BTreeSet<_> = self.organizations.iter().map(|o| &o.id).collect();
        if ids.len() != self.organizations.len() {
            return Err(BadGenesis("organizations must each have an id of their own".to_owned()));
        }
        self.policy.checked().map_err(BadGenesis)?;
        for validator in &self.validators {
            if !self.organizations.iter().any(|o| o.id == validator.organization) {
                return Err(BadGenesis(format!(
                    "validator of {} needs that organization in the list",
                    validator.organization
                )));
            }
        }
        Ok(self)
    }

    /// The network's name: the digest of the canonical document.
    #[must_use]
    pub fn network(&self) -> NetworkId {
        NetworkId(Digest::of(Domain::GENESIS, &[&canonical::encode(self)]))
    }

    /// What the blocks of the first epoch must say of committees.
    #[must_use]
    pub fn sitting(&self) -> Sitting {
        Seats::founding(&self.validators, self.policy.epoch_blocks).sitting()
    }

    /// The committee's keys, sorted: the order in which the engine numbers them.
    #[must_use]
    pub fn committee(&self) -> Vec<PublicKey> {
        keys_of(&self.validators)
    }
}

impl Block {
    /// Height 0: made from the founding document, the same on every node, never voted on.
    #[must_use]
    pub fn genesis(genesis: &Genesis) -> Self {
        let leader = *genesis.committee().first().expect("a checked genesis has a validator");
        let header = Header {
            version: VERSION,
            network: genesis.network(),
            epoch: 0,
            view: 0,
            leader,
            parent_view: 0,
            height: Height(0),
            parent: Digest::ZERO,
            timestamp_ms: genesis.founded_ms,
            transactions_root: merkle::root(&[]),
            policy: genesis.policy.id(),
            next_validators: digest_of(&genesis.committee()),
            nonce: 0,
        };
        Self {
            header,
            transactions: Vec::new(),
        }
    }
}
