//! What the engine asks of us: a block to propose, and whether a proposed one is valid.
//!
//! A vote is refused only for what can never become right; for what may still come (our own state, a payload, the hour)
//! it is withheld, and the engine's timeouts end the wait. Whatever waits here is cancelled by the engine when it moves on.

use std::{
    collections::HashSet,
    future::{pending, ready},
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use commonware_consensus::{
    CertifiableBlock as _, marshal::ancestry::Ancestry, simplex::scheme::ed25519::Scheme,
};
use commonware_cryptography::Digested;
use commonware_macros::select;
use commonware_runtime::Clock;
use futures::{StreamExt as _, stream};
use ledger::{
    block::{BLOCK_BYTES_MAX, Block, Header, Height, VERSION},
    genesis::Genesis,
    policy::Violation,
    state::{Refused, State, identifiers},
    transaction::SignedTransaction,
};
use record::{canonical::Digest, signature::PublicKey};

use super::{
    Payloads,
    codec::{EngineBlock, EngineContext, engine_digest},
};
use crate::{
    chain::{self, Chain},
    mempool::Mempool,
};

/// How far, in blocks, our chain may trail a proposal's parent; a node that is further behind catches up first.
const LAG_BLOCKS_MAX: u64 = 64;
/// Payloads of one block that are waited for at the same time.
const HOLDS_MAX: usize = 32;
/// Room for a header and the lists around the transactions.
const HEADER_BYTES_MAX: usize = 4_096;
/// CBOR framing of one transaction in a block.
const FRAMING_BYTES_MAX: usize = 16;

/// How long the application waits for what may still come.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// An idle leader waits for work this long, then proposes an empty block: the heartbeat.
    pub idle: Duration,
    /// A voter waits this long for its own chain to catch up.
    pub state: Duration,
    /// A voter waits this long for a payload that it does not hold.
    pub payload: Duration,
}

/// The rooms that the application works with.
#[derive(Clone, Debug)]
pub struct Rooms<P> {
    /// What is final.
    pub chain: Chain,
    /// What waits.
    pub mempool: Mempool,
    /// What is held.
    pub payloads: P,
}

#[derive(Debug)]
struct Shared<P> {
    genesis: Genesis,
    committee: Vec<PublicKey>,
    me: PublicKey,
    rooms: Rooms<P>,
    patience: Patience,
}

/// Proposes and verifies for one validator; clones share it.
#[derive(Debug)]
pub struct Application<P>(Arc<Shared<P>>);

impl<P> Clone for Application<P> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// Why no vote is given.
#[derive(Debug, thiserror::Error)]
enum Doubt {
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
    /// The application of the validator with this key.
    #[must_use]
    pub fn new(genesis: Genesis, me: PublicKey, rooms: Rooms<P>, patience: Patience) -> Self {
        let committee = genesis.committee();
        Self(Arc::new(Shared { genesis, committee, me, rooms, patience }))
    }

    fn chain(&self) -> &Chain {
        &self.0.rooms.chain
    }

    /// The identifiers ordered by `from` and its ancestors above our chain's head; `None` if they cannot all be read.
    async fn unfinalized(
        &self,
        from: Digested<EngineBlock>,
        ancestry: &mut impl Ancestry<EngineBlock>,
    ) -> Option<HashSet<Digest>> {
        let head = self.chain().head().height;
        let mut identified = HashSet::new();
        let mut cursor = from;
        while cursor.inner().block().header.height > head {
            identified.extend(cursor.inner().block().transactions.iter().flat_map(identifiers));
            cursor = ancestry.next().await?;
        }
        Some(identified)
    }

    /// Waits until our chain has reached a height; whether it did in time.
    async fn reached(&self, clock: &impl Clock, height: Height) -> bool {
        let mut heads = self.chain().watch();
        let reached = async move { heads.wait_for(|head| head.height >= height).await.is_ok() };
        select! {
            reached = reached => reached,
            () = clock.sleep(self.0.patience.state) => false,
        }
    }

    // --- proposing

    /// Transactions to propose; returns early as soon as there is one, empty when the idle time is over.
    async fn work(&self, clock: &impl Clock, ordered: &HashSet<Digest>) -> Result<Vec<SignedTransaction>, chain::Error> {
        let deadline = clock.current() + self.0.patience.idle;
        loop {
            let transactions = self.candidates(ordered)?;
            let left = deadline.duration_since(clock.current()).unwrap_or_default();
            if !transactions.is_empty() || left.is_zero() {
                return Ok(transactions);
            }
            select! {
                () = self.0.rooms.mempool.wait_for_work() => {},
                () = clock.sleep(left) => {},
            }
        }
    }

    /// The oldest waiting transactions that would take effect now, as many as fit in a block. What can never take effect
    /// any more leaves the mempool.
    fn candidates(&self, ordered: &HashSet<Digest>) -> Result<Vec<SignedTransaction>, chain::Error> {
        let mempool = &self.0.rooms.mempool;
        let state = self.chain().state();
        let count_max = self.0.genesis.policy.transactions_max as usize;
        let mut room_bytes = BLOCK_BYTES_MAX - HEADER_BYTES_MAX;
        let (mut chosen, mut seen, mut hopeless) = (Vec::new(), HashSet::new(), Vec::new());
        let mut taken = ordered.clone();
        'full: while chosen.len() < count_max {
            let picked = mempool.pick(&seen, count_max - chosen.len());
            if picked.is_empty() {
                break;
            }
            for transaction in picked {
                let id = transaction.id();
                seen.insert(id);
                let identified = identifiers(&transaction);
                if identified.iter().any(|identifier| taken.contains(identifier)) {
                    continue;
                }
                match self.standing(&state, &transaction, &identified)? {
                    Ok(()) => {}
                    Err(refused) if refused.may_pass_later() => continue,
                    Err(_) => {
                        hopeless.push(id);
                        continue;
                    }
                }
                let bytes = transaction.encode().len() + FRAMING_BYTES_MAX;
                if bytes > room_bytes {
                    break 'full;
                }
                room_bytes -= bytes;
                taken.extend(identified);
                chosen.push(transaction);
            }
        }
        mempool.remove(&hopeless);
        Ok(chosen)
    }

    /// Whether a transaction would take effect now.
    fn standing(
        &self,
        state: &State,
        transaction: &SignedTransaction,
        identified: &[Digest],
    ) -> Result<Result<(), Refused>, chain::Error> {
        for identifier in identified {
            if self.chain().took_effect_at(identifier)?.is_some() {
                return Ok(Err(Refused::AlreadyFinal));
            }
        }
        Ok(state.admit(transaction))
    }

    /// Algorithm 3: the next block, mined until policy P holds.
    fn build(
        &self,
        context: &EngineContext,
        parent: &Block,
        transactions: Vec<SignedTransaction>,
        now_ms: u64,
    ) -> Digested<EngineBlock> {
        let header = Header {
            version: VERSION,
            network: parent.header.network,
            epoch: context.round.epoch().get(),
            view: context.round.view().get(),
            leader: self.0.me,
            parent_view: context.parent.0.get(),
            height: parent.header.height.next(),
            parent: parent.header.digest(),
            timestamp_ms: now_ms.max(parent.header.timestamp_ms + 1),
            transactions_root: Digest::ZERO,
            policy: parent.header.policy,
            nonce: 0,
        };
        let mut block = Block { header, transactions };
        block.header.transactions_root = block.transactions_root();
        let (mined, digest) = self.0.genesis.policy.mine(block.header);
        block.header = mined;
        metrics::counter!("fog_consensus_blocks_proposed_total").increment(1);
        Digested::precomputed(EngineBlock::new(block), engine_digest(&digest))
    }

    // --- verifying

    async fn judge(
        &self,
        clock: &impl Clock,
        context: &EngineContext,
        ancestry: &mut impl Ancestry<EngineBlock>,
    ) -> Result<(), Doubt> {
        let proposed = ancestry.next().await.ok_or(Doubt::Undecided("the block is not here"))?;
        let parent = ancestry.next().await.ok_or(Doubt::Undecided("its parent is not here"))?;
        let block = proposed.inner().block();
        // A receipt rebuilds the vote from the header: a header that names another round would be final but unprovable.
        if proposed.inner().context() != *context {
            return Err(Doubt::Broken("context: the header names another round, leader or parent than the engine"));
        }
        let parent_header = &parent.inner().block().header;
        self.0.genesis.policy.verify(block.clone(), parent_header, &self.0.committee)?;
        self.wait_out_skew(clock, block.header.timestamp_ms).await;
        let parent_height = parent_header.height;
        if !self.reached(clock, Height(parent_height.0.saturating_sub(LAG_BLOCKS_MAX))).await {
            return Err(Doubt::Undecided("this node is catching up"));
        }
        if let Some(last) = self.chain().digest_at(block.header.height)? {
            let same = last == block.header.digest();
            return if same { Ok(()) } else { Err(Doubt::Broken("height: another block is final there")) };
        }
        let ordered = self.unfinalized(parent, ancestry).await.ok_or(Doubt::Undecided("an ancestor is not here"))?;
        self.check_fresh(block, ordered)?;
        self.check_rights(clock, block, parent_height).await?;
        self.check_held(block).await
    }

    /// A clock that differs a little is no fault: wait until the block is not too far in our future.
    async fn wait_out_skew(&self, clock: &impl Clock, timestamp_ms: u64) {
        let latest_ms = now_ms(clock) + self.0.genesis.policy.skew_ms_max;
        if timestamp_ms > latest_ms {
            clock.sleep(Duration::from_millis(timestamp_ms - latest_ms)).await;
        }
    }

    /// No transaction or bundle twice: not in this block, not in an ancestor, final or not.
    fn check_fresh(&self, block: &Block, mut ordered: HashSet<Digest>) -> Result<(), Doubt> {
        for identifier in block.transactions.iter().flat_map(identifiers) {
            // The chain may have moved on to this very block meanwhile, hence the height.
            let before = self.chain().took_effect_at(&identifier)?.is_some_and(|height| height < block.header.height);
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
            // A name that was taken meanwhile depends on when one looks: it is ordered, and refused when it is executed.
            outcomes.filter_map(Result::err).find(|r| !matches!(r, Refused::NameTaken | Refused::AlreadyFinal))
        };
        let broken = Err(Doubt::Broken("rights: an author may not do this, or did not sign it"));
        match refusal(&self.chain().state()) {
            None => Ok(()),
            Some(refused) if !refused.may_pass_later() => broken,
            Some(_) if !self.reached(clock, parent).await => Err(Doubt::Undecided("the state is behind")),
            Some(_) => refusal(&self.chain().state()).map_or(Ok(()), |_| broken),
        }
    }

    /// Every payload that the block commits to is durable here: a vote says so.
    async fn check_held(&self, block: &Block) -> Result<(), Doubt> {
        let Rooms { mempool, payloads, .. } = &self.0.rooms;
        let waiting_timeout = self.0.patience.payload;
        let missing = block.transactions.iter().filter(|transaction| !mempool.contains(&transaction.id()));
        let cids: Vec<_> = missing.filter_map(|transaction| transaction.commitment().map(|c| c.cid)).collect();
        let holds = stream::iter(cids).map(|cid| {
            let payloads = payloads.clone();
            async move { payloads.hold(&cid, waiting_timeout).await.is_some() }
        });
        let all_held = holds.buffer_unordered(HOLDS_MAX).all(ready).await;
        if all_held { Ok(()) } else { Err(Doubt::Undecided("a payload is not held here")) }
    }
}

impl<E: Clock, P: Payloads> commonware_consensus::Application<E> for Application<P> {
    type SigningScheme = Scheme;
    type Context = EngineContext;
    type Block = EngineBlock;
    type Input = ();

    async fn propose(
        &mut self,
        (clock, context): (E, EngineContext),
        mut ancestry: impl Ancestry<EngineBlock>,
        (): (),
    ) -> Option<Digested<EngineBlock>> {
        let parent = ancestry.next().await?;
        let height = parent.inner().block().header.height;
        // Declining lets the others skip this view at once; building on what we cannot read would waste it.
        if height.0 > self.chain().head().height.0 + LAG_BLOCKS_MAX {
            return None;
        }
        let ordered = self.unfinalized(parent.clone(), &mut ancestry).await?;
        match self.work(&clock, &ordered).await {
            Ok(transactions) => Some(self.build(&context, parent.inner().block(), transactions, now_ms(&clock))),
            Err(error) => {
                tracing::error!(%error, "declined to propose: the chain cannot be read");
                None
            }
        }
    }

    async fn verify(&mut self, (clock, context): (E, EngineContext), mut ancestry: impl Ancestry<EngineBlock>) -> bool {
        let Err(doubt) = self.judge(&clock, &context, &mut ancestry).await else { return true };
        let (round, leader) = (context.round, &context.leader);
        match doubt {
            Doubt::Violation(_) | Doubt::Broken(_) => {
                metrics::counter!("fog_consensus_blocks_refused_total").increment(1);
                tracing::warn!(%round, %leader, rule = %doubt, "voted against a block");
                false
            }
            Doubt::Undecided(_) | Doubt::Chain(_) => {
                metrics::counter!("fog_consensus_votes_withheld_total").increment(1);
                tracing::info!(%round, %leader, reason = %doubt, "withheld a vote");
                pending().await
            }
        }
    }
}

fn now_ms(clock: &impl Clock) -> u64 {
    let now = clock.current().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
