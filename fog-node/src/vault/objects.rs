//! Large records: put, read and fetched as streams, in blocks of at most 262,144 bytes, a few of them in memory at a time.
//!
//! Such a record is named by the root of its blocks (`unixfs`). **Invariant:** a [`Held`] of a root exists only when every block
//! of it was hashed and is durable here; a block that leaves was hashed once more. What is altered on the disk is known when it is
//! read: it comes from a peer then, and is written over it.

use std::{io, ops::Range, pin::pin};

use bytes::{Bytes, BytesMut};
use cid::Cid;
use futures::{Stream, StreamExt as _, stream};
use record::canonical::{DAG_CBOR, RAW};

use super::{
    Error, Held, Refusal, Trouble, Vault,
    store::Part,
    unixfs::{LEAF_BYTES, Layout, Link, Node},
    walk::{Step, Walk},
    wanted::Message,
};

/// A large record that is kept here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Object {
    /// Proof that all of it is durable; its identifier is that of the root.
    pub held: Held,
    /// Its length.
    pub bytes: u64,
}

/// Blocks of an object with their identifiers, the root first, each before what is below it.
pub type Blocks = stream::BoxStream<'static, Result<(Cid, Bytes), Error>>;

/// Whether an identifier names a large record, or a block of one.
pub(super) fn is_of_object(cid: &Cid) -> bool {
    cid.codec() != DAG_CBOR
}

impl Vault {
    /// Keeps what a stream brings, of at most so many bytes (and `vault.object_bytes_max`), as one object. On return all of it is on
    /// the disk; a few blocks of it are in memory at a time. The caller bounds how long the stream may take.
    ///
    /// # Errors
    /// [`Error::Refused`] if it is longer, or the stream fails; [`Error::Full`], [`Error::Unavailable`], or the store has failed.
    pub async fn put_object<S>(&self, stream: S, bytes_max: u64) -> Result<Object, Error>
    where
        S: Stream<Item = io::Result<Bytes>> + Send,
    {
        let bytes_max = bytes_max.min(self.objects.bytes_max);
        let mut stream = pin!(stream);
        let mut file = Incoming {
            part: self.objects.store.begin().await?,
            layout: Layout::default(),
            leaf: BytesMut::with_capacity(LEAF_BYTES),
        };
        let mut bytes = 0_u64;
        while let Some(piece) = stream.next().await {
            let mut piece = piece.map_err(|error| {
                tracing::debug!(%error, "a large record broke off");
                Refusal::CutOff
            })?;
            bytes = bytes.saturating_add(piece.len() as u64);
            if bytes > bytes_max {
                return Err(Refusal::ObjectTooLarge { bytes_max }.into());
            }
            if self.space.is_short() {
                return Err(Error::Unavailable(Trouble::DiskFull));
            }
            while !piece.is_empty() {
                let fits = piece.len().min(LEAF_BYTES - file.leaf.len());
                file.leaf.extend_from_slice(&piece.split_to(fits));
                if file.leaf.len() == LEAF_BYTES {
                    file.add_leaf().await?;
                }
            }
        }
        if bytes == 0 || !file.leaf.is_empty() {
            file.add_leaf().await?;
        }
        let root = file.finish().await?;
        self.objects.is_whole(&root);
        // The seeker is gone when the vault is: nobody waits.
        let _told = self.seeker.send(Message::Arrived(vec![root])).await;
        Ok(Object {
            held: Held(root),
            bytes,
        })
    }

    /// A part of an object as a stream, from here; a block that is damaged or absent here comes from a peer. Every block was hashed
    /// when it comes; the stream ends with an error where one cannot be had.
    ///
    /// # Errors
    /// [`Error::Absent`] if not even the root can be had, [`Error::Refused`] if it is none, or the store has failed.
    pub async fn object(
        &self,
        root: &Cid,
        range: Range<u64>,
    ) -> Result<impl Stream<Item = Result<Bytes, Error>> + Send + use<>, Error> {
        let mut walk = self.objects.walk(*root, range, self.objects.mended(*root));
        let first = walk.next().await?.map(|step| step.content);
        let content = steps(walk).map(|step| step.map(|step| step.content));
        let all = stream::iter(first.map(Ok)).chain(content);
        Ok(all.filter(|piece| futures::future::ready(piece.as_ref().map_or(true, |piece| !piece.is_empty()))))
    }

    /// The length of an object of which at least the root is here.
    ///
    /// # Errors
    /// The store has failed, or cannot be asked now.
    pub async fn object_bytes(&self, root: &Cid) -> Result<Option<u64>, Error> {
        let Some(block) = self.local(root).await? else {
            return Ok(None);
        };
        if root.codec() == RAW {
            return Ok(Some(block.len() as u64));
        }
        let below = Node::decode(&block, None).and_then(|below| below.last().copied());
        Ok(below.map(|last| last.start + last.link.content))
    }

    /// The blocks that a part of an object needs, from this node's own disk alone, the root first.
    ///
    /// # Errors
    /// [`Error::Absent`] if the root is not here, or the store has failed.
    pub async fn blocks(&self, root: &Cid, range: Range<u64>) -> Result<Blocks, Error> {
        let mut walk = self.objects.walk(*root, range, self.objects.own());
        let first = walk.next().await?;
        let named = |step: Step| (step.cid, step.block);
        let rest = steps(walk).map(move |step| step.map(named));
        Ok(stream::iter(first.map(named).map(Ok)).chain(rest).boxed())
    }

    /// The roots of the objects that are here, without reading them; an object that is only being put or fetched is not among them.
    ///
    /// # Errors
    /// The store has failed, or cannot be asked now.
    pub async fn roots(&self) -> Result<Vec<Cid>, Error> {
        self.objects.store.roots().await
    }

    /// Removes what nobody counts on (an object whose commitment never came, what the chain does not name): durably, and its room is
    /// free. It may come again. **Who calls it** knows that a [`Held`] of it that was given out holds no longer.
    ///
    /// # Errors
    /// The store has failed, or cannot be asked now.
    pub async fn let_go(&self, cid: &Cid) -> Result<(), Error> {
        self.store.remove(cid).await?;
        self.objects.forget(cid);
        Ok(())
    }

    /// Whether this node holds a payload, or every block of an object.
    ///
    /// # Errors
    /// The store has failed, or cannot be asked now.
    pub async fn holds(&self, cid: &Cid) -> Result<bool, Error> {
        if is_of_object(cid) {
            self.objects.holds(cid).await
        } else {
            Ok(self.store.read(cid).await?.is_some())
        }
    }
}

/// What comes on a way, until its end or its first error.
fn steps(walk: Walk) -> impl Stream<Item = Result<Step, Error>> + Send {
    stream::unfold(Some(walk), |walk| async move {
        let mut walk = walk?;
        match walk.next().await {
            Ok(step) => step.map(|step| (Ok(step), Some(walk))),
            Err(error) => Some((Err(error), None)),
        }
    })
}

/// An object that is coming in.
struct Incoming {
    part: Part,
    layout: Layout,
    leaf: BytesMut,
}

impl Incoming {
    async fn add_leaf(&mut self) -> Result<(), Error> {
        let leaf = self.leaf.split().freeze();
        self.leaf.reserve(LEAF_BYTES);
        let link = Link::leaf(&leaf);
        self.part.append(&link.cid, leaf).await?;
        for (cid, node) in self.layout.leaf(link) {
            self.part.append(&cid, node.into()).await?;
        }
        Ok(())
    }

    async fn finish(mut self) -> Result<Cid, Error> {
        let (root, nodes) = self.layout.finish().expect("there is a leaf, be it empty");
        for (cid, node) in nodes {
            self.part.append(&cid, node.into()).await?;
        }
        self.part.keep(&root.cid).await?;
        Ok(root.cid)
    }
}
