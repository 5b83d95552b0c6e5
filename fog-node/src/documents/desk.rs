//! Who commits to the documents that are handed in at this node: a gateway of its organisation, enrolled as any other.

use std::path::PathBuf;

use ledger::{
    document::DocumentCommitment,
    state::{Refused, State},
    transaction::{Action, Author, SignedTransaction, Transaction},
};
use record::{
    ids::{GatewayId, KeyId, NetworkId},
    signature::SigningKey,
};
use serde::{Deserialize, Serialize};

/// Who commits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The name under which it is enrolled. Without it no documents are taken here.
    pub author: Option<GatewayId>,
    /// Its private key, PKCS#8 PEM, readable by the owner alone.
    pub key: Option<PathBuf>,
}

impl Config {
    pub(super) fn faults(&self) -> Vec<String> {
        if self.author.is_some() == self.key.is_some() {
            Vec::new()
        } else {
            vec!["documents.desk needs both author and key, or neither".to_owned()]
        }
    }
}

/// A name and its key.
#[derive(Clone, Debug)]
pub struct Desk {
    author: GatewayId,
    key: SigningKey,
}

impl Desk {
    /// The desk with this name and key.
    #[must_use]
    pub const fn new(author: GatewayId, key: SigningKey) -> Self {
        Self { author, key }
    }

    pub(super) const fn author(&self) -> &GatewayId {
        &self.author
    }

    /// Whether the state would admit a commitment to this key: asked before the document is read.
    pub(super) fn may_commit(&self, state: &State, key: &KeyId) -> Result<(), Refused> {
        let gateway = state.gateway(&self.author).ok_or(Refused::UnknownName)?;
        let custodian = state.subject_key(key).map(|announced| &announced.custodian);
        if gateway.revoked.is_some() {
            return Err(Refused::Revoked);
        }
        if gateway.enrolment.key != self.key.public() {
            return Err(Refused::WrongSignature);
        }
        if custodian == Some(&gateway.operator) {
            Ok(())
        } else {
            Err(Refused::NotAllowed)
        }
    }

    pub(super) fn commit(&self, network: &NetworkId, document: DocumentCommitment) -> SignedTransaction {
        let transaction = Transaction {
            network: *network,
            author: Author::Gateway(self.author.clone()),
            sequence: 0,
            action: Action::CommitDocument(document),
        };
        transaction.sign(&self.key)
    }
}
