//! A way through the blocks of a large record, the root first and each before what is below it: each block compared with what led to
//! it, some leaves on their way at once, and no more in memory than those.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use cid::Cid;
use futures::{StreamExt as _, future::BoxFuture, stream::FuturesOrdered};
use record::canonical::RAW;

use super::{
    Error, Refusal,
    unixfs::{LEAF_BYTES, NODE_BYTES_MAX, Node, Place},
};

/// Where blocks come from: the bytes of a block of at most so many, which hash to its identifier.
pub(super) type Source = Arc<dyn Fn(Cid, usize) -> BoxFuture<'static, Result<Bytes, Error>> + Send + Sync>;

/// A block on the way.
#[derive(Debug)]
pub(super) struct Step {
    /// Its identifier.
    pub(super) cid: Cid,
    /// Its bytes.
    pub(super) block: Bytes,
    /// What of a leaf was asked for; nothing of a node.
    pub(super) content: Bytes,
}

type Loading = FuturesOrdered<BoxFuture<'static, (Place, Result<Bytes, Error>)>>;

/// The way.
pub(super) struct Walk {
    root: Cid,
    is_begun: bool,
    part: Range<u64>,
    bytes_max: u64,
    leaves_at_once: usize,
    source: Source,
    /// What is still to be done, the next last.
    todo: Vec<Place>,
    loading: Loading,
}

impl Walk {
    /// Through the blocks that this part of a record needs, of at most so many bytes in all.
    pub(super) fn new(root: Cid, part: Range<u64>, (bytes_max, leaves_at_once): (u64, usize), source: Source) -> Self {
        Self {
            root,
            is_begun: false,
            part,
            bytes_max,
            leaves_at_once,
            source,
            todo: Vec::new(),
            loading: Loading::new(),
        }
    }

    /// The next block.
    ///
    /// # Errors
    /// A block that could not be had, or a node that is no part of a file as this network makes them. Nothing comes after that.
    pub(super) async fn next(&mut self) -> Result<Option<Step>, Error> {
        if !self.is_begun {
            self.is_begun = true;
            return self.begin().await.map(Some);
        }
        self.load_ahead();
        if let Some((place, block)) = self.loading.next().await {
            let block = block?;
            // The identifier covers the bytes, and what led here their number.
            if block.len() as u64 != place.link.content {
                return Err(self.no_file());
            }
            return Ok(Some(self.leaf(place.link.cid, place.start, block)));
        }
        let Some(place) = self.todo.pop() else {
            return Ok(None);
        };
        let block = (self.source)(place.link.cid, NODE_BYTES_MAX).await?;
        self.descend(&block, Some(&place))?;
        Ok(Some(node(place.link.cid, block)))
    }

    async fn begin(&mut self) -> Result<Step, Error> {
        if self.root.codec() == RAW {
            let block = (self.source)(self.root, LEAF_BYTES).await?;
            return Ok(self.leaf(self.root, 0, block));
        }
        let block = (self.source)(self.root, NODE_BYTES_MAX).await?;
        self.descend(&block, None)?;
        Ok(node(self.root, block))
    }

    /// Sends for the leaves that come next.
    fn load_ahead(&mut self) {
        while self.loading.len() < self.leaves_at_once
            && let Some(place) = self.todo.pop_if(|place| place.is_leaf())
        {
            let block = (self.source)(place.link.cid, place.block_bytes_max());
            self.loading.push_back(Box::pin(async move { (place, block.await) }));
        }
    }

    fn descend(&mut self, block: &[u8], place: Option<&Place>) -> Result<(), Error> {
        let below = Node::decode(block, place).ok_or_else(|| self.no_file())?;
        let bytes = below.last().map_or(0, |last| last.start + last.link.content);
        if place.is_none() && bytes > self.bytes_max {
            let bytes_max = self.bytes_max;
            return Err(Refusal::ObjectTooLarge { bytes_max }.into());
        }
        let wanted = below.into_iter().rev().filter(|place| place.touches(&self.part));
        self.todo.extend(wanted);
        Ok(())
    }

    fn leaf(&self, cid: Cid, start: u64, block: Bytes) -> Step {
        let bytes = block.len() as u64;
        let inside = |at: u64| usize::try_from(at.saturating_sub(start).min(bytes)).expect("a leaf is in memory");
        let (from, to) = (inside(self.part.start), inside(self.part.end));
        let content = block.slice(from..to.max(from));
        Step { cid, block, content }
    }

    fn no_file(&self) -> Error {
        Refusal::NoFile(self.root).into()
    }
}

fn node(cid: Cid, block: Bytes) -> Step {
    Step {
        cid,
        block,
        content: Bytes::new(),
    }
}
