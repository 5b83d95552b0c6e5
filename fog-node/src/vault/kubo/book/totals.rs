//! What the book says of all payloads together.

use std::collections::HashSet;

use redb::ReadableTable as _;

use super::{Book, ENTRIES, OBJECTS, codec};
use crate::vault::{
    Error,
    file::{File, table},
    store::{cid_of, row},
};

impl Book {
    /// SHA-256 of every payload that was entered, and is no object, in order.
    pub(in crate::vault::kubo) async fn all(&self) -> Result<Vec<[u8; 32]>, Error> {
        self.blocking(|file| {
            file.with(|database| {
                let (Some(entries), objects) = (table(database, ENTRIES)?, table(database, OBJECTS)?) else {
                    return Ok(Vec::new());
                };
                let mut of_objects = HashSet::new();
                if let Some(objects) = objects {
                    for entry in objects.iter()? {
                        let (root, blocks) = entry?;
                        of_objects.insert(row(&cid_of(codec(blocks.value()), root.value())));
                    }
                }
                let mut all = Vec::new();
                for entry in entries.iter()? {
                    let key = *entry?.0.value();
                    if !of_objects.contains(&key) {
                        all.push(key);
                    }
                }
                // As the file says it, and not as an altered byte would have it.
                all.sort_unstable();
                Ok(all)
            })
        })
        .await
    }

    /// Bytes of all payloads.
    pub(in crate::vault::kubo) async fn bytes(&self) -> Result<u64, Error> {
        self.blocking(File::bytes).await
    }

    /// The height up to which a pass of the scrub has come.
    pub(in crate::vault::kubo) async fn scrubbed(&self) -> Result<u64, Error> {
        self.blocking(File::scrubbed).await
    }

    /// Notes how far a pass of the scrub has come.
    pub(in crate::vault::kubo) async fn note_scrubbed(&self, height: u64) -> Result<(), Error> {
        self.blocking(move |file| file.note_scrubbed(height)).await
    }

    /// The height up to which every payload that the chain names was held.
    pub(in crate::vault::kubo) async fn retained(&self) -> Result<u64, Error> {
        self.blocking(File::retained).await
    }

    /// Notes that every payload up to a height is held.
    pub(in crate::vault::kubo) async fn note_retained(&self, height: u64) -> Result<(), Error> {
        self.blocking(move |file| file.note_retained(height)).await
    }
}
