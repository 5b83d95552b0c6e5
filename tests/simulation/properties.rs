//! What must hold on every node's chain, whatever happened.

use std::collections::BTreeSet;

use fog_node::chain::Chain;
use ledger::{
    block::{FinalizedBlock, Height},
    proof::Receipt,
    state::{Finals, Outcome, State, identifiers},
    transaction::SignedTransaction,
};
use record::{canonical::Digest, signature::PublicKey};
use tokio::runtime::Runtime;

use crate::clinic::Clinic;

/// What took effect so far, as an independent reader of the blocks sees it.
#[derive(Default)]
struct Seen(BTreeSet<Digest>);

impl Finals for Seen {
    fn contains(&self, digest: &Digest) -> bool {
        self.0.contains(digest)
    }
}

/// Two blocks at one height, each final by votes that hold.
#[derive(Debug)]
pub(crate) struct Fork {
    pub(crate) height: Height,
    /// Who voted for both. No honest validator does, and two quorums share more than a third.
    pub(crate) guilty: BTreeSet<PublicKey>,
}

/// What comparing the chains of two nodes finds: their first fork that is proven on both sides.
pub(crate) fn fork([one, other]: [&Chain; 2], runtime: &Runtime) -> Option<Fork> {
    let one_state = one.state();
    let lowest = one.head().height.min(other.head().height);
    for height in (1..=lowest.0).map(Height) {
        let [one, other] = [one, other].map(|chain| {
            let read = runtime.block_on(chain.block(height)).expect("reads");
            read.expect("no gap below the head")
        });
        if one.digest == other.digest {
            continue;
        }
        let voters = |finalized: &FinalizedBlock| {
            let votes = finalized.finalization.as_ref()?;
            let header = &finalized.block.header;
            votes.check(header, one_state.committees().at(header.epoch)).ok()?;
            Some(votes.votes.iter().map(|vote| vote.validator).collect::<BTreeSet<_>>())
        };
        if let (Some(these), Some(those)) = (voters(&one), voters(&other)) {
            let guilty = these.intersection(&those).copied().collect();
            return Some(Fork { height, guilty });
        }
    }
    None
}

/// Agreement (no fork), validity (policy P, parent, root, no transaction twice), execution (an independent replay of the
/// blocks gives the node's own state) up to a height.
pub(crate) fn assert_chains(clinic: &Clinic, chains: &[&Chain], runtime: &Runtime) {
    let lowest = chains
        .iter()
        .map(|chain| chain.head().height)
        .min()
        .expect("there are nodes");
    let read = |chain: &Chain, height: Height| {
        runtime
            .block_on(chain.block(height))
            .expect("reads")
            .unwrap_or_else(|| panic!("a gap at height {height}"))
    };
    for height in (0..=lowest.0).map(Height) {
        let blocks: Vec<_> = chains.iter().map(|chain| read(chain, height).digest).collect();
        assert!(
            blocks.iter().all(|digest| *digest == blocks[0]),
            "a fork at height {height}: {blocks:?}"
        );
    }
    for chain in chains {
        assert_replay(clinic, chain, |height| read(chain, height));
    }
}

fn assert_replay(clinic: &Clinic, chain: &Chain, read: impl Fn(Height) -> FinalizedBlock) {
    let policy = &clinic.genesis.policy;
    let mut state = State::genesis(&clinic.genesis);
    let mut parent = read(Height(0)).block;
    let (mut seen, mut ordered) = (Seen::default(), BTreeSet::new());
    for height in (1..=chain.head().height.0).map(Height) {
        let finalized = read(height);
        let verified = policy
            .verify(finalized.block, &parent.header, &state.seats().sitting())
            .expect("every rule of policy P holds");
        assert_eq!(verified.digest(), finalized.digest);
        let block = verified.block().clone();
        for identifier in block.transactions.iter().flat_map(identifiers) {
            assert!(ordered.insert(identifier), "ordered twice, again at height {height}");
        }
        if let Some(votes) = &finalized.finalization {
            votes
                .check(&block.header, state.committees().at(block.header.epoch))
                .expect("the votes hold");
        }
        let outcomes = state.apply(&block, &seen);
        let effective = block
            .transactions
            .iter()
            .zip(&outcomes)
            .filter(|(_, outcome)| **outcome == Outcome::Applied);
        seen.0
            .extend(effective.flat_map(|(transaction, _)| identifiers(transaction)));
        parent = block;
    }
    assert_eq!(
        state,
        *chain.state(),
        "the replay of the blocks gives the node's own state"
    );
    assert_eq!(
        (state.height(), state.digest()),
        (chain.head().height, chain.head().state_digest)
    );
}

/// Every submitted bundle is final on every node, and each node can prove it to a third party.
pub(crate) fn assert_receipts(chain: &Chain, submitted: &[SignedTransaction], runtime: &Runtime) {
    for commitment in submitted.iter().filter_map(SignedTransaction::commitment) {
        let receipt = runtime
            .block_on(chain.receipt(&commitment.bundle))
            .expect("reads")
            .expect("provable");
        let verified = Receipt::verify(&receipt, &chain.state().committees()).expect("the receipt holds");
        assert_eq!(verified.bundle(), commitment.bundle);
    }
}
