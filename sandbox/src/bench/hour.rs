//! A gateway whose fog nodes cannot be reached for an hour: the hour is compressed, the number of its readings is real.
//!
//! 1. Fifty devices measure once a second, and all is well.
//! 2. The fog nodes are stopped. The devices hand in what they would measure in an hour, as fast as it is acknowledged.
//! 3. The devices measure once a second again, and the fog nodes come back. What was measured before they answered had to wait
//!    for them; that is told apart.
//! 4. The spool drains. What is measured meanwhile must not wait for what is stored.
//! 5. Everything that was acknowledged is compared with the chain.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use serde::Serialize;
use serde_json::json;
use tokio::time::sleep;

use super::{
    attended::{Ended, attend, conclude},
    crowd::{Crowd, Footprint, Meter, Outcome, Stretch, home, stretch},
    publisher::Pace,
    stage::{LIMITS, PAUSE, Stage},
    usage::load_average,
};
use crate::{config::Broker, fault::Fault, folder::Folder, ports::Ports, processes::Processes, status::Screen};

/// The pace at which a device measures.
const EVERY: Duration = Duration::from_secs(1);
/// How long it is measured before, and afterwards.
const CALM: Duration = Duration::from_secs(20);
/// What a device may hand in: an hour at once.
const DEVICE_LIMIT: (u32, u32) = (1_000, 4_000);
/// From the first reading that is final again until it is measured what a new one waits for: what was measured while no fog
/// node answered is final by then, or is backlog (`backlog_after_ms`).
const SETTLED: Duration = Duration::from_secs(5);
/// Fewer readings than this in the spool are those that are under way.
const UNDER_WAY: u64 = 100;
/// While the spool drains, 99 of 100 new readings are final after this time: what docs/PERFORMANCE.md states.
pub(super) const FINAL_P99_MAX_MS: f64 = 2_000.0;
/// And acknowledged after this time.
pub(super) const PUBACK_P99_MAX_MS: f64 = 500.0;

/// What was asked for, checked.
#[derive(Debug)]
pub(super) struct Order {
    /// Readings of each device in the hour.
    pub(super) readings: u64,
    pub(super) broker: Broker,
    pub(super) ports: Ports,
    pub(super) data_dir: PathBuf,
    pub(super) report: Option<PathBuf>,
}

/// What the hour came to.
#[derive(Debug, Default, Serialize)]
struct Figures {
    before: Stretch,
    offline: Stretch,
    /// Readings and bundles in the spool when the fog nodes came back.
    spooled: u64,
    returned: Returned,
    /// What devices measured from then on until the spool was drained.
    draining: Stretch,
    footprint: Footprint,
    after: Stretch,
    outcome: Outcome,
    load_average: Option<f64>,
}

/// The fog nodes are back.
#[derive(Debug, Default, Serialize)]
struct Returned {
    /// From when all of them answered until the first reading was final.
    first_final_s: f64,
    /// From when all of them answered until what had waited for them was final, or backlog.
    stretch: Stretch,
}

/// Measures it, or stops when somebody interrupts; returns whether nothing was lost and nothing new waited for too long.
pub(super) async fn run(order: Order) -> Result<bool, Fault> {
    let attended = attend(async |processes, screen| measure(&order, processes, screen).await);
    let Ended {
        figures,
        mut failures,
        mut screen,
    } = attended.await?;
    failures.extend(figures.outcome.failures());
    let draining = &figures.draining;
    let slow =
        |what: &str, ms: f64, max: f64| (ms > max).then(|| format!("{what} took {ms:.0} ms at p99, bound {max:.0}"));
    let bounds = [
        slow(
            "a PUBACK while the spool drained",
            draining.puback_p99_ms,
            PUBACK_P99_MAX_MS,
        ),
        match draining.final_p99_ms {
            Some(ms) => slow("finality of what was new", ms, FINAL_P99_MAX_MS),
            None => Some("nothing new was final while the spool drained: ask for more readings".to_owned()),
        },
    ];
    let late: Vec<_> = bounds.into_iter().flatten().collect();
    let bounds = json!({ "puback_p99_ms": PUBACK_P99_MAX_MS, "final_p99_ms": FINAL_P99_MAX_MS });
    let report = json!({ "hour": figures, "failures": failures, "late": late, "bounds": bounds });
    conclude(
        &mut screen,
        failures.iter().chain(&late),
        order.report.as_deref(),
        &report,
    )?;
    Ok(failures.is_empty() && late.is_empty())
}

async fn measure(order: &Order, processes: &mut Processes, screen: &mut Screen) -> Result<Figures, Fault> {
    screen.say("starting four fog nodes, a gateway and fifty devices");
    let folder = Folder::create(&order.data_dir)?;
    let place = (order.broker, order.ports.clone());
    let (stage, crowd) = home(folder, place, DEVICE_LIMIT, processes).await?;
    crowd.set(Pace::Every(EVERY));
    // Connections are made, caches warm.
    sleep(CALM / 4).await;
    let (before, _) = stretch(CALM, (&crowd, &stage, processes)).await?;
    screen.say(&format!("before:        {before}"));

    let failures = processes.stop_nodes().await;
    let offline = handed_in(order.readings, &crowd, &stage).await?;
    screen.say(&format!("without a fog: {offline}"));
    let spooled = stage.gateway().await?.spooled;

    crowd.set(Pace::Every(EVERY));
    stage.start_fog(processes).await?;
    let returned = returned(&crowd, &stage).await?;
    screen.say(&format!(
        "with it again: {}; the first reading was final after {:.1} s",
        returned.stretch, returned.first_final_s
    ));
    let (draining, footprint) = drained(&crowd, &stage, processes).await?;
    screen.say(&format!(
        "draining:      {draining}; {spooled} were spooled; at most {footprint}"
    ));
    let (after, _) = stretch(CALM, (&crowd, &stage, processes)).await?;
    screen.say(&format!("afterwards:    {after}"));

    let outcome = crowd.conclude(&stage).await?;
    screen.say(&format!("{outcome}; load {:.1}", load_average().unwrap_or_default()));
    if let Some(failure) = failures.first() {
        return Err(Fault::Measure(failure.clone()));
    }
    Ok(Figures {
        before,
        offline,
        spooled,
        returned,
        draining,
        footprint,
        after,
        outcome,
        load_average: load_average(),
    })
}

/// Hands in what all devices measure in the hour, and waits until it is acknowledged.
async fn handed_in(readings: u64, crowd: &Crowd, stage: &Stage) -> Result<Stretch, Fault> {
    let meter = Meter::start(crowd, stage).await?;
    let all = crowd.counts().made + readings * crowd.size();
    crowd.set(Pace::Flood(readings));
    crowd
        .until("the hour is in the spool", |counts| {
            counts.made >= all && counts.acknowledged == counts.made
        })
        .await?;
    meter.end(crowd, stage).await
}

/// Waits until readings become final again, and what was measured before has gone ahead or stands back.
async fn returned(crowd: &Crowd, stage: &Stage) -> Result<Returned, Fault> {
    let (meter, started) = (Meter::start(crowd, stage).await?, Instant::now());
    let before = stage.finals().await?.all.count();
    while stage.finals().await?.all.count() <= before {
        if started.elapsed() > LIMITS.start() {
            return Err(Fault::Measure("nothing was final with the fog nodes back".to_owned()));
        }
        sleep(PAUSE).await;
    }
    let first_final_s = started.elapsed().as_secs_f64();
    sleep(SETTLED).await;
    Ok(Returned {
        first_final_s,
        stretch: meter.end(crowd, stage).await?,
    })
}

/// Waits until the spool is drained, while the devices measure as usual.
async fn drained(crowd: &Crowd, stage: &Stage, processes: &Processes) -> Result<(Stretch, Footprint), Fault> {
    let meter = Meter::start(crowd, stage).await?;
    let (started, mut footprint) = (Instant::now(), Footprint::of(processes, stage).await?);
    while stage.gateway().await?.spooled > UNDER_WAY {
        if started.elapsed() > LIMITS.drain() {
            return Err(Fault::Measure("the spool was not drained in time".to_owned()));
        }
        footprint = footprint.most(Footprint::of(processes, stage).await?);
        sleep(PAUSE).await;
    }
    Ok((meter.end(crowd, stage).await?, footprint))
}
