//! One processor for the gateway, the other for the devices: signed readings a second, beside a bare Mosquitto and a subscriber
//! that only writes and syncs, on the same processor, with the same messages, in turn.
//!
//! The messages are signed before. Both are timed from the first message until the last one is durable: in the gateway until it is
//! acknowledged, in the bare way until the subscriber has synced it.

use std::{path::PathBuf, process::Stdio, time::Instant};

use serde::Serialize;
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};

use super::{
    attended::{Ended, attend, conclude},
    bare,
    crowd::{Crowd, DEVICES},
    publisher::{Link, Pace},
    stage::{Plan, Stage, limit_devices},
    usage::{load_average, processor_time},
};
use crate::{
    config::Broker, fault::Fault, folder::Folder, lifeline, ports::Ports, processes::Processes, status::Screen,
};

/// Where gateway, broker and subscriber run.
const THEIRS: u16 = 0;
/// Where the devices run.
const OURS: u16 = 1;
/// What a device may hand in at once: all of it.
const DEVICE_LIMIT: (u32, u32) = (100_000, 1_000_000);

/// What was asked for, checked.
#[derive(Debug)]
pub(super) struct Order {
    /// Readings of each device, in each round.
    pub(super) readings: u64,
    pub(super) rounds: usize,
    pub(super) ports: Ports,
    pub(super) data_dir: PathBuf,
    pub(super) report: Option<PathBuf>,
}

/// One way in one round.
#[derive(Clone, Copy, Debug, Serialize)]
struct Run {
    readings_per_s: f64,
    /// Processor time a reading, of the gateway or of Mosquitto and the subscriber, in microseconds.
    processor_us: f64,
    /// The same of the devices.
    generator_us: f64,
    load_average: Option<f64>,
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:.0} readings/s, {:.0} us of its processor a reading; the devices {:.0} us; load {:.1}",
            self.readings_per_s,
            self.processor_us,
            self.generator_us,
            self.load_average.unwrap_or_default()
        )
    }
}

/// Measures both ways in turn, or stops when somebody interrupts.
pub(super) async fn run(order: Order) -> Result<bool, Fault> {
    let attended = attend(async |processes, screen| measure(&order, processes, screen).await);
    let Ended {
        figures: (gateway, bare),
        failures,
        mut screen,
    } = attended.await?;
    let (gateway_per_s, bare_per_s) = (middle(&gateway), middle(&bare));
    screen.say(&format!(
        "the middle of {} rounds: gateway {gateway_per_s:.0} readings/s, bare Mosquitto and subscriber {bare_per_s:.0} ({:.0} %)",
        order.rounds,
        100.0 * gateway_per_s / bare_per_s
    ));
    let figures = json!({ "gateway": gateway, "bare": bare, "gateway_per_s": gateway_per_s, "bare_per_s": bare_per_s });
    let report = json!({ "one_core": figures, "failures": failures });
    conclude(&mut screen, &failures, order.report.as_deref(), &report)?;
    Ok(failures.is_empty())
}

fn middle(runs: &[Run]) -> f64 {
    let rates: Vec<_> = runs.iter().map(|run| run.readings_per_s).collect();
    super::figures::percentile(&rates, 0.5)
}

async fn measure(order: &Order, processes: &mut Processes, screen: &mut Screen) -> Result<(Vec<Run>, Vec<Run>), Fault> {
    let folder = Folder::create(&order.data_dir)?;
    let (mut gateway, mut bare) = (Vec::new(), Vec::new());
    for round in 1..=order.rounds {
        let own = Folder::create(&folder.path(format!("gateway-{round}")))?;
        let run = one(own, (Link::Embedded, order), processes).await?;
        screen.say(&format!("round {round}, gateway: {run}"));
        gateway.push(run);
        let own = Folder::create(&folder.path(format!("bare-{round}")))?;
        let run = one(own, (Link::Bare, order), processes).await?;
        screen.say(&format!("round {round}, bare:    {run}"));
        bare.push(run);
    }
    Ok((gateway, bare))
}

async fn one(folder: Folder, (link, order): (Link, &Order), processes: &mut Processes) -> Result<Run, Fault> {
    let is_bare = link == Link::Bare;
    let plan = Plan {
        devices: DEVICES,
        fog: false,
        broker: if is_bare { Broker::Mosquitto } else { Broker::Embedded },
        gateway: !is_bare,
        ports: order.ports.clone(),
        processor: Some(THEIRS),
    };
    let stage = Stage::set(
        folder,
        &plan,
        |settings| limit_devices(settings, DEVICE_LIMIT),
        processes,
    )
    .await?;
    let mut subscriber = if is_bare {
        Some(Subscriber::start(&stage).await?)
    } else {
        None
    };
    pin_ourselves().await?;
    let crowd = Crowd::gather(&stage, link, order.readings).await?;
    let all = order.readings * crowd.size();

    let pids = || -> Vec<u32> {
        let supervised = [&processes.gateway, &processes.broker].into_iter().flatten();
        let supervised = supervised.filter_map(|process| process.life().pid);
        supervised
            .chain(subscriber.as_ref().and_then(Subscriber::pid))
            .collect()
    };
    let used = |pids: &[u32]| pids.iter().map(|pid| processor_time(*pid)).sum::<std::time::Duration>();
    let (pids, own) = (pids(), std::process::id());
    let (before, generator, started) = (used(&pids), processor_time(own), Instant::now());
    crowd.set(Pace::Flood(order.readings));
    match &mut subscriber {
        Some(subscriber) => subscriber.until(all).await?,
        None => {
            crowd
                .until("every reading is acknowledged", |counts| counts.acknowledged >= all)
                .await?
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    let us = |time: std::time::Duration| time.as_secs_f64() * 1e6 / all as f64;
    let run = Run {
        readings_per_s: all as f64 / seconds,
        processor_us: us(used(&pids).saturating_sub(before)),
        generator_us: us(processor_time(own).saturating_sub(generator)),
        load_average: load_average(),
    };
    crowd.dismiss().await;
    drop(subscriber);
    let failures = processes.stop().await;
    failures
        .into_iter()
        .next()
        .map_or(Ok(run), |failure| Err(Fault::Measure(failure)))
}

/// Every thread of this process on the devices' processor; what is started later is put elsewhere by itself.
async fn pin_ourselves() -> Result<(), Fault> {
    let pinned = Command::new("taskset")
        .args(["-acp", &OURS.to_string(), &std::process::id().to_string()])
        .stdout(Stdio::null())
        .status()
        .await;
    match pinned {
        Ok(status) if status.success() => Ok(()),
        _ => Err(Fault::Measure(
            "taskset cannot put the devices on the second processor".to_owned(),
        )),
    }
}

/// The bare subscriber, which ends with its handle.
struct Subscriber {
    child: Child,
    durable: Lines<BufReader<ChildStdout>>,
}

impl Subscriber {
    /// Starts it and waits until it is connected.
    async fn start(stage: &Stage) -> Result<Self, Fault> {
        let (network, program) = (
            &stage.network,
            std::env::current_exe().map_err(Fault::file("this program"))?,
        );
        let mqtt = network.ports.mqtt_of_gateway();
        let mut child = Command::new("taskset")
            .args(["-c", &THEIRS.to_string()])
            .arg(program)
            .args([
                bare::COMMAND,
                "--host",
                &mqtt.ip().to_string(),
                "--port",
                &mqtt.port().to_string(),
            ])
            .arg("--ca")
            .arg(&network.ca_file)
            .arg("--certificate")
            .arg(&network.mqtt.gateway.certificate)
            .arg("--private-key")
            .arg(&network.mqtt.gateway.private_key)
            .arg("--file")
            .arg(network.folder.path("bare"))
            .env(lifeline::VARIABLE, lifeline::STDIN)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(Fault::file("taskset"))?;
        let out = child.stdout.take().expect("it is piped");
        let mut subscriber = Self {
            child,
            durable: BufReader::new(out).lines(),
        };
        subscriber.until(0).await?;
        Ok(subscriber)
    }

    fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits until so many messages are durable.
    async fn until(&mut self, messages: u64) -> Result<(), Fault> {
        let silent = || Fault::Measure("the bare subscriber ended, or says nothing more".to_owned());
        loop {
            let line = tokio::time::timeout(super::stage::LIMITS.start(), self.durable.next_line()).await;
            let line = line.ok().and_then(Result::ok).flatten().ok_or_else(silent)?;
            if line.parse::<u64>().is_ok_and(|durable| durable >= messages) {
                return Ok(());
            }
        }
    }
}
