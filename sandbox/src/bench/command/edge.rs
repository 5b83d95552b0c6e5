//! Flags and checks of what is measured at the edge: fleets, an hour without a fog, an overload, one processor.

use std::{path::PathBuf, time::Duration};

use super::{
    super::{fleet, hour, one_core, overload},
    default_data_dir, expect_ports,
};
use crate::{
    command::report_obstacle, config::Broker, fault::Fault, folder::Folder, hardening, network::mosquitto_obstacle,
    ports::Ports,
};

/// Devices of one fleet, at most: as many as one gateway takes.
const FLEET_MAX: u32 = 10_000;
/// Readings of a device in the hour, at most.
const HOUR_MAX: u64 = 100_000;

/// What is measured at the edge, if anything.
#[derive(Debug, clap::Args)]
pub(super) struct Flags {
    /// Measure the edge instead: fleets of so many devices, one after the other, and a gateway.
    #[arg(long, value_name = "N,N,..", value_delimiter = ',', conflicts_with_all = ["history", "samples", "rounds", "nodes", "scrub_s"])]
    fleet: Vec<u32>,
    /// How long each fleet is measured, once all of its devices are connected.
    #[arg(long, value_name = "S", default_value_t = 30, requires = "fleet")]
    seconds: u32,
    /// Seconds between two steps of a device of these fleets: one number, or one for each fleet.
    #[arg(long, value_name = "S,S,..", value_delimiter = ',', default_values_t = [10], requires = "fleet")]
    cadence_s: Vec<u32>,
    /// Let the first device of each fleet measure so many times as often as the others, and show what the others wait.
    #[arg(long, value_name = "TIMES", requires = "fleet")]
    hot: Option<u32>,
    /// With four fog nodes behind the gateway; otherwise what is acknowledged stays in its spool.
    #[arg(long, requires = "fleet")]
    fog: bool,
    /// Measure an hour in which no fog node can be reached: so many readings of each of fifty devices; 3600 is an hour.
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "3600", conflicts_with_all = ["fleet", "history", "samples", "rounds", "nodes", "scrub_s"])]
    hour: Option<u64>,
    /// Measure ten times the load of fifty devices for so many seconds, and how everything recovers.
    #[arg(long, value_name = "S", conflicts_with_all = ["fleet", "hour", "history", "samples", "rounds", "nodes", "scrub_s"])]
    overload: Option<u32>,
    /// Measure what a gateway takes on one processor, beside a bare broker and subscriber: so many readings of each of fifty devices.
    #[arg(long, value_name = "N", num_args = 0..=1, default_missing_value = "600", conflicts_with_all = ["fleet", "hour", "overload", "history", "samples", "nodes", "scrub_s"])]
    one_core: Option<u64>,
    /// What is between devices and gateway: `embedded` or `mosquitto`.
    #[arg(long, value_name = "BROKER", default_value = "embedded", value_parser = broker)]
    broker: Broker,
}

/// What each benchmark of the edge needs.
pub(super) struct Common {
    pub(super) port_base: u16,
    pub(super) rounds: usize,
    pub(super) data_dir: Option<PathBuf>,
    pub(super) report: Option<PathBuf>,
}

/// What was asked for.
#[derive(Debug)]
pub(super) enum Order {
    Fleets(fleet::Order),
    Hour(hour::Order),
    Overload(overload::Order),
    OneCore(one_core::Order),
}

impl Flags {
    /// Whether something at the edge is to be measured.
    pub(super) const fn is_edge(&self) -> bool {
        !self.fleet.is_empty() || self.hour.is_some() || self.overload.is_some() || self.one_core.is_some()
    }

    /// Checks everything that can be checked before anything is started, and names all faults at once.
    pub(super) fn order(self, common: Common) -> Result<Order, Fault> {
        let mut faults = self.faults();
        let needs_fog = self.fog || self.hour.is_some() || self.overload.is_some();
        let ports = Ports::plan(common.port_base, if needs_fog { 4 } else { 0 });
        expect_ports(&mut faults, ports.as_ref());
        let data_dir = common.data_dir.unwrap_or_else(default_data_dir);
        faults.extend(Folder::obstacle(&data_dir));
        faults.extend(common.report.as_deref().and_then(report_obstacle));
        let Some(ports) = ports.filter(|_| faults.is_empty()) else {
            return Err(Fault::Usage(faults));
        };
        let (broker, report) = (self.broker, common.report);
        if let Some(readings) = self.one_core {
            return Ok(Order::OneCore(one_core::Order {
                readings,
                rounds: common.rounds,
                ports,
                data_dir,
                report,
            }));
        }
        Ok(match (self.hour, self.overload) {
            (Some(readings), _) => Order::Hour(hour::Order {
                readings,
                broker,
                ports,
                data_dir,
                report,
            }),
            (None, Some(seconds)) => Order::Overload(overload::Order {
                time: Duration::from_secs(seconds.into()),
                broker,
                ports,
                data_dir,
                report,
            }),
            (None, None) => Order::Fleets(fleet::Order {
                sizes: self.sizes(),
                time: Duration::from_secs(self.seconds.into()),
                hot: self.hot,
                fog: self.fog,
                broker,
                ports,
                data_dir,
                report,
            }),
        })
    }

    fn sizes(&self) -> Vec<(u32, u32)> {
        let cadences = self.cadence_s.iter().copied().cycle();
        self.fleet.iter().copied().zip(cadences).collect()
    }

    fn faults(&self) -> Vec<String> {
        let within = |number: u64, from: u64, to: u64| (from..=to).contains(&number);
        let fleets = |devices: &u32| within((*devices).into(), 1, FLEET_MAX.into());
        let cadences = self.cadence_s.len();
        let rules = [
            (
                self.fleet.iter().all(fleets),
                "--fleet: each has between 1 and 10000 devices",
            ),
            (within(self.seconds.into(), 1, 86_400), "--seconds: between 1 and 86400"),
            (
                self.cadence_s.iter().all(|cadence| within((*cadence).into(), 1, 3_600)),
                "--cadence-s: between 1 and 3600",
            ),
            (
                cadences == 1 || cadences == self.fleet.len(),
                "--cadence-s: one number, or as many as there are fleets",
            ),
            (
                self.hot.is_none_or(|rate| within(rate.into(), 1, 1_000)),
                "--hot: between 1 and 1000 times",
            ),
            (
                self.hour.is_none_or(|readings| within(readings, 1, HOUR_MAX)),
                "--hour: between 1 and 100000 readings of each device",
            ),
            (
                self.overload.is_none_or(|seconds| within(seconds.into(), 1, 3_600)),
                "--overload: between 1 and 3600 seconds",
            ),
            (
                self.one_core.is_none_or(|readings| within(readings, 1, HOUR_MAX)),
                "--one-core: between 1 and 100000 readings of each device",
            ),
            (
                self.one_core.is_none() || processors() > 1,
                "--one-core: it needs a second processor, for the devices",
            ),
        ];
        let broken = rules.into_iter().filter(|(holds, _)| !holds);
        let mut faults: Vec<_> = broken.map(|(_, rule)| rule.to_owned()).collect();
        let largest = self.fleet.iter().max().copied().unwrap_or_default();
        if self.one_core.is_some() {
            faults.extend(mosquitto_obstacle());
        }
        match self.broker {
            Broker::Embedded => faults.extend(hardening::files_obstacle(largest)),
            Broker::Mosquitto => faults.extend(mosquitto_obstacle()),
        }
        faults
    }
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn broker(text: &str) -> Result<Broker, String> {
    match text {
        "embedded" => Ok(Broker::Embedded),
        "mosquitto" => Ok(Broker::Mosquitto),
        _ => Err("embedded or mosquitto".to_owned()),
    }
}
