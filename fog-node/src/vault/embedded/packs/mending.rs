//! Blocks that are damaged in their packs, written over in their places.

use std::{fs, os::unix::fs::FileExt as _};

use cid::Cid;
use record::canonical::RAW;
use redb::Database;

use super::{Aside, BLOCKS, Packs, is_absent, places_of, read_at};
use crate::vault::{
    file::{joined, table},
    store::{cid_of, digest, is_payload_of},
};

impl Packs {
    /// Writes a block, whose identifier was compared with its bytes, over one whose bytes are wrong, wherever it lies.
    pub(in crate::vault::embedded) fn heal(
        &self,
        database: &Database,
        cid: &Cid,
        block: &[u8],
    ) -> Result<(), redb::Error> {
        for (root, (at, length)) in places_of(database, cid)? {
            if length as usize != block.len() {
                continue;
            }
            match fs::OpenOptions::new().write(true).open(self.path(&root)) {
                Ok(file) => {
                    file.write_all_at(block, at)?;
                    file.sync_data()?;
                }
                // The pack is gone; the object is fetched as a whole.
                Err(error) if is_absent(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Writes the blocks of an object that are damaged in its pack over, from one that has all of them; whether every block has its
    /// place in the pack.
    pub(in crate::vault::embedded) fn mend(
        &self,
        database: &Database,
        root: &Cid,
        from: &Aside,
    ) -> Result<bool, redb::Error> {
        let (key, path) = (digest(root), self.path(&digest(root)));
        let Some(blocks) = table(database, BLOCKS)? else {
            return Ok(false);
        };
        let file = fs::OpenOptions::new().read(true).write(true).open(path)?;
        for (block, place) in &from.places {
            let Some(lies) = blocks.get(&joined(block, &key))?.map(|lies| lies.value()) else {
                return Ok(false);
            };
            let is_intact = match read_at(&file, lies) {
                Ok(bytes) => is_payload_of(&cid_of(RAW, block), &bytes),
                Err(error) if is_absent(&error) => false,
                Err(error) => return Err(error.into()),
            };
            if !is_intact {
                if lies.1 != place.1 {
                    return Ok(false);
                }
                file.write_all_at(&read_at(&from.file, *place)?, lies.0)?;
                file.sync_data()?;
            }
        }
        Ok(true)
    }
}
