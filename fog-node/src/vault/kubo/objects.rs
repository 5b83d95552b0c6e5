//! How the daemon keeps large records: block by block, each read back and hashed, then one pin of the root for all of them.
//!
//! Until the pin nothing holds the blocks: a collection that somebody starts meanwhile (Kubo has none of its own accord without
//! `--enable-gc`) takes them, and then the pin fails and the object is not held. What a killed put leaves behind is not pinned and in no
//! book: the daemon's next collection takes it.

use std::{collections::HashSet, sync::Arc, time::Duration};

use bytes::Bytes;
use cid::Cid;
use record::canonical::{DAG_PB, RAW};

use super::{Kubo, daemon, rpc::Failure};
use crate::vault::{
    Error,
    store::{cid_of, damaged, digest, is_payload_of},
};

/// Time for the daemon to pin a root, beside the usual, for each block below it: it reads every one.
const PIN_TIME_EACH: Duration = Duration::from_millis(100);

/// An object that is being put or fetched.
pub(in crate::vault) struct Part {
    store: Box<Kubo>,
    blocks: HashSet<Cid>,
    bytes: u64,
}

/// What an object that is being fetched had at one moment.
#[derive(Clone)]
pub(in crate::vault) struct Had {
    store: Box<Kubo>,
    blocks: Arc<HashSet<Cid>>,
}

impl Kubo {
    /// Begins an object.
    pub(in crate::vault) fn begin(&self) -> Result<Part, Error> {
        self.expect_here()?;
        Ok(Part {
            store: Box::new(self.clone()),
            blocks: HashSet::new(),
            bytes: 0,
        })
    }

    /// Whether an object was kept here and is still pinned: that is the last step.
    pub(in crate::vault) async fn holds(&self, root: &Cid) -> Result<bool, Error> {
        self.expect_here()?;
        Ok(self.has_entered(root).await? && self.rpc.is_pinned(root).await.map_err(daemon)?)
    }

    async fn has_entered(&self, root: &Cid) -> Result<bool, Error> {
        Ok(self.book.object(root).await?.is_some() && self.book.enters(root).await?)
    }

    /// The roots of all objects that were kept here.
    pub(in crate::vault) async fn roots(&self) -> Result<Vec<Cid>, Error> {
        self.book.roots().await
    }

    /// Pins an object again that somebody has unpinned, if its blocks are still there.
    pub(in crate::vault) async fn keep_on(&self, root: &Cid) -> Result<(), Error> {
        self.expect_here()?;
        if self.has_entered(root).await? && !self.rpc.is_pinned(root).await.map_err(daemon)? {
            Self::note_unpinned(root);
            if let Err(error) = self.pin_object(root).await {
                tracing::debug!(%root, %error, "it could not be pinned: blocks of it are gone");
            }
        }
        Ok(())
    }

    /// Puts a block in place of a damaged one. The daemon keeps what is pinned, so the pin goes for as long.
    pub(in crate::vault) async fn heal(&self, root: &Cid, cid: &Cid, block: &Bytes) -> Result<(), Error> {
        let (store, root, cid, block) = (self.clone(), *root, *cid, block.clone());
        let heal = async move {
            store.rpc.unpin(&root).await.map_err(daemon)?;
            store.put_block(&cid, &block).await?;
            store.pin_object(&root).await
        };
        self.in_turn(root, heal).await
    }

    /// Removes what is below a root that is not pinned any more, and belongs to no other object.
    pub(super) async fn remove_below(&self, root: &Cid) -> Result<(), Error> {
        for block in self.book.object(root).await?.unwrap_or_default() {
            if !self.book.is_shared(&block).await? {
                self.rpc.remove(&block).await.map_err(daemon)?;
            }
        }
        self.book.forget_object(root).await
    }

    async fn pin_object(&self, root: &Cid) -> Result<(), Error> {
        let blocks = self.book.object(root).await?.map_or(0, |blocks| blocks.len());
        let more = PIN_TIME_EACH * u32::try_from(blocks).unwrap_or(u32::MAX);
        self.rpc.pin_within(root, more).await.map_err(daemon)
    }

    /// Keeps a block that nothing pins, and reads it back; one whose bytes are wrong there goes first.
    async fn put_block(&self, cid: &Cid, block: &Bytes) -> Result<(), Error> {
        for is_last in [false, true] {
            let stored = self.rpc.put_block(cid.codec() == DAG_PB, block).await.map_err(daemon)?;
            if stored != *cid {
                return Err(daemon(Failure::Nonsense("it keeps other bytes than it was given")));
            }
            match self.rpc.get_back(cid).await {
                Ok(Some(bytes)) if is_payload_of(cid, &bytes) => return Ok(()),
                Ok(_) | Err(Failure::Damaged) if is_last => break,
                Ok(_) | Err(Failure::Damaged) => {
                    damaged(cid, "the daemon gives other bytes than it was given");
                    self.rpc.remove(cid).await.map_err(daemon)?;
                }
                Err(failure) => return Err(daemon(failure)),
            }
        }
        Err(daemon(Failure::Damaged))
    }
}

impl Part {
    /// Adds a block, whose identifier the caller has computed or checked.
    pub(in crate::vault) async fn append(&mut self, cid: &Cid, block: Bytes) -> Result<(), Error> {
        if self.blocks.contains(cid) {
            return Ok(());
        }
        self.store.expect_here()?;
        self.store.put_block(cid, &block).await?;
        self.bytes += block.len() as u64;
        self.blocks.insert(*cid);
        Ok(())
    }

    /// What it has now.
    pub(in crate::vault) fn reader(&self) -> Had {
        Had {
            store: self.store.clone(),
            blocks: Arc::new(self.blocks.clone()),
        }
    }

    /// Keeps it: entered in the book, then pinned. One that is refused is removed from the daemon.
    pub(in crate::vault) async fn keep(self, root: &Cid) -> Result<(), Error> {
        let (store, root) = (self.store.clone(), *root);
        let turns = store.clone();
        let keep = async move {
            let names: Vec<_> = self.blocks.iter().map(digest).collect();
            if store.book.enter_object(&root, names).await? {
                store.rpc.unpin(&cid_of(RAW, &digest(&root))).await.map_err(daemon)?;
            }
            let kept = match store
                .book
                .enter(&root, usize::try_from(self.bytes).unwrap_or(usize::MAX))
                .await
            {
                Ok(()) => store.pin_object(&root).await,
                refused => refused,
            };
            if kept.is_err() {
                store.remove_below(&root).await?;
                store.book.strike(&root, false).await?;
            }
            kept
        };
        turns.in_turn(root, keep).await
    }
}

impl Had {
    /// A block that was there, if its bytes are right.
    pub(in crate::vault) async fn read(&self, cid: &Cid) -> Result<Option<Bytes>, Error> {
        if !self.blocks.contains(cid) {
            return Ok(None);
        }
        let block = self.store.rpc.get(cid).await.map_err(daemon)?;
        Ok(block.filter(|block| is_payload_of(cid, block)))
    }
}
