//! The benchmark: what a bundle costs at several lengths of history, beside the paper's Algorithm 2 taken literally.
//!
//! 1. For each length a network of its own is founded (`fog`): four real fog nodes, with disks, keys and mutual TLS. The
//!    benchmark is their enrolled gateway (`edge`): it signs as devices do, seals, hands in, and checks each receipt itself.
//!    The network is filled with that many readings and stopped.
//! 2. Then come rounds. In each, every network in turn is started again, measured (`round`) and stopped: one at a time,
//!    so that none disturbs another, and in turn, so that whatever else the machine does meets all lengths alike.
//! 3. `figures` are the middle over the rounds, with the range; `table` prints them, `--report` keeps them all.
//!
//! With `--fleet` it measures the edge instead: what a gateway takes from fleets of several sizes (`fleet`); with `--hour` what an
//! hour without fog nodes does (`hour`), with `--overload` what ten times the load does (`overload`), with `--one-core` what a gateway
//! takes on one processor, beside a bare broker and subscriber (`one_core`, `bare`). With `--vault` it measures what a payload costs
//! where it is kept, beside a plain file (`vault`).
//!
//! Nothing here is a limit that fails: what is slow is slow in the table. Only what is wrong fails, like a receipt that does
//! not hold.

mod attended;
mod bare;
mod command;
mod crowd;
mod edge;
mod figures;
mod fleet;
mod fog;
mod hour;
mod one_core;
mod overload;
mod publisher;
mod round;
mod stage;
mod table;
mod usage;
mod vault;

use std::path::PathBuf;

pub use command::main;

use crate::{
    fault::Fault,
    folder::{Folder, replace_json},
    interruption,
    ports::Ports,
    status::Screen,
};
use figures::{Figures, Length, Machine};
use fog::Fog;

/// What was asked for on the command line, checked.
#[derive(Debug)]
struct Order {
    /// Lengths of history, in readings, rising.
    histories: Vec<u64>,
    /// Bundles whose way to the receipt is timed one by one, in each round.
    samples: usize,
    /// How often everything is measured.
    rounds: usize,
    /// Fog nodes.
    nodes: u16,
    /// How often each node reads all of its disk again, in seconds.
    scrub_s: u64,
    /// Where they listen; one network runs at a time.
    ports: Ports,
    /// The data folder to make.
    data_dir: PathBuf,
    /// Where the figures go.
    report: Option<PathBuf>,
}

/// A benchmark that runs.
struct Bench {
    order: Order,
    screen: Screen,
    /// One for each length; all but one are stopped.
    fogs: Vec<Fog>,
    lengths: Vec<Length>,
    /// What was not as it should be, although everything could be measured.
    failures: Vec<String>,
}

/// Measures everything, or stops when somebody interrupts; returns whether nothing went wrong.
async fn run(order: Order) -> Result<bool, Fault> {
    let interrupted = interruption::listen()?;
    let mut bench = Bench {
        order,
        screen: Screen::open(),
        fogs: Vec::new(),
        lengths: Vec::new(),
        failures: Vec::new(),
    };
    let machine = Machine::before();
    let measured = tokio::select! {
        measured = bench.measure() => measured,
        () = interrupted.cancelled() => Err(Fault::Interrupted),
    };
    bench.stop().await;
    measured?;
    bench.conclude(machine)
}

impl Bench {
    async fn measure(&mut self) -> Result<(), Fault> {
        let folder = Folder::create(&self.order.data_dir)?;
        for history in self.order.histories.clone() {
            self.screen.say(&format!("filling a network with {history} readings"));
            let own = Folder::create(&folder.path(history.to_string()))?;
            let fog = Fog::found(own, &self.order)?;
            self.fogs.push(fog);
            let fog = self.fogs.last_mut().expect("it was just put there");
            let filling = fog.fill(history).await?;
            self.screen.say(&format!("  {filling}"));
            self.lengths.push(Length::filled(history, filling));
            self.failures.extend(fog.stop().await);
        }
        for number in 1..=self.order.rounds {
            for (fog, length) in self.fogs.iter_mut().zip(&mut self.lengths) {
                let started_ms = fog.start().await?;
                let round = round::measure(fog, self.order.samples, started_ms).await?;
                let history = length.history;
                self.screen
                    .say(&format!("round {number}, {history} readings of history: {round}"));
                length.rounds.push(round);
                self.failures.extend(fog.stop().await);
            }
        }
        for (fog, length) in self.fogs.iter().zip(&mut self.lengths) {
            length.disk = fog.disk();
            length.readings = fog.readings();
        }
        Ok(())
    }

    /// Stops whatever still runs.
    async fn stop(&mut self) {
        for fog in &mut self.fogs {
            self.failures.extend(fog.stop().await);
        }
    }

    fn conclude(mut self, machine: Machine) -> Result<bool, Fault> {
        let figures = Figures::of(&self.order, machine.after(), self.lengths);
        self.screen.say(&table::text(&figures));
        for failure in &self.failures {
            self.screen.say(&format!("FAILED: {failure}"));
        }
        if let Some(path) = &self.order.report {
            replace_json(path, &figures)?;
        }
        Ok(self.failures.is_empty())
    }
}
