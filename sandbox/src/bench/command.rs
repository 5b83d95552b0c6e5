//! The benchmark's command line.

use std::{ffi::OsString, path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;

use super::{Order, fleet, run};
use crate::{
    command::{concluded, delegated, on_runtime, parsed, report_obstacle},
    fault::Fault,
    folder::Folder,
    hardening, lifeline,
    ports::{BASE, NODES_MAX, Ports},
};

/// Readings of history, at most: sequence numbers and disks are not endless.
const HISTORY_MAX: u64 = 100_000_000;
/// Devices of one fleet, at most: as many as one gateway takes.
const FLEET_MAX: u32 = 10_000;
/// Samples and rounds, at most.
const REPETITIONS_MAX: usize = 100_000;

/// Measures fog nodes at several lengths of history, on loopback, each length in a network of its own.
///
/// Latency of one bundle at a time until its receipt is checked, throughput, blocks, processor time, memory, disk; beside
/// them the paper's Algorithm 2 taken literally: the whole chain compared with every peer's, block by block.
#[derive(Debug, Parser)]
#[command(name = "bench", version)]
struct Arguments {
    /// Lengths of history, in readings.
    #[arg(long, value_name = "N,N,..", value_delimiter = ',', default_values_t = [100, 10_000, 1_000_000])]
    history: Vec<u64>,
    /// Bundles that are timed one by one, in each round; four times as many are sent for the throughput.
    #[arg(long, value_name = "N", default_value_t = 100)]
    samples: usize,
    /// How often everything is measured; the table shows the middle and the range.
    #[arg(long, value_name = "N", default_value_t = 3)]
    rounds: usize,
    /// Fog nodes; 3f + 1 of them tolerate f that crash or lie.
    #[arg(long, value_name = "N", default_value_t = 4)]
    nodes: u16,
    /// How often each node reads everything on its disk again, in seconds.
    #[arg(long, value_name = "N", default_value_t = 300)]
    scrub_s: u64,
    /// Measure the edge instead: a gateway without fog nodes, and fleets of so many devices, one after the other.
    #[arg(long, value_name = "N,N,..", value_delimiter = ',', conflicts_with_all = ["history", "samples", "rounds", "nodes", "scrub_s"])]
    fleet: Vec<u32>,
    /// How long each fleet is measured, once all of its devices are connected.
    #[arg(long, value_name = "S", default_value_t = 30, requires = "fleet")]
    seconds: u32,
    /// Seconds between two steps of a device of these fleets.
    #[arg(long, value_name = "S", default_value_t = 10, requires = "fleet")]
    cadence_s: u32,
    /// Let the first device of each fleet measure so many times as often as the others, and show what the others wait.
    #[arg(long, value_name = "TIMES", requires = "fleet")]
    hot: Option<u32>,
    /// A new or empty folder for everything [default: ./vitalfog-data/bench-<time>].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Move all ports: nodes answer from N + 1 on.
    #[arg(long, value_name = "N", default_value_t = BASE)]
    port_base: u16,
    /// Write all figures to this file.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// Runs the benchmark, or what a child of it is started as.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    lifeline::watch();
    let arguments = match delegated(arguments.into_iter().collect()) {
        Ok(code) => return code,
        Err(arguments) => arguments,
    };
    match parsed::<Arguments>(arguments) {
        Ok(arguments) if !arguments.fleet.is_empty() => {
            concluded(fleet_order(arguments).and_then(|order| on_runtime(fleet::run(order))))
        }
        Ok(arguments) => concluded(order(arguments).and_then(|order| on_runtime(run(order)))),
        Err(code) => code,
    }
}

/// The same for fleets.
fn fleet_order(arguments: Arguments) -> Result<fleet::Order, Fault> {
    let mut faults = Vec::new();
    let mut expect = |holds: bool, fault: &str| {
        if !holds {
            faults.push(fault.to_owned());
        }
    };
    let may_be = 1..=FLEET_MAX;
    expect(
        arguments.fleet.iter().all(|devices| may_be.contains(devices)),
        "--fleet: each has between 1 and 10000 devices",
    );
    expect(
        (1..=86_400).contains(&arguments.seconds),
        "--seconds: between 1 and 86400",
    );
    expect(
        (1..=3_600).contains(&arguments.cadence_s),
        "--cadence-s: between 1 and 3600",
    );
    expect(
        arguments.hot.is_none_or(|rate| (1..=1_000).contains(&rate)),
        "--hot: between 1 and 1000 times",
    );
    let largest = arguments.fleet.iter().max().copied().unwrap_or_default();
    faults.extend(hardening::files_obstacle(largest));
    let ports = Ports::plan(arguments.port_base, 0);
    expect_ports(&mut faults, ports.as_ref());
    let data_dir = arguments.data_dir.unwrap_or_else(default_data_dir);
    faults.extend(Folder::obstacle(&data_dir));
    faults.extend(arguments.report.as_deref().and_then(report_obstacle));
    match ports {
        Some(ports) if faults.is_empty() => Ok(fleet::Order {
            sizes: arguments.fleet,
            time: Duration::from_secs(arguments.seconds.into()),
            cadence_s: arguments.cadence_s,
            hot: arguments.hot,
            ports,
            data_dir,
            report: arguments.report,
        }),
        _ => Err(Fault::Usage(faults)),
    }
}

fn expect_ports(faults: &mut Vec<String>, ports: Option<&Ports>) {
    match ports {
        Some(ports) => faults.extend(ports.taken()),
        None => faults.push("--port-base: there are no such ports".to_owned()),
    }
}

/// Checks everything that can be checked before anything is started, and names all faults at once.
fn order(arguments: Arguments) -> Result<Order, Fault> {
    let mut histories = arguments.history;
    histories.sort_unstable();
    histories.dedup();
    let mut faults = Vec::new();
    let mut expect = |holds: bool, fault: &str| {
        if !holds {
            faults.push(fault.to_owned());
        }
    };
    let may_be = 1..=HISTORY_MAX;
    expect(
        histories.iter().all(|history| may_be.contains(history)),
        "--history: each length is between 1 and 100000000 readings",
    );
    let repetitions = 1..=REPETITIONS_MAX;
    expect(
        repetitions.contains(&arguments.samples),
        "--samples: between 1 and 100000",
    );
    expect(
        repetitions.contains(&arguments.rounds),
        "--rounds: between 1 and 100000",
    );
    // A chain can be compared with another's only if there is one.
    expect((2..=NODES_MAX).contains(&arguments.nodes), "--nodes: between 2 and 26");
    expect(
        (1..=86_400).contains(&arguments.scrub_s),
        "--scrub-s: between 1 and 86400",
    );
    let ports = Ports::plan(arguments.port_base, arguments.nodes);
    expect_ports(&mut faults, ports.as_ref());
    let data_dir = arguments.data_dir.unwrap_or_else(default_data_dir);
    faults.extend(Folder::obstacle(&data_dir));
    faults.extend(arguments.report.as_deref().and_then(report_obstacle));
    match ports {
        Some(ports) if faults.is_empty() => Ok(Order {
            histories,
            samples: arguments.samples,
            rounds: arguments.rounds,
            nodes: arguments.nodes,
            scrub_s: arguments.scrub_s,
            ports,
            data_dir,
            report: arguments.report,
        }),
        _ => Err(Fault::Usage(faults)),
    }
}

fn default_data_dir() -> PathBuf {
    let now = jiff::Timestamp::now().strftime("bench-%Y-%m-%dT%H-%M-%SZ").to_string();
    PathBuf::from("vitalfog-data").join(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ordered(flags: &[&str]) -> Result<Order, Fault> {
        order(Arguments::try_parse_from(std::iter::once(&"bench").chain(flags)).expect("parses"))
    }

    #[test]
    fn lengths_are_measured_from_the_shortest() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let data = dir.path().join("data");
        let flags = ["--history", "500,20,500", "--port-base", "1100", "--data-dir"];
        let order = ordered(&[&flags[..], &[data.to_str().expect("UTF-8")]].concat()).expect("free ports");
        assert_eq!(order.histories, [20, 500]);
    }

    #[test]
    fn every_fault_is_named_before_anything_starts() {
        let flags = [
            "--history",
            "0",
            "--samples",
            "0",
            "--nodes",
            "1",
            "--report",
            "absent/file",
        ];
        let Err(Fault::Usage(faults)) = ordered(&flags) else {
            panic!("it must be refused")
        };
        for flag in ["--history", "--samples", "--nodes", "--report"] {
            assert_eq!(
                faults.iter().filter(|fault| fault.starts_with(flag)).count(),
                1,
                "{faults:?}"
            );
        }
    }

    #[test]
    fn what_no_fleet_can_be_measured_with_is_refused() {
        let flags = "bench --fleet 10,0,10001 --seconds 0 --cadence-s 0 --hot 5000 --port-base 80 --report absent/file";
        let arguments = Arguments::try_parse_from(flags.split(' ')).expect("parses");
        let Err(Fault::Usage(faults)) = fleet_order(arguments) else {
            panic!("it must be refused")
        };
        for flag in [
            "--fleet",
            "--seconds",
            "--cadence-s",
            "--hot",
            "--port-base",
            "--report",
        ] {
            let named = faults.iter().filter(|fault| fault.starts_with(flag)).count();
            assert_eq!(named, 1, "{flag}: {faults:?}");
        }
        let mixed = ["bench", "--fleet", "10", "--history", "100"];
        assert!(
            Arguments::try_parse_from(mixed).is_err(),
            "it measures one thing at a time"
        );
    }
}
