//! Who votes changes while the network runs; and who has forgotten what it voted does not vote again.

use std::time::Duration;

use commonware_consensus::types::{Epoch, Round, View};
use commonware_runtime::{Clock as _, Runner as _, deterministic::Context};
use fog_node::{chain::Chain, consensus::fence::Fence, mempool::Pending};
use ledger::{
    block::Height, committee::Change, handover::Committees, policy::EPOCH_BLOCKS_MIN, transaction::SignedTransaction,
};
use record::signature::PublicKey;

use crate::{
    assert_all,
    disks::Disks,
    enrolled, seeded, start_all,
    storage::{copied, set_back},
    submit,
    world::{Node, settled},
};

/// The organisation's voice, at every node: it runs all validators and decides alone.
fn raise(disks: &Disks, nodes: &[Node], change: Change) -> SignedTransaction {
    let epoch = nodes[0].chain.state().seats().epoch();
    let voice = disks.clinic.voice(change, epoch);
    for node in nodes {
        let pending = Pending::plain(voice.clone()).expect("no commitment");
        node.mempool.insert(pending).expect("room");
    }
    voice
}

fn voting(node: &Node) -> Vec<PublicKey> {
    node.chain.state().seats().sitting().voting
}

/// Two epochs after this one, whatever was decided in this one is in effect.
fn two_epochs_on(node: &Node) -> u64 {
    (node.chain.state().seats().epoch() + 2) * EPOCH_BLOCKS_MIN
}

/// A fifth node gets a vote and one of the first four loses its own; each time the votes of the new committee are needed at
/// once, and whoever knows the founders alone can check the last block.
#[test]
fn a_newcomer_gets_a_vote_and_a_founder_loses_its_own_while_the_others_go_on() {
    for seed in 300..302 {
        let disks = Disks::with_newcomers(4, 1);
        let keys: Vec<_> = disks.clinic.validators.iter().map(|key| key.public()).collect();
        let (chains, submitted) = seeded(seed).start(|context| {
            let (disks, keys) = (&disks, &keys);
            async move {
                let (world, mut nodes, mut submitted) = enrolled(&context, disks).await;
                submitted.push(raise(disks, &nodes, Change::Seat(disks.clinic.seat(4))));
                nodes.extend(start_all(&context, &world, disks, [4]).await);
                submitted.extend(submit(&context, disks, &nodes[..4], 0..6).await);
                let height = two_epochs_on(&nodes[0]);
                settled(&context, &mut nodes, height, &submitted).await;
                assert!(nodes.iter().all(|node| voting(node).contains(&keys[4])), "seed {seed}");
                // Four of five are a quorum: without the first, the newcomer's votes are needed.
                let first = nodes.remove(0);
                first.crash(&context).await;
                submitted.extend(submit(&context, disks, &nodes, 6..10).await);
                submitted.push(raise(disks, &nodes, Change::Unseat(keys[0])));
                let height = two_epochs_on(&nodes[0]);
                settled(&context, &mut nodes, height, &submitted).await;
                assert!(nodes.iter().all(|node| !voting(node).contains(&keys[0])), "seed {seed}");
                // Three of four: of the founders only two are left, and one of those is stopped.
                let second = nodes.remove(0);
                second.crash(&context).await;
                submitted.extend(submit(&context, disks, &nodes, 10..14).await);
                settled(&context, &mut nodes, height + 5, &submitted).await;
                (
                    nodes.iter().map(|node| node.chain.clone()).collect::<Vec<_>>(),
                    submitted,
                )
            }
        });
        assert_all(&disks, &chains, &submitted);
        let handovers = disks.runtime.block_on(chains[0].handovers()).expect("reads");
        assert_eq!(handovers.handovers.len(), 2, "seed {seed}");
        let told = Committees::of(handovers).expect("each is proven from the founders on");
        assert_eq!(told, chains[0].state().committees(), "seed {seed}");
    }
}

/// One of four is down for good while a fifth is seated: the newcomer's votes are needed as soon as it has a seat.
#[test]
fn a_fifth_is_seated_while_one_of_four_is_down() {
    let disks = Disks::with_newcomers(4, 1);
    let (chains, submitted) = seeded(305).start(|context| {
        let disks = &disks;
        async move {
            let (world, mut nodes, mut submitted) = enrolled(&context, disks).await;
            nodes.pop().expect("four").crash(&context).await;
            submitted.push(raise(disks, &nodes, Change::Seat(disks.clinic.seat(4))));
            nodes.extend(start_all(&context, &world, disks, [4]).await);
            submitted.extend(submit(&context, disks, &nodes[..3], 0..6).await);
            let height = two_epochs_on(&nodes[0]) + EPOCH_BLOCKS_MIN;
            settled(&context, &mut nodes, height, &submitted).await;
            (
                nodes.iter().map(|node| node.chain.clone()).collect::<Vec<_>>(),
                submitted,
            )
        }
    });
    assert_all(&disks, &chains, &submitted);
}

/// The highest round in which votes of a key are on a chain.
fn voted(disks: &Disks, chain: &Chain, key: &PublicKey) -> Round {
    let mut highest = Round::zero();
    for height in (1..=chain.head().height.0).map(Height) {
        let block = disks
            .runtime
            .block_on(chain.block(height))
            .expect("reads")
            .expect("there");
        let votes = block.finalization.iter().flat_map(|finalization| &finalization.votes);
        if votes.into_iter().any(|vote| vote.validator == *key) {
            let header = &block.block.header;
            highest = highest.max(Round::new(Epoch::new(header.epoch), View::new(header.view)));
        }
    }
    highest
}

/// What becomes of the fourth validator's vote journal while it is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Lost,
    /// An old copy of it is put back (threat T23).
    SetBack,
    Whole,
}

/// Fault F30: the fourth validator comes back with a journal that lacks votes it has cast. While only two others can
/// answer it follows and signs nothing; when all three have, it signs again, above all of them.
async fn comes_back(context: &Context, disks: &Disks, fate: Fate) -> (Vec<Chain>, Vec<SignedTransaction>) {
    let journal = ["validator-3-votes-0".to_owned()];
    let (world, mut nodes, mut submitted) = enrolled(context, disks).await;
    nodes.pop().expect("four").crash(context).await;
    let old = copied(context, &journal).await;
    nodes.push(world.start(context, disks, 3).await);
    submitted.extend(submit(context, disks, &nodes, 0..8).await);
    settled(context, &mut nodes, 8, &submitted).await;
    nodes.pop().expect("four").crash(context).await;
    let key = disks.clinic.validators[3].public();
    let before = voted(disks, &nodes[0].chain, &key);
    match fate {
        Fate::Lost => set_back(context, &journal, Vec::new()).await,
        Fate::SetBack => set_back(context, &journal, old).await,
        Fate::Whole => {}
    }
    // Two of the others answer, the third does not.
    world.cut(3, 2).await;
    world.cut(2, 3).await;
    let fence = Fence::shut();
    nodes.push(world.start_behind(context, disks, 3, fence.clone()).await);
    submitted.extend(submit(context, disks, &nodes[..3], 8..12).await);
    context.sleep(Duration::from_secs(10)).await;
    assert_eq!(fence.is_shut(), fate != Fate::Whole, "{fate:?}");
    world.heal().await;
    while fence.is_shut() {
        context.sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(
        fence.permits(before),
        fate == Fate::Whole,
        "{fate:?}: it voted in {before}"
    );
    // Its vote is needed again, also in the first round of the next epoch.
    nodes.remove(0).crash(context).await;
    let height = (nodes[0].chain.state().seats().epoch() + 1) * EPOCH_BLOCKS_MIN + 4;
    submitted.extend(submit(context, disks, &nodes, 12..16).await);
    settled(context, &mut nodes, height, &submitted).await;
    assert_eq!(
        world.shut_out().await,
        [],
        "{fate:?}: a validator that votes twice is shut out"
    );
    (nodes.iter().map(|node| node.chain.clone()).collect(), submitted)
}

#[test]
fn a_validator_that_forgot_its_votes_signs_none_before_all_others_have_told_it_of_them() {
    for (seed, fate) in (310..).zip([Fate::Lost, Fate::SetBack, Fate::Whole]) {
        let disks = Disks::with_newcomers(4, 0);
        let (chains, submitted) = seeded(seed).start(|context| {
            let disks = &disks;
            async move { comes_back(&context, disks, fate).await }
        });
        assert_all(&disks, &chains, &submitted);
    }
}
