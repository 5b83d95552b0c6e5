//! A thousand seeds: each draws a plan of faults, and whatever it draws, nothing forks, nothing is lost or there twice, and
//! every state is what its blocks make it. `SEEDS=from..to` runs others.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use commonware_runtime::{
    Clock as _,
    deterministic::{self, Context},
};
use fog_node::{chain::Chain, mempool::Pending};
use ledger::{block::Height, transaction::SignedTransaction};
use record::canonical::Digest;

use crate::{
    TIMEOUT, assert_all,
    disks::Disks,
    plan::{Fault, Plan},
    storage::{ailing, restart},
    world::{Node, World},
};

/// The seeds that every run of the tests goes through.
const SEEDS: std::ops::Range<u64> = 0..1_000;
/// Worlds that run at the same time, each on a thread: the cores of a small machine.
const THREADS: usize = 2;
/// A gateway hands in again what has no receipt after this time.
const RESUBMITTED_AFTER: Duration = Duration::from_secs(2);
/// Simulated time in which everything that was handed in is final everywhere, once nothing goes wrong any more.
const SETTLED_MAX: Duration = Duration::from_secs(300);
/// How late a slow validator hears and is heard.
const SLOW_BY: Duration = Duration::from_millis(700);
/// How often a flapping link is lost.
const FLAPS: u32 = 3;

/// What is known about the network from outside: what was handed in, and what was seen final.
#[derive(Default)]
struct Observer {
    /// Bundles handed in so far.
    bundles: u64,
    /// Block digests by height, as any validator had them.
    seen: BTreeMap<Height, Digest>,
}

impl Observer {
    fn submitted(&self, disks: &Disks) -> Vec<SignedTransaction> {
        let bundles = (0..self.bundles).map(|number| disks.clinic.bundle(number).0);
        disks.clinic.enrolments().into_iter().chain(bundles).collect()
    }

    /// Notes every validator's head: what was final once is final for ever, and everywhere.
    fn observe(&mut self, nodes: &[Node]) {
        for node in nodes {
            let head = node.chain.head();
            let first = *self.seen.entry(head.height).or_insert(head.digest);
            assert_eq!(first, head.digest, "two blocks were final at height {}", head.height);
        }
    }
}

/// One act on the stage: a world between two power cuts.
struct Act<'a> {
    context: &'a Context,
    disks: &'a Disks,
    plan: &'a Plan,
    world: World,
    nodes: Vec<Node>,
    observer: &'a mut Observer,
}

impl<'a> Act<'a> {
    async fn begin(context: &'a Context, disks: &'a Disks, plan: &'a Plan, observer: &'a mut Observer) -> Self {
        let mut world = World::new(context, disks, plan.weather.link()).await;
        if plan.duplicates {
            world = world.with_duplicates();
        }
        let mut nodes = Vec::new();
        for validator in 0..4 {
            match plan.liar {
                Some((liar, lie)) if liar == validator => lie.start(context, &world, disks, (liar, 4)).await,
                _ => nodes.push(world.start(context, disks, validator).await),
            }
        }
        Self {
            context,
            disks,
            plan,
            world,
            nodes,
            observer,
        }
    }

    /// Hands in some bundles, each at two validators, as a gateway that fails over does.
    async fn submit(&mut self, bundles: u64) {
        for number in self.observer.bundles..self.observer.bundles + bundles {
            let first = number as usize % self.nodes.len();
            for node in [first, (first + 1) % self.nodes.len()].map(|at| &self.nodes[at]) {
                self.disks.submit(node.validator, &node.mempool, number);
            }
            self.context.sleep(Duration::from_millis(30)).await;
        }
        self.observer.bundles += bundles;
    }

    /// Hands in again, at every validator, what is not final there.
    fn resubmit(&self) {
        for node in &self.nodes {
            for enrolment in self.disks.clinic.enrolments() {
                if !node.is_final(&enrolment) {
                    let pending = Pending::plain(enrolment).expect("no commitment");
                    node.mempool.insert(pending).expect("room");
                }
            }
            for number in 0..self.observer.bundles {
                if !node.is_final(&self.disks.clinic.bundle(number).0) {
                    self.disks.submit(node.validator, &node.mempool, number);
                }
            }
        }
    }

    /// Ends a validator, if it runs.
    async fn kill(&mut self, validator: usize) {
        if let Some(at) = self.nodes.iter().position(|node| node.validator == validator) {
            self.nodes.remove(at).crash(self.context).await;
        }
    }

    /// Starts a validator, if it does not run.
    async fn return_of(&mut self, validator: usize) {
        if self.nodes.iter().all(|node| node.validator != validator) {
            self.nodes
                .push(self.world.start(self.context, self.disks, validator).await);
        }
    }

    /// While a fault lasts, readings flow.
    async fn endure(&mut self, lasts: Duration) {
        self.submit(2).await;
        self.context.sleep(lasts).await;
        self.observer.observe(&self.nodes);
    }

    /// Faults one after another, or the next one before the last one is mended.
    async fn suffer(&mut self, faults: &[(Fault, Duration)]) {
        for overlapping in faults.chunks(if self.plan.overlap { 2 } else { 1 }) {
            for (fault, lasts) in overlapping {
                self.inflict(*fault, *lasts).await;
                self.endure(*lasts).await;
            }
            for (fault, _) in overlapping {
                self.mend(*fault).await;
            }
        }
    }

    async fn inflict(&mut self, fault: Fault, lasts: Duration) {
        match fault {
            Fault::None => {}
            Fault::Crash(validator) => self.kill(validator).await,
            Fault::NoPayloads(validator) => self.disks.cut_off(Some(validator)),
            Fault::Part(first) => self.world.part(first).await,
            Fault::OneWay(from, to) => self.world.cut(from, to).await,
            Fault::Flap(validator) => self.flap(validator, lasts).await,
            Fault::Slow(validator) => {
                let mut link = self.plan.weather.link();
                link.latency += SLOW_BY;
                self.world.relink(validator, &link).await;
            }
            Fault::OldChain(validator) => self.set_back(validator, lasts, true).await,
            Fault::NoChain(validator) => self.set_back(validator, lasts, false).await,
            Fault::Ailing => *self.context.storage_fault_config().write() = ailing(self.plan.rate()),
        }
    }

    async fn mend(&mut self, fault: Fault) {
        match fault {
            Fault::None | Fault::Flap(_) | Fault::OldChain(_) | Fault::NoChain(_) => {}
            Fault::Crash(validator) => self.return_of(validator).await,
            Fault::NoPayloads(_) => self.disks.cut_off(None),
            Fault::Part(_) | Fault::OneWay(..) | Fault::Slow(_) => self.world.heal().await,
            Fault::Ailing => {
                *self.context.storage_fault_config().write() = self.plan.storage();
                restart(self.context, &self.world, self.disks, &mut self.nodes).await;
            }
        }
    }

    /// The links of a validator come and go.
    async fn flap(&mut self, validator: usize, lasts: Duration) {
        for _ in 0..FLAPS {
            for other in (0..4).filter(|other| *other != validator) {
                self.world.cut(validator, other).await;
                self.world.cut(other, validator).await;
            }
            self.endure(lasts / (2 * FLAPS)).await;
            self.world.heal().await;
            self.context.sleep(lasts / (2 * FLAPS)).await;
        }
    }

    /// A validator is stopped and comes back, twice; the second time with the chain file of the first, or with none: it
    /// reads again what the engine has kept.
    async fn set_back(&mut self, validator: usize, lasts: Duration, has_older: bool) {
        self.kill(validator).await;
        let older = has_older.then(|| self.disks.chain_file(validator));
        self.return_of(validator).await;
        self.endure(lasts).await;
        self.kill(validator).await;
        self.disks.set_chain_file(validator, older.as_deref());
        self.return_of(validator).await;
    }

    /// Nobody stops by itself, unless its disk fails.
    fn assert_running(&mut self) {
        for node in &mut self.nodes {
            if let Some(end) = node.ended() {
                panic!("validator {} has stopped: {end}", node.validator);
            }
        }
    }

    /// Waits until everything that was ever handed in is final at every honest validator, and all are where the first was.
    async fn settle(&mut self) {
        let submitted = self.observer.submitted(self.disks);
        let mut again = self.context.current();
        let given_up = again + SETTLED_MAX;
        loop {
            self.observer.observe(&self.nodes);
            self.assert_running();
            let highest = self.observer.seen.keys().next_back().copied().unwrap_or_default();
            let done = |node: &Node| node.chain.head().height >= highest && submitted.iter().all(|t| node.is_final(t));
            if self.nodes.iter().all(done) {
                return;
            }
            assert!(
                self.context.current() < given_up,
                "not settled: {:?}",
                self.standings(&submitted)
            );
            if self.context.current() >= again {
                self.resubmit();
                again = self.context.current() + RESUBMITTED_AFTER;
            }
            self.context.sleep(Duration::from_millis(100)).await;
        }
    }

    /// Each validator, its height, and how much is final there.
    fn standings(&self, submitted: &[SignedTransaction]) -> Vec<(usize, u64, usize)> {
        let standing = |node: &Node| {
            let finals = submitted.iter().filter(|transaction| node.is_final(transaction));
            (node.validator, node.chain.head().height.0, finals.count())
        };
        self.nodes.iter().map(standing).collect()
    }

    /// No honest validator shut out another: none has voted twice, or said what no honest one says.
    async fn assert_honest(&self) {
        let liar = self.plan.liar.map(|(liar, _)| liar);
        for (by, whom) in self.world.shut_out().await {
            assert!(
                Some(by) == liar || Some(whom) == liar,
                "honest validator {by} shut out honest validator {whom}"
            );
        }
    }
}

/// The runtime of a plan.
fn runner(seed: u64, plan: &Plan) -> deterministic::Runner {
    let config = deterministic::Config::new()
        .with_seed(seed)
        .with_timeout(Some(TIMEOUT))
        .with_catch_panics(plan.has_failing_disks())
        .with_storage_fault_config(plan.storage());
    deterministic::Runner::new(config)
}

/// Lives through what a seed draws. Gives the fingerprint of everything that happened, and the lowest height.
pub(crate) fn live(seed: u64) -> (String, u64) {
    let plan = Plan::of(seed);
    let disks = Disks::with_spares(4, 1);
    let mut observer = Observer::default();
    let mut runner = runner(seed, &plan);
    let mut fingerprint = String::new();
    for (number, faults) in plan.acts.iter().enumerate() {
        let is_last = number + 1 == plan.acts.len();
        let (disks, plan, observer) = (&disks, &plan, &mut observer);
        let play = |context: Context| async move {
            let mut act = Act::begin(&context, disks, plan, observer).await;
            act.resubmit();
            if number == 0 {
                act.settle().await;
            }
            act.suffer(faults).await;
            if is_last {
                act.submit(1).await;
                act.settle().await;
            } else {
                // Under way when the power goes.
                act.submit(2).await;
            }
            act.assert_honest().await;
            drop(act);
            context.auditor().state()
        };
        let checkpoint;
        (fingerprint, checkpoint) = runner.start_and_recover(play);
        runner = deterministic::Runner::from(checkpoint);
    }
    let honest = (0..4).filter(|validator| plan.liar.is_none_or(|(liar, _)| liar != *validator));
    let chains: Vec<Chain> = honest.map(|validator| disks.chain(validator)).collect();
    assert_all(&disks, &chains, &observer.submitted(&disks));
    for (height, digest) in &observer.seen {
        for chain in &chains {
            assert_eq!(
                chain.digest_at(*height).expect("reads"),
                Some(*digest),
                "height {height}"
            );
        }
    }
    let lowest = chains.iter().map(|chain| chain.head().height.0).min();
    (fingerprint, lowest.expect("three or four"))
}

/// The seeds to run: those of the environment, or the usual ones.
fn range() -> std::ops::Range<u64> {
    let Some(wanted) = std::env::var_os("SEEDS") else {
        return SEEDS;
    };
    let wanted = wanted.to_string_lossy().into_owned();
    let ends = wanted.split_once("..").map(|(from, to)| (from.parse(), to.parse()));
    match ends {
        Some((Ok(from), Ok(to))) => from..to,
        _ => panic!("SEEDS={wanted}: wanted is from..to, such as 0..1000"),
    }
}

#[test]
fn a_thousand_seeds_fork_lose_and_repeat_nothing() {
    let (seeds, started) = (range(), std::time::Instant::now());
    let next = AtomicU64::new(seeds.start);
    let work = || {
        let mut failed = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return failed;
            }
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| live(seed))) {
                // Injected faults panic as well, and are caught: this one was not.
                let why = panic.downcast_ref::<String>().map(String::as_str);
                let why = why.or(panic.downcast_ref::<&str>().copied()).unwrap_or("see above");
                println!("seed {seed} failed: {why}\n{:?}", Plan::of(seed));
                failed.push(seed);
            }
        }
    };
    let mut failed = Vec::new();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        for thread in threads {
            failed.extend(thread.join().expect("failures are caught"));
        }
    });
    failed.sort_unstable();
    println!("seeds {seeds:?} on {THREADS} threads: {:?}", started.elapsed());
    assert!(
        failed.is_empty(),
        "these seeds failed, each alone with SEEDS=n..n+1: {failed:?}"
    );
}

#[test]
fn the_same_seed_draws_and_gives_the_same_run() {
    for seed in 0..6 {
        assert_eq!(live(seed), live(seed), "seed {seed}");
    }
}
