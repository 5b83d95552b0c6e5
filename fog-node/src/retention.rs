//! Sees to it that this node holds the payload of every final bundle: the chain says which, the vault remembers how far.
//!
//! A validator votes only with the payloads in hand; what was ordered while this node was away, or rotted since, is fetched
//! here. The height up to which everything is held lies in the vault's own file, so that it is lost together with the
//! payloads it speaks of. Nothing is given up: a payload that nobody has now is asked for again, ever more rarely.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use cid::Cid;
use futures::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use ledger::block::Height;

use crate::{
    chain::{self, Chain},
    vault::{self, Vault},
};

/// Payloads that are looked for at the same time.
const SOUGHT_MAX: usize = 64;
/// How long one attempt may take.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause before the second attempt; doubles up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_secs(1);
/// The longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_secs(300);
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

/// The task that follows the chain.
#[derive(Debug)]
pub struct Retention {
    chain: Chain,
    vault: Vault,
}

/// What is being looked for: how many payloads of which heights, up to where the chain was read.
struct Search<'a> {
    sought: FuturesUnordered<BoxFuture<'a, Height>>,
    open: BTreeMap<Height, usize>,
    read: Height,
    noted: (Height, Instant),
}

impl Search<'_> {
    /// The height up to which everything is held.
    fn held(&self) -> Height {
        self.open
            .first_key_value()
            .map_or(self.read, |(height, _)| Height(height.0 - 1))
    }

    fn found(&mut self, height: Height) {
        if let Some(open) = self.open.get_mut(&height) {
            *open -= 1;
            if *open == 0 {
                self.open.remove(&height);
            }
        }
    }
}

impl Retention {
    /// Follows this chain for this vault.
    #[must_use]
    pub const fn new(chain: Chain, vault: Vault) -> Self {
        Self { chain, vault }
    }

    /// Runs until the chain is gone.
    pub async fn run(self) {
        let (mut said, mut since) = (String::new(), Instant::now());
        loop {
            let followed = self.follow().await;
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

    async fn follow(&self) -> Result<(), Failure> {
        let mut heads = self.chain.watch();
        let start = Height(self.vault.retained().await?);
        let mut search = Search {
            sought: FuturesUnordered::new(),
            open: BTreeMap::new(),
            read: start,
            noted: (start, Instant::now()),
        };
        loop {
            let head = heads.borrow_and_update().height;
            while search.read < head && search.sought.len() < SOUGHT_MAX {
                self.read(search.read.next(), &mut search).await?;
            }
            self.note(&mut search).await?;
            let may_read = search.sought.len() < SOUGHT_MAX;
            tokio::select! {
                changed = heads.changed(), if may_read => if changed.is_err() { return Ok(()) },
                Some(height) = search.sought.next() => search.found(height),
            }
        }
    }

    /// Looks for the payloads of one block.
    async fn read<'a>(&'a self, height: Height, search: &mut Search<'a>) -> Result<(), Failure> {
        let commitments = self.chain.commitments(height).await?.unwrap_or_default();
        for commitment in commitments {
            if self.vault.local(&commitment.cid).await?.is_none() {
                *search.open.entry(height).or_default() += 1;
                search.sought.push(Box::pin(self.hold(commitment.cid, height)));
            }
        }
        search.read = height;
        Ok(())
    }

    /// Asks until the payload is here.
    async fn hold(&self, cid: Cid, height: Height) -> Height {
        let mut pause = PAUSE;
        for attempt in 1_u32.. {
            // A full disk, or a daemon that is away, is no reason to ask ever more rarely, nor to call a payload missing.
            self.vault.until_it_keeps().await;
            if self.vault.hold(&cid, ATTEMPT_TIMEOUT).await.is_ok() {
                metrics::counter!("fog_retention_payloads_fetched_total").increment(1);
                break;
            }
            if attempt == ATTEMPTS_UNTIL_MISSING {
                metrics::counter!("fog_retention_payloads_missing_total").increment(1);
                tracing::warn!(%cid, %height, "a payload that the chain names is neither here nor at a peer; asked for again");
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
        height
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

    #[tokio::test(flavor = "multi_thread")]
    async fn what_was_missed_is_still_wanted_after_a_restart() {
        let dir = tempfile::tempdir().expect("a folder");
        let (keys, gateway) = ([SigningKey::random()], SigningKey::random());
        let genesis = founded(&keys);
        let (chain, vault) = open(dir.path(), &genesis).await;
        let first = child(
            &genesis,
            &Block::genesis(&genesis),
            enrolments_of(&genesis, &keys[0], &gateway),
        );
        let second = child(&genesis, &first, vec![commitment(&genesis, &gateway)]);
        chain
            .append_all(&[finalized(&first), finalized(&second)])
            .expect("appends");
        assert_eq!(
            chain.commitments(Height(2)).await.expect("reads").expect("there").len(),
            1
        );

        // Nobody told this task of the block: it reads the chain. The payload comes late.
        let task = tokio::spawn(Retention::new(chain.clone(), vault.clone()).run());
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(vault.retained().await.expect("reads"), 0, "a payload is missing");
        vault.put("sealed".into()).await.expect("kept");
        task.abort();
        let retention = Retention::new(chain, vault.clone());
        let mut search = Search {
            sought: FuturesUnordered::new(),
            open: BTreeMap::new(),
            read: Height(0),
            noted: (Height(0), Instant::now() - NOTE_EVERY),
        };
        for height in [1, 2] {
            retention.read(Height(height), &mut search).await.expect("reads");
        }
        assert_eq!((search.held(), search.sought.len()), (Height(2), 0));
        retention.note(&mut search).await.expect("notes");
        assert_eq!(vault.retained().await.expect("reads"), 2);
        assert!(vault.local(&cid_of(b"sealed")).await.expect("reads").is_some());
    }

    #[test]
    fn the_lowest_height_with_something_missing_bounds_what_is_held() {
        let mut search = Search {
            sought: FuturesUnordered::new(),
            open: BTreeMap::from([(Height(5), 2), (Height(7), 1)]),
            read: Height(9),
            noted: (Height(0), Instant::now()),
        };
        search.found(Height(7));
        search.found(Height(5));
        assert_eq!(search.held(), Height(4));
        search.found(Height(5));
        assert_eq!(search.held(), Height(9));
    }
}
