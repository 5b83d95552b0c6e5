//! What comes to an erased key when it was erased just now: commitments that were ordered or taken in before that was known.
//!
//! They are refused, and their payloads are erased like the others. It lasts as long as somebody can propose who does not know
//! of the tombstone yet.

use std::{collections::BTreeMap, sync::Arc};

use cid::Cid;
use ledger::{block::Height, state::State};
use record::ids::KeyId;

use super::{Failure, Rooms, erase_payloads};

/// Blocks above a tombstone that are looked through: a leader's state is that much behind, at most, and then some.
const LATE_BLOCKS: u64 = 64;

/// What is erased late.
#[derive(Debug, Default)]
pub(super) struct Late {
    /// The keys that were erased just now: up to which height each was looked at, and up to which it will be.
    keys: BTreeMap<KeyId, (Height, Height)>,
    /// Payloads of commitments that waited and were let go of: nothing but this names them until they are erased.
    unnamed: Vec<Cid>,
}

impl Late {
    /// Watches a key that was erased at a height, and looked at up to another one.
    pub(super) fn watch(&mut self, key: KeyId, erased: Height, looked_at: Height) {
        let until = Height(erased.0.saturating_add(LATE_BLOCKS));
        self.keys.insert(key, (looked_at, until));
    }

    pub(super) async fn erase(&mut self, rooms: &Rooms, state: &State) -> Result<(), Failure> {
        if self.keys.is_empty() {
            return Ok(());
        }
        let let_go = rooms.mempool.remove_committed_to(|key| self.keys.contains_key(key));
        self.unnamed.extend(let_go);
        let head = state.height();
        let from = self.keys.values().map(|(looked_at, _)| looked_at.next()).min();
        let keys = Arc::new(self.keys.keys().copied().collect());
        let committed = match from.filter(|from| *from <= head) {
            Some(from) => rooms.chain.committed_to(keys, (from, head)).await?,
            None => Vec::new(),
        };
        let ordered = committed.iter().map(|committed| committed.cid);
        let cids = ordered.chain(self.unnamed.iter().copied()).collect();
        let late = erase_payloads(&rooms.vault, cids).await?;
        self.unnamed.clear();
        metrics::counter!("fog_erasure_late_payloads_total").increment(late.len() as u64);
        for (looked_at, _) in self.keys.values_mut() {
            *looked_at = head;
        }
        self.keys.retain(|_, (_, until)| *until > head);
        Ok(())
    }
}
