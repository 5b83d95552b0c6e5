//! Links that fail in part: one way, now and then, under loss with late and doubled messages, or for one slow validator.

use std::time::Duration;

use commonware_p2p::simulated::Link;
use commonware_runtime::{Clock as _, Runner as _, deterministic};
use commonware_utils::probability;

use crate::{
    STEADY, assert_all,
    disks::Disks,
    enrol, enrolled, seeded, start_all, submit,
    world::{World, settled},
};

/// Loss, delay and jitter of fault F17; one message in ten arrives twice.
const STORMY: Link = Link {
    latency: Duration::from_millis(200),
    jitter: Duration::from_millis(150),
    success_rate: probability!(0.7),
};
/// The link of a validator far slower than the others (fault F18).
const SLOW: Link = Link {
    latency: Duration::from_secs(2),
    jitter: Duration::from_millis(200),
    success_rate: probability!(1.0),
};
/// Simulated time in which a bundle becomes final among three quick validators, whatever the fourth does: the time that
/// a view of the slow one costs, some times over.
const WITHOUT_THE_SLOWEST_MAX: Duration = Duration::from_secs(5);

/// Fault F16: what one validator says reaches nobody while it hears everything, then the other way round.
#[test]
fn a_link_that_works_one_way_stops_nobody() {
    for seed in 60..64 {
        let disks = Disks::of(4);
        let (chains, submitted) = seeded(seed).start(|context| {
            let disks = &disks;
            async move {
                let (world, mut nodes, mut submitted) = enrolled(&context, disks).await;
                let mut number = 0;
                for (mute, deaf) in [(true, false), (false, true)] {
                    for other in 0..3 {
                        if mute {
                            world.cut(3, other).await;
                        }
                        if deaf {
                            world.cut(other, 3).await;
                        }
                    }
                    submitted.extend(submit(&context, disks, &nodes[..3], number..number + 6).await);
                    let goal = nodes[0].chain.head().height.0 + 3;
                    settled(&context, &mut nodes[..3], goal, &submitted).await;
                    world.heal().await;
                    number += 6;
                }
                let goal = nodes[0].chain.head().height.0 + 1;
                settled(&context, &mut nodes, goal, &submitted).await;
                let chains = nodes.iter().map(|node| node.chain.clone()).collect::<Vec<_>>();
                (chains, submitted)
            }
        });
        assert_all(&disks, &chains, &submitted);
    }
}

/// Fault F16: the links of a validator come and go, another one's each time.
#[test]
fn flapping_links_fork_nothing_and_blocks_go_on() {
    for seed in 64..68 {
        let disks = Disks::of(4);
        let (chains, submitted) = seeded(seed).start(|context| {
            let disks = &disks;
            async move {
                let (world, mut nodes, mut submitted) = enrolled(&context, disks).await;
                let before = nodes[0].chain.head().height.0;
                for flap in 0..12_u64 {
                    let validator = (seed + flap) as usize % 4;
                    for other in (0..4).filter(|other| *other != validator) {
                        world.cut(validator, other).await;
                        world.cut(other, validator).await;
                    }
                    submitted.extend(submit(&context, disks, &nodes, flap..flap + 1).await);
                    context.sleep(Duration::from_millis(150)).await;
                    world.heal().await;
                    context.sleep(Duration::from_millis(50)).await;
                }
                let during = nodes.iter().map(|node| node.chain.head().height.0).max();
                assert!(during > Some(before), "seed {seed}: blocks go on while links flap");
                settled(&context, &mut nodes, before + 3, &submitted).await;
                let chains = nodes.iter().map(|node| node.chain.clone()).collect::<Vec<_>>();
                (chains, submitted)
            }
        });
        assert_all(&disks, &chains, &submitted);
    }
}

/// Fault F17: with a third of all messages lost, the others late, out of time and some of them doubled, everything becomes
/// final, once.
#[test]
fn loss_jitter_and_duplicates_delay_and_repeat_nothing() {
    for seed in 70..73 {
        let disks = Disks::of(4);
        let (chains, submitted, took) = seeded(seed).start(|context| {
            let disks = &disks;
            async move {
                let world = World::new(&context, disks, STORMY).await.with_duplicates();
                let mut nodes = start_all(&context, &world, disks, 0..4).await;
                let mut submitted = enrol(disks, &nodes);
                settled(&context, &mut nodes, 1, &submitted).await;
                let started = context.current();
                submitted.extend(submit(&context, disks, &nodes, 0..10).await);
                settled(&context, &mut nodes, 5, &submitted).await;
                let took = context.current().duration_since(started).expect("time goes on");
                let chains = nodes.iter().map(|node| node.chain.clone()).collect::<Vec<_>>();
                (chains, submitted, took)
            }
        });
        assert_all(&disks, &chains, &submitted);
        println!("seed {seed}: ten bundles final everywhere after {took:?}");
    }
}

/// The longest time from submission to finality at the first three validators, for some bundles one after another.
async fn slowest_of(context: &deterministic::Context, disks: &Disks, nodes: &mut [crate::world::Node]) -> Duration {
    let mut slowest = Duration::ZERO;
    for number in 0..8 {
        let started = context.current();
        let submitted = submit(context, disks, &nodes[..3], number..number + 1).await;
        settled(context, &mut nodes[..3], 1, &submitted).await;
        slowest = slowest.max(context.current().duration_since(started).expect("time goes on"));
    }
    slowest
}

/// Fault F18: one validator hears and is heard two seconds late; the others do not wait for it, and it follows.
#[test]
fn a_slow_validator_slows_nobody_and_follows() {
    for seed in 74..77 {
        let disks = Disks::of(4);
        let (chains, submitted) = seeded(seed).start(|context| {
            let disks = &disks;
            async move {
                let (world, mut nodes, mut submitted) = enrolled(&context, disks).await;
                world.relink(3, &SLOW).await;
                let slowest = slowest_of(&context, disks, &mut nodes).await;
                println!("seed {seed}: slowest of eight bundles beside a slow validator: {slowest:?}");
                assert!(slowest < WITHOUT_THE_SLOWEST_MAX, "seed {seed}: {slowest:?}");
                submitted.extend((0..8).map(|number| disks.clinic.bundle(number).0));
                // It follows at its own pace, still slow.
                settled(&context, &mut nodes, 3, &submitted).await;
                world.relink(3, &STEADY).await;
                let chains = nodes.iter().map(|node| node.chain.clone()).collect::<Vec<_>>();
                (chains, submitted)
            }
        });
        assert_all(&disks, &chains, &submitted);
    }
}
