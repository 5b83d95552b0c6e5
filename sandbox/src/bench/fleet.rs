//! What a gateway takes from fleets of several sizes: from publishing to the PUBACK and to finality, memory, files, processor time.
//!
//! A gateway and a fleet, real processes with disks that are synced and TLS. Without fog nodes what is acknowledged stays in the
//! spool, so that the edge alone is measured; with them (`--fog`) everything has to become final as well. One device can be made
//! *hot*, which measures many times as often, to see that the others do not wait for it.

mod account;

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use serde_json::{Value as Json, json};
use tokio::time::sleep;

use self::account::{Figures, GatewayStatus, Limit, Status, Use, status, table};
use super::{
    attended::{Ended, attend, conclude},
    stage::{Finals, LIMITS, Plan, Stage, limit_devices},
    usage::{load_average, processor_time},
};
use crate::{
    children::Supervised, config::Broker, fault::Fault, folder::Folder, memory::Memory, network::Network, ports::Ports,
    processes::Processes, status::Screen,
};

/// Unanswered messages of each device where one is hot.
const FLOOD_IN_FLIGHT: u16 = 16;
/// Unacknowledged readings that a device keeps then.
const FLOOD_KEPT: usize = 30;
/// What the gateway takes of one device then: less than one connection could bring by itself (each message waits for the sync
/// of the one before), so that a short run shows who is held back.
const FLOOD_LIMIT: Limit = Limit {
    burst: 50,
    messages_per_s: 10,
};

/// What was asked for, checked.
#[derive(Debug)]
pub(super) struct Order {
    /// Devices of each fleet, and the seconds between two steps of one of them.
    pub(super) sizes: Vec<(u32, u32)>,
    /// How long each is measured, once all its devices are connected.
    pub(super) time: Duration,
    /// How many times as often the first device measures.
    pub(super) hot: Option<u32>,
    /// Whether fog nodes run.
    pub(super) fog: bool,
    pub(super) broker: Broker,
    pub(super) ports: Ports,
    pub(super) data_dir: PathBuf,
    pub(super) report: Option<PathBuf>,
}

/// Measures each size, or stops when somebody interrupts; returns whether every reading was answered as it had to be.
pub(super) async fn run(order: Order) -> Result<bool, Fault> {
    let attended = attend(async |processes, screen| measure(&order, processes, screen).await);
    let Ended {
        figures,
        failures,
        mut screen,
    } = attended.await?;
    screen.say(&table(&figures));
    let report = json!({ "fleets": figures });
    conclude(&mut screen, &failures, order.report.as_deref(), &report)?;
    // A flood leaves out more numbers than the gateway keeps apart: its gaps grow together, and are not compared.
    let has_its_gaps = |one: &Figures| one.gaps == 0 || one.unkept > 0;
    let is_as_expected = |one: &Figures| one.unanswered == 0 && one.unexpected == 0 && has_its_gaps(one);
    Ok(failures.is_empty() && figures.iter().all(is_as_expected))
}

async fn measure(order: &Order, processes: &mut Processes, screen: &mut Screen) -> Result<Vec<Figures>, Fault> {
    let folder = Folder::create(&order.data_dir)?;
    let mut all = Vec::new();
    for (devices, cadence_s) in &order.sizes {
        screen.say(&format!("a fleet of {devices} devices"));
        let own = Folder::create(&folder.path(devices.to_string()))?;
        let figures = one(own, (*devices, *cadence_s, order), processes).await?;
        screen.say(&format!("  {figures}"));
        all.push(figures);
    }
    Ok(all)
}

/// Starts a gateway and a fleet, measures them, and stops both.
async fn one(
    folder: Folder,
    (devices, cadence_s, order): (u32, u32, &Order),
    processes: &mut Processes,
) -> Result<Figures, Fault> {
    let stage = set(folder, (devices, order), processes).await?;
    let habits = habits((cadence_s, order.hot), &stage.network);
    let program = stage.network.fleet_program_with((order.broker, usize::MAX), habits)?;
    let started = Instant::now();
    let fleet = processes.fleet.insert(Supervised::start(program, LIMITS.stop()));
    let status_file = stage.network.fleet_data_dir().join("status.json");
    let all_connected = || async { status(&status_file).connected >= u64::from(devices) };
    fleet.wait_until("connected", LIMITS.start(), all_connected).await?;
    let connected_s = started.elapsed().as_secs_f64();

    let before = Moment::now(&stage, &status_file, processes).await?;
    sleep(order.time).await;
    let after = Moment::now(&stage, &status_file, processes).await?;
    let spooled = stage.gateway().await?.spooled;
    let uses = Uses::between(&before, &after, processes);
    let load_average = load_average();

    let mut failures = processes.stop_fleet().await;
    let http = stage.network.callers.anybody()?;
    let gaps = missing(&http, &stage.network.gateway_url()).await;
    if order.fog {
        stage.drain().await?;
    }
    failures.extend(processes.stop().await);
    if let Some(failure) = failures.first() {
        return Err(Fault::Measure(failure.clone()));
    }
    let end = status(&status_file);
    let usual = after.fleet.profiles.get("usual");
    let puback = usual
        .map_or(after.fleet.latency_ms, |usual| usual.latency_ms)
        .publish_to_puback;
    let acknowledged = after.fleet.acknowledged - before.fleet.acknowledged;
    let (finals, measured_s) = (after.finals.all.since(&before.finals.all), after.seconds_since(&before));
    Ok(Figures {
        devices,
        connected_s,
        measured_s,
        acknowledged,
        acknowledged_per_s: acknowledged as f64 / measured_s,
        puback_p50_ms: puback.p50,
        puback_p99_ms: puback.p99,
        final_p50_ms: finals.percentiles_ms().p50,
        final_p99_ms: finals.percentiles_ms().p99,
        final_per_s: order.fog.then(|| finals.count() / measured_s),
        spooled,
        hot_acknowledged: after.fleet.profiles.get("hot").map(|hot| hot.acknowledged),
        hot_limit: order.hot.map(|_| FLOOD_LIMIT),
        gateway: uses.gateway,
        fleet: uses.fleet,
        broker: uses.broker,
        nodes: uses.nodes,
        unanswered: end.published.saturating_sub(end.acknowledged + end.refused),
        unexpected: end.unexpected,
        gaps: gaps?,
        unkept: end.unkept,
        load_average,
    })
}

/// Starts everything but the fleet.
async fn set(folder: Folder, (devices, order): (u32, &Order), processes: &mut Processes) -> Result<Stage, Fault> {
    let plan = Plan {
        devices,
        fog: order.fog,
        broker: order.broker,
        gateway: true,
        ports: order.ports.clone(),
        processor: None,
    };
    let change = |settings: &mut toml::Table| {
        if order.hot.is_some() {
            limit_devices(settings, (FLOOD_LIMIT.messages_per_s, FLOOD_LIMIT.burst));
        }
    };
    Stage::set(folder, &plan, change, processes).await
}

/// All accounts at one moment.
struct Moment {
    at: Instant,
    fleet: Status,
    finals: Finals,
    times: Vec<Duration>,
}

impl Moment {
    async fn now(stage: &Stage, status_file: &std::path::Path, processes: &Processes) -> Result<Self, Fault> {
        Ok(Self {
            finals: stage.finals().await?,
            fleet: status(status_file),
            times: every(processes).into_iter().map(time_of).collect(),
            at: Instant::now(),
        })
    }

    fn seconds_since(&self, earlier: &Self) -> f64 {
        self.at.duration_since(earlier.at).as_secs_f64()
    }
}

/// Every process, the gateway first, then the fleet, the broker and the fog nodes.
fn every(processes: &Processes) -> Vec<&Supervised> {
    let outside = [&processes.gateway, &processes.fleet, &processes.broker];
    outside.into_iter().flatten().chain(&processes.nodes).collect()
}

/// What each process used between two moments.
struct Uses {
    gateway: Use,
    fleet: Use,
    broker: Option<Use>,
    nodes: Option<Use>,
}

impl Uses {
    fn between(before: &Moment, after: &Moment, processes: &Processes) -> Self {
        let seconds = after.seconds_since(before);
        let times = before.times.iter().zip(&after.times);
        let used = every(processes).into_iter().zip(times);
        let mut uses = used.map(|(process, (then, now))| usage(process, now.saturating_sub(*then), seconds));
        let mut next = || uses.next().expect("gateway and fleet run");
        let (gateway, fleet) = (next(), next());
        let broker = processes.broker.is_some().then(&mut next);
        let nodes = uses.reduce(|a, b| Use {
            rss_peak_bytes: a.rss_peak_bytes.max(b.rss_peak_bytes),
            open_files: a.open_files.max(b.open_files),
            processor_percent: a.processor_percent + b.processor_percent,
        });
        Self {
            gateway,
            fleet,
            broker,
            nodes,
        }
    }
}

/// Every device at the cadence that was asked for, also those with a waveform; the first one hot, if one is to be.
fn habits((cadence_s, hot): (u32, Option<u32>), network: &Network) -> Json {
    let mut habits = json!({ "speed": 1.0 / f64::from(cadence_s) });
    if let (Some(rate), Some(first)) = (hot, network.household.devices.first()) {
        habits["profile"] = json!({ "hot": { "devices": [first.id], "rate": rate } });
        // One at a time would be a device that waits for each answer, and no flood.
        habits["mqtt"] = json!({ "in_flight_max": FLOOD_IN_FLIGHT });
        // What it has kept is sent at its rate when the run ends: not for long.
        habits["journal_readings_max"] = json!(FLOOD_KEPT);
    }
    habits
}

/// How many numbers the gateway misses.
async fn missing(http: &reqwest::Client, gateway: &str) -> Result<u64, Fault> {
    let asked = async {
        let answer = http.get(format!("{gateway}/status")).send().await?;
        answer.error_for_status()?.json::<GatewayStatus>().await
    };
    let status = asked
        .await
        .map_err(|e| Fault::Measure(format!("the gateway does not tell its gaps: {e}")))?;
    let ranges = status.gaps.iter().flat_map(|gap| &gap.missing);
    Ok(ranges.map(|(from, to)| to - from + 1).sum())
}

fn time_of(process: &Supervised) -> Duration {
    process.life().pid.map(processor_time).unwrap_or_default()
}

fn usage(process: &Supervised, used: Duration, measured_s: f64) -> Use {
    let pid = process.life().pid.unwrap_or_default();
    let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().count();
    Use {
        rss_peak_bytes: Memory::of(pid).peak_bytes.unwrap_or_default(),
        open_files: files,
        processor_percent: 100.0 * used.as_secs_f64() / measured_s,
    }
}
