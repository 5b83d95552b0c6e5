//! What the chain hands to nodes that hold none: headers with their votes, the state, commitments with their proofs.

use std::sync::Arc;

use ledger::{
    agreement::Position,
    block::{FinalizedBlock, Height},
    document::Payload,
    light::{
        CARRIED_HEADERS_ENOUGH, COMMITMENTS_ENOUGH, CarriedHeader, CarriedHeaders, CarriedState, HEADERS_MAX, Included,
        IncludedInBlock, ProvenHeader,
    },
    proof::DESCENT_MAX,
    state::{Outcome, State},
};
use record::{canonical::Digest, merkle};

use super::{Chain, Error, Store};

/// Blocks looked at for one answer, at most.
const BLOCKS_MAX: u64 = 256;
/// Transactions looked at after which an answer ends with their block.
const TRANSACTIONS_ENOUGH: usize = 8_192;

impl Chain {
    /// Headers from a height on, with the votes on each; at most [`HEADERS_MAX`].
    ///
    /// # Errors
    /// [`Error`].
    pub async fn carried_headers(&self, from: Height, count: usize) -> Result<CarriedHeaders, Error> {
        self.read(move |store| {
            let mut headers = Vec::new();
            let mut height = from;
            while headers.len() < count.min(HEADERS_MAX) {
                let Some(block) = store.block(height)? else { break };
                headers.push(CarriedHeader {
                    header: block.block.header,
                    finalization: block.finalization,
                });
                height = height.next();
            }
            Ok(CarriedHeaders(headers))
        })
        .await
    }

    /// The state of this moment with what its digest was made of; without the register if its digest is `known`. `None`
    /// before the first block.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn carried_state(&self, known: Option<Digest>) -> Result<Option<CarriedState>, Error> {
        let state = self.state();
        self.read(move |store| carried_state(store, &state, known)).await
    }

    /// The commitments `wanted` that took effect in blocks `from` to `to`, and the height up to which all of them are
    /// given: an answer ends early when it is long, and where a block is not proven yet.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn included(
        &self,
        (from, to): (Height, Height),
        wanted: impl Fn(&Payload) -> bool + Send + 'static,
    ) -> Result<(Height, Vec<IncludedInBlock>), Error> {
        self.read(move |store| included(store, (from, to), &wanted)).await
    }
}

fn carried_state(store: &Store, state: &Arc<State>, known: Option<Digest>) -> Result<Option<CarriedState>, Error> {
    let height = state.height();
    let Some(before) = height.0.checked_sub(1).map(Height) else {
        return Ok(None);
    };
    let missing = || Error::Damaged(format!("block {height}: no record of its application"));
    let (before, applied) = (store.applied(before)?, store.applied(height)?);
    let (before, applied) = before.zip(applied).ok_or_else(missing)?;
    let has_it = known == Some(state.register_digest());
    Ok(Some(CarriedState {
        position: Position {
            height,
            digest: applied.digest,
            state_digest: state.digest(),
        },
        before: before.state_digest,
        outcomes: applied.outcomes,
        register: (!has_it).then(|| state.register().clone()),
    }))
}

fn included(
    store: &Store,
    (from, to): (Height, Height),
    wanted: &impl Fn(&Payload) -> bool,
) -> Result<(Height, Vec<IncludedInBlock>), Error> {
    let mut through = Height(from.0.saturating_sub(1));
    let (mut blocks, mut commitments, mut headers, mut looked_at) = (Vec::new(), 0, 0, 0);
    let last = Height(to.0.min(through.0.saturating_add(BLOCKS_MAX)));
    while through < last
        && commitments < COMMITMENTS_ENOUGH
        && headers < CARRIED_HEADERS_ENOUGH
        && looked_at < TRANSACTIONS_ENOUGH
    {
        let height = through.next();
        let Some((block, applied)) = store.block(height)?.zip(store.applied(height)?) else {
            break;
        };
        looked_at += block.block.transactions.len();
        let included = included_in(&block, &applied.outcomes, wanted);
        if !included.is_empty() {
            let Some(proof) = proof_of(store, &block)? else { break };
            headers += proof.headers.len();
            commitments += included.len();
            blocks.push(IncludedInBlock { block: proof, included });
        }
        through = height;
    }
    Ok((through, blocks))
}

fn included_in(block: &FinalizedBlock, outcomes: &[Outcome], wanted: &impl Fn(&Payload) -> bool) -> Vec<Included> {
    let is_wanted = |at: usize| {
        let payload = block.block.transactions[at].payload();
        outcomes.get(at) == Some(&Outcome::Applied) && payload.as_ref().is_some_and(wanted)
    };
    let wanted: Vec<_> = (0..block.block.transactions.len())
        .filter(|at| is_wanted(*at))
        .collect();
    if wanted.is_empty() {
        return Vec::new();
    }
    let leaves = block.block.leaves();
    let include = |at: usize| {
        Some(Included {
            transaction: block.block.transactions[at].clone(),
            path: merkle::Path::of(&leaves, at)?,
        })
    };
    wanted.into_iter().filter_map(include).collect()
}

/// What proves a block: the votes on it, or on one of its next descendants. `None` until there are any.
pub(super) fn proof_of(store: &Store, block: &FinalizedBlock) -> Result<Option<ProvenHeader>, Error> {
    let mut headers = vec![block.block.header.clone()];
    let mut finalization = block.finalization.clone();
    let mut height = block.block.header.height;
    while finalization.is_none() && headers.len() < DESCENT_MAX {
        height = height.next();
        let Some(descendant) = store.block(height)? else {
            return Ok(None);
        };
        headers.push(descendant.block.header);
        finalization = descendant.finalization;
    }
    Ok(finalization.map(|finalization| ProvenHeader { headers, finalization }))
}
