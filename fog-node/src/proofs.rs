//! What an observer keeps instead of a chain: the newest final header, the state, and the proofs of what it may read.
//!
//! One redb file. **Invariants:** a header is appended only when it is the child of the one before and two thirds voted for it
//! or a descendant; the head moves only to a height whose header, state and commitments are all known; a bundle that is
//! learned after its height was handed on is in the list of late ones until the index has noted it.

mod store;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
};

use ledger::{
    block::{Block, Height},
    consent,
    genesis::Genesis,
    light::{CarriedHeader, CarriedState, Fork, IncludedInBlock},
    state::State,
};
use record::{
    canonical::Digest,
    ids::{BundleId, KeyId, OrganizationId},
};
use tokio::sync::watch;

use crate::chain::Head;
use store::Store;

/// The file in the data folder.
const FILE: &str = "proofs.redb";

/// The proofs cannot be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read or written.
    #[error("proofs.redb: {0}")]
    Store(#[source] Box<redb::Error>),
    /// The data folder cannot be made.
    #[error("the folder of the proofs: {0}")]
    Folder(#[source] std::io::Error),
    /// What is read is not what was written.
    #[error("proofs.redb is damaged ({0}): delete it and index.sqlite, both are made anew from the fog nodes")]
    Damaged(&'static str),
    /// The file belongs to a network with another genesis.
    #[error("proofs.redb belongs to another network")]
    OtherNetwork,
}

impl<E: Into<redb::Error>> From<E> for Error {
    fn from(error: E) -> Self {
        Self::Store(Box::new(error.into()))
    }
}

/// What is remembered of a header that was followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// Its digest.
    pub digest: Digest,
    /// When it was proposed, in milliseconds since 1970.
    pub timestamp_ms: u64,
}

/// What fog nodes said of commitments, checked.
#[derive(Clone, Debug, Default)]
pub struct Learned {
    /// Blocks with commitments to keys of ours.
    pub blocks: Vec<IncludedInBlock>,
    /// The height up to which all commitments to a key are known.
    pub keys: Vec<(KeyId, Height)>,
    /// The height up to which they are known for every key that was asked for from the start.
    pub through: Option<Height>,
}

#[derive(Debug)]
struct Shared {
    store: Store,
    // The follower writes it, everybody reads it; held for a copy.
    anchor: Mutex<CarriedHeader>,
    head: watch::Sender<Head>,
    state: watch::Sender<Arc<State>>,
    forked: watch::Sender<bool>,
}

/// The proofs of an observer; clones share them.
#[derive(Clone, Debug)]
pub struct Proofs(Arc<Shared>);

impl Proofs {
    /// Opens `proofs.redb` in the data folder, or begins it with the genesis.
    ///
    /// # Errors
    /// [`Error`].
    pub fn open(data_dir: &Path, genesis: &Genesis) -> Result<Self, Error> {
        std::fs::create_dir_all(data_dir).map_err(Error::Folder)?;
        let store = Store::open(&data_dir.join(FILE))?;
        let (anchor, head, state) = match store.last(genesis)? {
            Some(last) => last,
            None => begin(&store, genesis)?,
        };
        let forked = store.fork()?.is_some();
        metrics::gauge!("fog_follow_height").set(head.height.0 as f64);
        Ok(Self(Arc::new(Shared {
            store,
            anchor: Mutex::new(anchor),
            head: watch::Sender::new(head),
            state: watch::Sender::new(Arc::new(state)),
            forked: watch::Sender::new(forked),
        })))
    }

    fn anchor_mut(&self) -> MutexGuard<'_, CarriedHeader> {
        self.0.anchor.lock().expect("nobody panics while it holds the anchor")
    }

    /// The newest final header, with the votes on it (the genesis has none).
    #[must_use]
    pub fn anchor(&self) -> CarriedHeader {
        self.anchor_mut().clone()
    }

    /// The last height of which header, state and commitments are known.
    #[must_use]
    pub fn head(&self) -> Head {
        *self.0.head.borrow()
    }

    /// Follows the head.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Head> {
        self.0.head.subscribe()
    }

    /// The state after the head.
    #[must_use]
    pub fn state(&self) -> Arc<State> {
        Arc::clone(&self.0.state.borrow())
    }

    /// Follows the state.
    #[must_use]
    pub fn states(&self) -> watch::Receiver<Arc<State>> {
        self.0.state.subscribe()
    }

    /// Whether two thirds of the validators voted for two blocks of one height: nothing can be believed any more.
    #[must_use]
    pub fn is_forked(&self) -> bool {
        *self.0.forked.borrow()
    }

    /// Keeps the evidence; from now on nothing is followed or answered.
    ///
    /// # Errors
    /// [`Error`].
    pub fn keep_fork(&self, fork: &Fork) -> Result<(), Error> {
        self.0.forked.send_replace(true);
        self.0.store.keep_fork(fork)
    }

    /// What is remembered of the header at a height; the newest some thousand are.
    ///
    /// # Errors
    /// [`Error`].
    pub fn header_at(&self, height: Height) -> Result<Option<Remembered>, Error> {
        self.0.store.header_at(height)
    }

    /// The height up to which commitments are known.
    ///
    /// # Errors
    /// [`Error`].
    pub fn through(&self) -> Result<Height, Error> {
        self.0.store.through()
    }

    /// The height up to which the commitments to each key are known.
    ///
    /// # Errors
    /// [`Error`].
    pub fn keys(&self) -> Result<BTreeMap<KeyId, Height>, Error> {
        self.0.store.keys()
    }

    /// How many keys an organisation may read of which not all commitments are known yet: they were granted lately.
    ///
    /// # Errors
    /// [`Error`].
    pub fn keys_behind(&self, organization: &OrganizationId) -> Result<usize, Error> {
        let (state, through) = (self.state(), self.through()?);
        let is_behind =
            |(key, known): &(KeyId, Height)| *known < through && consent::authorize(&state, organization, key).is_ok();
        Ok(self.keys()?.into_iter().filter(is_behind).count())
    }

    /// Appends final headers above the anchor; the last of them, with its votes, is the new anchor.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn extend(&self, headers: Vec<CarriedHeader>) -> Result<(), Error> {
        self.write(move |proofs| {
            proofs.0.store.extend(&headers)?;
            if let Some(anchor) = headers.into_iter().next_back() {
                *proofs.anchor_mut() = anchor;
            }
            Ok(())
        })
        .await
    }

    /// Takes in what was learned; gives how many bundles are new.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn learn(&self, learned: Learned) -> Result<u64, Error> {
        self.write(move |proofs| proofs.0.store.learn(&learned, proofs.head().height))
            .await
    }

    /// Moves the head: its header is final, its state witnessed, its commitments learned.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn adopt(&self, mut carried: CarriedState, state: State, timestamp_ms: u64) -> Result<(), Error> {
        let head = Head {
            height: carried.position.height,
            digest: carried.position.digest,
            state_digest: carried.position.state_digest,
            timestamp_ms,
        };
        self.write(move |proofs| {
            let register = (proofs.state().register_digest() != state.register_digest() || proofs.head().height.0 == 0)
                .then(|| state.register());
            carried.register = None;
            proofs.0.store.adopt(&carried, register, &head)?;
            proofs.0.state.send_replace(Arc::new(state));
            proofs.0.head.send_replace(head);
            metrics::gauge!("fog_follow_height").set(head.height.0 as f64);
            Ok(())
        })
        .await
    }

    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let proofs = self.clone();
        tokio::task::spawn_blocking(move || work(&proofs))
            .await
            .expect("writing proofs does not panic")
    }

    /// The commitments at a height that we may read, and what proves them.
    ///
    /// # Errors
    /// [`Error`].
    pub fn included(&self, height: Height) -> Result<Option<IncludedInBlock>, Error> {
        self.0.store.included(height)
    }

    /// The first height above one at which something is known.
    ///
    /// # Errors
    /// [`Error`].
    pub fn next(&self, above: Height) -> Result<Option<Height>, Error> {
        self.0.store.next(above)
    }

    /// The receipt of a bundle that we may read.
    ///
    /// # Errors
    /// [`Error`].
    pub fn receipt(&self, bundle: &BundleId) -> Result<Option<String>, Error> {
        let Some(height) = self.0.store.place(bundle)? else {
            return Ok(None);
        };
        let block = self.0.store.included(height)?.ok_or(Error::Damaged("included"))?;
        let is_it = |included: &&ledger::light::Included| {
            let payload = included.transaction.payload();
            payload.is_some_and(|payload| payload.id == *bundle)
        };
        let receipt = block
            .included
            .iter()
            .find(is_it)
            .and_then(|included| block.receipt(included));
        Ok(receipt.map(|receipt| receipt.to_json()))
    }

    /// Bundles that were learned after their height was handed on.
    ///
    /// # Errors
    /// [`Error`].
    pub fn late(&self) -> Result<Vec<(BundleId, Height)>, Error> {
        self.0.store.late()
    }

    /// Forgets late bundles that the index has noted.
    ///
    /// # Errors
    /// [`Error`].
    pub fn forget_late(&self, bundles: &[(BundleId, Height)]) -> Result<(), Error> {
        self.0.store.forget_late(bundles)
    }
}

/// Begins with the genesis: final by definition.
fn begin(store: &Store, genesis: &Genesis) -> Result<store::Last, Error> {
    let header = Block::genesis(genesis).header;
    let head = Head {
        height: header.height,
        digest: header.digest(),
        state_digest: State::genesis(genesis).digest(),
        timestamp_ms: header.timestamp_ms,
    };
    let anchor = CarriedHeader {
        header,
        finalization: None,
    };
    let state = store.found(genesis, (&anchor, &head))?;
    Ok((anchor, head, state))
}

#[cfg(test)]
impl Proofs {
    /// Bytes of the file that hold something; the file is larger, it grows in steps.
    pub(crate) fn bytes_kept(&self) -> u64 {
        self.0.store.bytes_kept().expect("reads")
    }
}
