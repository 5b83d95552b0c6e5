//! The real application on simulated time, network and engine storage: crashes, loss, liars, partitions and failing disks,
//! each run repeatable by its seed. And once on the real network.

mod clinic;
mod committee;
mod disks;
mod forks;
mod liar;
mod lies;
mod links;
mod loopback;
mod named_seeds;
mod plan;
mod properties;
mod seeds;
mod storage;
mod wire;
mod world;

use std::time::Duration;

use commonware_p2p::simulated::Link;
use commonware_runtime::{Clock as _, Runner as _, deterministic};
use commonware_utils::probability;
use fog_node::{chain::Chain, mempool::Pending};
use ledger::transaction::SignedTransaction;

use disks::Disks;
use liar::{Answer, Lie};
use properties::{assert_chains, assert_receipts};
use world::{Node, World, settled};

/// Simulated time after which a run has failed to make progress.
const TIMEOUT: Duration = Duration::from_secs(600);

/// Simulated time in which both sides of a mended cut agree again: the timeouts of a few views.
const HEALED_MAX: Duration = Duration::from_secs(30);

const STEADY: Link = Link {
    latency: Duration::from_millis(5),
    jitter: Duration::from_millis(1),
    success_rate: probability!(1.0),
};
const LOSSY: Link = Link {
    latency: Duration::from_millis(10),
    jitter: Duration::from_millis(8),
    success_rate: probability!(0.85),
};

fn seeded(seed: u64) -> deterministic::Runner {
    deterministic::Runner::new(deterministic::Config::new().with_seed(seed).with_timeout(Some(TIMEOUT)))
}

async fn start_all(
    context: &deterministic::Context,
    world: &World,
    disks: &Disks,
    validators: impl IntoIterator<Item = usize>,
) -> Vec<Node> {
    let mut nodes = Vec::new();
    for validator in validators {
        nodes.push(world.start(context, disks, validator).await);
    }
    nodes
}

fn enrol(disks: &Disks, nodes: &[Node]) -> Vec<SignedTransaction> {
    let enrolments = disks.clinic.enrolments();
    for enrolment in &enrolments {
        nodes[0]
            .mempool
            .insert(Pending::plain(enrolment.clone()).expect("no commitment"))
            .expect("room");
    }
    enrolments.to_vec()
}

/// Four validators in a steady network, with the gateway enrolled and the subject's key announced at each of them.
async fn enrolled(context: &deterministic::Context, disks: &Disks) -> (World, Vec<Node>, Vec<SignedTransaction>) {
    let world = World::new(context, disks, STEADY).await;
    let mut nodes = start_all(context, &world, disks, 0..4).await;
    let submitted = enrol(disks, &nodes);
    settled(context, &mut nodes, 1, &submitted).await;
    (world, nodes, submitted)
}

/// Submits bundles one by one at the nodes in turn, each at two nodes, as a gateway that fails over does.
async fn submit(
    context: &deterministic::Context,
    disks: &Disks,
    nodes: &[Node],
    numbers: std::ops::Range<u64>,
) -> Vec<SignedTransaction> {
    let mut submitted = Vec::new();
    for number in numbers {
        let first = number as usize % nodes.len();
        for node in [first, (first + 1) % nodes.len()] {
            submitted.push(disks.submit(nodes[node].validator, &nodes[node].mempool, number));
        }
        context.sleep(Duration::from_millis(40)).await;
    }
    submitted
}

fn assert_all(disks: &Disks, chains: &[Chain], submitted: &[SignedTransaction]) {
    assert_chains(&disks.clinic, &chains.iter().collect::<Vec<_>>(), &disks.runtime);
    for chain in chains {
        assert_receipts(chain, submitted, &disks.runtime);
    }
}

/// One of four validators signs contradicting votes, links lose messages, and another validator crashes, is away, and
/// returns. Gives the fingerprint of everything that happened, and the lowest height.
fn a_liar_a_crash_and_loss(seed: u64) -> (String, u64) {
    let disks = Disks::of(4);
    let (fingerprint, chains, submitted) = seeded(seed).start(|context| {
        let disks = &disks;
        async move {
            let world = World::new(&context, disks, LOSSY).await;
            let mut nodes = start_all(&context, &world, disks, 0..3).await;
            Lie::Vote(Answer::Contradict)
                .start(&context, &world, disks, (3, 3))
                .await;
            let mut submitted = enrol(disks, &nodes);
            settled(&context, &mut nodes, 1, &submitted).await;
            submitted.extend(submit(&context, disks, &nodes, 0..20).await);
            // Two honest validators are no quorum; what is handed in meanwhile waits.
            nodes.pop().expect("three").crash(&context).await;
            submitted.extend(submit(&context, disks, &nodes, 20..30).await);
            context.sleep(Duration::from_secs(3)).await;
            nodes.push(world.start(&context, disks, 2).await);
            submitted.extend(submit(&context, disks, &nodes, 30..40).await);
            settled(&context, &mut nodes, 30, &submitted).await;
            let chains: Vec<_> = nodes.iter().map(|node| node.chain.clone()).collect();
            (context.auditor().state(), chains, submitted)
        }
    });
    assert_all(&disks, &chains, &submitted);
    (
        fingerprint,
        chains.iter().map(|chain| chain.head().height.0).min().expect("three"),
    )
}

#[test]
fn three_honest_validators_agree_despite_a_liar_a_crash_and_loss() {
    for seed in 0..4 {
        let (fingerprint, height) = a_liar_a_crash_and_loss(seed);
        println!("seed {seed}: fingerprint {fingerprint}, height {height}");
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    assert_eq!(a_liar_a_crash_and_loss(7), a_liar_a_crash_and_loss(7));
}

/// What reaches three vaults and not the fourth becomes final, and the fourth has voted for none of it: a vote says that the
/// payload is held.
#[test]
fn who_lacks_a_payload_votes_for_no_block_that_names_it() {
    let disks = Disks::of(4);
    let (chain, submitted) = seeded(21).start(|context| {
        let disks = &disks;
        async move {
            let (_world, mut nodes, mut submitted) = enrolled(&context, disks).await;
            disks.cut_off(Some(3));
            submitted.extend(submit(&context, disks, &nodes[..3], 0..12).await);
            settled(&context, &mut nodes, 12, &submitted).await;
            disks.cut_off(None);
            submitted.extend(submit(&context, disks, &nodes[..3], 12..24).await);
            settled(&context, &mut nodes, 24, &submitted).await;
            (nodes[0].chain.clone(), submitted)
        }
    });
    assert_all(&disks, std::slice::from_ref(&chain), &submitted);
    let fourth = disks.clinic.validators[3].public();
    let named = submitted.iter().filter_map(SignedTransaction::commitment).enumerate();
    let mut voted_again = false;
    for (at, commitment) in named {
        let placed = disks
            .runtime
            .block_on(chain.bundle(&commitment.bundle))
            .expect("reads")
            .expect("final");
        let block = disks
            .runtime
            .block_on(chain.block(placed.height))
            .expect("reads")
            .expect("there");
        let voters = block.finalization.iter().flat_map(|f| &f.votes);
        let by_fourth = voters.into_iter().any(|vote| vote.validator == fourth);
        // Each bundle is submitted at two nodes, so the first twelve are the first twenty-four commitments.
        assert!(
            !by_fourth || at >= 24,
            "it voted for a block at height {} without its payload",
            placed.height
        );
        voted_again |= by_fourth;
    }
    assert!(voted_again, "with the payloads it votes again");
}

/// Two validators on each side of a cut are no quorum: nothing becomes final on either side, nothing forks, and both sides
/// agree again by themselves when the cut is mended (fault F14).
#[test]
fn two_and_two_stand_still_without_a_fork_and_heal() {
    for seed in 30..34 {
        let disks = Disks::of(4);
        let (chains, submitted, healed_in) = seeded(seed).start(|context| {
            let disks = &disks;
            async move {
                let (world, mut nodes, mut submitted) = enrolled(&context, disks).await;
                submitted.extend(submit(&context, disks, &nodes, 0..8).await);
                settled(&context, &mut nodes, 3, &submitted).await;
                world.part(2).await;
                // What is on its way may still end; after that nothing may move.
                context.sleep(Duration::from_secs(2)).await;
                let heights = |nodes: &[Node]| nodes.iter().map(|node| node.chain.head().height).collect::<Vec<_>>();
                let before = heights(&nodes);
                submitted.extend(submit(&context, disks, &nodes, 8..12).await);
                context.sleep(Duration::from_secs(30)).await;
                assert_eq!(heights(&nodes), before, "seed {seed}: two of four are no quorum");
                world.heal().await;
                let healed = context.current();
                submitted.extend(submit(&context, disks, &nodes, 12..16).await);
                settled(&context, &mut nodes, before[0].0 + 2, &submitted).await;
                let healed_in = context.current().duration_since(healed).expect("time goes on");
                (
                    nodes.iter().map(|node| node.chain.clone()).collect::<Vec<_>>(),
                    submitted,
                    healed_in,
                )
            }
        });
        assert_all(&disks, &chains, &submitted);
        println!("seed {seed}: agreed again {healed_in:?} after the cut was mended");
        assert!(healed_in < HEALED_MAX, "seed {seed}: {healed_in:?}");
    }
}

/// Three of four go on while the fourth is cut off; it catches up when it is back (fault F15).
#[test]
fn three_go_on_without_the_fourth_which_catches_up() {
    for seed in 40..44 {
        let disks = Disks::of(4);
        let (chains, submitted) = seeded(seed).start(|context| {
            let disks = &disks;
            async move {
                let (world, mut nodes, mut submitted) = enrolled(&context, disks).await;
                world.part(3).await;
                context.sleep(Duration::from_secs(2)).await;
                let alone = nodes[3].chain.head().height;
                submitted.extend(submit(&context, disks, &nodes[..3], 0..12).await);
                settled(&context, &mut nodes[..3], alone.0 + 5, &submitted).await;
                assert_eq!(nodes[3].chain.head().height, alone, "seed {seed}: it hears of nothing");
                world.heal().await;
                submitted.extend(submit(&context, disks, &nodes[..3], 12..16).await);
                settled(&context, &mut nodes, alone.0 + 6, &submitted).await;
                (
                    nodes.iter().map(|node| node.chain.clone()).collect::<Vec<_>>(),
                    submitted,
                )
            }
        });
        assert_all(&disks, &chains, &submitted);
    }
}

/// Every validator loses power at the same instant, with whatever it had not synced; then all start again.
#[test]
fn a_power_cut_everywhere_loses_nothing_that_was_final() {
    for seed in 10..13 {
        let disks = Disks::of(4);
        let (mut submitted, checkpoint) = seeded(seed).start_and_recover(|context| {
            let disks = &disks;
            async move {
                let (_world, mut nodes, mut submitted) = enrolled(&context, disks).await;
                submitted.extend(submit(&context, disks, &nodes, 0..10).await);
                settled(&context, &mut nodes, 5, &submitted).await;
                // Under way when the power goes.
                submit(&context, disks, &nodes, 10..12).await;
                submitted
            }
        });
        let before = disks.chain(0).head();
        let chains = deterministic::Runner::from(checkpoint).start(|context| {
            let (disks, submitted) = (&disks, &mut submitted);
            async move {
                let world = World::new(&context, disks, STEADY).await;
                let mut nodes = start_all(&context, &world, disks, 0..4).await;
                // The gateway has no receipts for these and hands them in again.
                submitted.extend(submit(&context, disks, &nodes, 10..15).await);
                settled(&context, &mut nodes, before.height.0 + 5, submitted).await;
                nodes.iter().map(|node| node.chain.clone()).collect::<Vec<_>>()
            }
        });
        let kept = chains[1].digest_at(before.height).expect("reads");
        assert_eq!(
            kept,
            Some(before.digest),
            "what was final before is final after, on another node"
        );
        assert_all(&disks, &chains, &submitted);
        println!(
            "seed {seed}: cut at height {}, now {}",
            before.height,
            chains[0].head().height
        );
    }
}
