//! The objects of a vault: whether all of one is here, its blocks from the disk or a peer, and what is missing, fetched.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use cid::Cid;
use tokio::sync::Semaphore;

use super::{
    Error, Trouble,
    exchange::Exchange,
    store::{Part, Store, damaged},
    unixfs::FILE_BYTES_MAX,
    walk::{Source, Step, Walk},
};
use crate::space::Space;

/// Leaves that are read ahead of a reader, at most.
const READ_AHEAD: usize = 2;
/// Leaves that are fetched from peers for one object at a time, at most.
const FETCH_AHEAD: usize = 8;
/// Objects that are fetched at a time, at most; others wait.
const FETCHED_AT_ONCE: usize = 4;
/// How often the peers are asked for one block before the object is left for later.
const ROUNDS_MAX: u32 = 4;
/// Pause before the peers are asked for a block once more; doubles.
const ROUND_PAUSE: Duration = Duration::from_millis(250);
/// Objects of which a part is kept, for when they are sought again, at most.
const PARTS_MAX: usize = 4;
/// How long a part is kept that nobody asks for.
const PART_KEPT: Duration = Duration::from_secs(600);

/// The objects' part of a vault; clones share it.
#[derive(Clone)]
pub(super) struct Objects {
    pub(super) store: Store,
    exchange: Exchange,
    space: Space,
    /// The length of the largest.
    pub(super) bytes_max: u64,
    /// Turns at fetching.
    turns: Arc<Semaphore>,
    // Readers and rounds note damage side by side; held for a look, never across an await.
    rotten: Arc<Mutex<HashSet<Cid>>>,
    // A round leaves here what the next one goes on with; held for a look.
    parts: Arc<Mutex<HashMap<Cid, (Instant, Part)>>>,
}

fn locked<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Objects {
    pub(super) fn new(store: Store, exchange: Exchange, space: Space, bytes_max: u64) -> Self {
        Self {
            store,
            exchange,
            space,
            bytes_max: bytes_max.min(FILE_BYTES_MAX),
            turns: Arc::new(Semaphore::new(FETCHED_AT_ONCE)),
            rotten: Arc::default(),
            parts: Arc::default(),
        }
    }

    /// Whether every block of an object is here, and none is known to be damaged.
    pub(super) async fn holds(&self, root: &Cid) -> Result<bool, Error> {
        if locked(&self.rotten).contains(root) {
            return Ok(false);
        }
        self.store.holds(root).await
    }

    /// The root's block if every block of the object is here and intact: all of it is read.
    pub(super) async fn attend(&self, root: &Cid) -> Result<Option<Bytes>, Error> {
        self.store.keep_on(root).await?;
        if !self.store.holds(root).await? {
            return Ok(None);
        }
        let mut first = None;
        let mut walk = self.walk(*root, 0..u64::MAX, self.own());
        loop {
            match walk.next().await {
                Ok(Some(step)) => first = first.or(Some(step.block)),
                Ok(None) => break,
                Err(Error::Absent(_) | Error::Refused(_)) => {
                    locked(&self.rotten).insert(*root);
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
        locked(&self.rotten).remove(root);
        Ok(first)
    }

    /// Notes that every block of an object was written just now.
    pub(super) fn is_whole(&self, root: &Cid) {
        locked(&self.rotten).remove(root);
    }

    /// Forgets what was noted of an object, and what has come of it.
    pub(super) fn forget(&self, root: &Cid) {
        locked(&self.rotten).remove(root);
        let part = locked(&self.parts).remove(root);
        drop(part);
    }

    pub(super) fn walk(&self, root: Cid, part: Range<u64>, source: Source) -> Walk {
        Walk::new(root, part, (FILE_BYTES_MAX, READ_AHEAD), source)
    }

    /// Blocks from this node's own disk.
    pub(super) fn own(&self) -> Source {
        let store = self.store.clone();
        Arc::new(move |cid, _| {
            let store = store.clone();
            Box::pin(async move { store.read(&cid).await?.ok_or(Error::Absent(cid)) })
        })
    }

    /// Blocks from this node's own disk, or else from a peer; what comes from there mends what is here.
    pub(super) fn mended(&self, root: Cid) -> Source {
        let objects = self.clone();
        Arc::new(move |cid, bytes_max| {
            let objects = objects.clone();
            Box::pin(async move { objects.read_or_mend(&root, &cid, bytes_max).await })
        })
    }

    async fn read_or_mend(&self, root: &Cid, cid: &Cid, bytes_max: usize) -> Result<Bytes, Error> {
        let trouble = match self.store.read(cid).await {
            Ok(Some(block)) => return Ok(block),
            Ok(None) => Error::Absent(*cid),
            Err(error @ Error::Unavailable(_)) => error,
            Err(error) => return Err(error),
        };
        let is_here = matches!(trouble, Error::Absent(_)) && self.store.holds(root).await?;
        if is_here {
            damaged(cid, "a block of a large record");
            locked(&self.rotten).insert(*root);
        }
        let block = self.ask(cid, bytes_max).await.ok_or(trouble)?;
        if is_here && let Err(error) = self.store.heal(root, cid, block.clone()).await {
            tracing::warn!(%cid, %error, "a block that came from a peer could not be written over the damaged one");
        }
        Ok(block)
    }

    /// A block from the peers, each asked several times.
    async fn ask(&self, cid: &Cid, bytes_max: usize) -> Option<Bytes> {
        let mut pause = ROUND_PAUSE;
        for round in 1..=ROUNDS_MAX {
            if let Some(block) = self.exchange.fetch(cid, bytes_max).await {
                return Some(block);
            }
            if round < ROUNDS_MAX {
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
        }
        None
    }

    /// Fetches what is missing of an object, and keeps it; whether it is held now. What has come stays for the next time, also when
    /// `exchange.object_timeout_ms` have passed since its turn began: others wait for theirs.
    pub(super) async fn gather(&self, root: Cid) -> Result<bool, Error> {
        let _turn = self.turns.acquire().await.expect("the semaphore is never closed");
        let deadline = Instant::now() + self.exchange.object_timeout();
        if self.holds(&root).await? {
            return Ok(true);
        }
        if self.store.holds(&root).await? {
            return self.mend(root, deadline).await;
        }
        let part = self.part_of(&root);
        let mut part = match part {
            Some(part) => part,
            None => self.store.begin().await?,
        };
        match self.fill(root, &mut part, deadline).await {
            Ok(()) => part.keep(&root).await.map(|()| true),
            Err(Error::Absent(_)) => {
                self.put_back(root, part);
                // It may have been erased meanwhile; whoever erases it from now on finds what was put back.
                if self.store.bars(&root).await.unwrap_or(true) {
                    self.forget(&root);
                }
                Ok(false)
            }
            // Without room nothing is kept of it.
            Err(error) => Err(error),
        }
    }

    #[cfg(test)]
    pub(super) fn parts_kept(&self) -> usize {
        locked(&self.parts).len()
    }

    fn put_back(&self, root: Cid, part: Part) {
        let mut parts = locked(&self.parts);
        if parts.len() < PARTS_MAX {
            parts.insert(root, (Instant::now(), part));
        }
    }

    /// What has come of an object before; what nobody has asked for in a while goes.
    fn part_of(&self, root: &Cid) -> Option<Part> {
        let mut parts = locked(&self.parts);
        let part = parts.remove(root).map(|(_, part)| part);
        parts.retain(|_, (since, _)| since.elapsed() < PART_KEPT);
        part
    }

    /// Goes through an object whose pack is here, and fetches what is damaged of it.
    async fn mend(&self, root: Cid, deadline: Instant) -> Result<bool, Error> {
        let mut walk = self.walk(root, 0..u64::MAX, self.mended(root));
        // Looked at between blocks: one that is being written over is not left in the middle.
        while walk.next().await?.is_some() {
            if Instant::now() >= deadline {
                return Ok(false);
            }
        }
        // What was mended is read from the disk once more.
        Ok(self.attend(&root).await?.is_some())
    }

    async fn fill(&self, root: Cid, part: &mut Part, deadline: Instant) -> Result<(), Error> {
        let (objects, had) = (self.clone(), part.reader());
        let source: Source = Arc::new(move |cid, bytes_max| {
            let (objects, had) = (objects.clone(), had.clone());
            Box::pin(async move {
                if let Some(block) = had.read(&cid).await? {
                    return Ok(block);
                }
                // It may be a block of another object.
                if let Some(block) = objects.store.read(&cid).await? {
                    return Ok(block);
                }
                objects.ask(&cid, bytes_max).await.ok_or(Error::Absent(cid))
            })
        });
        let mut walk = Walk::new(root, 0..u64::MAX, (self.bytes_max, FETCH_AHEAD), source);
        // What a peer has to do is cut short, what the disk has to do is not.
        while let Some(Step { cid, block, .. }) = tokio::time::timeout_at(deadline.into(), walk.next())
            .await
            .unwrap_or(Err(Error::Absent(root)))?
        {
            if self.space.is_short() {
                return Err(Error::Unavailable(Trouble::DiskFull));
            }
            part.append(&cid, block).await?;
        }
        Ok(())
    }
}
