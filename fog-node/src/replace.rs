//! A node whose disk is lost, rebuilt from its peers: every block by votes, every payload by its identifier, and nothing on trust.
//!
//! What is known beforehand is the genesis: it names the validators. Two thirds of them, this node counted, say by signed
//! heads how high the chain is, and votes prove what is above: no peer can pretend a shorter one. The blocks come with votes that are checked here
//! (`ascent`), state and outcomes follow by applying them, and the state must be the one that the others have signed. Then
//! come the payloads that the blocks name (`payloads`), and rows for what the keyring opens. Interrupted, it goes on from
//! what is there: all of it was checked before it was written. **Invariant:** while the marker of `folder` is there, the
//! node does not run. The engine's own store is not rebuilt: the engine starts from the chain's head.

mod ascent;
mod donors;
mod folder;
mod payloads;
mod summary;

use std::{
    fmt,
    time::{Duration, Instant},
};

use record::signature::PublicKey;

pub use donors::{Donors, Gift};
pub use folder::{Folder, Refused, is_unfinished};
pub use summary::Summary;

use crate::{
    chain::{self, Chain},
    projection::{self, Projection},
    vault::{self, Vault},
};

/// One peer may take this long for one block; then it is left for another.
pub const BLOCK_TIMEOUT: Duration = Duration::from_secs(20);
/// How often is said how far it is.
const SAY_EVERY: Duration = Duration::from_secs(2);
/// While the others are further ahead than so many blocks, the climb goes on; the rest is for the engine.
const BEHIND_BLOCKS_MAX: u64 = 64;
/// How often the climb goes on, at most: who is slower than the others would climb for ever.
const CLIMBS_MAX: u32 = 8;

/// Why a node could not be rebuilt now. What was rebuilt stays; `replace` can be run again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Peers are down, behind, or lie.
    #[error(
        "{agree} other validators agree on a height, {needed} are needed, {answered} peers answered: are the peers in \
         vault.exchange.peers up, and is the genesis theirs?"
    )]
    NoAgreement {
        /// The most that agree.
        agree: usize,
        /// How many must.
        needed: usize,
        /// How many peers said how high their chain is.
        answered: usize,
    },
    /// Something that the peers must have is not to be had from them now.
    #[error("{0}; the warnings above say why. What is here stays: run `replace` again")]
    Withheld(String),
    /// What must never be: two thirds contradict each other, or this program makes another state of their blocks.
    #[error("{0}: leave this folder as it is, and ask the other members")]
    Contradiction(String),
    /// A store.
    #[error(transparent)]
    Chain(#[from] chain::Error),
    /// A store.
    #[error(transparent)]
    Vault(#[from] vault::Error),
    /// A store.
    #[error(transparent)]
    Projection(#[from] projection::Failure),
}

/// What is rebuilt.
#[derive(Debug)]
pub struct Rooms {
    /// Blocks and state.
    pub chain: Chain,
    /// Payloads.
    pub vault: Vault,
    /// What makes rows, if there are keys.
    pub projection: Option<Projection>,
}

/// Says how far it is, now and then.
pub struct Progress {
    tell: Box<dyn FnMut(&str) + Send>,
    said: Instant,
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Progress(..)")
    }
}

impl Progress {
    /// To somebody who reads lines.
    #[must_use]
    pub fn to(tell: impl FnMut(&str) + Send + 'static) -> Self {
        Self {
            tell: Box::new(tell),
            said: Instant::now(),
        }
    }

    fn say(&mut self, line: impl FnOnce() -> String) {
        if self.said.elapsed() >= SAY_EVERY {
            (self.tell)(&line());
            self.said = Instant::now();
        }
    }

    fn announce(&mut self, line: &str) {
        (self.tell)(line);
        self.said = Instant::now();
    }
}

/// Rebuilds chain, vault and index from the peers. `me` is this node's key: its own earlier word counts for nothing.
///
/// # Errors
/// [`Error`]; what was rebuilt stays and is gone on from.
pub async fn rebuild(
    rooms: &Rooms,
    donors: &Donors,
    me: &PublicKey,
    progress: &mut Progress,
) -> Result<Summary, Error> {
    let started = Instant::now();
    let blocks = climb_to_the_others(&rooms.chain, donors, me, progress).await?;
    agree(&rooms.chain, donors, me).await?;
    progress.announce("the chain is rebuilt and its state agrees; fetching payloads");
    let payloads = payloads::fetch(&rooms.chain, &rooms.vault, progress).await?;
    if let Some(projection) = &rooms.projection {
        progress.announce("the payloads are here; projecting what the keyring opens");
        while let Some(height) = projection.advance().await? {
            progress.say(|| format!("projected block {height}"));
        }
    }
    let mut gifts = donors.gifts();
    for (gift, (_, payloads, bytes)) in gifts.iter_mut().zip(rooms.vault.delivered()) {
        (gift.payloads, gift.payload_bytes) = (payloads, bytes);
    }
    Ok(Summary {
        head: rooms.chain.head(),
        blocks,
        payloads_held: payloads.held,
        payloads_absent: payloads.absent,
        gifts,
        took: started.elapsed(),
    })
}

/// Climbs to the height that two thirds agree on or votes prove, and on while the others have gone on meanwhile.
async fn climb_to_the_others(
    chain: &Chain,
    donors: &Donors,
    me: &PublicKey,
    progress: &mut Progress,
) -> Result<u64, Error> {
    let mut appended = 0;
    for _ in 0..CLIMBS_MAX {
        let (agreed, above) = donors.agreed(me).await?;
        let target = donors.highest_proven(&above).await.unwrap_or(agreed.height);
        let head = chain.head().height;
        if appended > 0 && target.0 <= head.0 + BEHIND_BLOCKS_MAX {
            break;
        }
        progress.announce(&format!("the chain has {target} blocks, {head} of them are here"));
        let more = ascent::climb(chain, donors, target, progress).await?;
        appended += more;
        if more == 0 {
            break;
        }
    }
    Ok(appended)
}

/// The state that was made here must be the one that the others have signed: of our last block, or of theirs.
async fn agree(chain: &Chain, donors: &Donors, me: &PublicKey) -> Result<(), Error> {
    let (agreed, _) = donors.agreed(me).await?;
    let height = agreed.height.min(chain.head().height);
    let theirs = if height == agreed.height {
        Some(agreed)
    } else {
        donors.most(height, me).await.0
    };
    if chain.position_at(height)? == theirs {
        return Ok(());
    }
    Err(Error::Contradiction(format!(
        "the others have another state of block {height} than this program makes of the same blocks"
    )))
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod village;
