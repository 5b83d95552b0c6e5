//! How a gateway hands a sealed bundle to a fog node, and the signed word it gets back: admitted, not yet final.

use record::{
    bundle::{Bundle, PAYLOAD_BYTES_MAX, SealError, SealedBundle, SubjectKey},
    canonical::{self, CanonicalError, Digest, Domain},
    document,
    ids::{BundleId, GatewayId, NetworkId},
    signature::{PublicKey, Signature, SigningKey},
};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::{
    document::DocumentCommitment,
    transaction::{Action, Author, Commitment, SignedTransaction, TRANSACTION_BYTES_MAX, Transaction},
};

/// A submission has at most this many bytes.
pub const SUBMISSION_BYTES_MAX: usize = PAYLOAD_BYTES_MAX + TRANSACTION_BYTES_MAX + 1_024;

/// The body of `POST /api/v1/bundles`: the signed commitment and the payload it commits to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Submission {
    /// The commitment, signed by the gateway.
    pub transaction: SignedTransaction,
    /// The sealed bundle.
    pub payload: ByteBuf,
}

/// Why a submission does not fit together.
#[derive(Debug, thiserror::Error)]
pub enum SubmissionError {
    /// Not a submission.
    #[error("the submission is {0}")]
    Malformed(#[from] CanonicalError),
    /// The transaction is no commitment.
    #[error("the transaction of a submission must be a commitment")]
    NoCommitment,
    /// The identifier of a document is none that a document's root has.
    #[error("a document is named by the root of its blocks: a CIDv1, dag-pb or raw, with sha2-256")]
    NoRoot,
    /// Bundle id, CID, key or author differ between payload and commitment.
    #[error("the commitment is not to this payload: its bundle id, CID, size, key or author differ")]
    Mismatch,
}

/// The commitment that a transaction makes to exactly this payload; asked by who admits it and by every voter, so that
/// nobody can order a stranger's bundle under bytes that are not that bundle.
///
/// # Errors
/// [`SubmissionError`] says what differs.
pub fn matched<'a>(transaction: &'a SignedTransaction, payload: &[u8]) -> Result<&'a Commitment, SubmissionError> {
    let commitment = transaction.commitment().ok_or(SubmissionError::NoCommitment)?;
    let sealed = SealedBundle::decode(payload)?;
    let same = commitment.bundle == SealedBundle::id_of(payload)
        && commitment.cid == canonical::cid_of(payload)
        && commitment.key == sealed.key
        && transaction.claims().author == Author::Gateway(sealed.author);
    if same {
        Ok(commitment)
    } else {
        Err(SubmissionError::Mismatch)
    }
}

/// The commitment that a transaction makes to the document that begins with these bytes and has this many; asked by who keeps
/// it and by every voter. That the bytes are those of the root is for the vault to say.
///
/// # Errors
/// [`SubmissionError`] says what differs.
pub fn matched_document<'a>(
    transaction: &'a SignedTransaction,
    (start, bytes): (&[u8], u64),
) -> Result<&'a DocumentCommitment, SubmissionError> {
    let commitment = transaction.document().ok_or(SubmissionError::NoCommitment)?;
    if !commitment.names_a_root() {
        return Err(SubmissionError::NoRoot);
    }
    let head = document::head_of(start, bytes)?;
    let same = commitment.bytes == bytes
        && commitment.key == head.key
        && transaction.claims().author == Author::Gateway(head.author);
    if same {
        Ok(commitment)
    } else {
        Err(SubmissionError::Mismatch)
    }
}

/// A submission whose payload is the one its commitment names; only [`Submission::decode`] and
/// [`MatchedSubmission::seal`] make one.
#[derive(Clone, Debug)]
pub struct MatchedSubmission {
    transaction: SignedTransaction,
    commitment: Commitment,
    payload: Vec<u8>,
}

impl MatchedSubmission {
    /// Seals a bundle to a subject's key, as a gateway of a network, which commits to it with its own key.
    ///
    /// # Errors
    /// [`SealError`]: too many bytes, or a key that cannot be sealed to.
    pub fn seal(
        (network, gateway, key): (&NetworkId, &GatewayId, &SigningKey),
        (subject, bundle): (&SubjectKey, &Bundle),
        now_ms: i64,
    ) -> Result<Self, SealError> {
        let bytes = bundle.entries.len();
        let readings = u32::try_from(bytes).map_err(|_| SealError::TooLarge { bytes })?;
        let sealed = SealedBundle::seal(network, gateway, subject, bundle)?;
        let payload = sealed.encode();
        let commitment = Commitment::to(&payload, &sealed, (bundle.root(), readings), now_ms);
        let transaction = Transaction {
            network: *network,
            author: Author::Gateway(gateway.clone()),
            sequence: 0,
            action: Action::Commit(commitment.clone()),
        };
        Ok(Self {
            transaction: transaction.sign(key),
            commitment,
            payload,
        })
    }

    /// The signed commitment; whether its author may commit is for the state to say.
    #[must_use]
    pub const fn transaction(&self) -> &SignedTransaction {
        &self.transaction
    }

    /// What it commits to.
    #[must_use]
    pub const fn commitment(&self) -> &Commitment {
        &self.commitment
    }

    /// The bytes to send.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let submission = Submission {
            transaction: self.transaction.clone(),
            payload: ByteBuf::from(self.payload.clone()),
        };
        submission.encode()
    }

    /// The payload and the transaction, to be kept.
    #[must_use]
    pub fn into_parts(self) -> (SignedTransaction, Vec<u8>) {
        (self.transaction, self.payload)
    }
}

impl Submission {
    /// The bytes to send.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        canonical::encode(self)
    }

    /// Reads a submission and checks that payload and commitment belong together.
    ///
    /// # Errors
    /// [`SubmissionError`] says what to change.
    pub fn decode(bytes: &[u8]) -> Result<MatchedSubmission, SubmissionError> {
        let submission: Self = canonical::decode(bytes, SUBMISSION_BYTES_MAX)?;
        let payload = submission.payload.into_vec();
        let commitment = matched(&submission.transaction, &payload)?.clone();
        Ok(MatchedSubmission {
            transaction: submission.transaction,
            commitment,
            payload,
        })
    }
}

/// A fog node's signed word that it holds the payload durably and has queued the commitment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Admission {
    /// The bundle.
    pub bundle: BundleId,
    /// The validator that admitted it.
    pub validator: PublicKey,
    /// When, in milliseconds since 1970, by that node's clock.
    pub admitted_ms: i64,
    /// Over domain, bundle and time.
    pub signature: Signature,
}

impl Admission {
    /// Signs an admission.
    #[must_use]
    pub fn sign(bundle: BundleId, admitted_ms: i64, key: &SigningKey) -> Self {
        let signature = key.sign(Domain::ADMISSION, &Self::signed(&bundle.0, admitted_ms));
        Self {
            bundle,
            validator: key.public(),
            admitted_ms,
            signature,
        }
    }

    /// Whether the validator it names signed it.
    #[must_use]
    pub fn is_genuine(&self) -> bool {
        self.validator
            .verify(
                Domain::ADMISSION,
                &Self::signed(&self.bundle.0, self.admitted_ms),
                &self.signature,
            )
            .is_ok()
    }

    fn signed(bundle: &Digest, admitted_ms: i64) -> Vec<u8> {
        canonical::encode(&(bundle, admitted_ms))
    }
}
