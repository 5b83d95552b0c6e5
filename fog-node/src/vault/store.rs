//! The payload store as the vault sees it, whichever driver keeps the bytes: the one interface that both drivers answer.
//!
//! What a driver promises: `put` returns only when the payload is durable there and was hashed again; `read` gives bytes that
//! hash to the identifier, or nothing; `attend` also sees to it that nothing collects them; what was put before is there
//! after a crash; `remove` returns only when the payload is durably gone, and after `erase` it is never kept again. The drivers share no code but what a payload and damage are.

use std::path::Path;

use bytes::Bytes;
use cid::Cid;
use record::canonical;
use tokio::sync::mpsc;

use super::{
    Config, Driver, Error,
    embedded::{self, Embedded},
    kubo::{self, Kubo},
    objects::is_of_object,
    wanted::Message,
};

/// A store; clones share it.
#[derive(Clone)]
pub(super) enum Store {
    /// One file of this process.
    Embedded(Embedded),
    /// A daemon beside this process.
    Kubo(Box<Kubo>),
}

impl Store {
    /// Opens the configured one; it announces what it has kept.
    pub(super) async fn open(
        config: &Config,
        data_dir: &Path,
        arrivals: mpsc::WeakSender<Message>,
    ) -> Result<Self, Error> {
        Ok(match config.driver {
            Driver::Embedded => Self::Embedded(Embedded::open(config, data_dir, arrivals).await?),
            Driver::Kubo => Self::Kubo(Box::new(Kubo::open(config, data_dir, arrivals).await?)),
        })
    }

    /// Keeps a payload whose identifier the caller has computed or checked.
    pub(super) async fn put(&self, cid: Cid, payload: Bytes) -> Result<(), Error> {
        match self {
            Self::Embedded(store) => store.put(cid, payload).await,
            Self::Kubo(store) => store.put(cid, payload).await,
        }
    }

    /// The payload, if it is here and intact.
    pub(super) async fn read(&self, cid: &Cid) -> Result<Option<Bytes>, Error> {
        match self {
            Self::Embedded(store) => store.read(cid).await,
            Self::Kubo(store) => store.read(cid).await,
        }
    }

    /// As [`Store::read`]; what is here stays here, whatever somebody else let go of.
    pub(super) async fn attend(&self, cid: &Cid) -> Result<Option<Bytes>, Error> {
        match self {
            Self::Embedded(store) => store.read(cid).await,
            Self::Kubo(store) => store.attend(cid).await,
        }
    }

    /// Removes a payload, whether it is here or not: on return it is durably gone, and its bytes count no more.
    ///
    /// **Who calls it** sees to it that nobody counts on the payload: a [`super::Held`] that was given out holds no longer.
    pub(super) async fn remove(&self, cid: &Cid) -> Result<(), Error> {
        match self {
            Self::Embedded(store) => store.remove(*cid, false).await,
            Self::Kubo(store) => store.remove(*cid, false).await,
        }
    }

    /// As [`Store::remove`], for good: a payload that was erased is refused from then on.
    pub(super) async fn erase(&self, cid: &Cid) -> Result<(), Error> {
        match self {
            Self::Embedded(store) => store.remove(*cid, true).await,
            Self::Kubo(store) => store.remove(*cid, true).await,
        }
    }

    /// Whether anything lies here under this identifier, intact or not.
    pub(super) async fn has(&self, cid: &Cid) -> Result<bool, Error> {
        match self {
            Self::Embedded(store) => store.has(cid).await,
            Self::Kubo(store) => store.has(cid).await,
        }
    }

    /// SHA-256 of everything that lies here, in order, without reading any of it.
    pub(super) async fn names(&self) -> Result<Vec<[u8; 32]>, Error> {
        match self {
            Self::Embedded(store) => store.names().await,
            Self::Kubo(store) => store.names().await,
        }
    }

    /// Whether a payload was erased.
    pub(super) async fn bars(&self, cid: &Cid) -> Result<bool, Error> {
        match self {
            Self::Embedded(store) => store.bars(cid).await,
            Self::Kubo(store) => store.bars(cid).await,
        }
    }

    /// Begins an object.
    pub(super) async fn begin(&self) -> Result<Part, Error> {
        match self {
            Self::Embedded(store) => store.begin().await.map(Part::Embedded),
            Self::Kubo(store) => store.begin().map(Part::Kubo),
        }
    }

    /// Whether every block of an object is here, by what was noted of it.
    pub(super) async fn holds(&self, root: &Cid) -> Result<bool, Error> {
        match self {
            Self::Embedded(store) => store.holds(root).await,
            Self::Kubo(store) => store.holds(root).await,
        }
    }

    /// The roots of all objects that are here, without reading them.
    pub(super) async fn roots(&self) -> Result<Vec<Cid>, Error> {
        match self {
            Self::Embedded(store) => store.roots().await,
            Self::Kubo(store) => store.roots().await,
        }
    }

    /// Sees to it that nothing collects an object that is here.
    pub(super) async fn keep_on(&self, root: &Cid) -> Result<(), Error> {
        match self {
            Self::Embedded(_) => Ok(()),
            Self::Kubo(store) => store.keep_on(root).await,
        }
    }

    /// Keeps a block of an object, whose identifier the caller has compared, in place of a damaged one.
    pub(super) async fn heal(&self, root: &Cid, cid: &Cid, block: Bytes) -> Result<(), Error> {
        match self {
            Self::Embedded(store) => store.heal(cid, block).await,
            Self::Kubo(store) => store.heal(root, cid, &block).await,
        }
    }

    /// What is read next comes from the disk.
    pub(super) async fn refresh(&self) -> Result<(), Error> {
        match self {
            Self::Embedded(store) => store.refresh().await,
            Self::Kubo(store) => store.refresh().await,
        }
    }

    /// Bytes of all payloads.
    pub(super) async fn bytes(&self) -> Result<u64, Error> {
        match self {
            Self::Embedded(store) => store.bytes().await,
            Self::Kubo(store) => store.bytes().await,
        }
    }

    /// The height up to which the pass of the scrub that is under way has come; 0 between two.
    pub(super) async fn scrubbed(&self) -> Result<u64, Error> {
        match self {
            Self::Embedded(store) => store.scrubbed().await,
            Self::Kubo(store) => store.scrubbed().await,
        }
    }

    /// Notes how far a pass of the scrub has come.
    pub(super) async fn note_scrubbed(&self, height: u64) -> Result<(), Error> {
        match self {
            Self::Embedded(store) => store.note_scrubbed(height).await,
            Self::Kubo(store) => store.note_scrubbed(height).await,
        }
    }

    /// The height up to which every payload that the chain names was held.
    pub(super) async fn retained(&self) -> Result<u64, Error> {
        match self {
            Self::Embedded(store) => store.retained().await,
            Self::Kubo(store) => store.retained().await,
        }
    }

    /// Notes that every payload up to a height is held.
    pub(super) async fn note_retained(&self, height: u64) -> Result<(), Error> {
        match self {
            Self::Embedded(store) => store.note_retained(height).await,
            Self::Kubo(store) => store.note_retained(height).await,
        }
    }

    /// Whether the store can be asked at all.
    pub(super) fn answers(&self) -> bool {
        match self {
            Self::Embedded(_) => true,
            Self::Kubo(store) => store.answers(),
        }
    }

    /// Resolves when the store can be asked.
    pub(super) async fn until_it_answers(&self) {
        match self {
            Self::Embedded(_) => {}
            Self::Kubo(store) => store.until_it_answers().await,
        }
    }

    /// Where payloads lie, as an incident names it.
    pub(super) const fn place(&self) -> &'static str {
        match self {
            Self::Embedded(_) => super::embedded::FILE,
            Self::Kubo(_) => "the vault's daemon",
        }
    }
}

/// An object that is being put or fetched; what was written of it goes when it is dropped and was not kept.
pub(super) enum Part {
    /// A file.
    Embedded(embedded::Part),
    /// Blocks at the daemon, which nothing pins yet.
    Kubo(kubo::Part),
}

impl Part {
    /// Adds a block whose identifier the caller has computed or checked.
    pub(super) async fn append(&mut self, cid: &Cid, block: Bytes) -> Result<(), Error> {
        match self {
            Self::Embedded(part) => part.append(cid, block).await,
            Self::Kubo(part) => part.append(cid, block).await,
        }
    }

    /// What it has now.
    pub(super) fn reader(&self) -> Had {
        match self {
            Self::Embedded(part) => Had::Embedded(part.reader()),
            Self::Kubo(part) => Had::Kubo(part.reader()),
        }
    }

    /// Keeps it under its root, durably; the caller has seen to it that every block of the object is in it.
    pub(super) async fn keep(self, root: &Cid) -> Result<(), Error> {
        match self {
            Self::Embedded(part) => part.keep(root).await,
            Self::Kubo(part) => part.keep(root).await,
        }
    }
}

/// What a part had at one moment.
#[derive(Clone)]
pub(super) enum Had {
    /// A file.
    Embedded(embedded::Had),
    /// Blocks at the daemon.
    Kubo(kubo::Had),
}

impl Had {
    /// A block that it had, if its bytes are right.
    pub(super) async fn read(&self, cid: &Cid) -> Result<Option<Bytes>, Error> {
        match self {
            Self::Embedded(had) => had.read(cid).await,
            Self::Kubo(had) => had.read(cid).await,
        }
    }
}

/// The SHA-256 inside a CID. CIDs with other hashes never get past `canonical::parse_cid`; were one to come, nothing
/// would be found under its shortened bytes, and nothing kept, because both are compared with the payload's own CID.
pub(super) fn digest(cid: &Cid) -> [u8; 32] {
    let mut key = [0; 32];
    let bytes = cid.hash().digest();
    let length = bytes.len().min(32);
    key[..length].copy_from_slice(&bytes[..length]);
    key
}

/// The row of what belongs to this identifier alone: the SHA-256 of a payload, and for a large record one of the whole identifier. So
/// nobody reaches the row of a payload by naming its bytes under another codec.
pub(super) fn row(cid: &Cid) -> [u8; 32] {
    if is_of_object(cid) {
        digest(&canonical::cid_of(&cid.to_bytes()))
    } else {
        digest(cid)
    }
}

/// The identifier under a codec of what has this SHA-256.
pub(super) fn cid_of(codec: u64, digest: &[u8; 32]) -> Cid {
    let hash = cid::multihash::Multihash::wrap(canonical::SHA2_256, digest);
    Cid::new_v1(codec, hash.expect("32 bytes fit in a multihash of 64"))
}

/// Whether these bytes are what the identifier names.
pub(super) fn is_payload_of(cid: &Cid, payload: &[u8]) -> bool {
    canonical::cid_of(payload).hash() == cid.hash()
}

/// Counts a payload whose bytes are wrong.
pub(super) fn damaged(cid: &Cid, how: &str) {
    metrics::counter!("fog_vault_payloads_damaged_total").increment(1);
    tracing::warn!(%cid, how, "a payload on this node's disk is damaged; it counts as absent until it is fetched again");
}
