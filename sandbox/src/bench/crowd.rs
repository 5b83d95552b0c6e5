//! All devices of the benchmark at one pace, and what a stretch of time came to: answers, finality, memory, files.

use std::{
    fmt, fs,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::Serialize;
use tokio::{sync::watch, task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    figures::percentile,
    publisher::{Account, Counts, Link, Pace, Publisher},
    stage::{Finals, LIMITS, PAUSE, Plan, Stage, limit_devices},
};
use crate::{
    config::Broker, fault::Fault, folder::Folder, memory::Memory, ports::Ports, processes::Processes, promises::OnChain,
};

/// Devices of a home.
pub(super) const DEVICES: u32 = 50;

/// Four fog nodes, a gateway that takes so much of a device, and all devices of a home, connected.
pub(super) async fn home(
    folder: Folder,
    (broker, ports): (Broker, Ports),
    device_limit: (u32, u32),
    processes: &mut Processes,
) -> Result<(Stage, Crowd), Fault> {
    let plan = Plan {
        devices: DEVICES,
        fog: true,
        broker,
        gateway: true,
        ports,
        processor: None,
    };
    let stage = Stage::set(
        folder,
        &plan,
        |settings| limit_devices(settings, device_limit),
        processes,
    )
    .await?;
    let crowd = Crowd::gather(&stage, broker.into(), 0).await?;
    Ok((stage, crowd))
}

/// All devices, each with a task of its own.
pub(super) struct Crowd {
    pace: watch::Sender<Pace>,
    account: Arc<Account>,
    stop: CancellationToken,
    tasks: JoinSet<Publisher>,
    size: u64,
}

impl Crowd {
    /// All devices of the stage's household, each with so many readings signed before; they connect and rest.
    pub(super) async fn gather(stage: &Stage, link: Link, prepared: u64) -> Result<Self, Fault> {
        let account = Arc::new(Account::default());
        let (pace, stop) = (watch::Sender::new(Pace::Rest), CancellationToken::new());
        let mut tasks = JoinSet::new();
        for index in 0..stage.network.household.devices.len() {
            let mut device = Publisher::of(&stage.network, index, link, Arc::clone(&account))?;
            device.prepare(prepared);
            tasks.spawn(device.run(pace.subscribe(), stop.clone()));
        }
        let crowd = Self {
            pace,
            account,
            stop,
            size: tasks.len() as u64,
            tasks,
        };
        crowd
            .until("every device is connected", |counts| counts.connected == crowd.size)
            .await?;
        Ok(crowd)
    }

    /// How many devices there are.
    pub(super) const fn size(&self) -> u64 {
        self.size
    }

    /// From now on every device publishes at this pace.
    pub(super) fn set(&self, pace: Pace) {
        self.pace.send_replace(pace);
    }

    pub(super) fn counts(&self) -> Counts {
        self.account.counts()
    }

    /// Waits until something is so, within the longest time that anything may take.
    pub(super) async fn until(&self, what: &str, is_so: impl Fn(&Counts) -> bool) -> Result<(), Fault> {
        let started = Instant::now();
        while !is_so(&self.counts()) {
            if started.elapsed() > LIMITS.drain() {
                return Err(Fault::Measure(format!(
                    "waited in vain until {what}: {:?}",
                    self.counts()
                )));
            }
            sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Lets all devices go.
    pub(super) async fn dismiss(mut self) -> Vec<Publisher> {
        self.stop.cancel();
        let mut devices = Vec::new();
        while let Some(device) = self.tasks.join_next().await {
            devices.push(device.expect("a device does not panic"));
        }
        devices
    }

    /// Lets all devices rest, waits until every reading is acknowledged and final, and compares with the chain; a sentence for
    /// whatever is not as promised.
    pub(super) async fn conclude(self, stage: &Stage) -> Result<Outcome, Fault> {
        self.set(Pace::Rest);
        self.until("every reading is acknowledged", |counts| {
            counts.acknowledged == counts.made
        })
        .await?;
        let (drained, broken) = (stage.drain().await?, self.counts().broken);
        let devices = self.dismiss().await;
        let chain = stage.audit().await?;
        Ok(Outcome {
            drained_s: drained.as_secs_f64(),
            connections_broken: broken,
            ..compare(&devices, &chain)
        })
    }
}

/// What became of every reading.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Outcome {
    pub(super) acknowledged: u64,
    pub(super) final_readings: u64,
    /// Acknowledged and not on the chain.
    pub(super) lost: u64,
    /// Times too often on the chain.
    pub(super) duplicates: u64,
    /// From the last reading until the gateway had forgotten all.
    pub(super) drained_s: f64,
    /// Connections of devices that broke.
    pub(super) connections_broken: u64,
    /// What else the audit of the chain found.
    pub(super) faults: Vec<String>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "acknowledged {}, final {}, lost {}, duplicates {}",
            self.acknowledged, self.final_readings, self.lost, self.duplicates
        )
    }
}

impl Outcome {
    /// A sentence for whatever is not as promised.
    pub(super) fn failures(&self) -> Vec<String> {
        let lost = (self.lost > 0).then(|| format!("{} acknowledged readings are not on the chain", self.lost));
        let twice = (self.duplicates > 0).then(|| format!("{} readings are there too often", self.duplicates));
        lost.into_iter()
            .chain(twice)
            .chain(self.faults.iter().cloned())
            .collect()
    }
}

fn compare(devices: &[Publisher], chain: &OnChain) -> Outcome {
    let (mut acknowledged, mut lost) = (0, 0);
    for reading in devices.iter().flat_map(Publisher::acknowledged) {
        acknowledged += 1;
        lost += u64::from(chain.times(&reading) == 0);
    }
    Outcome {
        acknowledged,
        final_readings: chain.count(),
        lost,
        // Every reading that was made was acknowledged, so that whatever is more is there too often.
        duplicates: chain.count().saturating_sub(acknowledged - lost),
        drained_s: 0.0,
        connections_broken: 0,
        faults: chain.faults().to_vec(),
    }
}

/// What a stretch of time came to.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Stretch {
    pub(super) seconds: f64,
    pub(super) acknowledged: u64,
    pub(super) acknowledged_per_s: f64,
    /// Messages that were not taken for now.
    pub(super) held_back: u64,
    pub(super) puback_p50_ms: f64,
    pub(super) puback_p99_ms: f64,
    /// Of readings that went before the backlog; none without fog nodes.
    pub(super) final_p50_ms: Option<f64>,
    pub(super) final_p99_ms: Option<f64>,
    /// How many of those there were.
    pub(super) final_new: f64,
}

impl std::fmt::Display for Stretch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |ms| format!("{ms:.0}"));
        write!(
            f,
            "{:.0} s, {} acknowledged ({:.0}/s), {} held back; to PUBACK p50 {:.1} ms, p99 {:.1} ms; to final p50 {} ms, p99 {} ms",
            self.seconds,
            self.acknowledged,
            self.acknowledged_per_s,
            self.held_back,
            self.puback_p50_ms,
            self.puback_p99_ms,
            ms(self.final_p50_ms),
            ms(self.final_p99_ms)
        )
    }
}

/// Measures a stretch from now on.
pub(super) struct Meter {
    started: Instant,
    counts: Counts,
    finals: Finals,
}

impl Meter {
    /// Begins.
    pub(super) async fn start(crowd: &Crowd, stage: &Stage) -> Result<Self, Fault> {
        crowd.account.take_waits();
        Ok(Self {
            started: Instant::now(),
            counts: crowd.counts(),
            finals: stage.finals().await?,
        })
    }

    /// Ends.
    pub(super) async fn end(self, crowd: &Crowd, stage: &Stage) -> Result<Stretch, Fault> {
        let (seconds, counts) = (self.started.elapsed().as_secs_f64(), crowd.counts());
        let waits = crowd.account.take_waits();
        let new = stage.finals().await?.new.since(&self.finals.new);
        let percentiles = new.percentiles_ms();
        let acknowledged = counts.acknowledged - self.counts.acknowledged;
        Ok(Stretch {
            seconds,
            acknowledged,
            acknowledged_per_s: acknowledged as f64 / seconds,
            held_back: counts.held_back - self.counts.held_back,
            puback_p50_ms: percentile(&waits, 0.50),
            puback_p99_ms: percentile(&waits, 0.99),
            final_p50_ms: percentiles.p50,
            final_p99_ms: percentiles.p99,
            final_new: new.count(),
        })
    }
}

/// Memory and open files: of the gateway, and of the node that uses most.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Footprint {
    pub(super) gateway_rss_bytes: u64,
    pub(super) gateway_files: usize,
    pub(super) node_rss_bytes: u64,
    pub(super) node_files: usize,
    /// Readings that wait in the gateway.
    pub(super) spooled: u64,
}

impl Footprint {
    /// As it is now.
    pub(super) async fn of(processes: &Processes, stage: &Stage) -> Result<Self, Fault> {
        let gateway = processes.gateway.as_ref().and_then(|gateway| gateway.life().pid);
        let nodes: Vec<_> = processes.nodes.iter().filter_map(|node| node.life().pid).collect();
        let rss = |pid: u32| Memory::of(pid).now_bytes.unwrap_or_default();
        Ok(Self {
            gateway_rss_bytes: gateway.map(rss).unwrap_or_default(),
            gateway_files: gateway.map(files).unwrap_or_default(),
            node_rss_bytes: nodes.iter().copied().map(rss).max().unwrap_or_default(),
            node_files: nodes.iter().copied().map(files).max().unwrap_or_default(),
            spooled: stage.gateway().await?.spooled,
        })
    }

    /// The most of both.
    pub(super) fn most(self, other: Self) -> Self {
        Self {
            gateway_rss_bytes: self.gateway_rss_bytes.max(other.gateway_rss_bytes),
            gateway_files: self.gateway_files.max(other.gateway_files),
            node_rss_bytes: self.node_rss_bytes.max(other.node_rss_bytes),
            node_files: self.node_files.max(other.node_files),
            spooled: self.spooled.max(other.spooled),
        }
    }
}

impl std::fmt::Display for Footprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "gateway {} MB, {} files, {} readings in the spool; a node {} MB, {} files",
            self.gateway_rss_bytes / 1_000_000,
            self.gateway_files,
            self.spooled,
            self.node_rss_bytes / 1_000_000,
            self.node_files
        )
    }
}

fn files(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().count()
}

/// Measures so long a stretch, and the most that was used meanwhile.
pub(super) async fn stretch(
    time: Duration,
    (crowd, stage, processes): (&Crowd, &Stage, &Processes),
) -> Result<(Stretch, Footprint), Fault> {
    let meter = Meter::start(crowd, stage).await?;
    let (started, mut most) = (Instant::now(), Footprint::of(processes, stage).await?);
    while started.elapsed() < time {
        sleep(Duration::from_secs(1).min(time.saturating_sub(started.elapsed()))).await;
        most = most.most(Footprint::of(processes, stage).await?);
    }
    Ok((meter.end(crowd, stage).await?, most))
}
