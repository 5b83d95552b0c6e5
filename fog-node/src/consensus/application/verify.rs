//! What a voter checks: each rule of policy P and of the ledger, and that every payload is held here, or erased for good.

use std::{collections::HashSet, future::ready, time::Duration};

use commonware_consensus::{CertifiableBlock as _, marshal::ancestry::Ancestry};
use commonware_runtime::Clock;
use futures::{StreamExt as _, stream};
use ledger::{
    block::{Block, Height},
    policy::Violation,
    state::{State, identifiers},
    transaction::SignedTransaction,
};
use record::canonical::Digest;

use super::{Application, LAG_BLOCKS_MAX, Rooms, now_ms};
use crate::{
    chain,
    consensus::{
        Payloads,
        codec::{EngineBlock, EngineContext},
    },
};

/// Payloads of one block that are waited for at the same time.
const HOLDS_MAX: usize = 32;
/// Pause before payloads that did not come in time are waited for again.
const HOLD_PAUSE: Duration = Duration::from_millis(50);
/// A block that is further ahead of the allowed skew is not waited for: no view lasts that long.
const SKEW_WAIT_MAX: Duration = Duration::from_secs(60);

/// Why no vote is given.
#[derive(Debug, thiserror::Error)]
pub(super) enum Doubt {
    /// The block breaks a rule of the policy.
    #[error("{0}")]
    Violation(#[from] Violation),
    /// The block breaks a rule of the ledger.
    #[error("{0}")]
    Broken(&'static str),
    /// It may still turn out to be right.
    #[error("{0}")]
    Undecided(&'static str),
    /// Our own chain cannot be read; its writer will find the same and stop the node.
    #[error(transparent)]
    Chain(#[from] chain::Error),
}

impl<P: Payloads> Application<P> {
    pub(super) async fn judge(
        &self,
        clock: &impl Clock,
        context: &EngineContext,
        ancestry: &mut impl Ancestry<EngineBlock>,
    ) -> Result<(), Doubt> {
        let proposed = ancestry.next().await.ok_or(Doubt::Undecided("the block is not here"))?;
        let parent = ancestry
            .next()
            .await
            .ok_or(Doubt::Undecided("its parent is not here"))?;
        let block = proposed.inner().block();
        // A receipt rebuilds the vote from the header: a header that names another round would be final but unprovable.
        if proposed.inner().context() != *context {
            return Err(Doubt::Broken(
                "context: the header names another round, leader or parent than the engine",
            ));
        }
        let parent_header = &parent.inner().block().header;
        let sitting = self
            .sitting(context)
            .ok_or(Doubt::Undecided("this node stands in another epoch"))?;
        self.0.genesis.policy.verify(block.clone(), parent_header, &sitting)?;
        self.wait_out_skew(clock, block.header.timestamp_ms).await?;
        let parent_height = parent_header.height;
        if !self
            .reached(clock, Height(parent_height.0.saturating_sub(LAG_BLOCKS_MAX)))
            .await
        {
            return Err(Doubt::Undecided("this node is catching up"));
        }
        if let Some(last) = self.chain().digest_at(block.header.height)? {
            let same = last == block.header.digest();
            return if same {
                Ok(())
            } else {
                Err(Doubt::Broken("height: another block is final there"))
            };
        }
        let ordered = self
            .unfinalized(parent, ancestry)
            .await
            .ok_or(Doubt::Undecided("an ancestor is not here"))?;
        self.check_fresh(block, ordered)?;
        self.check_rights(clock, block, parent_height).await?;
        self.check_held(block).await
    }

    /// A clock that differs a little is no fault: wait until the block is not too far in our future.
    async fn wait_out_skew(&self, clock: &impl Clock, timestamp_ms: u64) -> Result<(), Doubt> {
        let latest_ms = now_ms(clock).saturating_add(self.0.genesis.policy.skew_ms_max);
        let ahead = Duration::from_millis(timestamp_ms.saturating_sub(latest_ms));
        if ahead > SKEW_WAIT_MAX {
            return Err(Doubt::Undecided("its time is far ahead of this node's clock"));
        }
        if !ahead.is_zero() {
            clock.sleep(ahead).await;
        }
        Ok(())
    }

    /// No transaction or bundle twice: not in this block, not in an ancestor, final or not.
    fn check_fresh(&self, block: &Block, mut ordered: HashSet<Digest>) -> Result<(), Doubt> {
        for identifier in block.transactions.iter().flat_map(identifiers) {
            // The chain may have moved on to this very block meanwhile, hence the height.
            let before = self
                .chain()
                .took_effect_at(&identifier)?
                .is_some_and(|height| height < block.header.height);
            if before || !ordered.insert(identifier) {
                return Err(Doubt::Broken("fresh: a transaction or bundle is ordered already"));
            }
        }
        Ok(())
    }

    /// Each author's signature and rights. A state older than the parent may not know a name yet; a state that includes
    /// the parent decides.
    async fn check_rights(&self, clock: &impl Clock, block: &Block, parent: Height) -> Result<(), Doubt> {
        let refusal = |state: &State| {
            let outcomes = block.transactions.iter().map(|transaction| state.admit(transaction));
            // A name that was taken or decided on meanwhile depends on when one looks: it is ordered, and refused when it
            // is executed.
            outcomes.filter_map(Result::err).find(|r| !r.depends_on_when())
        };
        let broken = Err(Doubt::Broken("rights: an author may not do this, or did not sign it"));
        match refusal(&self.chain().state()) {
            None => Ok(()),
            Some(refused) if !refused.may_pass_later() => broken,
            Some(_) if !self.reached(clock, parent).await => Err(Doubt::Undecided("the state is behind")),
            Some(_) => refusal(&self.chain().state()).map_or(Ok(()), |_| broken),
        }
    }

    async fn check_held(&self, block: &Block) -> Result<(), Doubt> {
        if self.holds_all(block).await {
            Ok(())
        } else {
            Err(Doubt::Undecided("a payload is not held here"))
        }
    }

    /// Waits until every payload that the block commits to is durable here, or its key erased; the engine ends the wait when
    /// it moves on.
    pub(in crate::consensus) async fn until_held(&self, clock: &impl Clock, block: &Block) {
        if self.holds_all(block).await {
            return;
        }
        metrics::counter!("fog_consensus_votes_withheld_total").increment(1);
        tracing::info!(height = %block.header.height, "a vote to finalize waits: a payload is not held here");
        while !self.holds_all(block).await {
            clock.sleep(HOLD_PAUSE).await;
        }
    }

    /// Whether every payload that the block commits to is durable here; waits for those that may be under way.
    ///
    /// Nothing is held for a key with a final tombstone, and nothing is missed: the vault refuses such a payload for good, and
    /// the commitment is refused as erased when it is executed. Who waited for it would never vote again on a block that was
    /// notarized before its tombstone was final. The state is looked at anew each time: the key may be erased meanwhile.
    async fn holds_all(&self, block: &Block) -> bool {
        let Rooms { mempool, payloads, .. } = &self.0.rooms;
        let timeout = self.0.patience.payload;
        let state = self.chain().state();
        let is_wanted = |t: &&SignedTransaction| t.payload().is_some_and(|to| state.tombstone(&to.key).is_none());
        let commitments = block.transactions.iter().filter(is_wanted);
        let holds = stream::iter(commitments.cloned().collect::<Vec<_>>()).map(|commitment| {
            // What waits here was compared with its payload when it came; the disk is asked all the same.
            let compared = mempool.contains(&commitment.id());
            let payloads = payloads.clone();
            async move {
                match commitment.payload() {
                    Some(to) if compared => payloads.hold(&to.cid, timeout).await.is_some(),
                    _ => payloads.hold_committed(&commitment, timeout).await.is_some(),
                }
            }
        });
        holds.buffer_unordered(HOLDS_MAX).all(ready).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        chain::{self, Chain},
        consensus::{
            application::Patience,
            codec::tests::{child, commitment, enrolments, founded},
        },
        mempool::{self, Mempool},
        vault::Held,
    };
    use cid::Cid;
    use commonware_consensus::marshal::ancestry;
    use commonware_cryptography::{Digested, Digestible as _};
    use commonware_runtime::{Runner as _, deterministic};
    use ledger::{
        block::FinalizedBlock,
        genesis::Genesis,
        transaction::{Action, Author, Erasure, Transaction},
    };
    use record::signature::SigningKey;
    use tempfile::TempDir;

    /// A vault that holds nothing and gets nothing.
    #[derive(Clone)]
    struct Empty;

    impl Payloads for Empty {
        async fn hold(&self, _: &Cid, _: Duration) -> Option<Held> {
            None
        }

        async fn hold_committed(&self, _: &SignedTransaction, _: Duration) -> Option<Held> {
            None
        }
    }

    struct Bench {
        _dir: TempDir,
        keys: Vec<SigningKey>,
        genesis: Genesis,
        chain: Chain,
        application: Application<Empty>,
    }

    impl Bench {
        fn new() -> Self {
            let dir = TempDir::new().expect("a folder");
            let keys: Vec<_> = (0..4).map(|_| SigningKey::random()).collect();
            let genesis = founded(&keys);
            let chain = Chain::open(&chain::Config::default(), dir.path(), &genesis).expect("opens");
            let mempool = Mempool::new(&mempool::Config::default());
            let rooms = Rooms {
                chain: chain.clone(),
                mempool,
                payloads: Empty,
            };
            let wait = Duration::from_millis(100);
            let patience = Patience {
                idle: wait,
                state: wait,
                payload: wait,
            };
            let application = Application::new(genesis.clone(), keys[0].public(), rooms, patience);
            Self {
                _dir: dir,
                keys,
                genesis,
                chain,
                application,
            }
        }

        fn genesis_block(&self) -> Block {
            Block::genesis(&self.genesis)
        }

        fn finalize(&self, block: &Block) {
            let digest = block.header.digest();
            let finalized = FinalizedBlock {
                block: block.clone(),
                digest,
                finalization: None,
            };
            self.chain.append_all(&[finalized]).expect("the next block");
        }

        /// Judges the first of these blocks, each the child of the one after it, with the context it names.
        fn judge(&self, blocks: &[&Block]) -> Result<Duration, Doubt> {
            let context = EngineBlock::new(blocks[0].clone()).context();
            self.judge_in(&context, blocks)
        }

        fn judge_in(&self, context: &EngineContext, blocks: &[&Block]) -> Result<Duration, Doubt> {
            let blocks = digested(blocks);
            deterministic::Runner::default().start(|clock| async move {
                let started = clock.current();
                let mut ancestry = ancestry::from_iter(blocks);
                self.application.judge(&clock, context, &mut ancestry).await?;
                Ok(clock.current().duration_since(started).expect("time goes on"))
            })
        }

        async fn judge_here(&self, clock: &impl Clock, blocks: &[&Block]) -> Result<(), Doubt> {
            let context = EngineBlock::new(blocks[0].clone()).context();
            let mut ancestry = ancestry::from_iter(digested(blocks));
            self.application.judge(clock, &context, &mut ancestry).await
        }

        fn child(&self, parent: &Block, transactions: Vec<SignedTransaction>) -> Block {
            child(&self.genesis, parent, transactions)
        }
    }

    fn digested(blocks: &[&Block]) -> Vec<Digested<EngineBlock>> {
        let blocks = blocks.iter().map(|block| EngineBlock::new((*block).clone()));
        blocks
            .map(|block| (block.digest(), block))
            .map(|(d, b)| Digested::precomputed(b, d))
            .collect()
    }

    fn is_broken(judged: Result<Duration, Doubt>) -> bool {
        matches!(judged, Err(Doubt::Broken(_) | Doubt::Violation(_)))
    }

    #[test]
    fn a_block_that_keeps_every_rule_gets_a_vote() {
        let bench = Bench::new();
        let genesis = bench.genesis_block();
        let block = bench.child(&genesis, enrolments(&bench.genesis, &bench.keys[0]));
        assert!(bench.judge(&[&block, &genesis]).is_ok());
        bench.finalize(&block);
        assert!(bench.judge(&[&block, &genesis]).is_ok(), "asked again after a restart");
        let rival = bench.child(&genesis, vec![]);
        assert!(
            is_broken(bench.judge(&[&rival, &genesis])),
            "another block is final at its height"
        );
    }

    #[test]
    fn a_header_of_another_round_gets_none() {
        let bench = Bench::new();
        let genesis = bench.genesis_block();
        let block = bench.child(&genesis, vec![]);
        let mut other = block.clone();
        other.header.view += 1;
        let context = EngineBlock::new(other).context();
        assert!(is_broken(bench.judge_in(&context, &[&block, &genesis])));
    }

    #[test]
    fn an_unmined_block_gets_none() {
        let bench = Bench::new();
        let genesis = bench.genesis_block();
        let mut block = bench.child(&genesis, vec![]);
        while block.header.digest().leading_zero_bits() >= 8 {
            block.header.nonce += 1;
        }
        assert!(is_broken(bench.judge(&[&block, &genesis])));
    }

    #[test]
    fn a_transaction_is_ordered_once() {
        let bench = Bench::new();
        let genesis = bench.genesis_block();
        let enrolments = enrolments(&bench.genesis, &bench.keys[0]);
        let first = bench.child(&genesis, enrolments.clone());
        let again = bench.child(&first, enrolments[..1].to_vec());
        assert!(
            is_broken(bench.judge(&[&again, &first, &genesis])),
            "in an ancestor that is not final"
        );
        bench.finalize(&first);
        assert!(is_broken(bench.judge(&[&again, &first])), "in a final ancestor");
        let other = bench.child(&first, vec![]);
        assert!(bench.judge(&[&other, &first]).is_ok());
    }

    #[test]
    fn an_author_without_rights_or_with_a_wrong_signature_gets_no_vote() {
        let bench = Bench::new();
        let genesis = bench.genesis_block();
        let stranger = SigningKey::random();
        let forged = bench.child(&genesis, enrolments(&bench.genesis, &stranger));
        assert!(is_broken(bench.judge(&[&forged, &genesis])));
        let unknown_gateway = bench.child(&genesis, vec![commitment(&bench.genesis, &stranger)]);
        assert!(is_broken(bench.judge(&[&unknown_gateway, &genesis])));
    }

    #[test]
    fn what_may_still_come_withholds_the_vote() {
        let bench = Bench::new();
        let genesis = bench.genesis_block();
        let gateway = SigningKey::random();
        let first = bench.child(&genesis, enrolments_of(&bench, &gateway));
        let commits = bench.child(&first, vec![commitment(&bench.genesis, &gateway)]);
        let behind = bench.judge(&[&commits, &first, &genesis]);
        assert!(
            matches!(behind, Err(Doubt::Undecided("the state is behind"))),
            "{behind:?}"
        );
        bench.finalize(&first);
        let missing = bench.judge(&[&commits, &first]);
        assert!(
            matches!(missing, Err(Doubt::Undecided("a payload is not held here"))),
            "{missing:?}"
        );
    }

    /// The first organisation erases the key that it announced.
    fn erasing(bench: &Bench, committed: &SignedTransaction) -> SignedTransaction {
        let key = committed.payload().expect("a commitment").key;
        let erases = Transaction {
            network: bench.genesis.network(),
            author: Author::Organization(bench.genesis.organizations[0].id.clone()),
            sequence: 0,
            action: Action::Erase(Erasure { key }),
        };
        erases.sign(&bench.keys[0])
    }

    #[test]
    fn a_payload_whose_key_is_erased_while_a_vote_to_finalize_waits_for_it_is_waited_for_no_more() {
        let bench = Bench::new();
        let gateway = SigningKey::random();
        let first = bench.child(&bench.genesis_block(), enrolments_of(&bench, &gateway));
        bench.finalize(&first);
        let committed = commitment(&bench.genesis, &gateway);
        let erased = bench.child(&first, vec![erasing(&bench, &committed)]);
        // It was notarized on top before anybody here knew of the tombstone.
        let commits = bench.child(&erased, vec![committed]);
        deterministic::Runner::default().start(|clock| async move {
            let certified = bench.application.until_held(&clock, &commits);
            let meanwhile = async {
                clock.sleep(Duration::from_secs(5)).await;
                assert!(!bench.application.holds_all(&commits).await, "the vault has nothing");
                bench.finalize(&erased);
                clock.current()
            };
            let ((), since) = futures::join!(certified, meanwhile);
            let waited = clock.current().duration_since(since).expect("time goes on");
            assert!(waited < Duration::from_secs(1), "{waited:?}");
            assert!(
                bench.judge_here(&clock, &[&commits, &erased]).await.is_ok(),
                "and it gets a first vote"
            );
        });
    }

    fn enrolments_of(bench: &Bench, gateway: &SigningKey) -> Vec<SignedTransaction> {
        crate::consensus::codec::tests::enrolments_of(&bench.genesis, &bench.keys[0], gateway)
    }

    #[test]
    fn a_clock_that_is_ahead_is_waited_for() {
        let bench = Bench::new();
        let genesis = bench.genesis_block();
        let mut block = bench.child(&genesis, vec![]);
        block.header.timestamp_ms = bench.genesis.policy.skew_ms_max + 700;
        block.header = bench.genesis.policy.mine(block.header).0;
        let waited = bench.judge(&[&block, &genesis]).expect("right in the end");
        assert!(
            (Duration::from_millis(600)..Duration::from_millis(800)).contains(&waited),
            "{waited:?}"
        );
    }
}
