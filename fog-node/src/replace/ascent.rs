//! The chain from its genesis upwards, a window at a time: the votes on its highest block prove all below it by their parent links.
//!
//! The blocks of a window are fetched from several peers at once and believed by nobody. Then the highest one is looked for on
//! which the votes hold, in the window's last place or, if that one became final through a descendant, above it. From there
//! down each block names its parent's digest, so that each is known before it is looked at: a peer that gave another one is
//! found out. Only then the window is appended, in one commit; memory holds one window, whatever the chain's length.

use futures::future::join;
use ledger::{
    block::{FinalizedBlock, Height},
    proof::DESCENT_MAX,
};
use tokio::task::spawn_blocking;

use super::{Error, Progress, donors::Donors};
use crate::chain::{Chain, Head};

/// Blocks that are fetched and appended together; full ones have 2 MB each.
const WINDOW_BLOCKS: u64 = 64;
/// Blocks at the end that may be without votes, at most.
const END_BLOCKS_MAX: u64 = 8;

/// Appends every proven block up to a height; gives how many those were. The last ones stay out while nobody has votes on one
/// of them yet: the engine brings them.
pub(super) async fn climb(
    chain: &Chain,
    donors: &Donors,
    target: Height,
    progress: &mut Progress,
) -> Result<u64, Error> {
    let mut appended = 0;
    loop {
        let head = chain.head();
        if head.height >= target {
            return Ok(appended);
        }
        let window = window(donors, &head, target).await?;
        let more = window.len() as u64;
        let top = Height(head.height.0 + more);
        if more == 0 {
            // A block or two at the end may have no votes yet; a whole chain without votes is none.
            let is_end = head.height > Height(0) && target.0 - head.height.0 <= END_BLOCKS_MAX;
            return if is_end {
                Ok(appended)
            } else {
                Err(no_votes(head.height.next()))
            };
        }
        let chain = chain.clone();
        let written = spawn_blocking(move || chain.append_all(&window)).await;
        written.expect("appending does not panic")?;
        appended += more;
        progress.say(|| format!("block {top} of {target}"));
    }
}

/// The next blocks above the head, each by the digest that follows from votes; none if there are no votes up to the target.
async fn window(donors: &Donors, head: &Head, target: Height) -> Result<Vec<FinalizedBlock>, Error> {
    let from = head.height.0 + 1;
    let to = target.0.min(head.height.0 + WINDOW_BLOCKS);
    let (top, mut drafts) = join(proven(donors, (from, to), target), donors.drafts(from..to)).await;
    let Some(top) = top? else { return Ok(Vec::new()) };
    let mut expected = top.block.header.parent;
    let mut window = vec![top];
    for height in (from..window[0].block.header.height.0).rev().map(Height) {
        let at = usize::try_from(height.0 - from).expect("a place in the window");
        let block = donors.settle(height, drafts[at].take(), &expected).await?;
        expected = block.block.header.parent;
        window.push(block);
    }
    if expected != head.digest {
        return Err(Error::Contradiction(format!(
            "two thirds have voted for two histories above block {}",
            head.height
        )));
    }
    window.reverse();
    Ok(window)
}

/// The block in the last place, by votes on it or on a descendant; else, near the target, the highest one with votes.
async fn proven(donors: &Donors, (from, to): (u64, u64), target: Height) -> Result<Option<FinalizedBlock>, Error> {
    let highest = target.0.min(to + DESCENT_MAX as u64);
    for height in (to..=highest).map(Height) {
        let Some(mut block) = donors.certified(height).await else {
            continue;
        };
        while block.block.header.height.0 > to {
            let below = Height(block.block.header.height.0 - 1);
            block = donors.settle(below, None, &block.block.header.parent).await?;
        }
        return Ok(Some(block));
    }
    if highest < target.0 {
        return Err(no_votes(Height(to)));
    }
    for height in (from..to).rev().map(Height) {
        if let Some(block) = donors.certified(height).await {
            return Ok(Some(block));
        }
    }
    Ok(None)
}

fn no_votes(height: Height) -> Error {
    Error::Withheld(format!(
        "no peer has votes that hold on block {height} or on one above it"
    ))
}
