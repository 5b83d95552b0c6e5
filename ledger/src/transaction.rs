//! What an author signs: typed transactions, the paper's smart contracts. No SQL on the wire, nothing that names a person.

use std::fmt;

use cid::Cid;
use record::{
    bundle::{SealedBundle, SubjectKey},
    canonical::{self, CanonicalError, Digest, Domain},
    ids::{BundleId, DeviceId, GatewayId, KeyId, NetworkId, OrganizationId},
    signature::{PublicKey, Signature, SigningKey},
};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::{
    document::{DocumentCommitment, Payload},
    member::Voice,
    possession::Possession,
};

/// A signed transaction has at most this many bytes: it is a commitment, not a record.
pub const TRANSACTION_BYTES_MAX: usize = 4_096;
/// Width of the time bucket a commitment names, in milliseconds: an hour says little about when somebody was measured.
pub const TIME_BUCKET_MS: i64 = 3_600_000;

/// The identifier of a transaction: the digest of its signed body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TransactionId(pub Digest);

impl fmt::Display for TransactionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Who signs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Author {
    /// A member, with the key of its entry.
    Organization(OrganizationId),
    /// An enrolled gateway, with its own key.
    Gateway(GatewayId),
    /// A node with a seat, with the key that it votes with.
    Validator(PublicKey),
}

/// What is said about a sealed bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Commitment {
    /// The bundle: digest of the payload under our domain.
    pub bundle: BundleId,
    /// The payload, as any IPFS peer names it.
    pub cid: Cid,
    /// The subject key that opens it.
    pub key: KeyId,
    /// Merkle root over the salted readings.
    pub root: Digest,
    /// How many readings it holds.
    pub count: u32,
    /// Hour in which it was sealed: number of [`TIME_BUCKET_MS`] since 1970.
    pub bucket: i64,
}

impl Commitment {
    /// The commitment to a payload, whose batch has this root and count, sealed at this time.
    #[must_use]
    pub fn to(payload: &[u8], sealed: &SealedBundle, batch: (Digest, u32), sealed_ms: i64) -> Self {
        Self {
            bundle: SealedBundle::id_of(payload),
            cid: canonical::cid_of(payload),
            key: sealed.key,
            root: batch.0,
            count: batch.1,
            bucket: sealed_ms.div_euclid(TIME_BUCKET_MS),
        }
    }
}

/// A gateway that may commit bundles and documents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatewayEnrolment {
    /// Its id.
    pub gateway: GatewayId,
    /// The key with which it signs commitments.
    pub key: PublicKey,
    /// Its TLS public key: SHA-256 of the SubjectPublicKeyInfo.
    pub tls: Digest,
}

/// A device whose signed readings count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceEnrolment {
    /// Its id.
    pub device: DeviceId,
    /// The key with which it signs readings.
    pub key: PublicKey,
    /// The gateway it reports to.
    pub gateway: GatewayId,
    /// By the key, for this network, gateway and device: nobody enrols a key that is somebody else's.
    pub proof: Possession,
}

impl DeviceEnrolment {
    /// The enrolment of a device whose private key is at hand.
    #[must_use]
    pub fn of(network: &NetworkId, (gateway, device): (GatewayId, DeviceId), key: &SigningKey) -> Self {
        let proof = Possession::prove(network, (&gateway, &device), key);
        Self {
            device,
            key: key.public(),
            gateway,
            proof,
        }
    }

    /// Whether the key proves itself.
    #[must_use]
    pub fn is_proven(&self, network: &NetworkId) -> bool {
        self.proof.holds(network, (&self.gateway, &self.device), &self.key)
    }
}

/// Another key for a device, from now on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rotation {
    /// The device.
    pub device: DeviceId,
    /// Its present key: a rotation that was held back finds another one.
    pub from: PublicKey,
    /// Its next key.
    pub to: PublicKey,
    /// By the next key.
    pub proof: Possession,
    /// What the present key signed counts still if the gateway received it up to this time after the block, in milliseconds;
    /// 0 if the key may be in wrong hands.
    pub overlap_ms: u64,
}

/// Permission for an organisation to read what a subject key opens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// The subject key.
    pub key: KeyId,
    /// Who may read.
    pub grantee: OrganizationId,
}

/// The tombstone of a subject key: nothing is committed to it any more, and every node lets go of what was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Erasure {
    /// The subject key.
    pub key: KeyId,
}

/// What became of the private half of an erased key at a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PrivateHalf {
    /// It was here, and is destroyed.
    Destroyed,
    /// It was never here, as far as this node knows.
    NeverHeld,
}

/// A node's word that it holds nothing of an erased key any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Confirmation {
    /// The erased key.
    pub key: KeyId,
    /// The transaction that erased it.
    pub tombstone: TransactionId,
    /// How many payloads the chain commits to the key.
    pub payloads: u64,
    /// [`crate::erasure::digest_of`] their identifiers: who has the chain can check it.
    pub cids: Digest,
    /// What became of the private half.
    pub private_half: PrivateHalf,
}

/// What a transaction does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// A gateway commits to a sealed bundle.
    Commit(Commitment),
    /// A gateway commits to a sealed document.
    CommitDocument(DocumentCommitment),
    /// An organisation enrols a gateway it operates.
    EnrolGateway(GatewayEnrolment),
    /// An organisation enrols devices at a gateway it operates.
    EnrolDevice(DeviceEnrolment),
    /// A gateway's operator gives one of its devices another key.
    RotateDevice(Rotation),
    /// A gateway's operator takes a device out, for good: what it measures from now on does not count.
    RevokeDevice(DeviceId),
    /// A gateway's operator takes it out, for good: it commits nothing any more.
    RevokeGateway(GatewayId),
    /// The custodian announces a subject's public key and becomes its first reader.
    AnnounceKey(SubjectKey),
    /// The custodian of a key grants another organisation the reading of what it opens.
    Grant(Grant),
    /// The custodian takes a grant back.
    Revoke(Grant),
    /// An organisation raises its voice for a change of the members.
    Voice(Voice),
    /// The custodian erases a key, for good.
    Erase(Erasure),
    /// A node with a seat confirms that it holds nothing of an erased key any more.
    ConfirmErasure(Confirmation),
}

impl Action {
    /// The word used in the API, in metrics and in the block explorer.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Commit(_) => "commit",
            Self::CommitDocument(_) => "commit-document",
            Self::EnrolGateway(_) => "enrol-gateway",
            Self::EnrolDevice(_) => "enrol-device",
            Self::RotateDevice(_) => "rotate-device",
            Self::RevokeDevice(_) => "revoke-device",
            Self::RevokeGateway(_) => "revoke-gateway",
            Self::AnnounceKey(_) => "announce-key",
            Self::Grant(_) => "grant",
            Self::Revoke(_) => "revoke",
            Self::Voice(_) => "voice",
            Self::Erase(_) => "erase",
            Self::ConfirmErasure(_) => "confirm-erasure",
        }
    }
}

/// A transaction's body: for which network, by whom, what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transaction {
    /// The network it is meant for.
    pub network: NetworkId,
    /// Who says so.
    pub author: Author,
    /// Makes two equal actions of one author distinct; 0 for commitments and confirmations of erasures, which must not be.
    pub sequence: u64,
    /// What is said.
    pub action: Action,
}

impl Transaction {
    /// Signs it. The signature covers the exact bytes that travel.
    #[must_use]
    pub fn sign(self, key: &SigningKey) -> SignedTransaction {
        let body = canonical::encode(&self);
        let signature = key.sign(Domain::TRANSACTION, &body);
        SignedTransaction {
            transaction: self,
            wire: Wire {
                body: ByteBuf::from(body),
                signature,
            },
        }
    }
}

/// As it travels and as it is hashed: the body's bytes and the signature over them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    body: ByteBuf,
    signature: Signature,
}

/// A well-formed transaction with a signature that is not yet checked: only the state knows the author's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedTransaction {
    transaction: Transaction,
    wire: Wire,
}

impl SignedTransaction {
    /// Reads the bytes of a signed transaction.
    ///
    /// # Errors
    /// [`CanonicalError`]: too large, malformed, or not canonical.
    pub fn decode(bytes: &[u8]) -> Result<Self, CanonicalError> {
        Self::of_wire(canonical::decode(bytes, TRANSACTION_BYTES_MAX)?)
    }

    fn of_wire(wire: Wire) -> Result<Self, CanonicalError> {
        let transaction = canonical::decode(&wire.body, TRANSACTION_BYTES_MAX)?;
        Ok(Self { transaction, wire })
    }

    /// The bytes of the signed transaction.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        canonical::encode(&self.wire)
    }

    /// Its identifier: over the body alone, so that a second signature is no second transaction.
    #[must_use]
    pub fn id(&self) -> TransactionId {
        TransactionId(Digest::of(Domain::TRANSACTION, &[&self.wire.body]))
    }

    /// Its leaf in the block's Merkle tree: over body and signature.
    #[must_use]
    pub fn leaf(&self) -> Digest {
        Digest::of(Domain::TRANSACTION, &[&self.encode()])
    }

    /// What it claims.
    #[must_use]
    pub const fn claims(&self) -> &Transaction {
        &self.transaction
    }

    /// The payload that it commits to, if it is a commitment to a bundle or a document.
    #[must_use]
    pub fn payload(&self) -> Option<Payload> {
        match &self.transaction.action {
            Action::Commit(Commitment { bundle, cid, key, .. }) => Some(Payload {
                id: *bundle,
                cid: *cid,
                key: *key,
            }),
            Action::CommitDocument(document) => Some(Payload {
                id: DocumentCommitment::id_of(&document.cid),
                cid: document.cid,
                key: document.key,
            }),
            _ => None,
        }
    }

    /// The commitment to a document, if it is one.
    #[must_use]
    pub const fn document(&self) -> Option<&DocumentCommitment> {
        match &self.transaction.action {
            Action::CommitDocument(document) => Some(document),
            _ => None,
        }
    }

    /// The commitment to a bundle, if it is one.
    #[must_use]
    pub const fn commitment(&self) -> Option<&Commitment> {
        match &self.transaction.action {
            Action::Commit(commitment) => Some(commitment),
            _ => None,
        }
    }

    /// Whether `key` signed it.
    #[must_use]
    pub fn is_signed_by(&self, key: &PublicKey) -> bool {
        key.verify(Domain::TRANSACTION, &self.wire.body, &self.wire.signature)
            .is_ok()
    }
}

impl Serialize for SignedTransaction {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            // JSON (receipts): the canonical bytes in hex, so that no re-encoding can change what was signed.
            serializer.serialize_str(&hex::encode(self.encode()))
        } else {
            self.wire.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for SignedTransaction {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error as _;
        if deserializer.is_human_readable() {
            let bytes = hex::decode(String::deserialize(deserializer)?).map_err(D::Error::custom)?;
            Self::decode(&bytes).map_err(D::Error::custom)
        } else {
            Self::of_wire(Wire::deserialize(deserializer)?).map_err(D::Error::custom)
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use record::bundle::Category;

    pub(crate) fn network() -> NetworkId {
        NetworkId(Digest::of(Domain::GENESIS, &[b"test"]))
    }

    pub(crate) fn by(author: Author, action: Action, key: &SigningKey) -> SignedTransaction {
        Transaction {
            network: network(),
            author,
            sequence: 0,
            action,
        }
        .sign(key)
    }

    fn announcement(key: &SigningKey) -> SignedTransaction {
        let subject = SubjectKey {
            public: vec![7; 32],
            category: Category::Vitals,
            epoch: 1,
        };
        by(
            Author::Organization("hospital-a".parse().expect("good")),
            Action::AnnounceKey(subject),
            key,
        )
    }

    proptest! {
        #[test]
        fn a_flipped_byte_is_another_transaction_or_none(at: usize, with in 1u8..=255) {
            let key = SigningKey::random();
            let signed = announcement(&key);
            let mut bytes = signed.encode();
            let at = at % bytes.len();
            bytes[at] ^= with;
            if let Ok(other) = SignedTransaction::decode(&bytes) {
                prop_assert!(!other.is_signed_by(&key.public()));
                prop_assert_ne!(other.leaf(), signed.leaf());
            }
        }
    }

    #[test]
    fn both_encodings_give_the_same_transaction_back() {
        let signed = announcement(&SigningKey::random());
        assert_eq!(SignedTransaction::decode(&signed.encode()).expect("canonical"), signed);
        let json = serde_json::to_string(&signed).expect("encodes");
        assert_eq!(
            serde_json::from_str::<SignedTransaction>(&json).expect("decodes"),
            signed
        );
    }
}
