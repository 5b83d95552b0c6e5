//! The peers as they are asked for a lost node's blocks: one that lies or fails is left for another, and named with the reason.
//!
//! Who was left is asked again only when all others have nothing: what it gives is checked like everything else.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use futures::{StreamExt as _, stream};
use ledger::{
    agreement::Position,
    block::{FinalizedBlock, Height},
    handover::Committees,
    policy::ValidityPolicy,
    proof::CarriedBlock,
};
use record::{canonical::Digest, signature::PublicKey};

use super::Error;
use crate::{
    recovery::{Miss, Peers},
    vault::Peer,
};

/// A peer may take this long to say what its head is: every comparison waits for the slowest.
const HEAD_TIMEOUT: Duration = Duration::from_secs(3);
/// Blocks that are asked for at the same time, over all peers.
const ASKED_MAX: usize = 16;
const OTHER_BLOCK: &str = "a block that is not the one that was voted for";
const OTHER_EPOCH: &str = "a block of another epoch than its height's";
const BAD_VOTES: &str = "votes that do not hold";

/// One of the peers.
#[derive(Debug, Default)]
struct Donor {
    is_left: AtomicBool,
    blocks: AtomicU64,
    bytes: AtomicU64,
}

/// What one peer gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gift {
    /// Who.
    pub peer: String,
    /// How many blocks, also those of no use.
    pub blocks: u64,
    /// Their bytes.
    pub block_bytes: u64,
    /// How many payloads.
    pub payloads: u64,
    /// Their bytes.
    pub payload_bytes: u64,
    /// Whether it was left for another.
    pub was_left: bool,
}

/// A block that a peer gave for a height: nothing is known of it but its height and network.
#[derive(Debug)]
pub(super) struct Draft {
    carried: CarriedBlock,
    from: usize,
}

/// How a block that a peer gave is judged.
enum Flaw {
    /// It may be right, but is not what is looked for.
    Unfit,
    /// The peer lied.
    Lie(&'static str),
}

/// The peers.
#[derive(Debug)]
pub struct Donors {
    /// As they are asked for blocks.
    peers: Peers,
    /// As they are asked for heads.
    heads: Peers,
    list: Vec<Peer>,
    donors: Vec<Donor>,
    /// Whose votes count.
    committees: Committees,
    /// Which height belongs to which of them.
    policy: ValidityPolicy,
}

impl Donors {
    /// These peers; none of them has lied or failed yet.
    #[must_use]
    pub fn new(peers: Peers, committees: Committees, policy: &ValidityPolicy) -> Self {
        let list = peers.list();
        Self {
            heads: peers.clone().waiting(HEAD_TIMEOUT),
            donors: list.iter().map(|_| Donor::default()).collect(),
            list,
            peers,
            committees,
            policy: policy.clone(),
        }
    }

    /// What each peer gave so far; payloads are counted elsewhere.
    pub(super) fn gifts(&self) -> Vec<Gift> {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let gift = |(peer, donor): (&Peer, &Donor)| Gift {
            peer: peer.to_string(),
            blocks: count(&donor.blocks),
            block_bytes: count(&donor.bytes),
            payloads: 0,
            payload_bytes: 0,
            was_left: donor.is_left.load(Ordering::Relaxed),
        };
        self.list.iter().zip(&self.donors).map(gift).collect()
    }

    /// How many others must say the same so that, with this node, two thirds do. At least one of them is honest.
    fn needed(&self) -> usize {
        self.committees.newest().quorum().saturating_sub(1).max(1)
    }

    /// The highest position that two thirds agree on, this node counted with them: what it takes from them it will say, too.
    /// And the heights that peers name above it.
    pub(super) async fn agreed(&self, me: &PublicKey) -> Result<(Position, BTreeSet<Height>), Error> {
        let answers = self.heads.heights().await;
        let heights: BTreeSet<_> = answers.iter().copied().collect();
        let mut agree = 0;
        for height in heights.iter().rev() {
            let (position, holders) = self.most(*height, me).await;
            if let (Some(position), true) = (position, holders >= self.needed()) {
                return Ok((position, heights.range(height.next()..).copied().collect()));
            }
            agree = agree.max(holders);
        }
        Err(Error::NoAgreement {
            agree,
            needed: self.needed(),
            answered: answers.len(),
        })
    }

    /// The highest of these heights on which there are votes: they count whoever shows them.
    pub(super) async fn highest_proven(&self, heights: &BTreeSet<Height>) -> Option<Height> {
        for height in heights.iter().rev() {
            if self.certified(*height).await.is_some() {
                return Some(*height);
            }
        }
        None
    }

    /// What most others have signed about a height, and how many they are.
    pub(super) async fn most(&self, height: Height, me: &PublicKey) -> (Option<Position>, usize) {
        let said = self.said(height, me).await;
        let most = said.into_iter().max_by_key(|(_, holders)| holders.len());
        most.map_or((None, 0), |(position, holders)| (Some(position), holders.len()))
    }

    /// What other validators have signed about a height. A stranger's word, a forged one and one about another height or network
    /// do not count.
    async fn said(&self, height: Height, me: &PublicKey) -> BTreeMap<Position, BTreeSet<PublicKey>> {
        let validators = self.committees.newest();
        let mut said: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for head in self.heads.heads(height).await {
            let counts = head.network == validators.network
                && head.position.height == height
                && head.validator != *me
                && validators.validators.contains(&head.validator)
                && head.is_genuine();
            if counts {
                said.entry(head.position).or_default().insert(head.validator);
            }
        }
        said
    }

    /// A block for each height, from several peers at a time; `None` where nobody has one.
    pub(super) async fn drafts(&self, heights: impl Iterator<Item = u64>) -> Vec<Option<Draft>> {
        let drafts = heights.map(|height| self.ask(Height(height), |carried, from| Ok(Draft { carried, from })));
        stream::iter(drafts).buffered(ASKED_MAX).collect().await
    }

    /// A block of a height with votes on it that hold; `None` if nobody has one now.
    pub(super) async fn certified(&self, height: Height) -> Option<FinalizedBlock> {
        self.ask(height, |carried, _| {
            if carried.finalization.is_none() {
                return Err(Flaw::Unfit);
            }
            let digest = carried.block.header.digest();
            self.judged(carried, &digest)
        })
        .await
    }

    /// The block of a height with this digest: the draft if it is that, or else from another peer.
    pub(super) async fn settle(
        &self,
        height: Height,
        draft: Option<Draft>,
        digest: &Digest,
    ) -> Result<FinalizedBlock, Error> {
        if let Some(Draft { carried, from }) = draft {
            match self.judged(carried, digest) {
                Ok(block) => return Ok(block),
                Err(Flaw::Lie(what)) => self.leave(from, height, &Miss::Lied(what)),
                Err(Flaw::Unfit) => {}
            }
        }
        let asked = self.ask(height, |carried, _| self.judged(carried, digest)).await;
        asked.ok_or_else(|| {
            Error::Withheld(format!(
                "block {height}, as it was voted for, is at no peer that answers"
            ))
        })
    }

    /// The block, if it is the one with this digest, whole, and its votes (if it has some) hold.
    fn judged(&self, carried: CarriedBlock, digest: &Digest) -> Result<FinalizedBlock, Flaw> {
        let has_votes = carried.finalization.is_some();
        if !carried.is(digest) {
            return Err(Flaw::Lie(OTHER_BLOCK));
        }
        let (height, epoch) = (carried.block.header.height, carried.block.header.epoch);
        // A committee has no say after its term.
        if epoch != self.policy.epoch_of(height) {
            return Err(Flaw::Lie(OTHER_EPOCH));
        }
        let block = carried.finalized(self.committees.at(epoch));
        if has_votes && block.finalization.is_none() {
            return Err(Flaw::Lie(BAD_VOTES));
        }
        Ok(block)
    }

    /// Asks one peer after the other for a block of a height until one gives what is accepted.
    async fn ask<T>(&self, height: Height, accept: impl Fn(CarriedBlock, usize) -> Result<T, Flaw>) -> Option<T> {
        for at in self.order(height) {
            let (peer, donor) = (&self.list[at], &self.donors[at]);
            let given = match self.peers.carried(peer, height).await {
                Ok(given) => given,
                Err(Miss::Absent) => continue,
                Err(miss) => {
                    self.leave(at, height, &miss);
                    continue;
                }
            };
            donor.blocks.fetch_add(1, Ordering::Relaxed);
            donor.bytes.fetch_add(given.bytes, Ordering::Relaxed);
            let accepted = if given.carried.block.header.network == self.committees.network() {
                accept(given.carried, at)
            } else {
                Err(Flaw::Lie("a block of another network"))
            };
            match accepted {
                Ok(accepted) => return Some(accepted),
                Err(Flaw::Lie(what)) => self.leave(at, height, &Miss::Lied(what)),
                Err(Flaw::Unfit) => {}
            }
        }
        None
    }

    /// Each height begins with another peer, and who was left comes last.
    fn order(&self, height: Height) -> Vec<usize> {
        let is_left = |at: &usize| self.donors[*at].is_left.load(Ordering::Relaxed);
        let turn = |mut order: Vec<_>| {
            let start = height.0 % order.len().max(1) as u64;
            order.rotate_left(usize::try_from(start).expect("less than there are peers"));
            order
        };
        let (left, standing): (Vec<_>, Vec<_>) = (0..self.donors.len()).partition(is_left);
        let (mut order, left) = (turn(standing), turn(left));
        order.extend(left);
        order
    }

    fn leave(&self, at: usize, height: Height, why: &Miss) {
        let was_left = self.donors[at].is_left.swap(true, Ordering::Relaxed);
        if !was_left {
            let peer = &self.list[at];
            tracing::warn!(%peer, %height, %why, "a peer is left for another");
        }
    }
}
