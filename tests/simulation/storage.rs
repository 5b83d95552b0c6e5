//! Disks that fail: writes lost or torn by a power cut, calls that return errors, bytes that rot, stores that are lost or
//! old.

use std::time::Duration;

use commonware_runtime::{
    Blob as _, Clock as _, ReadOptions, Runner as _, Storage as _, WriteOptions,
    deterministic::{self, Context, FaultConfig, PartialWriteMode, WriteConfig},
};
use commonware_utils::{Probability, probability};

use crate::{
    STEADY, TIMEOUT, assert_all,
    disks::Disks,
    enrolled,
    properties::assert_chains,
    start_all, submit,
    world::{Node, World, settled},
};

/// The stores of one engine that outlive it, by the ends of their names; the journal of its votes is first.
const STORES: [&str; 12] = [
    "votes-0",
    "blocks-metadata",
    "blocks-table",
    "blocks-key",
    "blocks-value",
    "blocks-ordinal",
    "certificates-metadata",
    "certificates-table",
    "certificates-key",
    "certificates-value",
    "certificates-ordinal",
    "application-metadata",
];
/// What of the engine's blocks and certificates that are not final yet is kept apart.
const CACHES: [&str; 5] = ["verified", "notarized", "certified", "notarizations", "finalizations"];

/// A runtime whose disk keeps of each unsynced write some bytes when the power fails.
fn torn(seed: u64, mode: PartialWriteMode, retention_rate: Probability) -> deterministic::Runner {
    let faults = FaultConfig::default().write(WriteConfig {
        failure_rate: probability!(0.0),
        retention_rate,
        mode,
    });
    let config = deterministic::Config::new().with_seed(seed).with_timeout(Some(TIMEOUT));
    deterministic::Runner::new(config.with_storage_fault_config(faults))
}

/// A runtime in which a validator that panics is one that has stopped.
fn forgiving(seed: u64) -> deterministic::Runner {
    let config = deterministic::Config::new().with_seed(seed).with_timeout(Some(TIMEOUT));
    deterministic::Runner::new(config.with_catch_panics(true))
}

/// Fault F5: every validator loses power at the same instant; of what was not synced, a beginning is on the disk, or
/// bytes here and there.
#[test]
fn a_power_cut_that_tears_writes_loses_nothing_and_makes_nobody_vote_twice() {
    let modes = [PartialWriteMode::Prefix, PartialWriteMode::Subset];
    for seed in 80..86 {
        let disks = Disks::of(4);
        let runner = torn(seed, modes[seed as usize % 2], probability!(0.9));
        let (mut submitted, checkpoint) = runner.start_and_recover(|context| {
            let disks = &disks;
            async move {
                let (_world, mut nodes, mut submitted) = enrolled(&context, disks).await;
                submitted.extend(submit(&context, disks, &nodes, 0..6).await);
                settled(&context, &mut nodes, 3, &submitted).await;
                // Under way when the power goes.
                submit(&context, disks, &nodes, 6..8).await;
                submitted
            }
        });
        let before = disks.chain(0).head();
        let (chains, shut_out) = deterministic::Runner::from(checkpoint).start(|context| {
            let (disks, submitted) = (&disks, &mut submitted);
            async move {
                let world = World::new(&context, disks, STEADY).await;
                let mut nodes = start_all(&context, &world, disks, 0..4).await;
                submitted.extend(submit(&context, disks, &nodes, 6..10).await);
                settled(&context, &mut nodes, before.height.0 + 3, submitted).await;
                let chains = nodes.iter().map(|node| node.chain.clone()).collect::<Vec<_>>();
                (chains, world.shut_out().await)
            }
        });
        let kept = chains[1].digest_at(before.height).expect("reads");
        assert_eq!(kept, Some(before.digest), "seed {seed}: what was final is final");
        assert_eq!(shut_out, [], "seed {seed}: a validator that votes twice is shut out");
        assert_all(&disks, &chains, &submitted);
    }
}

/// Lets any call of the storage fail, rarely, for all validators.
pub(crate) fn ailing(rate: Probability) -> FaultConfig {
    let writes = WriteConfig {
        failure_rate: rate,
        retention_rate: probability!(0.5),
        mode: PartialWriteMode::Subset,
    };
    FaultConfig::default().write(writes).sync(rate).read(rate).open(rate)
}

/// Starts everybody again after the disks have failed. A panic in any part ends the process of a real node; here it ends one
/// task, perhaps one that nobody watches, so whoever may have met an error is started again. Gives who had stopped, and why.
pub(crate) async fn restart(
    context: &Context,
    world: &World,
    disks: &Disks,
    nodes: &mut Vec<Node>,
) -> Vec<(usize, String)> {
    let mut stopped = Vec::new();
    for mut node in std::mem::take(nodes) {
        let validator = node.validator;
        stopped.extend(node.ended().map(|end| (validator, end)));
        node.crash(context).await;
        nodes.push(world.start(context, disks, validator).await);
    }
    stopped
}

/// Fault F12: reads, writes and syncs fail while readings flow. Whoever meets such an error stops and votes for nothing it
/// may have lost; started again on what was synced, it agrees.
#[test]
fn failing_disks_stop_validators_and_lose_nothing() {
    let mut stops = 0;
    for seed in 90..96 {
        let disks = Disks::of(4);
        let (chains, submitted, stopped, shut_out) = forgiving(seed).start(|context| {
            let disks = &disks;
            async move {
                let (world, mut nodes, mut submitted) = enrolled(&context, disks).await;
                submitted.extend(submit(&context, disks, &nodes, 0..4).await);
                *context.storage_fault_config().write() = ailing(probability!(0.01));
                submitted.extend(submit(&context, disks, &nodes, 4..10).await);
                context.sleep(Duration::from_secs(2)).await;
                *context.storage_fault_config().write() = FaultConfig::default();
                let stopped = restart(&context, &world, disks, &mut nodes).await;
                // What the stopped ones had waiting is handed in again by the gateway, which has no receipts for it.
                submitted.extend(submit(&context, disks, &nodes, 0..12).await);
                settled(&context, &mut nodes, 3, &submitted).await;
                let chains = nodes.iter().map(|node| node.chain.clone()).collect::<Vec<_>>();
                (chains, submitted, stopped, world.shut_out().await)
            }
        });
        println!("seed {seed}: stopped: {stopped:?}");
        assert_eq!(shut_out, [], "seed {seed}: a validator that votes twice is shut out");
        assert_all(&disks, &chains, &submitted);
        stops += stopped.len();
    }
    assert!(stops > 0, "errors were met");
}

/// Changes a byte in the middle of every file of a store.
async fn rot(context: &Context, partition: &str) {
    let names = context.scan(partition).await.expect("the store has another name now");
    let mut rotten = 0;
    for name in names {
        let (blob, size) = context.open(partition, &name).await.expect("opens");
        if size > 0 {
            let byte = read(&blob, size / 2, 1).await[0] ^ 0x10;
            write(&blob, size / 2, vec![byte]).await;
            rotten += 1;
        }
    }
    assert!(rotten > 0, "{partition}: nothing was written there");
}

async fn read(blob: &deterministic::Blob, at: u64, bytes: usize) -> Vec<u8> {
    let read = blob.read_at(at, bytes, ReadOptions::default()).await.expect("reads");
    read.coalesce().as_ref().to_vec()
}

async fn write(blob: &deterministic::Blob, at: u64, bytes: Vec<u8>) {
    blob.write_at(at, bytes, WriteOptions::SYNC).await.expect("writes");
}

/// Fault F6: a byte rots in one of the stores of a validator that was stopped. It notices and stops, or it is unharmed and
/// agrees; the others go on in any case, and nothing forks.
#[test]
fn a_rotten_byte_in_an_engines_store_forks_nothing() {
    for (number, store) in STORES.into_iter().enumerate() {
        let disks = Disks::of(4);
        let (chains, submitted, end) = forgiving(110 + number as u64).start(|context| {
            let disks = &disks;
            async move {
                let (world, mut nodes, mut submitted) = enrolled(&context, disks).await;
                submitted.extend(submit(&context, disks, &nodes, 0..6).await);
                settled(&context, &mut nodes, 4, &submitted).await;
                nodes.pop().expect("four").crash(&context).await;
                rot(&context, &format!("validator-3-{store}")).await;
                let mut back = world.start(&context, disks, 3).await;
                submitted.extend(submit(&context, disks, &nodes, 6..12).await);
                let goal = nodes[0].chain.head().height.0 + 3;
                settled(&context, &mut nodes, goal, &submitted).await;
                while back.ended().is_none() && back.chain.head().height.0 < goal {
                    context.sleep(Duration::from_millis(100)).await;
                }
                let end = back.ended();
                nodes.push(back);
                let chains = nodes.iter().map(|node| node.chain.clone()).collect::<Vec<_>>();
                (chains, submitted, end)
            }
        });
        let (top, back) = (chains[0].head().height, chains[3].head().height);
        println!("{store}: height {back} of {top}, ended: {end:?}");
        assert_all(&disks, &chains[..3], &submitted);
        assert_chains(&disks.clinic, &chains.iter().collect::<Vec<_>>(), &disks.runtime);
    }
}

/// Every store of a validator's engine, with its files.
pub(crate) type Copied = Vec<(String, Vec<u8>, Vec<u8>)>;

/// What a validator's engine has on its disk; it must not run.
pub(crate) async fn copied(context: &Context, stores: &[String]) -> Copied {
    let mut copied = Vec::new();
    for store in stores {
        for name in context.scan(store).await.unwrap_or_default() {
            let (blob, size) = context.open(store, &name).await.expect("opens");
            let bytes = read(&blob, 0, usize::try_from(size).expect("small")).await;
            copied.push((store.clone(), name, bytes));
        }
    }
    copied
}

/// Puts copies in the place of what is there; without copies, nothing is there any more.
pub(crate) async fn set_back(context: &Context, stores: &[String], copies: Copied) {
    for store in stores {
        // An error says that there is no such store.
        let _ = context.remove(store, None).await;
    }
    for (store, name, bytes) in copies {
        let (blob, _) = context.open(&store, &name).await.expect("opens");
        write(&blob, 0, bytes).await;
    }
}

/// What of a validator's disk is lost, or as it was some blocks ago.
#[derive(Clone, Copy, Debug)]
enum Relapse {
    /// Its votes are lost.
    VotesLost,
    /// Its votes are old.
    VotesOld,
    /// Everything is old, its chain as well: a backup of the whole disk.
    AllOld,
    /// Everything but the chain is lost.
    EngineLost,
}

impl Relapse {
    fn stores(self) -> Vec<String> {
        let all = STORES.iter().map(|store| (*store).to_owned());
        let caches = CACHES
            .iter()
            .flat_map(|cache| ["metadata", "key", "value"].map(|kind| format!("cache-cache-0-{cache}-{kind}")));
        let all = all.chain(caches).chain(["cache-metadata".to_owned()]);
        let count = if matches!(self, Self::VotesLost | Self::VotesOld) {
            1
        } else {
            usize::MAX
        };
        all.take(count).map(|store| format!("validator-3-{store}")).collect()
    }
}

/// A validator comes back with its votes or more of its disk lost or old, and perhaps hears nothing at first: the others go
/// on, and nothing forks. Gives who has shut out whom, and why the validator ended, if it did.
fn relapsed(relapse: Relapse, is_deaf: bool, seed: u64) -> (Vec<(usize, usize)>, Option<String>) {
    let disks = Disks::of(4);
    let (chains, submitted, shut_out, end) = forgiving(seed).start(|context| {
        let disks = &disks;
        async move {
            let stores = relapse.stores();
            let (world, mut nodes, mut submitted) = enrolled(&context, disks).await;
            submitted.extend(submit(&context, disks, &nodes, 0..4).await);
            nodes.pop().expect("four").crash(&context).await;
            let (then, chain) = (copied(&context, &stores).await, disks.chain_file(3));
            nodes.push(world.start(&context, disks, 3).await);
            submitted.extend(submit(&context, disks, &nodes, 4..8).await);
            nodes.pop().expect("four").crash(&context).await;
            let is_lost = matches!(relapse, Relapse::VotesLost | Relapse::EngineLost);
            set_back(&context, &stores, if is_lost { Vec::new() } else { then }).await;
            if matches!(relapse, Relapse::AllOld) {
                disks.set_chain_file(3, Some(&chain));
            }
            for other in (0..3).filter(|_| is_deaf) {
                world.cut(other, 3).await;
            }
            let mut back = world.start(&context, disks, 3).await;
            submitted.extend(submit(&context, disks, &nodes, 8..16).await);
            context.sleep(Duration::from_secs(3)).await;
            world.heal().await;
            let goal = nodes[0].chain.head().height.0 + 3;
            settled(&context, &mut nodes, goal, &submitted).await;
            let end = back.ended();
            nodes.push(back);
            let chains = nodes.iter().map(|node| node.chain.clone()).collect::<Vec<_>>();
            (chains, submitted, world.shut_out().await, end)
        }
    });
    assert_all(&disks, &chains[..3], &submitted);
    assert_chains(&disks.clinic, &chains.iter().collect::<Vec<_>>(), &disks.runtime);
    (shut_out, end)
}

/// Fault F30: whatever it has forgotten, it votes in no round twice (who does is shut out by the others), and nothing forks.
/// Without the fence, one that had lost its votes and heard nothing at first gave up a round that it had voted final.
#[test]
fn a_validator_that_forgot_its_votes_votes_in_no_round_twice() {
    for relapse in [
        Relapse::VotesLost,
        Relapse::VotesOld,
        Relapse::AllOld,
        Relapse::EngineLost,
    ] {
        for (seed, is_deaf) in [(130, false), (131, false), (132, true), (133, true)] {
            let (shut_out, end) = relapsed(relapse, is_deaf, seed);
            println!("{relapse:?}, deaf: {is_deaf}, seed {seed}: ended: {end:?}");
            assert_eq!(shut_out, [], "{relapse:?}, deaf: {is_deaf}, seed {seed}");
        }
    }
}
