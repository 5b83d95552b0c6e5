//! Peers that have confirmed an erasure are asked, now and then, for something that they should not have any more.
//!
//! It finds a node that lies and answers truthfully, or that was set back to an old copy and has not noticed: not one that keeps a
//! copy elsewhere. No node can prove that it has forgotten something.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use ledger::state::State;
use rand::seq::IteratorRandom as _;
use record::ids::KeyId;
use tokio::time::Instant;

use super::{Failure, Rooms, Word};
use crate::recovery::{FoundBy, Kind, Open};

/// Between two questions; each goes to every peer, about one payload of one key.
const ASK_EVERY: Duration = Duration::from_secs(60);
/// Incidents of this room that are open at a time, at most.
const OPEN_MAX: usize = 256;

/// Who asks, and what it has found.
#[derive(Debug)]
pub(super) struct Probe {
    next: Instant,
    every: Duration,
    /// By the address at which a peer gave it out.
    open: HashMap<String, Open>,
}

impl Probe {
    pub(super) fn new() -> Self {
        Self {
            next: Instant::now() + ASK_EVERY,
            every: ASK_EVERY,
            open: HashMap::new(),
        }
    }

    #[cfg(test)]
    pub(super) fn always(&mut self) {
        (self.next, self.every) = (Instant::now(), Duration::ZERO);
    }

    /// Asks, if it is time.
    pub(super) async fn look(
        &mut self,
        rooms: &Rooms,
        words: &BTreeMap<KeyId, Word>,
        state: &State,
    ) -> Result<(), Failure> {
        if Instant::now() < self.next {
            return Ok(());
        }
        self.next = Instant::now() + self.every;
        let Some((key, word)) = words
            .iter()
            .filter(|(_, word)| !word.sample.is_empty())
            .choose(&mut rand::rng())
        else {
            return Ok(());
        };
        // Who has not confirmed yet may have it still.
        let all_have_confirmed = rooms
            .chain
            .erasure(key)
            .await?
            .is_some_and(|far| far.missing.is_empty());
        let Some(cid) = word
            .sample
            .iter()
            .choose(&mut rand::rng())
            .filter(|_| all_have_confirmed)
        else {
            return Ok(());
        };
        let (with, without) = rooms.vault.holders(cid).await;
        metrics::counter!("fog_erasure_probes_total").increment(1);
        for peer in with {
            metrics::counter!("fog_erasure_served_total").increment(1);
            let what = format!(
                "the node gives out payload {cid} of key {key}, which was erased at height {} and whose erasure every validator \
                 has confirmed",
                state.tombstone(key).map_or(0, |tombstone| tombstone.at.height.0)
            );
            let place = format!("{peer}/ipfs/{cid}");
            let open = rooms
                .incidents
                .found(Kind::ErasedServed, FoundBy::Probe, place.clone(), what);
            if self.open.len() < OPEN_MAX {
                self.open.insert(place, open);
            }
        }
        for peer in without {
            if let Some(open) = self.open.remove(&format!("{peer}/ipfs/{cid}")) {
                rooms.incidents.mended(open, vec![peer.to_string()]);
            }
        }
        Ok(())
    }
}
