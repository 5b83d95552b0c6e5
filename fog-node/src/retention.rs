//! Sees to it that this node holds the payload of every final bundle and document: the chain says which, the vault remembers how far.
//!
//! A validator votes only with the payloads in hand; what was ordered while this node was away, or was lost since, is fetched
//! here. There is one queue of what is missing, whoever found it out: this task, which reads the chain, or who looks after what
//! is held (`possession`). The height up to which everything was held lies in the vault's own file, so that it is lost together with the
//! payloads it speaks of. Nothing is given up: a payload that nobody has now is asked for again, ever more rarely.

mod queue;

use std::time::{Duration, Instant};

use cid::Cid;
use futures::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use ledger::block::Height;
use serde::Serialize;
use tokio::sync::{mpsc, watch};

use crate::{
    chain::{self, Chain},
    vault::{self, Vault},
};
use queue::Queue;

/// Payloads that are looked for at the same time.
const SOUGHT_MAX: usize = 64;
/// Orders on their way into the queue, at most; who gives more waits.
const ORDERS_MAX: usize = 64;
/// Heights that are read before what was found is looked for.
const HEIGHTS_AT_ONCE: usize = 64;
/// How long one attempt may take.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);
/// After this many attempts without success a payload is reported as missing, once.
const ATTEMPTS_UNTIL_MISSING: u32 = 3;
/// The progress is written at most this often; what is not written is looked at again after a restart.
const NOTE_EVERY: Duration = Duration::from_secs(5);
/// A failure that comes back after so long is said again.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);
/// Pause after chain or vault did not answer.
const FAILURE_PAUSE: Duration = Duration::from_secs(1);

/// Why a step could not be made; it is made again.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Chain(#[from] chain::Error),
    #[error(transparent)]
    Vault(#[from] vault::Error),
    #[error("the vault has begun anew: everything is looked for again")]
    BegunAnew,
}

/// A payload that somebody found missing.
#[derive(Debug)]
struct Order {
    cid: Cid,
    height: Height,
    tell: mpsc::Sender<Cid>,
}

/// The queue of what is missing, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Figures {
    /// Payloads that are wanted.
    pub wanted: usize,
    /// Of them, those that peers are being asked for.
    pub under_way: usize,
    /// How long the one that waits longest has waited, in milliseconds.
    pub oldest_ms: u64,
    /// Payloads that were had since the node was started.
    pub repaired: u64,
}

/// The way into the queue; clones share it.
#[derive(Clone, Debug)]
pub struct Repairs {
    orders: mpsc::Sender<Order>,
    figures: watch::Receiver<Figures>,
}

impl Repairs {
    /// Has a payload fetched that the chain names at a height; waits while the queue is full. It is told when the payload is
    /// here, or was erased, which may be never.
    pub async fn order(&self, cid: Cid, height: Height, tell: &mpsc::Sender<Cid>) {
        let tell = tell.clone();
        // The node is stopping.
        let _ordered = self.orders.send(Order { cid, height, tell }).await;
    }

    /// How long the queue is.
    #[must_use]
    pub fn figures(&self) -> Figures {
        *self.figures.borrow()
    }
}

/// The task that follows the chain and works off the queue.
#[derive(Debug)]
pub struct Retention {
    chain: Chain,
    vault: Vault,
    orders: mpsc::Receiver<Order>,
    figures: watch::Sender<Figures>,
}

/// What came of asking for a payload once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// It is here.
    Here,
    /// It was erased, and is not to be here.
    Erased,
    /// Nobody has delivered it.
    Missing,
}

/// What is being looked for, up to where the chain was read.
struct Search<'a> {
    queue: Queue,
    sought: FuturesUnordered<BoxFuture<'a, (Cid, Outcome)>>,
    read: Height,
    noted: (Height, Instant),
}

impl Search<'_> {
    fn from(start: Height) -> Self {
        Self {
            queue: Queue::default(),
            sought: FuturesUnordered::new(),
            read: start,
            noted: (start, Instant::now()),
        }
    }

    /// The height up to which everything is held.
    fn held(&self) -> Height {
        self.queue.complete_up_to(self.read)
    }
}

impl Retention {
    /// Follows this chain for this vault; whoever finds something missing has the other half.
    #[must_use]
    pub fn new(chain: Chain, vault: Vault) -> (Self, Repairs) {
        let (giver, orders) = mpsc::channel(ORDERS_MAX);
        let (figures, seen) = watch::channel(Figures::default());
        let repairs = Repairs {
            orders: giver,
            figures: seen,
        };
        let retention = Self {
            chain,
            vault,
            orders,
            figures,
        };
        (retention, repairs)
    }

    /// Runs until the chain is gone.
    pub async fn run(self) {
        let Self {
            chain,
            vault,
            mut orders,
            figures,
        } = self;
        let follower = Follower { chain, vault, figures };
        let (mut said, mut since) = (String::new(), Instant::now());
        loop {
            let followed = follower.follow(&mut orders).await;
            if since.elapsed() > FORGOTTEN_AFTER {
                said.clear();
            }
            since = Instant::now();
            match followed {
                Ok(()) => return,
                Err(failure) => {
                    // A store that is away for an hour is said once.
                    let words = failure.to_string();
                    if words != said {
                        tracing::warn!(%failure, "retention waits; payloads of final bundles may be missing here");
                        said = words;
                    }
                    tokio::time::sleep(FAILURE_PAUSE).await;
                }
            }
        }
    }
}

/// The task's own half.
struct Follower {
    chain: Chain,
    vault: Vault,
    figures: watch::Sender<Figures>,
}

impl Follower {
    async fn follow(&self, orders: &mut mpsc::Receiver<Order>) -> Result<(), Failure> {
        let mut heads = self.chain.watch();
        let mut search = Search::from(Height(self.vault.retained().await?));
        loop {
            let head = heads.borrow_and_update().height;
            for _ in 0..HEIGHTS_AT_ONCE {
                if search.read < head && search.queue.has_room() {
                    self.read(search.read.next(), &mut search).await?;
                }
            }
            while search.sought.len() < SOUGHT_MAX
                && let Some(cid) = search.queue.next(Instant::now())
            {
                search.sought.push(Box::pin(self.attempt(cid)));
            }
            self.note(&mut search).await?;
            self.show(&search);
            let has_room = search.queue.has_room();
            let may_read = has_room && search.read < head;
            let due = search.queue.due().filter(|_| search.sought.len() < SOUGHT_MAX);
            tokio::select! {
                () = std::future::ready(()), if may_read => {}
                changed = heads.changed(), if !may_read => if changed.is_err() { return Ok(()) },
                Some((cid, outcome)) = search.sought.next() => self.settle(cid, outcome, &mut search.queue),
                Some(Order { cid, height, tell }) = orders.recv(), if has_room => {
                    search.queue.want(cid, height, Some(tell), Instant::now());
                }
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => {}
            }
        }
    }

    /// Looks for the payloads of one block.
    async fn read(&self, height: Height, search: &mut Search<'_>) -> Result<(), Failure> {
        for payload in self.chain.payloads(height).await?.unwrap_or_default() {
            if !self.vault.holds(&payload.cid).await? {
                search.queue.want(payload.cid, height, None, Instant::now());
            }
        }
        search.read = height;
        Ok(())
    }

    /// Asks for a payload once.
    async fn attempt(&self, cid: Cid) -> (Cid, Outcome) {
        // A full disk, or a daemon that is away, is no reason to ask ever more rarely, nor to call a payload missing.
        self.vault.until_it_keeps().await;
        let outcome = match self.vault.hold(&cid, ATTEMPT_TIMEOUT).await {
            Ok(_) => Outcome::Here,
            Err(vault::Error::Refused(vault::Refusal::Erased(_))) => Outcome::Erased,
            Err(_) => Outcome::Missing,
        };
        (cid, outcome)
    }

    fn settle(&self, cid: Cid, outcome: Outcome, queue: &mut Queue) {
        match outcome {
            Outcome::Here => {
                metrics::counter!("fog_retention_payloads_fetched_total").increment(1);
                self.figures.send_modify(|figures| figures.repaired += 1);
                queue.had(&cid);
            }
            // A node that catches up wants it before it learns of that.
            Outcome::Erased => queue.had(&cid),
            Outcome::Missing => {
                if let Some((height, ATTEMPTS_UNTIL_MISSING)) = queue.again(cid, Instant::now()) {
                    metrics::counter!("fog_retention_payloads_missing_total").increment(1);
                    tracing::warn!(%cid, %height, "a payload that the chain names is neither here nor at a peer; asked for again");
                }
            }
        }
    }

    fn show(&self, search: &Search<'_>) {
        let oldest = search.queue.oldest().map_or(Duration::ZERO, |since| since.elapsed());
        metrics::gauge!("fog_retention_queue_payloads").set(search.queue.len() as f64);
        metrics::gauge!("fog_retention_queue_oldest_seconds").set(oldest.as_secs_f64());
        self.figures.send_modify(|figures| {
            figures.wanted = search.queue.len();
            figures.under_way = search.sought.len();
            figures.oldest_ms = u64::try_from(oldest.as_millis()).unwrap_or(u64::MAX);
        });
    }

    async fn note(&self, search: &mut Search<'_>) -> Result<(), Failure> {
        let (held, (noted, at)) = (search.held(), search.noted);
        metrics::gauge!("fog_retention_height").set(held.0 as f64);
        if held > noted && at.elapsed() >= NOTE_EVERY {
            // A vault whose file was set aside knows nothing of what the old one held.
            if self.vault.retained().await? < noted.0 {
                return Err(Failure::BegunAnew);
            }
            self.vault.note_retained(held.0).await?;
            search.noted = (held, Instant::now());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consensus::codec::tests::{child, commitment, enrolments_of, founded};
    use ledger::{
        block::{Block, FinalizedBlock},
        genesis::Genesis,
        transaction::{Action, Author, Erasure, Transaction},
    };
    use record::{canonical::cid_of, signature::SigningKey};

    fn finalized(block: &Block) -> FinalizedBlock {
        FinalizedBlock {
            block: block.clone(),
            digest: block.header.digest(),
            finalization: None,
        }
    }

    async fn open(dir: &std::path::Path, genesis: &Genesis) -> (Chain, Vault) {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let chain = Chain::open(&chain::Config::default(), dir, genesis).expect("opens");
        let vault = Vault::open(&vault::Config::default(), dir, reqwest::Client::new())
            .await
            .expect("opens");
        (chain, vault)
    }

    /// A chain of two blocks, the second with one commitment.
    async fn with_a_commitment(dir: &std::path::Path) -> (Chain, Vault) {
        let (keys, gateway) = ([SigningKey::random()], SigningKey::random());
        let genesis = founded(&keys);
        let (chain, vault) = open(dir, &genesis).await;
        let first = child(
            &genesis,
            &Block::genesis(&genesis),
            enrolments_of(&genesis, &keys[0], &gateway),
        );
        let second = child(&genesis, &first, vec![commitment(&genesis, &gateway)]);
        chain
            .append_all(&[finalized(&first), finalized(&second)])
            .expect("appends");
        (chain, vault)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_was_missed_is_still_wanted_after_a_restart() {
        let dir = tempfile::tempdir().expect("a folder");
        let (chain, vault) = with_a_commitment(dir.path()).await;
        assert_eq!(
            chain.commitments(Height(2)).await.expect("reads").expect("there").len(),
            1
        );

        // Nobody told this task of the block: it reads the chain. The payload comes late.
        let (retention, repairs) = Retention::new(chain.clone(), vault.clone());
        let task = tokio::spawn(retention.run());
        let wanted = async {
            while repairs.figures().wanted != 1 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), wanted)
            .await
            .expect("it looks for it");
        assert_eq!(vault.retained().await.expect("reads"), 0, "a payload is missing");
        vault.put("sealed".into()).await.expect("kept");
        task.abort();
        let follower = Follower {
            chain,
            vault: vault.clone(),
            figures: watch::Sender::default(),
        };
        let mut search = Search::from(Height(0));
        for height in [1, 2] {
            follower.read(Height(height), &mut search).await.expect("reads");
        }
        assert_eq!((search.held(), search.queue.len()), (Height(2), 0));
        search.noted.1 = Instant::now() - NOTE_EVERY;
        follower.note(&mut search).await.expect("notes");
        assert_eq!(vault.retained().await.expect("reads"), 2);
        assert!(vault.local(&cid_of(b"sealed")).await.expect("reads").is_some());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_somebody_found_missing_is_fetched_and_told() {
        let dir = tempfile::tempdir().expect("a folder");
        let (chain, vault) = with_a_commitment(dir.path()).await;
        let held = vault.put("sealed".into()).await.expect("kept");
        let (retention, repairs) = Retention::new(chain, vault.clone());
        let task = tokio::spawn(retention.run());
        // Neither a payload that is here after all nor one that never comes keeps the next one back.
        let (tell, mut told) = mpsc::channel(3);
        let late = cid_of(b"late");
        for cid in [cid_of(b"never"), late, held.cid()] {
            repairs.order(cid, Height(2), &tell).await;
        }
        assert_eq!(told.recv().await, Some(held.cid()));
        vault.put("late".into()).await.expect("kept");
        let next = tokio::time::timeout(Duration::from_secs(60), told.recv()).await;
        assert_eq!(next.expect("in time"), Some(late));
        let figures = repairs.figures();
        assert_eq!(figures.repaired, 2);
        task.abort();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_erased_is_not_wanted_any_more_and_who_looks_for_it_stops() {
        let dir = tempfile::tempdir().expect("a folder");
        let (keys, gateway) = ([SigningKey::random()], SigningKey::random());
        let genesis = founded(&keys);
        let (chain, vault) = open(dir.path(), &genesis).await;
        let enrolments = enrolments_of(&genesis, &keys[0], &gateway);
        let first = child(&genesis, &Block::genesis(&genesis), enrolments);
        let commitment = commitment(&genesis, &gateway);
        let key = commitment.commitment().expect("it is one").key;
        let second = child(&genesis, &first, vec![commitment]);
        let erase = Transaction {
            network: genesis.network(),
            author: Author::Organization(genesis.organizations[0].id.clone()),
            sequence: 0,
            action: Action::Erase(Erasure { key }),
        };
        let third = child(&genesis, &second, vec![erase.sign(&keys[0])]);
        chain
            .append_all(&[finalized(&first), finalized(&second)])
            .expect("appends");
        // A node that catches up: it wants the payload, which nobody has any more, before it knows why.
        let follower = Follower {
            chain: chain.clone(),
            vault: vault.clone(),
            figures: watch::Sender::default(),
        };
        let mut search = Search::from(Height(0));
        follower.read(Height(2), &mut search).await.expect("reads");
        assert_eq!(search.held(), Height(1), "it is missing");
        chain.append_all(&[finalized(&third)]).expect("appends");
        let cid = cid_of(b"sealed");
        vault.erase(&cid).await.expect("gone");
        let wanted = search.queue.next(Instant::now()).expect("it is due");
        let (cid_asked, outcome) = follower.attempt(wanted).await;
        assert_eq!((cid_asked, outcome), (cid, Outcome::Erased));
        follower.settle(cid, outcome, &mut search.queue);
        assert_eq!(search.queue.len(), 0, "nobody looks for it any more");
        follower.read(Height(2), &mut search).await.expect("reads");
        assert_eq!((search.held(), search.queue.len()), (Height(2), 0));
        assert_eq!(vault.local(&cid).await.expect("reads"), None);
    }
}
