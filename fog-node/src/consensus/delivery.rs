//! Finalized blocks from the engine, in order, into the chain; only what is durable there is acknowledged.
//!
//! The engine delivers again from the last acknowledged height after a crash, so a block the chain has already is only
//! acknowledged. **Invariant:** chain first, then the mempool, then the acknowledgement.

use std::collections::VecDeque;

use commonware_actor::Feedback;
use commonware_consensus::{
    Reporter,
    marshal::{Update, core::Mailbox, standard::Standard},
    simplex::types::{self as votes, Activity},
    types,
};
use commonware_cryptography::{Digested, Digestible as _};
use commonware_macros::select;
use commonware_utils::{Acknowledgement as _, acknowledgement::Exact};
use ledger::{
    block::{Block, FinalizedBlock, Header, Height},
    proof::Finalization,
    state::Outcome,
};
use tokio::sync::mpsc;

use super::{
    codec::{EngineBlock, EngineDigest, ledger_digest},
    finalization::in_ledger_form,
    scheme::Scheme,
    schemes::Schemes,
};
use crate::{
    chain::{self, Chain},
    mempool::Mempool,
};

/// Votes that may wait to be attached; more are let go, since a descendant's votes prove a block as well.
pub(super) const VOTES_MAX: usize = 64;
/// Blocks that are applied in one commit when the chain was set back.
const CATCH_UP_BLOCKS: usize = 256;
/// Blocks without votes of their own that are remembered in case their votes still come.
const UNPROVEN_MAX: usize = 256;

/// The engine's mailbox for blocks and finalizations.
pub(super) type Marshal = Mailbox<Scheme, Standard<EngineBlock>>;

/// Votes that finalize, as the engine has them.
pub(super) type FinalVotes = votes::Finalization<Scheme, EngineDigest>;

/// Blocks that came without votes of their own, by their digests.
type Unproven = VecDeque<(EngineDigest, Header)>;

/// A block and the engine's wait for our word that it is durable.
pub(super) type Delivery = (Digested<EngineBlock>, Exact);

/// Takes ordered blocks from the engine.
#[derive(Clone, Debug)]
pub(super) struct Blocks(pub(super) mpsc::Sender<Delivery>);

impl Reporter for Blocks {
    type Activity = Update<EngineBlock>;

    fn report(&mut self, update: Update<EngineBlock>) -> Feedback {
        match update {
            Update::Tip(_, height, _) => {
                metrics::gauge!("fog_consensus_tip_height").set(height.get() as f64);
                Feedback::Ok
            }
            // The queue has room for all that the engine leaves unacknowledged; should it ever not, the dropped
            // acknowledgement stops the engine, and with it the node.
            Update::Block(block, acknowledgement) => self
                .0
                .try_send((block, acknowledgement))
                .map_or(Feedback::Closed, |()| Feedback::Ok),
        }
    }
}

/// Takes votes and evidence of faults from the engine.
#[derive(Clone, Debug)]
pub(super) struct Votes(pub(super) mpsc::Sender<FinalVotes>);

impl Reporter for Votes {
    type Activity = Activity<Scheme, EngineDigest>;

    fn report(&mut self, activity: Self::Activity) -> Feedback {
        let fault = match activity {
            Activity::Finalization(finalization) => {
                if self.0.try_send(finalization).is_err() {
                    metrics::counter!("fog_consensus_votes_dropped_total").increment(1);
                }
                None
            }
            Activity::Nullification(_) => {
                metrics::counter!("fog_consensus_views_nullified_total").increment(1);
                None
            }
            Activity::ConflictingNotarize(_) => Some("conflicting-notarize"),
            Activity::ConflictingFinalize(_) => Some("conflicting-finalize"),
            Activity::NullifyFinalize(_) => Some("nullify-and-finalize"),
            _ => None,
        };
        if let Some(kind) = fault {
            metrics::counter!("fog_consensus_faults_total", "kind" => kind).increment(1);
            tracing::warn!(kind, "a validator signed two votes that exclude each other");
        }
        Feedback::Ok
    }
}

/// Why delivery ends; the node stops.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The chain cannot go on.
    #[error(transparent)]
    Chain(#[from] chain::Error),
    /// The chain's file holds another block than the one the committee finalized.
    #[error("block {0} in chain.redb is not the one that was finalized")]
    Diverged(Height),
    /// The engine lost a block that it had delivered, and the chain does not have it either.
    #[error("block {0} is neither in chain.redb nor in the engine's store")]
    Lost(Height),
}

/// The one task that writes the chain.
pub(super) struct Applier {
    pub(super) chain: Chain,
    pub(super) mempool: Mempool,
    pub(super) schemes: Schemes,
    pub(super) marshal: Marshal,
}

impl Applier {
    /// Applies what the engine delivers until it stops delivering. `acknowledged` is what it will not deliver again.
    pub(super) async fn run(
        self,
        acknowledged: Height,
        mut blocks: mpsc::Receiver<Delivery>,
        mut votes: mpsc::Receiver<FinalVotes>,
    ) -> Result<(), Error> {
        self.catch_up(acknowledged).await?;
        let mut unproven = VecDeque::new();
        loop {
            select! {
                delivery = blocks.recv() => {
                    let Some(first) = delivery else { return Ok(()) };
                    let mut batch = vec![first];
                    while let Ok(next) = blocks.try_recv() {
                        batch.push(next);
                    }
                    self.apply(batch, &mut unproven).await?;
                },
                finalization = votes.recv() => {
                    let Some(finalization) = finalization else { return Ok(()) };
                    self.attach(&finalization, &mut unproven)?;
                },
            }
        }
    }

    /// A chain that was set back (another file, an older backup) is brought up to what the engine has delivered before.
    async fn catch_up(&self, acknowledged: Height) -> Result<(), Error> {
        loop {
            let next = self.chain.head().height.next();
            if next > acknowledged {
                return Ok(());
            }
            let mut batch = Vec::new();
            for height in (next.0..=acknowledged.0).take(CATCH_UP_BLOCKS).map(Height) {
                let block = self.marshal.get_block(types::Height::new(height.0)).await;
                batch.push(self.finalized(&block.ok_or(Error::Lost(height))?).await);
            }
            self.chain.append_all(&batch)?;
        }
    }

    async fn finalized(&self, block: &Digested<EngineBlock>) -> FinalizedBlock {
        let height = types::Height::new(block.inner().block().header.height.0);
        let finalization = self.marshal.get_finalization(height).await;
        // A certificate stored for this height is about this block or about none.
        let finalization = finalization.filter(|f| f.proposal.payload == block.digest());
        FinalizedBlock {
            block: block.inner().block().clone(),
            digest: ledger_digest(&block.digest()),
            finalization: finalization.and_then(|f| self.in_ledger_form(&block.inner().block().header, &f)),
        }
    }

    fn in_ledger_form(&self, header: &Header, finalization: &FinalVotes) -> Option<Finalization> {
        let scheme = self.schemes.at(types::Epoch::new(header.epoch))?;
        in_ledger_form(&scheme, header, finalization)
    }

    async fn apply(&self, batch: Vec<Delivery>, unproven: &mut Unproven) -> Result<(), Error> {
        let mut fresh = Vec::with_capacity(batch.len());
        for (block, _) in &batch {
            let height = block.inner().block().header.height;
            if height > self.chain.head().height {
                fresh.push(self.finalized(block).await);
            } else if self.chain.digest_at(height)? != Some(ledger_digest(&block.digest())) {
                return Err(Error::Diverged(height));
            }
        }
        if !fresh.is_empty() {
            let outcomes = self.chain.append_all(&fresh)?;
            for (finalized, outcomes) in fresh.iter().zip(&outcomes) {
                self.settle(&finalized.block, outcomes);
            }
            let proofless = fresh.iter().filter(|finalized| finalized.finalization.is_none());
            unproven.extend(proofless.map(|f| (super::codec::engine_digest(&f.digest), f.block.header.clone())));
            let excess = unproven.len().saturating_sub(UNPROVEN_MAX);
            unproven.drain(..excess);
        }
        for (_, acknowledgement) in batch {
            acknowledgement.acknowledge();
        }
        Ok(())
    }

    /// What follows from a block that is durable: its transactions wait no longer.
    fn settle(&self, block: &Block, outcomes: &[Outcome]) {
        let height = block.header.height;
        let ids: Vec<_> = block.transactions.iter().map(|transaction| transaction.id()).collect();
        self.mempool.remove(&ids);
        for (transaction, outcome) in block.transactions.iter().zip(outcomes) {
            match (outcome, transaction.payload()) {
                (Outcome::Applied, Some(payload)) => {
                    tracing::debug!(bundle = %payload.id, %height, "finalized");
                }
                (Outcome::Applied, None) => {
                    tracing::info!(transaction = %transaction.id(), kind = transaction.claims().action.kind(), %height, "finalized");
                }
                (Outcome::Refused(refused), _) => {
                    tracing::info!(transaction = %transaction.id(), %height, %refused, "finalized without effect");
                }
            }
        }
    }

    /// Votes on a block that was delivered before they were complete.
    fn attach(&self, finalization: &FinalVotes, unproven: &mut Unproven) -> Result<(), Error> {
        let Some(at) = unproven
            .iter()
            .position(|(digest, _)| *digest == finalization.proposal.payload)
        else {
            return Ok(());
        };
        let (_, header) = unproven.remove(at).expect("the position was just found");
        if let Some(votes) = self.in_ledger_form(&header, finalization) {
            self.chain.attach(header.height, &votes)?;
        }
        Ok(())
    }
}
