//! Transactions that wait to be proposed: the one turn between a request that pushes and the engine that pulls.
//!
//! It is kept in memory only: a gateway keeps a bundle until it has seen the receipt, and submits again what was lost.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
};

use cid::Cid;
use ledger::transaction::{Author, SignedTransaction, TransactionId};
use record::ids::{BundleId, KeyId};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::vault::Held;

/// How many transactions may wait.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Transactions that wait, at most; a submission beyond is answered with 503 and Retry-After.
    pub transactions_max: usize,
    /// Transactions of one author among them, at most: nobody takes the others' places.
    pub transactions_per_author_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            transactions_max: 50_000,
            transactions_per_author_max: 20_000,
        }
    }
}

/// No room: try again when blocks have been finalized.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the mempool holds as many transactions, in all or of this author, as it may; try again later")]
pub struct Full;

/// A transaction that may not wait in this form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// A commitment waits only together with the proof that its payload is held here.
    #[error("a commitment may wait only when its payload is held here")]
    PayloadNotHeld,
    /// The proof is about another payload, or the transaction commits to none.
    #[error("the held payload is not the one that the transaction commits to")]
    OtherPayload,
}

/// A transaction that may be proposed: if it commits to a payload, that payload is durable on this node.
#[derive(Clone, Debug)]
pub struct Pending(SignedTransaction);

impl Pending {
    /// A commitment, to a bundle or a document, and the proof that its payload is held here.
    ///
    /// # Errors
    /// [`Unfit::OtherPayload`].
    pub fn bundle(transaction: SignedTransaction, held: Held) -> Result<Self, Unfit> {
        let committed = transaction.payload().is_some_and(|payload| payload.cid == held.cid());
        if committed {
            Ok(Self(transaction))
        } else {
            Err(Unfit::OtherPayload)
        }
    }

    /// A transaction without a payload.
    ///
    /// # Errors
    /// [`Unfit::PayloadNotHeld`] for a commitment.
    pub fn plain(transaction: SignedTransaction) -> Result<Self, Unfit> {
        if transaction.payload().is_some() {
            Err(Unfit::PayloadNotHeld)
        } else {
            Ok(Self(transaction))
        }
    }
}

/// A waiting transaction, its identifier, and its place in the order of arrival.
#[derive(Clone, Debug)]
pub struct Queued {
    /// Later ones have a higher one.
    pub arrival: u64,
    /// Computed once.
    pub id: TransactionId,
    /// The transaction.
    pub transaction: SignedTransaction,
}

/// What waits, in the order it came.
#[derive(Debug, Default)]
struct Waiting {
    arrivals: u64,
    in_order: BTreeMap<u64, Queued>,
    places: HashMap<TransactionId, u64>,
    of_author: HashMap<Author, usize>,
    bundles: HashMap<BundleId, TransactionId>,
    /// Inserted by this node's own clients and not yet sent to the peers; some may have left the pool since.
    local: VecDeque<TransactionId>,
}

impl Waiting {
    fn knows(&self, id: &TransactionId, transaction: &SignedTransaction) -> bool {
        let bundle_waits = transaction
            .payload()
            .is_some_and(|payload| self.bundles.contains_key(&payload.id));
        bundle_waits || self.places.contains_key(id)
    }

    fn add(&mut self, id: TransactionId, transaction: SignedTransaction) {
        if let Some(payload) = transaction.payload() {
            self.bundles.insert(payload.id, id);
        }
        self.arrivals += 1;
        self.places.insert(id, self.arrivals);
        *self.of_author.entry(transaction.claims().author.clone()).or_default() += 1;
        let queued = Queued {
            arrival: self.arrivals,
            id,
            transaction,
        };
        self.in_order.insert(self.arrivals, queued);
    }

    fn remove(&mut self, id: &TransactionId) {
        let Some(Queued { transaction, .. }) = self.places.remove(id).and_then(|place| self.in_order.remove(&place))
        else {
            return;
        };
        if let Some(payload) = transaction.payload() {
            self.bundles.remove(&payload.id);
        }
        let author = &transaction.claims().author;
        if let Some(waiting) = self.of_author.get_mut(author) {
            *waiting -= 1;
            if *waiting == 0 {
                self.of_author.remove(author);
            }
        }
    }

    fn get(&self, id: &TransactionId) -> Option<&SignedTransaction> {
        Some(&self.in_order.get(self.places.get(id)?)?.transaction)
    }

    fn has_room(&self, author: &Author, limits: &Config) -> bool {
        let of_author = self.of_author.get(author).copied().unwrap_or_default();
        self.in_order.len() < limits.transactions_max && of_author < limits.transactions_per_author_max
    }
}

#[derive(Debug)]
struct Shared {
    limits: Config,
    // A lock, not a task: intake, gossip and the proposer each do a few map operations and never wait while holding it.
    waiting: Mutex<Waiting>,
    work: Notify,
    local: Notify,
}

/// The waiting transactions of this node; clones share them.
#[derive(Clone, Debug)]
pub struct Mempool(Arc<Shared>);

impl Mempool {
    /// An empty mempool.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self(Arc::new(Shared {
            limits: config.clone(),
            waiting: Mutex::default(),
            work: Notify::new(),
            local: Notify::new(),
        }))
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0
            .waiting
            .lock()
            .expect("nothing panics while it holds the mempool")
    }

    /// Queues what a client of this node submitted, to be proposed here and sent to the peers. Returns whether it is new:
    /// neither it nor another commitment to its bundle waits already.
    ///
    /// # Errors
    /// [`Full`].
    pub fn insert(&self, pending: Pending) -> Result<bool, Full> {
        let id = pending.0.id();
        let new = self.queue(pending)?;
        if new {
            self.waiting().local.push_back(id);
            self.0.local.notify_one();
        }
        Ok(new)
    }

    /// Queues what a peer gossiped; it is not sent on. Returns whether it is new.
    ///
    /// # Errors
    /// [`Full`].
    pub fn receive(&self, pending: Pending) -> Result<bool, Full> {
        self.queue(pending)
    }

    fn queue(&self, Pending(transaction): Pending) -> Result<bool, Full> {
        let id = transaction.id();
        let mut waiting = self.waiting();
        if waiting.knows(&id, &transaction) {
            return Ok(false);
        }
        if !waiting.has_room(&transaction.claims().author, &self.0.limits) {
            metrics::counter!("fog_mempool_full_total").increment(1);
            return Err(Full);
        }
        waiting.add(id, transaction);
        gauge(&waiting);
        drop(waiting);
        self.0.work.notify_one();
        Ok(true)
    }

    /// Whether a transaction waits here; if it is a commitment, its payload is then held here.
    #[must_use]
    pub fn contains(&self, id: &TransactionId) -> bool {
        self.waiting().places.contains_key(id)
    }

    /// Which payloads wait here to be named by a block.
    #[must_use]
    pub fn payloads(&self) -> Vec<Cid> {
        let waiting = self.waiting();
        let queued = waiting.in_order.values();
        queued
            .filter_map(|queued| Some(queued.transaction.payload()?.cid))
            .collect()
    }

    /// Whether a commitment to this bundle waits here.
    #[must_use]
    pub fn bundle(&self, bundle: &BundleId) -> bool {
        self.waiting().bundles.contains_key(bundle)
    }

    /// The oldest transactions that arrived after the one at `after` (0: all), at most `count_max`.
    #[must_use]
    pub fn pick(&self, after: u64, count_max: usize) -> Vec<Queued> {
        let waiting = self.waiting();
        let later = waiting.in_order.range(after.saturating_add(1)..);
        later.map(|(_, queued)| queued).take(count_max).cloned().collect()
    }

    /// Lets go of transactions that are final, or can never be.
    pub fn remove(&self, ids: &[TransactionId]) {
        let mut waiting = self.waiting();
        for id in ids {
            waiting.remove(id);
        }
        gauge(&waiting);
    }

    /// Lets go of commitments to keys that were erased; gives their payloads, which nothing else names.
    pub fn remove_committed_to(&self, is_erased: impl Fn(&KeyId) -> bool) -> Vec<Cid> {
        let mut waiting = self.waiting();
        let commitments = waiting.in_order.values().filter_map(|queued| {
            let payload = queued.transaction.payload()?;
            is_erased(&payload.key).then_some((queued.id, payload.cid))
        });
        let (ids, cids): (Vec<_>, Vec<_>) = commitments.unzip();
        for id in &ids {
            waiting.remove(id);
        }
        gauge(&waiting);
        cids
    }

    /// Returns when something was queued since the last call returned; for the one proposer.
    pub async fn wait_for_work(&self) {
        self.0.work.notified().await;
    }

    /// Waits for transactions that this node's own clients inserted, and takes note that they are sent to the peers; for
    /// the one sender.
    pub async fn take_local(&self, count_max: usize) -> Vec<SignedTransaction> {
        loop {
            let taken = self.drain_local(count_max);
            if !taken.is_empty() {
                return taken;
            }
            self.0.local.notified().await;
        }
    }

    fn drain_local(&self, count_max: usize) -> Vec<SignedTransaction> {
        let mut waiting = self.waiting();
        let mut taken = Vec::new();
        while taken.len() < count_max {
            let Some(id) = waiting.local.pop_front() else { break };
            taken.extend(waiting.get(&id).cloned());
        }
        taken
    }
}

fn gauge(waiting: &Waiting) {
    metrics::gauge!("fog_mempool_transactions").set(waiting.in_order.len() as f64);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        consensus::codec::tests::{commitment, founded},
        vault::{self, Vault},
    };
    use ledger::transaction::{Action, Grant, Transaction};
    use record::{
        canonical::{Digest, Domain},
        ids::{KeyId, NetworkId},
        signature::SigningKey,
    };

    fn grant(sequence: u64) -> SignedTransaction {
        grant_of("hospital-a", sequence)
    }

    fn grant_of(author: &str, sequence: u64) -> SignedTransaction {
        let organization: record::ids::OrganizationId = author.parse().expect("good");
        Transaction {
            network: NetworkId(Digest::ZERO),
            author: Author::Organization(organization.clone()),
            sequence,
            action: Action::Grant(Grant {
                key: KeyId(Digest::of(Domain::SUBJECT_KEY, &[])),
                grantee: organization,
            }),
        }
        .sign(&SigningKey::random())
    }

    fn plain(transaction: &SignedTransaction) -> Pending {
        Pending::plain(transaction.clone()).expect("no commitment")
    }

    #[test]
    fn the_oldest_come_first_and_each_once() {
        let mempool = Mempool::new(&Config::default());
        let transactions: Vec<_> = (0..5).map(grant).collect();
        for transaction in &transactions {
            assert_eq!(mempool.insert(plain(transaction)), Ok(true));
            assert_eq!(mempool.insert(plain(transaction)), Ok(false));
        }
        let pick = |after| {
            let picked = mempool.pick(after, 2);
            picked.into_iter().map(|queued| queued.transaction).collect::<Vec<_>>()
        };
        assert_eq!(pick(0), transactions[..2]);
        let first = mempool.pick(0, 1)[0].arrival;
        assert_eq!(pick(first), transactions[1..3]);
        mempool.remove(&[transactions[1].id()]);
        assert!(!mempool.contains(&transactions[1].id()));
        assert_eq!(pick(first), transactions[2..4]);
    }

    #[test]
    fn beyond_the_limit_is_refused() {
        let mempool = Mempool::new(&Config {
            transactions_max: 1,
            ..Config::default()
        });
        assert_eq!(mempool.insert(plain(&grant(0))), Ok(true));
        assert_eq!(mempool.insert(plain(&grant(1))), Err(Full));
    }

    #[test]
    fn one_author_does_not_take_the_others_places() {
        let mempool = Mempool::new(&Config {
            transactions_per_author_max: 2,
            ..Config::default()
        });
        let (first, second) = (grant(0), grant(1));
        assert_eq!(mempool.insert(plain(&first)), Ok(true));
        assert_eq!(mempool.insert(plain(&second)), Ok(true));
        assert_eq!(mempool.insert(plain(&grant(2))), Err(Full));
        assert_eq!(mempool.insert(plain(&grant_of("insurer-b", 0))), Ok(true));
        mempool.remove(&[first.id()]);
        assert_eq!(mempool.insert(plain(&grant(2))), Ok(true));
    }

    #[tokio::test]
    async fn only_what_came_from_own_clients_is_sent_to_the_peers() {
        let mempool = Mempool::new(&Config::default());
        let (own, gossiped, gone) = (grant(0), grant(1), grant(2));
        assert_eq!(mempool.insert(plain(&gone)), Ok(true));
        mempool.remove(&[gone.id()]);
        assert_eq!(mempool.insert(plain(&own)), Ok(true));
        assert_eq!(mempool.receive(plain(&gossiped)), Ok(true));
        assert_eq!(mempool.take_local(10).await, [own]);
    }

    #[tokio::test]
    async fn a_commitment_waits_only_with_its_own_payload_and_once_per_bundle() {
        // Set already when another test of this process was first.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let dir = tempfile::TempDir::new().expect("a folder");
        let vault = Vault::open(&vault::Config::default(), dir.path(), reqwest::Client::new())
            .await
            .expect("opens");
        let genesis = founded(&[SigningKey::random()]);
        let commit = commitment(&genesis, &SigningKey::random());
        let bundle = commit.commitment().expect("a commitment").bundle;
        assert_eq!(
            Pending::plain(commit.clone()).expect_err("no proof"),
            Unfit::PayloadNotHeld
        );
        let other = vault.put("another payload".into()).await.expect("kept");
        assert_eq!(
            Pending::bundle(commit.clone(), other).expect_err("another"),
            Unfit::OtherPayload
        );

        let held = vault.put("sealed".into()).await.expect("kept");
        let mempool = Mempool::new(&Config::default());
        assert!(!mempool.bundle(&bundle));
        assert_eq!(
            mempool.insert(Pending::bundle(commit.clone(), held).expect("its payload")),
            Ok(true)
        );
        assert!(mempool.bundle(&bundle));
        let from_elsewhere = commitment(&founded(&[SigningKey::random()]), &SigningKey::random());
        let pending = Pending::bundle(from_elsewhere, held).expect("its payload");
        assert_eq!(
            mempool.receive(pending),
            Ok(false),
            "one commitment to a bundle is enough"
        );
        mempool.remove(&[commit.id()]);
        assert!(!mempool.bundle(&bundle));
    }
}
