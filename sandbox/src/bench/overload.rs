//! Ten times the load for a while, then as before: what is bounded stays bounded, and soon everything is as it was.
//!
//! Fifty devices measure once a second, then ten times a second, then once again. The embedded broker takes two messages a second of a
//! device and tells it to wait with the rest; Mosquitto passes on what comes, and the gateway's spool and lanes bear it.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use serde::Serialize;
use serde_json::json;

use super::{
    attended::{Ended, attend, conclude},
    crowd::{Footprint, Outcome, Stretch, home, stretch},
    publisher::Pace,
    usage::load_average,
};
use crate::{config::Broker, fault::Fault, folder::Folder, ports::Ports, processes::Processes, status::Screen};

/// The usual pace of a device.
const USUAL: Duration = Duration::from_secs(1);
/// The pace of the overload: ten times that.
const OVERLOAD: Duration = Duration::from_millis(100);
/// What the embedded broker takes of a device a second, and at once.
const DEVICE_LIMIT: (u32, u32) = (2, 10);
/// How long it is measured before.
const CALM: Duration = Duration::from_secs(15);
/// How long a look at the recovery takes.
const LOOK: Duration = Duration::from_secs(3);
/// As it was before means: at most so many times what it was before, and this much for chance.
const TIMES: f64 = 2.0;
const CHANCE_MS: f64 = 100.0;
/// Everything is as it was after this time.
const RECOVERY_MAX: Duration = Duration::from_secs(60);
/// What the overload may add to memory and open files of a process: queues with their limits, pages of its stores.
const RSS_MORE_MAX: u64 = 128 << 20;
const FILES_MORE_MAX: usize = 256;

/// What was asked for, checked.
#[derive(Debug)]
pub(super) struct Order {
    /// How long the overload lasts.
    pub(super) time: Duration,
    pub(super) broker: Broker,
    pub(super) ports: Ports,
    pub(super) data_dir: PathBuf,
    pub(super) report: Option<PathBuf>,
}

/// What it came to.
#[derive(Debug, Default, Serialize)]
struct Figures {
    before: Stretch,
    used_before: Footprint,
    overload: Stretch,
    used: Footprint,
    /// The last look, when everything was as before.
    recovered: Stretch,
    /// After how long that was; absent if never.
    recovered_s: Option<f64>,
    outcome: Outcome,
    load_average: Option<f64>,
}

impl Figures {
    fn failures(&self) -> Vec<String> {
        let (most, before) = (&self.used, &self.used_before);
        let grown = |what: &str, now: u64, then: u64, max: u64| {
            (now > then + max).then(|| format!("{what} grew from {then} to {now}, at most {max} more"))
        };
        let bounds = [
            grown(
                "the gateway's memory",
                most.gateway_rss_bytes,
                before.gateway_rss_bytes,
                RSS_MORE_MAX,
            ),
            grown(
                "a node's memory",
                most.node_rss_bytes,
                before.node_rss_bytes,
                RSS_MORE_MAX,
            ),
            grown(
                "the number of the gateway's files",
                most.gateway_files as u64,
                before.gateway_files as u64,
                FILES_MORE_MAX as u64,
            ),
            grown(
                "the number of a node's files",
                most.node_files as u64,
                before.node_files as u64,
                FILES_MORE_MAX as u64,
            ),
            self.recovered_s.is_none().then(|| {
                format!(
                    "it is not as before within {} s: {}",
                    RECOVERY_MAX.as_secs(),
                    self.recovered
                )
            }),
        ];
        bounds.into_iter().flatten().chain(self.outcome.failures()).collect()
    }
}

/// Measures it, or stops when somebody interrupts; returns whether everything stayed within its bounds.
pub(super) async fn run(order: Order) -> Result<bool, Fault> {
    let attended = attend(async |processes, screen| measure(&order, processes, screen).await);
    let Ended {
        figures,
        mut failures,
        mut screen,
    } = attended.await?;
    failures.extend(figures.failures());
    let report = json!({ "overload": figures, "failures": failures });
    conclude(&mut screen, &failures, order.report.as_deref(), &report)?;
    Ok(failures.is_empty())
}

async fn measure(order: &Order, processes: &mut Processes, screen: &mut Screen) -> Result<Figures, Fault> {
    screen.say("starting four fog nodes, a gateway and fifty devices");
    let folder = Folder::create(&order.data_dir)?;
    let place = (order.broker, order.ports.clone());
    let (stage, crowd) = home(folder, place, DEVICE_LIMIT, processes).await?;
    crowd.set(Pace::Every(USUAL));
    tokio::time::sleep(CALM / 3).await;
    let (before, used_before) = stretch(CALM, (&crowd, &stage, processes)).await?;
    screen.say(&format!("before:   {before}; {used_before}"));
    crowd.set(Pace::Every(OVERLOAD));
    let (overload, used) = stretch(order.time, (&crowd, &stage, processes)).await?;
    screen.say(&format!("overload: {overload}; at most {used}"));
    crowd.set(Pace::Every(USUAL));
    let ended = Instant::now();
    let (recovered, recovered_s) = loop {
        let (look, _) = stretch(LOOK, (&crowd, &stage, processes)).await?;
        if is_as_before(&look, &before) {
            break (look, Some(ended.elapsed().as_secs_f64()));
        }
        if ended.elapsed() > RECOVERY_MAX {
            break (look, None);
        }
    };
    let after = recovered_s.map_or("not as before".to_owned(), |s| format!("as before after {s:.0} s"));
    screen.say(&format!("then:     {recovered}; {after}"));
    let outcome = crowd.conclude(&stage).await?;
    screen.say(&format!(
        "{outcome}; drained after {:.0} s; load {:.1}",
        outcome.drained_s,
        load_average().unwrap_or_default()
    ));
    Ok(Figures {
        before,
        used_before,
        overload,
        used,
        recovered,
        recovered_s,
        outcome,
        load_average: load_average(),
    })
}

/// Whether answers and finality of new readings take as long as they did, and nothing is held back any more.
fn is_as_before(now: &Stretch, before: &Stretch) -> bool {
    let at_most = |now: f64, then: f64| now <= TIMES * then + CHANCE_MS;
    let finality = |of: &Stretch| of.final_p50_ms.unwrap_or(f64::MAX);
    now.held_back == 0
        && at_most(now.puback_p50_ms, before.puback_p50_ms)
        && at_most(finality(now), finality(before))
        && now.acknowledged_per_s >= before.acknowledged_per_s / TIMES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stretch(puback_ms: f64, final_ms: Option<f64>, held_back: u64) -> Stretch {
        Stretch {
            acknowledged_per_s: 50.0,
            puback_p50_ms: puback_ms,
            final_p50_ms: final_ms,
            held_back,
            ..Stretch::default()
        }
    }

    #[test]
    fn as_before_means_all_of_it() {
        let before = stretch(10.0, Some(100.0), 0);
        assert!(is_as_before(&stretch(119.0, Some(299.0), 0), &before));
        assert!(!is_as_before(&stretch(121.0, Some(100.0), 0), &before));
        assert!(!is_as_before(&stretch(10.0, Some(301.0), 0), &before));
        assert!(!is_as_before(&stretch(10.0, None, 0), &before), "nothing new was final");
        assert!(
            !is_as_before(&stretch(10.0, Some(100.0), 1), &before),
            "somebody still waits"
        );
    }

    #[test]
    fn what_grows_without_a_bound_is_a_failure() {
        let mut figures = Figures {
            recovered_s: Some(3.0),
            ..Figures::default()
        };
        assert_eq!(figures.failures(), Vec::<String>::new());
        figures.used.gateway_rss_bytes = RSS_MORE_MAX + 1;
        figures.used.node_files = FILES_MORE_MAX + 1;
        figures.outcome.lost = 1;
        figures.recovered_s = None;
        assert_eq!(figures.failures().len(), 4);
    }
}
