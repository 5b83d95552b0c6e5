//! How a large record begins: what says whose it is, for a voter who cannot open it.

use cid::Cid;
use futures::StreamExt as _;
use tokio_util::task::AbortOnDropHandle;

use super::{Error, Vault};

impl Vault {
    /// The first bytes of an object of which at least the root is here, at most so many, and how many it has in all. Needs no tokio
    /// context of its own, as [`Vault::hold`].
    ///
    /// # Errors
    /// [`Error::Absent`], or the store has failed, or cannot be asked now.
    pub async fn beginning(&self, root: &Cid, bytes_max: usize) -> Result<(Vec<u8>, u64), Error> {
        let (vault, root) = (self.clone(), *root);
        let read = async move {
            let bytes = vault.object_bytes(&root).await?.ok_or(Error::Absent(root))?;
            let mut pieces = vault.object(&root, 0..bytes.min(bytes_max as u64)).await?.boxed();
            let mut start = Vec::with_capacity(bytes_max);
            while let Some(piece) = pieces.next().await {
                start.extend_from_slice(&piece?);
            }
            Ok((start, bytes))
        };
        AbortOnDropHandle::new(self.runtime.spawn(read))
            .await
            .map_err(|_| Error::Stopped)?
    }
}
