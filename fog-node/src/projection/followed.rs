//! What the projection follows: this node's chain, or what an observer has proven of it.

use std::{future::Future, sync::Arc};

use ledger::{block::Height, state::State, transaction::Commitment};
use tokio::sync::watch;

use super::Failure;
use crate::{
    chain::{Chain, Head},
    proofs::Proofs,
};

/// Final commitments by height, and the state that says whose devices they come from.
pub trait Followed: Clone + Send + Sync + 'static {
    /// Follows the last height of which everything is known.
    fn watch(&self) -> watch::Receiver<Head>;

    /// The state after that height.
    fn state(&self) -> Arc<State>;

    /// The next height to project after one, at most `head`: heights in between hold nothing for this node.
    fn next(&self, projected: Height, head: Height) -> impl Future<Output = Result<Height, Failure>> + Send;

    /// The commitments of a block that took effect.
    fn commitments(&self, height: Height) -> impl Future<Output = Result<Vec<Commitment>, Failure>> + Send;

    /// When the block was proposed, in milliseconds since 1970.
    fn timestamp_ms(&self, height: Height) -> impl Future<Output = Result<u64, Failure>> + Send;
}

impl Followed for Chain {
    fn watch(&self) -> watch::Receiver<Head> {
        Self::watch(self)
    }

    fn state(&self) -> Arc<State> {
        Self::state(self)
    }

    async fn next(&self, projected: Height, _head: Height) -> Result<Height, Failure> {
        Ok(projected.next())
    }

    async fn commitments(&self, height: Height) -> Result<Vec<Commitment>, Failure> {
        Self::commitments(self, height).await?.ok_or(Failure::NoBlock(height))
    }

    async fn timestamp_ms(&self, height: Height) -> Result<u64, Failure> {
        let block = self.block(height).await?.ok_or(Failure::NoBlock(height))?;
        Ok(block.block.header.timestamp_ms)
    }
}

impl Followed for Proofs {
    fn watch(&self) -> watch::Receiver<Head> {
        Self::watch(self)
    }

    fn state(&self) -> Arc<State> {
        Self::state(self)
    }

    async fn next(&self, projected: Height, head: Height) -> Result<Height, Failure> {
        Ok(Self::next(self, projected)?.map_or(head, |next| next.min(head)))
    }

    async fn commitments(&self, height: Height) -> Result<Vec<Commitment>, Failure> {
        let included = self.included(height)?.map(|block| block.included).unwrap_or_default();
        Ok(included
            .iter()
            .filter_map(|one| one.transaction.commitment().cloned())
            .collect())
    }

    async fn timestamp_ms(&self, height: Height) -> Result<u64, Failure> {
        let header = self
            .included(height)?
            .and_then(|block| block.block.headers.into_iter().next());
        Ok(header.ok_or(Failure::NoBlock(height))?.timestamp_ms)
    }
}
