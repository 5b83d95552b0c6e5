//! Finalized blocks, in order, durable, and what follows from them: the state, and where each transaction stands.
//!
//! One redb file. A block is appended in one commit together with its votes, the outcome of each transaction, the
//! identifiers that may not become final again and, if the block changed who may do what, a snapshot of the state.
//! Between snapshots only height and rolling digest move, and both are kept with every block. **Invariants:** heights
//! have no gap; a block is appended once; every block that is read back is hashed again and compared. A file that is damaged
//! is set aside and made anew from good blocks (`repair`); nothing in it is trusted but what hashes to what was agreed.

mod erasures;
mod handovers;
mod light;
mod repair;
mod store;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, RwLock, RwLockReadGuard},
};

use ledger::{
    agreement::Position,
    block::{FinalizedBlock, Height},
    document::Payload,
    genesis::Genesis,
    proof::{CarriedBlock, Finalization, Receipt},
    state::{Outcome, State},
    transaction::{Commitment, TransactionId},
};
use record::{canonical::Digest, ids::BundleId};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::containment::is_corrupt;
use store::Store;

pub use erasures::{CommittedTo, Confirmed, ErasureProgress};
pub use repair::{Damage, Rebuilt, Source, set_aside};

/// The file in the data folder.
const FILE: &str = "chain.redb";

/// How the chain's file is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Memory for pages of the file, in bytes.
    pub cache_bytes_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            cache_bytes_max: 16 << 20,
        }
    }
}

/// The chain cannot go on. Each of these stops the node: its disk does not hold what was agreed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read or written.
    #[error("chain.redb: {0}")]
    Store(#[source] Box<redb::Error>),
    /// The data folder cannot be made.
    #[error("the chain's folder: {0}")]
    Folder(#[source] std::io::Error),
    /// What is read is not what was written.
    #[error("chain.redb is damaged: {0}")]
    Damaged(String),
    /// The file belongs to a network with another genesis.
    #[error(
        "chain.redb belongs to another network: the genesis file was changed, or the data folder is another node's"
    )]
    OtherNetwork,
    /// A block that is not the child of the last one.
    #[error("block {found} is not the child of block {head}")]
    NotNext {
        /// The chain's height.
        head: Height,
        /// The height that came.
        found: Height,
    },
}

impl Error {
    /// Whether the file holds something else than what was written: it can be made anew. A disk that fails is none.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Damaged(_) => true,
            Self::Store(error) => is_corrupt(error),
            _ => false,
        }
    }
}

impl<E: Into<redb::Error>> From<E> for Error {
    fn from(error: E) -> Self {
        Self::Store(Box::new(error.into()))
    }
}

/// The last block, and what the state is after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Its height.
    pub height: Height,
    /// Its digest.
    pub digest: Digest,
    /// The state's rolling digest after it.
    pub state_digest: Digest,
    /// When it was proposed, in milliseconds since 1970.
    pub timestamp_ms: u64,
}

/// Where a transaction stands, and what became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Placed {
    /// The block.
    pub height: Height,
    /// Its position in the block.
    pub index: u32,
    /// What became of it.
    pub outcome: Outcome,
}

#[derive(Debug)]
struct Shared {
    genesis: Genesis,
    path: PathBuf,
    cache_bytes_max: usize,
    // Readers share it; it is taken exclusively only to open the file anew, and to put a new one in its place.
    store: RwLock<Store>,
    // The one writer's turn; it is held while a commit is synced, by the engine's delivery alone.
    writer: Mutex<()>,
    state: watch::Sender<Arc<State>>,
    head: watch::Sender<Head>,
}

/// The chain of this node; clones share it.
#[derive(Clone, Debug)]
pub struct Chain(Arc<Shared>);

impl Chain {
    /// Opens `chain.redb` in the data folder, or founds it with the genesis block.
    ///
    /// # Errors
    /// [`Error`].
    pub fn open(config: &Config, data_dir: &Path, genesis: &Genesis) -> Result<Self, Error> {
        std::fs::create_dir_all(data_dir).map_err(Error::Folder)?;
        let path = data_dir.join(FILE);
        let store = Store::open(&path, config.cache_bytes_max)?;
        let (state, head) = match store.last(genesis)? {
            Some(last) => last,
            None => store.found(genesis)?,
        };
        metrics::gauge!("fog_chain_height").set(head.height.0 as f64);
        let (state, head) = (watch::Sender::new(Arc::new(state)), watch::Sender::new(head));
        Ok(Self(Arc::new(Shared {
            genesis: genesis.clone(),
            path,
            cache_bytes_max: config.cache_bytes_max,
            store: RwLock::new(store),
            writer: Mutex::new(()),
            state,
            head,
        })))
    }

    /// Asks the file. Its library may panic over a page that was altered: that is damage, and no reason to stop.
    fn ask<T>(&self, question: impl FnOnce(&Store) -> Result<T, Error>) -> Result<T, Error> {
        repair::guarded(|| question(&self.store()))
    }

    fn store(&self) -> RwLockReadGuard<'_, Store> {
        self.0.store.read().expect("nobody panics while it holds the file")
    }

    /// The last block.
    #[must_use]
    pub fn head(&self) -> Head {
        *self.0.head.borrow()
    }

    /// Follows the last block; it is also touched when an earlier block becomes provable.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Head> {
        self.0.head.subscribe()
    }

    /// The state after the last block, or a block that was appended just now.
    #[must_use]
    pub fn state(&self) -> Arc<State> {
        Arc::clone(&self.0.state.borrow())
    }

    /// Follows the state.
    #[must_use]
    pub fn states(&self) -> watch::Receiver<Arc<State>> {
        self.0.state.subscribe()
    }

    /// The block at a height.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn block(&self, height: Height) -> Result<Option<FinalizedBlock>, Error> {
        self.read(move |store| store.block(height)).await
    }

    /// The block at a height, read on the caller's thread: for the engine's own threads.
    ///
    /// # Errors
    /// [`Error`].
    pub fn block_now(&self, height: Height) -> Result<Option<FinalizedBlock>, Error> {
        self.ask(|store| store.block(height))
    }

    /// What the commitments of the block at a height that took effect say of their payloads, bundles and documents, in its
    /// order; `None` above the head. What was erased is left out: it is meant to be absent.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn payloads(&self, height: Height) -> Result<Option<Vec<Payload>>, Error> {
        let mut payloads = self.read(move |store| store.payloads(height)).await?;
        let state = self.state();
        if let Some(payloads) = &mut payloads {
            payloads.retain(|payload| state.tombstone(&payload.key).is_none());
        }
        Ok(payloads)
    }

    /// The commitments to bundles of the block at a height that took effect, in its order; `None` above the head.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn commitments(&self, height: Height) -> Result<Option<Vec<Commitment>>, Error> {
        self.read(move |store| store.commitments(height)).await
    }

    /// Where a transaction stands.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn transaction(&self, id: &TransactionId) -> Result<Option<Placed>, Error> {
        let digest = id.0;
        self.read(move |store| store.placed(&digest)).await
    }

    /// Where the commitment to a bundle stands.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn bundle(&self, id: &BundleId) -> Result<Option<Placed>, Error> {
        let digest = id.0;
        self.read(move |store| store.placed(&digest)).await
    }

    /// The receipt of a bundle: `None` until its block, or one of the next [`ledger::proof::DESCENT_MAX`] blocks, carries votes.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn receipt(&self, bundle: &BundleId) -> Result<Option<String>, Error> {
        let bundle = *bundle;
        self.read(move |store| receipt(store, &bundle)).await
    }

    async fn read<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Store) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let chain = self.clone();
        tokio::task::spawn_blocking(move || chain.ask(question))
            .await
            .expect("reading the chain does not panic")
    }

    /// The height at which a transaction or bundle took effect. A short lookup on the caller's thread.
    ///
    /// # Errors
    /// [`Error`].
    pub fn took_effect_at(&self, identifier: &Digest) -> Result<Option<Height>, Error> {
        self.ask(|store| store.took_effect_at(identifier))
    }

    /// The digest of the block at a height. A short lookup on the caller's thread.
    ///
    /// # Errors
    /// [`Error`].
    pub fn digest_at(&self, height: Height) -> Result<Option<Digest>, Error> {
        self.ask(|store| store.digest_at(height))
    }

    /// What this chain is at a height; `None` above the head. A short lookup on the caller's thread.
    ///
    /// # Errors
    /// [`Error`].
    pub fn position_at(&self, height: Height) -> Result<Option<Position>, Error> {
        self.ask(|store| store.position_at(height))
    }

    /// The block at a height with its votes, as it is handed to another node.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn carried(&self, height: Height) -> Result<Option<CarriedBlock>, Error> {
        let block = self.block(height).await?;
        Ok(block.map(|finalized| CarriedBlock {
            block: finalized.block,
            finalization: finalized.finalization,
        }))
    }

    /// Appends the next block; it is durable when this returns.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn append(&self, block: FinalizedBlock) -> Result<Vec<Outcome>, Error> {
        let chain = self.clone();
        let outcomes = tokio::task::spawn_blocking(move || chain.append_all(&[block])).await;
        Ok(outcomes.expect("appending does not panic")?.remove(0))
    }

    /// Appends the next blocks in one commit, on the caller's thread; they are durable when this returns.
    ///
    /// # Errors
    /// [`Error`]; nothing was appended then.
    ///
    /// # Panics
    /// Never, unless another writer panicked.
    pub fn append_all(&self, blocks: &[FinalizedBlock]) -> Result<Vec<Vec<Outcome>>, Error> {
        let _turn = self.0.writer.lock().expect("a writer does not panic");
        let mut state = State::clone(&self.state());
        let before = self.head();
        let (head, outcomes) = self.ask(|store| store.append(&mut state, before, blocks))?;
        self.0.state.send_replace(Arc::new(state));
        self.0.head.send_replace(head);
        metrics::gauge!("fog_chain_height").set(head.height.0 as f64);
        let transactions: usize = outcomes.iter().map(Vec::len).sum();
        metrics::counter!("fog_chain_transactions_total").increment(transactions as u64);
        Ok(outcomes)
    }

    /// Keeps the votes on a block that was appended without them, on the caller's thread.
    ///
    /// # Errors
    /// [`Error`].
    ///
    /// # Panics
    /// Never, unless another writer panicked.
    pub fn attach(&self, height: Height, finalization: &Finalization) -> Result<(), Error> {
        let _turn = self.0.writer.lock().expect("a writer does not panic");
        self.ask(|store| store.attach(height, finalization))?;
        self.0.head.send_modify(|_| {});
        Ok(())
    }
}

fn receipt(store: &Store, bundle: &BundleId) -> Result<Option<String>, Error> {
    // A commitment that was ordered but refused is in a block too: it gets no receipt.
    let Some(placed) = store
        .placed(&bundle.0)?
        .filter(|placed| placed.outcome == Outcome::Applied)
    else {
        return Ok(None);
    };
    let Some(block) = store.block(placed.height)? else {
        return Err(Error::Damaged(format!("block {} is missing", placed.height)));
    };
    let proof = light::proof_of(store, &block)?;
    let receipt = proof.and_then(|proof| {
        let descendants = proof.headers.into_iter().skip(1).collect();
        Receipt::of(&block.block, placed.index as usize, descendants, proof.finalization)
    });
    Ok(receipt.map(|r| r.to_json()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consensus::codec::tests::{child, commitment, enrolments_of, founded};
    use ledger::{
        block::Block,
        handover::Committees,
        proof::{Vote, vote_message},
        state::Refused,
    };
    use record::signature::SigningKey;
    use std::{
        sync::atomic::{AtomicBool, Ordering},
        thread,
    };
    use tempfile::TempDir;

    struct Bench {
        dir: TempDir,
        keys: Vec<SigningKey>,
        gateway: SigningKey,
        genesis: Genesis,
    }

    impl Bench {
        fn new() -> Self {
            let keys: Vec<_> = (0..4).map(|_| SigningKey::random()).collect();
            let genesis = founded(&keys);
            Self {
                dir: TempDir::new().expect("a folder"),
                keys,
                gateway: SigningKey::random(),
                genesis,
            }
        }

        fn open(&self) -> Chain {
            Chain::open(&Config::default(), self.dir.path(), &self.genesis).expect("opens")
        }

        /// Two blocks: the first enrols, the second commits.
        fn blocks(&self) -> [Block; 2] {
            let enrolments = enrolments_of(&self.genesis, &self.keys[0], &self.gateway);
            let first = child(&self.genesis, &Block::genesis(&self.genesis), enrolments);
            let second = child(&self.genesis, &first, vec![commitment(&self.genesis, &self.gateway)]);
            [first, second]
        }

        fn votes(&self, block: &Block) -> Finalization {
            let message = vote_message(&block.header);
            let vote = |key: &SigningKey| Vote {
                validator: key.public(),
                signature: key.sign_raw(&message),
            };
            let mut votes: Vec<_> = self.keys.iter().map(vote).collect();
            votes.sort_by_key(|vote| vote.validator);
            Finalization { votes }
        }

        fn verify(&self, receipt: &str) -> BundleId {
            let committees = Committees::founding(&self.genesis);
            Receipt::verify(receipt, &committees).expect("holds").bundle()
        }
    }

    fn unproven(block: &Block) -> FinalizedBlock {
        FinalizedBlock {
            block: block.clone(),
            digest: block.header.digest(),
            finalization: None,
        }
    }

    #[tokio::test]
    async fn a_chain_is_the_same_after_it_was_closed_and_opened() {
        let bench = Bench::new();
        let [first, second] = bench.blocks();
        let chain = bench.open();
        assert_eq!(
            chain.append(unproven(&first)).await.expect("appends"),
            [Outcome::Applied; 2]
        );
        assert_eq!(
            chain.append(unproven(&second)).await.expect("appends"),
            [Outcome::Applied]
        );
        let (head, state) = (chain.head(), chain.state());
        assert_eq!(head.height, Height(2));
        drop(chain);
        let again = bench.open();
        assert_eq!((again.head(), again.state()), (head, state));
        assert_eq!(again.block(Height(2)).await.expect("reads"), Some(unproven(&second)));
        let placed = again.transaction(&second.transactions[0].id()).await.expect("reads");
        assert_eq!(
            placed,
            Some(Placed {
                height: Height(2),
                index: 0,
                outcome: Outcome::Applied
            })
        );
    }

    #[test]
    fn only_the_next_block_is_appended_and_all_of_a_batch_or_nothing() {
        let bench = Bench::new();
        let [first, second] = bench.blocks();
        let chain = bench.open();
        assert!(matches!(
            chain.append_all(&[unproven(&second)]),
            Err(Error::NotNext { .. })
        ));
        let gap = child(&bench.genesis, &second, vec![]);
        assert!(chain.append_all(&[unproven(&first), unproven(&gap)]).is_err());
        assert_eq!(chain.head().height, Height(0));
        assert_eq!(
            chain
                .append_all(&[unproven(&first), unproven(&second)])
                .expect("appends")
                .len(),
            2
        );
    }

    #[tokio::test]
    async fn a_receipt_comes_with_the_votes_on_the_block_or_on_a_descendant() {
        let bench = Bench::new();
        let [first, second] = bench.blocks();
        let third = child(&bench.genesis, &second, vec![]);
        let bundle = second.transactions[0].commitment().expect("a commitment").bundle;
        let chain = bench.open();
        chain
            .append_all(&[unproven(&first), unproven(&second)])
            .expect("appends");
        assert_eq!(chain.receipt(&bundle).await.expect("reads"), None);
        let proven = FinalizedBlock {
            finalization: Some(bench.votes(&third)),
            ..unproven(&third)
        };
        chain.append_all(&[proven]).expect("appends");
        let through_descendant = chain.receipt(&bundle).await.expect("reads").expect("provable");
        assert_eq!(bench.verify(&through_descendant), bundle);
        chain.attach(Height(2), &bench.votes(&second)).expect("attaches");
        let direct = chain.receipt(&bundle).await.expect("reads").expect("provable");
        assert_eq!(bench.verify(&direct), bundle);
        assert!(direct.len() < through_descendant.len());
    }

    #[tokio::test]
    async fn a_refused_transaction_may_take_effect_later_and_then_once() {
        let bench = Bench::new();
        let [_, second] = bench.blocks();
        let (commit, enrolments) = (
            second.transactions.clone(),
            enrolments_of(&bench.genesis, &bench.keys[0], &bench.gateway),
        );
        let id = commit[0].id();
        let chain = bench.open();
        let mut parent = Block::genesis(&bench.genesis);
        let mut outcomes = Vec::new();
        for transactions in [commit.clone(), enrolments, commit.clone(), commit] {
            parent = child(&bench.genesis, &parent, transactions);
            outcomes.push(chain.append(unproven(&parent)).await.expect("appends")[0]);
        }
        let refused = Outcome::Refused;
        let expected = [
            refused(Refused::NotAllowed),
            Outcome::Applied,
            Outcome::Applied,
            refused(Refused::AlreadyFinal),
        ];
        assert_eq!(outcomes, expected);
        assert_eq!(
            chain.transaction(&id).await.expect("reads").expect("placed").height,
            Height(3)
        );
        assert_eq!(chain.took_effect_at(&id.0).expect("reads"), Some(Height(3)));
    }

    #[tokio::test]
    async fn a_changed_byte_on_the_disk_is_never_served() {
        let bench = Bench::new();
        let [first, _] = bench.blocks();
        bench.open().append(unproven(&first)).await.expect("appends");
        let bytes = first.encode();
        for at in (0..bytes.len()).step_by(37) {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            store::tests::overwrite(&bench.dir.path().join("chain.redb"), Height(1), &changed);
            match Chain::open(&Config::default(), bench.dir.path(), &bench.genesis) {
                Ok(chain) => assert!(
                    matches!(chain.block(Height(1)).await, Err(Error::Damaged(_))),
                    "byte {at}"
                ),
                Err(error) => assert!(matches!(error, Error::Damaged(_)), "byte {at}: {error}"),
            }
        }
    }

    #[tokio::test]
    async fn a_register_that_was_changed_on_the_disk_is_not_opened() {
        let bench = Bench::new();
        let [first, second] = bench.blocks();
        let chain = bench.open();
        chain.append(unproven(&first)).await.expect("appends");
        chain.append(unproven(&second)).await.expect("appends");
        drop(chain);
        let path = bench.dir.path().join("chain.redb");
        store::tests::change_snapshot(&path, |bytes| {
            // The operator of the gateway becomes another member: well-formed, and not what the blocks made.
            let at = bytes.windows(5).rposition(|w| w == b"org-0").expect("a custodian");
            bytes[at + 4] = b'1';
        });
        let opened = Chain::open(&Config::default(), bench.dir.path(), &bench.genesis);
        assert!(matches!(opened, Err(Error::Damaged(_))), "{opened:?}");
    }

    /// Good blocks, as peers have them, and whom they were asked of.
    struct Copies(Vec<Block>);

    impl Source for Copies {
        fn fetch(&self, height: Height, digest: &Digest) -> Option<(CarriedBlock, String)> {
            let block = self.0.iter().find(|block| block.header.height == height)?;
            let carried = CarriedBlock {
                block: block.clone(),
                finalization: None,
            };
            (block.header.digest() == *digest).then(|| (carried, "a peer".to_owned()))
        }
    }

    /// A chain of a few blocks, and copies of them.
    fn filled(bench: &Bench) -> (Chain, Copies) {
        let [first, second] = bench.blocks();
        let mut blocks = vec![first, second];
        for _ in 0..6 {
            let parent = blocks.last().expect("some");
            blocks.push(child(&bench.genesis, parent, vec![]));
        }
        let chain = bench.open();
        let finalized: Vec<_> = blocks.iter().map(unproven).collect();
        chain.append_all(&finalized).expect("appends");
        (chain, Copies(blocks))
    }

    #[test]
    fn a_sound_chain_is_left_alone() {
        let bench = Bench::new();
        let (chain, _) = filled(&bench);
        assert_eq!(chain.scrub(|_| {}), None);
    }

    #[test]
    fn whatever_row_is_changed_is_found_and_made_good() {
        for (name, change) in store::tests::CHANGES {
            let bench = Bench::new();
            let (chain, copies) = filled(&bench);
            let (head, state) = (chain.head(), chain.state());
            chain.store().change(change);
            let damage = chain.scrub(|_| {});
            assert!(damage.is_some(), "{name} was not found");
            let rebuilt = chain.rebuild(&copies).expect("made anew");
            assert_eq!((chain.head(), chain.state()), (head, state), "{name}");
            assert_eq!(chain.scrub(|_| {}), None, "{name}: {rebuilt:?}");
            assert!(rebuilt.evidence.exists(), "the damaged file is kept");
            drop(chain);
            let again = bench.open();
            assert_eq!(again.head(), head, "{name}: the new file is the one that is opened");
        }
    }

    #[test]
    fn a_register_that_was_changed_is_found_however_fast_blocks_come() {
        let bench = Bench::new();
        let (chain, copies) = filled(&bench);
        let is_over = AtomicBool::new(false);
        let damage = thread::scope(|scope| {
            scope.spawn(|| {
                let mut parent = copies.0.last().expect("some").clone();
                while !is_over.load(Ordering::Relaxed) {
                    parent = child(&bench.genesis, &parent, vec![]);
                    chain.append_all(&[unproven(&parent)]).expect("appends");
                }
            });
            let (name, change) = store::tests::CHANGES[6];
            assert_eq!(name, "the register");
            chain.store().change(change);
            let damage = chain.scrub(|_| {});
            is_over.store(true, Ordering::Relaxed);
            damage
        });
        assert_eq!(damage.expect("found").place, "the register");
    }

    #[test]
    fn a_block_that_no_copy_has_stops_the_repair_and_changes_nothing() {
        let bench = Bench::new();
        let (chain, _) = filled(&bench);
        let (_, change) = store::tests::CHANGES[0];
        chain.store().change(change);
        assert!(matches!(chain.rebuild(&Copies(vec![])), Err(Error::Damaged(_))));
        assert_eq!(chain.head().height, Height(8));
    }

    /// A byte of a running node's file, anywhere in it.
    #[test]
    fn a_flipped_byte_of_the_file_is_found_and_made_good_or_is_in_no_use() {
        let bench = Bench::new();
        let (chain, copies) = filled(&bench);
        let (head, path) = (chain.head(), bench.dir.path().join(FILE));
        let mut found = 0;
        for part in 0..24 {
            let mut bytes = std::fs::read(&path).expect("reads");
            let at = bytes.len() / 24 * part + 77;
            bytes[at] ^= 1;
            std::fs::write(&path, bytes).expect("writes");
            if chain.scrub(|_| {}).is_some() {
                found += 1;
                chain.rebuild(&copies).expect("made anew");
            }
            assert_eq!(chain.head(), head);
            assert_eq!(chain.scrub(|_| {}), None, "byte {at}");
        }
        assert!(found > 0, "some of these bytes are in use");
    }

    #[test]
    fn the_chain_of_another_network_is_not_opened() {
        let (bench, other) = (Bench::new(), Bench::new());
        drop(bench.open());
        let opened = Chain::open(&Config::default(), bench.dir.path(), &other.genesis);
        assert!(matches!(opened, Err(Error::OtherNetwork)));
    }
}
