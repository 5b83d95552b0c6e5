//! What a gateway takes from fleets of several sizes: from publishing to the PUBACK, memory, files, processor time.
//!
//! A gateway and a fleet, real processes with disks that are synced and TLS, and no fog node: what is acknowledged stays in the
//! spool, so that the edge alone is measured. One device can be made *hot*, which measures many times as often, to see that the
//! others do not wait for it.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use firmware_sim::signal::Library;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};
use tokio::time::sleep;

use super::usage::{load_average, processor_time};
use crate::{
    children::Supervised,
    config::{Broker, Limits},
    fault::Fault,
    folder::{Folder, replace_json},
    household::Household,
    interruption,
    memory::Memory,
    network::Network,
    ports::Ports,
    processes::Processes,
    status::Screen,
};

/// Validators of a network that is founded and not started.
const NODES: u16 = 4;
/// Blocks of an epoch: as many as the sandbox has.
const EPOCH_BLOCKS: u64 = 1_000;
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
/// What each step may take on a slow machine that does something else.
const LIMITS: Limits = Limits {
    start_s: 300,
    enrol_s: 300,
    drain_s: 300,
    agree_s: 300,
    stop_s: 60,
};

/// What was asked for, checked.
#[derive(Debug)]
pub(super) struct Order {
    /// Devices of each fleet.
    pub(super) sizes: Vec<u32>,
    /// How long each is measured, once all its devices are connected.
    pub(super) time: Duration,
    /// Seconds between two steps of a device.
    pub(super) cadence_s: u32,
    /// How many times as often the first device measures.
    pub(super) hot: Option<u32>,
    pub(super) ports: Ports,
    pub(super) data_dir: PathBuf,
    pub(super) report: Option<PathBuf>,
}

/// What the gateway takes of one device.
#[derive(Clone, Copy, Debug, Serialize)]
struct Limit {
    burst: u32,
    messages_per_s: u32,
}

/// What one fleet came to.
#[derive(Debug, Serialize)]
struct Figures {
    devices: u32,
    /// From the first connection to the last.
    connected_s: f64,
    /// How long it was measured then.
    measured_s: f64,
    /// Readings acknowledged meanwhile.
    acknowledged: u64,
    acknowledged_per_s: f64,
    /// Of all devices; of the others, if one is hot.
    puback_p50_ms: f64,
    puback_p99_ms: f64,
    /// Readings of the hot device that were acknowledged.
    hot_acknowledged: Option<u64>,
    /// What may be acknowledged of it.
    hot_limit: Option<Limit>,
    gateway: Use,
    fleet: Use,
    /// What became of all readings, as the fleet says at its end.
    unanswered: u64,
    unexpected: u64,
    /// Numbers that the gateway misses.
    gaps: u64,
    /// Numbers for which a device had no room, so that it never sent them.
    unkept: u64,
    load_average: Option<f64>,
}

/// What a process uses.
#[derive(Debug, Serialize)]
struct Use {
    rss_peak_bytes: u64,
    open_files: usize,
    /// Of one processor, while it was measured.
    processor_percent: f64,
}

/// What the fleet's `status.json` says that is looked at here.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    connected: u64,
    published: u64,
    acknowledged: u64,
    refused: u64,
    unkept: u64,
    unexpected: u64,
    latency_ms: Latency,
    profiles: std::collections::BTreeMap<String, Part>,
}

/// What the gateway's `/status` says of numbers that did not come.
#[derive(Debug, Deserialize)]
struct GatewayStatus {
    gaps: Vec<Gap>,
}

#[derive(Debug, Deserialize)]
struct Gap {
    missing: Vec<(u64, u64)>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Part {
    acknowledged: u64,
    latency_ms: Latency,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
struct Latency {
    publish_to_puback: Percentiles,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
struct Percentiles {
    p50: f64,
    p99: f64,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |process: &Use| {
            format!(
                "{} MB, {} files, {:.0} % of a processor",
                process.rss_peak_bytes / 1_000_000,
                process.open_files,
                process.processor_percent
            )
        };
        write!(
            f,
            "{} devices: connected in {:.1} s; {:.0} readings/s for {:.0} s, to PUBACK p50 {:.1} ms, p99 {:.1} ms; gateway {}; \
             fleet {}; {} without an answer, {} gaps; load {:.1}",
            self.devices,
            self.connected_s,
            self.acknowledged_per_s,
            self.measured_s,
            self.puback_p50_ms,
            self.puback_p99_ms,
            of(&self.gateway),
            of(&self.fleet),
            self.unanswered,
            self.gaps,
            self.load_average.unwrap_or_default()
        )?;
        match self.hot_acknowledged {
            Some(hot) => write!(f, "; the hot device got {hot} acknowledged"),
            None => Ok(()),
        }
    }
}

/// Measures each size, or stops when somebody interrupts; returns whether every reading was answered as it had to be.
pub(super) async fn run(order: Order) -> Result<bool, Fault> {
    let interrupted = interruption::listen()?;
    let mut screen = Screen::open();
    let mut processes = Processes::default();
    let measured = tokio::select! {
        measured = measure(&order, &mut processes, &mut screen) => measured,
        () = interrupted.cancelled() => Err(Fault::Interrupted),
    };
    let failures = processes.stop().await;
    let figures = measured?;
    for failure in &failures {
        screen.say(&format!("FAILED: {failure}"));
    }
    if let Some(path) = &order.report {
        replace_json(path, &json!({ "fleets": figures }))?;
    }
    // A flood leaves out more numbers than the gateway keeps apart: its gaps grow together, and are not compared.
    let has_its_gaps = |one: &Figures| one.gaps == 0 || one.unkept > 0;
    let is_as_expected = |one: &Figures| one.unanswered == 0 && one.unexpected == 0 && has_its_gaps(one);
    Ok(failures.is_empty() && figures.iter().all(is_as_expected))
}

async fn measure(order: &Order, processes: &mut Processes, screen: &mut Screen) -> Result<Vec<Figures>, Fault> {
    let folder = Folder::create(&order.data_dir)?;
    let mut all = Vec::new();
    for devices in &order.sizes {
        screen.say(&format!("a fleet of {devices} devices"));
        let own = Folder::create(&folder.path(devices.to_string()))?;
        let figures = one(own, (*devices, order), processes).await?;
        screen.say(&format!("  {figures}"));
        all.push(figures);
    }
    Ok(all)
}

/// Starts a gateway and a fleet, measures them, and stops both.
async fn one(folder: Folder, (devices, order): (u32, &Order), processes: &mut Processes) -> Result<Figures, Fault> {
    let number = usize::try_from(devices).expect("a usize has 32 bits at least");
    let household = Household::furnish(&folder, number, Library::embedded())?;
    let network = Network::found(folder, order.ports.clone(), (NODES, EPOCH_BLOCKS), household)?;
    let http = network.callers.anybody()?;
    let program = network.gateway_program(Broker::Embedded)?;
    if order.hot.is_some() {
        hold_back(&network.folder.path("gateway/config.toml"))?;
    }
    let gateway = Supervised::start(program, LIMITS.stop());
    let health = format!("{}/healthz", network.gateway_url());
    let up = || async {
        http.get(&health)
            .send()
            .await
            .is_ok_and(|answer| answer.status().is_success())
    };
    let waited = gateway.wait_until("ready", LIMITS.start(), up).await;
    let gateway = processes.gateway.insert(gateway);
    waited?;
    let program = network.fleet_program_with((Broker::Embedded, usize::MAX), habits(order, &network))?;
    let started = Instant::now();
    let fleet = processes.fleet.insert(Supervised::start(program, LIMITS.stop()));
    let status_file = network.fleet_data_dir().join("status.json");
    let all_connected = || async { status(&status_file).connected >= u64::from(devices) };
    fleet.wait_until("connected", LIMITS.start(), all_connected).await?;
    let connected_s = started.elapsed().as_secs_f64();

    let (before, used, from) = (status(&status_file), [&*gateway, &*fleet].map(time_of), Instant::now());
    sleep(order.time).await;
    let (after, measured_s) = (status(&status_file), from.elapsed().as_secs_f64());
    let uses = [(&*gateway, used[0]), (&*fleet, used[1])].map(|(process, used)| usage(process, used, measured_s));
    let [gateway, fleet] = uses;
    let load_average = load_average();

    let mut failures = processes.stop_fleet().await;
    let gaps = missing(&http, &network.gateway_url()).await;
    failures.extend(processes.stop().await);
    if let Some(failure) = failures.first() {
        return Err(Fault::Measure(failure.clone()));
    }
    let end = status(&status_file);
    let usual = after
        .profiles
        .get("usual")
        .map_or(after.latency_ms, |usual| usual.latency_ms);
    let acknowledged = after.acknowledged - before.acknowledged;
    Ok(Figures {
        devices,
        connected_s,
        measured_s,
        acknowledged,
        acknowledged_per_s: acknowledged as f64 / measured_s,
        puback_p50_ms: usual.publish_to_puback.p50,
        puback_p99_ms: usual.publish_to_puback.p99,
        hot_acknowledged: after.profiles.get("hot").map(|hot| hot.acknowledged),
        hot_limit: order.hot.map(|_| FLOOD_LIMIT),
        gateway,
        fleet,
        unanswered: end.published.saturating_sub(end.acknowledged + end.refused),
        unexpected: end.unexpected,
        gaps: gaps?,
        unkept: end.unkept,
        load_average,
    })
}

/// Every device at the cadence that was asked for, also those with a waveform; the first one hot, if one is to be.
fn habits(order: &Order, network: &Network) -> Json {
    let mut habits = json!({ "speed": 1.0 / f64::from(order.cadence_s) });
    if let (Some(rate), Some(first)) = (order.hot, network.household.devices.first()) {
        habits["profile"] = json!({ "hot": { "devices": [first.id], "rate": rate } });
        // One at a time would be a device that waits for each answer, and no flood.
        habits["mqtt"] = json!({ "in_flight_max": FLOOD_IN_FLIGHT });
        // What it has kept is sent at its rate when the run ends: not for long.
        habits["journal_readings_max"] = json!(FLOOD_KEPT);
    }
    habits
}

/// Sets the limit of a device in the gateway's configuration.
fn hold_back(config: &Path) -> Result<(), Fault> {
    let text = fs::read_to_string(config).map_err(Fault::file(config))?;
    let mut settings: toml::Table = toml::from_str(&text).expect("it was written as TOML just now");
    let broker = settings["mqtt"]["broker"]
        .as_table_mut()
        .expect("the broker has settings");
    let Limit { burst, messages_per_s } = FLOOD_LIMIT;
    broker.insert("device_burst_messages_max".to_owned(), i64::from(burst).into());
    broker.insert("device_messages_per_s_max".to_owned(), i64::from(messages_per_s).into());
    fs::write(config, settings.to_string()).map_err(Fault::file(config))
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

/// The fleet's own account; nothing yet if there is none.
fn status(file: &Path) -> Status {
    let text = fs::read(file).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

fn time_of(process: &Supervised) -> Duration {
    process.life().pid.map(processor_time).unwrap_or_default()
}

fn usage(process: &Supervised, before: Duration, measured_s: f64) -> Use {
    let pid = process.life().pid.unwrap_or_default();
    let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().count();
    let used = processor_time(pid).saturating_sub(before);
    Use {
        rss_peak_bytes: Memory::of(pid).peak_bytes.unwrap_or_default(),
        open_files: files,
        processor_percent: 100.0 * used.as_secs_f64() / measured_s,
    }
}
