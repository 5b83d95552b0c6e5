//! The engine's store of finalized blocks, with the chain behind it: what the store lost or altered is read from there.
//!
//! Both hold every block, each on its own file. The engine's does not notice a value that was altered, and some damage shows
//! as an error that stops it; here a block counts only if it hashes to what it is asked for by, or to what the chain has at
//! its height.

use std::sync::Arc;

use commonware_consensus::{marshal::store::Blocks, types::Height};
use commonware_cryptography::Digestible as _;
use commonware_runtime::Handle;
use commonware_storage::archive::Identifier;
use ledger::block;

use super::codec::{EngineBlock, EngineDigest, engine_digest};
use crate::chain::Chain;

/// By what a block is asked for.
#[derive(Clone, Copy)]
enum Asked {
    Height(block::Height),
    Digest(EngineDigest),
}

/// A store whose losses the chain makes good.
pub(super) struct Backed<S> {
    store: S,
    chain: Chain,
}

impl<S: Blocks<Block = Arc<EngineBlock>>> Backed<S> {
    pub(super) const fn new(store: S, chain: Chain) -> Self {
        Self { store, chain }
    }

    /// Whether a block that was read is the one that was asked for.
    fn is_right(&self, asked: Asked, block: &EngineBlock) -> bool {
        match asked {
            Asked::Digest(digest) => block.digest() == digest,
            Asked::Height(height) => {
                let agreed = self.chain.digest_at(height).ok().flatten();
                agreed.is_none_or(|agreed| block.digest() == engine_digest(&agreed))
            }
        }
    }

    fn of_chain(&self, asked: Asked) -> Option<Arc<EngineBlock>> {
        // The genesis block is the engine's own anchor: it looks whether that is there, and else puts it.
        let Asked::Height(height @ block::Height(1..)) = asked else {
            return None;
        };
        let block = self.chain.block_now(height).ok().flatten()?;
        Some(Arc::new(EngineBlock::new(block.block)))
    }
}

impl<S: Blocks<Block = Arc<EngineBlock>>> Blocks for Backed<S> {
    type Block = Arc<EngineBlock>;
    type Error = S::Error;

    async fn put(self, digest: EngineDigest, block: &Arc<EngineBlock>) -> Result<Self, S::Error> {
        let store = self.store.put(digest, block).await?;
        Ok(Self { store, ..self })
    }

    async fn sync(self) -> Result<Self, S::Error> {
        let store = self.store.sync().await?;
        Ok(Self { store, ..self })
    }

    async fn start_sync(self) -> Result<(Self, Handle<()>), S::Error> {
        let (store, synced) = self.store.start_sync().await?;
        Ok((Self { store, ..self }, synced))
    }

    async fn get(&self, id: Identifier<'_, EngineDigest>) -> Result<Option<Arc<EngineBlock>>, S::Error> {
        let asked = match &id {
            Identifier::Index(height) => Asked::Height(block::Height(*height)),
            Identifier::Key(digest) => Asked::Digest(**digest),
        };
        match self.store.get(id).await {
            Ok(Some(block)) if self.is_right(asked, &block) => return Ok(Some(block)),
            Ok(None) => {}
            Ok(Some(_)) => warn("it is another block"),
            Err(error) => warn(&error.to_string()),
        }
        Ok(self.of_chain(asked))
    }

    async fn prune(self, min: Height) -> Result<Self, S::Error> {
        let store = self.store.prune(min).await?;
        Ok(Self { store, ..self })
    }

    fn missing_items(&self, start: Height, max: usize) -> Vec<Height> {
        self.store.missing_items(start, max)
    }

    fn next_gap(&self, value: Height) -> (Option<Height>, Option<Height>) {
        self.store.next_gap(value)
    }

    fn last_index(&self) -> Option<Height> {
        self.store.last_index()
    }
}

fn warn(what: &str) {
    metrics::counter!("fog_consensus_store_damage_total").increment(1);
    tracing::warn!(
        what,
        "a block in the engine's store is damaged; the chain's copy is used"
    );
}
