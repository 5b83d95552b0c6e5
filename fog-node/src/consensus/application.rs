//! What the engine asks of us: a block to propose, and whether a proposed one is valid.
//!
//! A vote is refused only for what can never become right; for what may still come (our own state, a payload, the hour)
//! it is withheld, and the engine's timeouts end the wait. Whatever waits here is cancelled by the engine when it moves on.

mod propose;
mod verify;

use std::{
    collections::HashSet,
    future::pending,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use commonware_consensus::marshal::ancestry::Ancestry;
use commonware_cryptography::Digested;
use commonware_macros::select;
use commonware_runtime::Clock;
use futures::StreamExt as _;
use ledger::{block::Height, committee::Sitting, genesis::Genesis, state::identifiers};
use record::{canonical::Digest, signature::PublicKey};

use super::{
    Payloads,
    codec::{EngineBlock, EngineContext},
    scheme::Scheme,
};
use crate::{chain::Chain, mempool::Mempool};
use verify::Doubt;

/// How far, in blocks, our chain may trail a proposal's parent; a node that is further behind catches up first.
const LAG_BLOCKS_MAX: u64 = 64;

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

impl<P: Payloads> Application<P> {
    /// The application of the validator with this key.
    #[must_use]
    pub fn new(genesis: Genesis, me: PublicKey, rooms: Rooms<P>, patience: Patience) -> Self {
        Self(Arc::new(Shared {
            genesis,
            me,
            rooms,
            patience,
        }))
    }

    /// What a block of the engine's epoch must say of committees; `None` if the chain stands in another epoch.
    fn sitting(&self, context: &EngineContext) -> Option<Sitting> {
        let sitting = self.chain().state().seats().sitting();
        (sitting.epoch == context.round.epoch().get()).then_some(sitting)
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
        let sitting = self.sitting(&context)?;
        let ordered = self.unfinalized(parent.clone(), &mut ancestry).await?;
        match self.work(&clock, height, &ordered).await {
            Ok(transactions) => {
                let built = self.build(
                    &context,
                    (parent.inner().block(), &sitting),
                    transactions,
                    now_ms(&clock),
                );
                Some(built)
            }
            Err(error) => {
                tracing::error!(%error, "declined to propose: the chain cannot be read");
                None
            }
        }
    }

    async fn verify(&mut self, (clock, context): (E, EngineContext), mut ancestry: impl Ancestry<EngineBlock>) -> bool {
        let Err(doubt) = self.judge(&clock, &context, &mut ancestry).await else {
            return true;
        };
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
