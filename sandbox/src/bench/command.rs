//! The benchmark's command line.

mod edge;

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::Parser;

use self::edge::Common;
use super::{Order, bare, fleet, hour, one_core, overload, run, vault};
use crate::{
    command::{concluded, delegated, on_runtime, parsed, report_obstacle},
    fault::Fault,
    folder::Folder,
    lifeline,
    ports::{BASE, NODES_MAX, Ports},
};

/// Readings of history, at most: sequence numbers and disks are not endless.
const HISTORY_MAX: u64 = 100_000_000;
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
    #[command(flatten)]
    edge: edge::Flags,
    /// Measure the vault instead: payloads and large records put and read, beside plain files; at the daemon with this RPC as well, if
    /// one is named (`/ip4/127.0.0.1/tcp/5001`).
    #[arg(long, value_name = "API", num_args = 0..=1, default_missing_value = "", conflicts_with_all = ["fleet", "hour", "overload", "one_core", "history", "samples", "rounds", "nodes", "scrub_s"])]
    vault: Option<String>,
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
    let mut arguments = match delegated(arguments.into_iter().collect()) {
        Ok(code) => return code,
        Err(arguments) => arguments,
    };
    if arguments.get(1).is_some_and(|word| word == bare::COMMAND) {
        return bare::main(arguments.split_off(1));
    }
    match parsed::<Arguments>(arguments) {
        Ok(arguments) if arguments.edge.is_edge() => concluded(at_the_edge(arguments).and_then(|order| match order {
            edge::Order::Fleets(order) => on_runtime(fleet::run(order)),
            edge::Order::Hour(order) => on_runtime(hour::run(order)),
            edge::Order::Overload(order) => on_runtime(overload::run(order)),
            edge::Order::OneCore(order) => on_runtime(one_core::run(order)),
        })),
        Ok(arguments) if arguments.vault.is_some() => {
            concluded(at_the_vault(arguments).and_then(|order| on_runtime(vault::run(order))))
        }
        Ok(arguments) => concluded(order(arguments).and_then(|order| on_runtime(run(order)))),
        Err(code) => code,
    }
}

/// The same for the edge.
fn at_the_edge(arguments: Arguments) -> Result<edge::Order, Fault> {
    arguments.edge.order(Common {
        port_base: arguments.port_base,
        rounds: arguments.rounds,
        data_dir: arguments.data_dir,
        report: arguments.report,
    })
}

/// The same for the vault.
fn at_the_vault(arguments: Arguments) -> Result<vault::Order, Fault> {
    let daemon = arguments.vault.filter(|api| !api.is_empty()).map(TryInto::try_into);
    let data_dir = arguments.data_dir.unwrap_or_else(default_data_dir);
    let mut faults: Vec<_> = Folder::obstacle(&data_dir).into_iter().collect();
    faults.extend(arguments.report.as_deref().and_then(report_obstacle));
    let daemon = daemon.transpose().unwrap_or_else(|fault: String| {
        faults.push(format!("--vault: {fault}"));
        None
    });
    if !faults.is_empty() {
        return Err(Fault::Usage(faults));
    }
    Ok(vault::Order {
        daemon,
        data_dir,
        report: arguments.report,
    })
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
        let Err(Fault::Usage(faults)) = at_the_edge(arguments) else {
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
