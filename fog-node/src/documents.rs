//! Large records: sealed while they come in, kept, handed to enough voters, committed to; and opened again, for whoever may read.
//!
//! A voter must hold every payload it votes for, and hundreds of megabytes do not travel within a vote's patience. So a
//! document goes the other way round than a bundle: first to two thirds of the voters, and only then into the mempool. No node
//! holds more of it in memory than a few blocks, and no disk gets a readable byte: what comes in is sealed before it is written.

pub mod desk;
mod keeping;
mod leftovers;
mod reading;
mod sealing;
mod spread;
mod uncommitted;

use std::{
    fmt, io,
    time::{Duration, Instant},
};

use bytes::Bytes;
use cid::Cid;
use futures::Stream;
use ledger::{
    block::Height,
    document::{DocumentCommitment, Payload},
    state::{Outcome, Refused},
    transaction::SignedTransaction,
};
use record::{
    bundle::Category,
    document::{HEAD_BYTES_MAX, Metadata, SEGMENT_BYTES, Sealer, padded_bytes},
    ids::{KeyId, OrganizationId, SubjectId},
    signature::{PublicKey, SigningKey},
};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

pub use self::{
    desk::Desk,
    leftovers::{GRACE, Leftovers},
    reading::Document,
    spread::ADDRESS,
};
use keeping::Keeping;
use sealing::sealed;
use uncommitted::Uncommitted;

use crate::{
    chain::{self, Chain},
    keyring::Keyring,
    mempool::{Mempool, Pending},
    turnstile::Turnstile,
    vault::{self, Held, Vault},
};

/// Documents of other nodes that are fetched here at a time, at most.
const KEPT_AT_ONCE_MAX: usize = 2;
/// Time that one attempt to fetch one may take; what came is kept for the next attempt.
const KEEP_TIMEOUT: Duration = Duration::from_secs(30);
/// So fast a document is expected to reach the other nodes, in bytes a second, beside a fixed time.
const SPREAD_BYTES_PER_S: u64 = 1 << 20;

/// What an operator may set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Who commits to documents that are handed in here.
    pub desk: desk::Config,
    /// Bytes of one document, before it is sealed, at most.
    pub bytes_max: u64,
    /// Documents that are taken in at a time, at most.
    pub uploads_max: usize,
    /// Documents that one organisation reads at a time, at most.
    pub downloads_per_organization_max: usize,
    /// Time that a document has to reach the other nodes, beside a second for each MiB.
    pub spread_timeout_ms: u64,
    /// Time that its commitment then has to become final before whoever handed it in is told that it waits.
    pub final_timeout_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            desk: desk::Config::default(),
            bytes_max: 240 << 20,
            uploads_max: 4,
            downloads_per_organization_max: 8,
            spread_timeout_ms: 60_000,
            final_timeout_ms: 30_000,
        }
    }
}

impl Config {
    /// What is wrong with it, each with the key to change.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let mut faults = self.desk.faults();
        if self.bytes_max == 0 || self.bytes_max > record::document::CONTENT_BYTES_MAX {
            let most = record::document::CONTENT_BYTES_MAX;
            faults.push(format!("documents.bytes_max must be 1 to {most}"));
        }
        for (key, value) in [
            ("uploads_max", self.uploads_max as u64),
            (
                "downloads_per_organization_max",
                self.downloads_per_organization_max as u64,
            ),
            ("spread_timeout_ms", self.spread_timeout_ms),
            ("final_timeout_ms", self.final_timeout_ms),
        ] {
            if value == 0 {
                faults.push(format!("documents.{key} must be at least 1"));
            }
        }
        faults
    }

    /// Bytes of a sealed document, at most.
    fn sealed_bytes_max(&self) -> u64 {
        let padded = padded_bytes(self.bytes_max);
        padded + (padded / SEGMENT_BYTES + 1) * 16 + HEAD_BYTES_MAX as u64
    }
}

/// Why a document was not taken, kept or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Hand it in elsewhere.
    #[error("this node takes no documents: its operator can set documents.desk.author and documents.desk.key")]
    NoDesk,
    /// Nobody that we may write about, or nobody at all; nobody can tell which.
    #[error("no such patient is in your organization's care on this node")]
    NoPatient,
    /// It can be taken when the chain has moved on.
    #[error("no key for clinical records of this patient is announced by your organization")]
    NoKey,
    /// Never send this again.
    #[error("a document may have at most {bytes_max} bytes: split it, or ask this node's operator for more")]
    TooLarge {
        /// How many it may have.
        bytes_max: u64,
    },
    /// Send it again later.
    #[error("too many documents are on their way at once")]
    Busy,
    /// The commitment breaks a rule.
    #[error("the commitment to the document is refused: {0}")]
    Refused(Refused),
    /// What was kept is not what the commitment names.
    #[error("the commitment does not fit the document: {0}")]
    Mismatch(#[from] ledger::admission::SubmissionError),
    /// Send it again later.
    #[error("only {held} of the {needed} nodes that are needed hold the document; send it again")]
    TooFew {
        /// So many hold it.
        held: usize,
        /// So many have to.
        needed: usize,
    },
    /// The keys of this node and its vault contradict the chain.
    #[error("a document on the chain does not open here: {0}")]
    Contradiction(#[from] record::document::OpenError),
    /// It cannot be sealed.
    #[error(transparent)]
    Seal(#[from] record::document::SealError),
    /// The vault did not keep or give it.
    #[error(transparent)]
    Vault(#[from] vault::Error),
    /// The chain could not be read.
    #[error(transparent)]
    Chain(#[from] chain::Error),
}

/// What became of a document that was handed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Two thirds of the voters hold it, and its commitment waits for a block.
    Admitted,
    /// Its commitment took effect at a height.
    Final(Height),
}

/// The rooms that a document goes through.
#[derive(Debug)]
pub struct Rooms {
    /// Finalized blocks and the state.
    pub chain: Chain,
    /// What waits for a block.
    pub mempool: Mempool,
    /// Where it is kept.
    pub vault: Vault,
    /// Whose it is, and what opens it.
    pub keyring: Keyring,
    /// The client for other nodes.
    pub peers: reqwest::Client,
}

/// Who this node is.
#[derive(Debug)]
pub struct Own {
    /// Its organisation, whose patients' documents are taken and read here.
    pub organization: OrganizationId,
    /// Its key, which vouches for what it holds.
    pub key: SigningKey,
    /// Who commits to documents; `None` where none are handed in.
    pub desk: Option<Desk>,
}

/// The room.
pub struct Documents {
    config: Config,
    own: Own,
    rooms: Rooms,
    uploads: Semaphore,
    kept: Semaphore,
    /// One document of a peer at a time, so that none takes all the places.
    keepers: Turnstile<PublicKey>,
    keeping: Keeping,
    readers: Turnstile<OrganizationId>,
}

impl fmt::Debug for Documents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Documents")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Documents {
    /// Opens the room.
    #[must_use]
    pub fn new(config: &Config, own: Own, rooms: Rooms) -> Self {
        Self {
            uploads: Semaphore::new(config.uploads_max),
            kept: Semaphore::new(KEPT_AT_ONCE_MAX),
            keepers: Turnstile::new(1),
            keeping: Keeping::default(),
            readers: Turnstile::new(config.downloads_per_organization_max),
            config: config.clone(),
            own,
            rooms,
        }
    }

    /// The key that documents about a subject are sealed to: the newest for clinical records that its organisation announced,
    /// of those that this node can open.
    ///
    /// # Errors
    /// [`Error::NoPatient`] for everybody who may not write about the subject; [`Error::NoKey`].
    pub fn key_for(&self, writer: &OrganizationId, subject: SubjectId) -> Result<KeyId, Error> {
        let state = self.rooms.chain.state();
        let keys = self.rooms.keyring.keys_of(subject);
        let announced = keys.iter().filter_map(|key| state.subject_key(key));
        let mut own = announced
            .filter(|known| known.custodian == self.own.organization)
            .peekable();
        if *writer != self.own.organization || own.peek().is_none() {
            return Err(Error::NoPatient);
        }
        let clinical = own.filter(|known| known.key.category == Category::Clinical);
        let newest = clinical.max_by_key(|known| known.key.epoch);
        newest.map(|known| known.key.id()).ok_or(Error::NoKey)
    }

    /// Takes a document of exactly as many bytes as its metadata says: sealed to the key, kept here, handed to two thirds of the
    /// voters, and then committed to. Returns its root, and whether it is final.
    ///
    /// # Errors
    /// [`Error`]. What was kept of a document that was not committed to goes again, also when nobody waits for the answer any more.
    pub async fn put<S>(&self, key: KeyId, metadata: &Metadata, content: S) -> Result<(Cid, Progress), Error>
    where
        S: Stream<Item = io::Result<Bytes>> + Send + 'static,
    {
        let began = Instant::now();
        let desk = self.own.desk.as_ref().ok_or(Error::NoDesk)?;
        let bytes_max = self.config.bytes_max;
        if metadata.bytes > bytes_max {
            return Err(Error::TooLarge { bytes_max });
        }
        let _inside = self.uploads.try_acquire().map_err(|_| Error::Busy)?;
        let state = self.rooms.chain.state();
        let subject = &state.subject_key(&key).ok_or(Error::NoKey)?.key;
        // Before hundreds of megabytes are read.
        admitted(desk.may_commit(&state, &key))?;
        let (sealer, head) = Sealer::begin(&state.network, (desk.author(), subject), metadata)?;
        let (sealed_bytes, sealed) = (sealer.sealed_bytes(), sealed(sealer, head, content));
        let object = self.rooms.vault.put_object(sealed, sealed_bytes).await?;
        let cid = object.held.cid();
        let uncommitted = Uncommitted::new(&self.rooms.vault, cid);
        let commitment = DocumentCommitment {
            cid,
            key,
            bytes: object.bytes,
            bucket: hour(),
        };
        let transaction = desk.commit(&state.network, commitment);
        let payload = transaction.payload().expect("a commitment has a payload");
        if let Err(error) = self.queue(transaction, (object.held, object.bytes)).await {
            // Nobody counts on it: it was not committed to.
            uncommitted.let_go().await;
            return Err(error);
        }
        uncommitted.committed();
        let patience = Duration::from_millis(self.config.final_timeout_ms);
        let became = tokio::time::timeout(patience, self.until_final(&payload)).await;
        let progress = became.unwrap_or(Ok(Progress::Admitted))?;
        metrics::histogram!("fog_documents_put_seconds").record(began.elapsed());
        metrics::counter!("fog_documents_bytes_total").increment(metadata.bytes);
        tracing::info!(%cid, bytes = object.bytes, ?progress, "a document was taken");
        Ok((cid, progress))
    }

    /// Hands a commitment and what it commits to to the others, then queues it.
    async fn queue(&self, transaction: SignedTransaction, (held, bytes): (Held, u64)) -> Result<(), Error> {
        admitted(self.rooms.chain.state().admit(&transaction))?;
        let payload = transaction.payload().expect("a commitment has a payload");
        let patience =
            Duration::from_millis(self.config.spread_timeout_ms) + Duration::from_secs(bytes / SPREAD_BYTES_PER_S);
        self.spread(&transaction, payload, patience).await?;
        // Its key may have been erased meanwhile.
        admitted(self.rooms.chain.state().admit(&transaction))?;
        let pending = Pending::bundle(transaction, held).expect("the commitment is to what was just kept");
        self.rooms
            .mempool
            .insert(pending)
            .map(|_new| ())
            .map_err(|_| Error::Busy)
    }

    async fn until_final(&self, payload: &Payload) -> Result<Progress, Error> {
        let mut heads = self.rooms.chain.watch();
        loop {
            heads.mark_unchanged();
            if let Some(placed) = self.rooms.chain.bundle(&payload.id).await? {
                return match placed.outcome {
                    Outcome::Applied => Ok(Progress::Final(placed.height)),
                    Outcome::Refused(refused) => Err(Error::Refused(refused)),
                };
            }
            if heads.changed().await.is_err() {
                return Ok(Progress::Admitted);
            }
        }
    }

    fn voters(&self) -> Vec<PublicKey> {
        let state = self.rooms.chain.state();
        state.seats().voting().iter().map(|validator| validator.key).collect()
    }
}

fn admitted(admitted: Result<(), Refused>) -> Result<(), Error> {
    admitted.map_err(Error::Refused)
}

/// The hour that a commitment names.
fn hour() -> i64 {
    let now_ms = jiff::Timestamp::now().as_millisecond();
    now_ms.div_euclid(ledger::transaction::TIME_BUCKET_MS)
}

#[cfg(test)]
mod tests;
