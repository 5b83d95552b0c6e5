//! Whose a block is: the daemon finds it by its hash alone, whoever put it.

use cid::Cid;
use record::canonical::DAG_CBOR;

use super::{BLOCKS, Book};
use crate::vault::{
    Error,
    file::{joined, table},
    objects::is_of_object,
    store::{cid_of, digest},
};

impl Book {
    /// Whether a block of an object is also one of another object, or a payload.
    pub(in crate::vault::kubo) async fn is_shared(&self, block: &Cid) -> Result<bool, Error> {
        Ok(self.owners(block).await? > 1 || self.is_payload(block).await?)
    }

    /// Whether something else that was entered has the bytes of this record.
    pub(in crate::vault::kubo) async fn is_of_another(&self, cid: &Cid) -> Result<bool, Error> {
        if !is_of_object(cid) {
            return Ok(self.owners(cid).await? > 0);
        }
        let own = usize::from(self.object(cid).await?.is_some());
        Ok(self.owners(cid).await? > own || self.is_payload(cid).await?)
    }

    async fn is_payload(&self, block: &Cid) -> Result<bool, Error> {
        self.enters(&cid_of(DAG_CBOR, &digest(block))).await
    }

    /// To how many objects a block belongs.
    pub(super) async fn owners(&self, block: &Cid) -> Result<usize, Error> {
        let block = digest(block);
        self.blocking(move |file| {
            file.with(|database| {
                let Some(owners) = table(database, BLOCKS)? else {
                    return Ok(0);
                };
                let (first, last) = (joined(&block, &[0; 32]), joined(&block, &[0xff; 32]));
                Ok(owners.range::<&[u8; 64]>(&first..=&last)?.count())
            })
        })
        .await
    }
}
