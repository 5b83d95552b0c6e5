//! One round at one network: the literal Algorithm 2, then bundles one at a time, then many at a time.

use std::{
    fmt,
    time::{Duration, Instant},
};

use fog_node::audit::{self, Audited};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::Serialize;

use super::{
    figures::percentile,
    fog::Fog,
    usage::{load_average, processor_time},
};
use crate::fault::Fault;

/// Bundles before anything is timed: connections are made, caches warm, views short.
const WARM_UP: usize = 20;
/// Bundles under way at a time while throughput is measured.
pub(super) const IN_FLIGHT: usize = 32;
/// For one bundle that is timed, so many are sent for the throughput.
const THROUGHPUT_FACTOR: usize = 4;
/// Readings in a bundle that is measured: what a home sends when nothing waits.
const READINGS: u32 = 1;
/// Observations on a page that the hospital asks for.
const PAGE_COUNT: u32 = 20;

/// What one round has measured.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Round {
    /// How busy the machine was, over the minute before.
    pub(super) load_average: Option<f64>,
    /// From starting the nodes until all were ready.
    pub(super) start_ms: f64,
    /// The literal Algorithm 2.
    pub(super) comparison: Comparison,
    /// From handing in one bundle until its receipt was checked.
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) samples_ms: Vec<f64>,
    /// A page of a patient's newest observations, as the hospital asks for it.
    pub(super) page_p50_ms: f64,
    pub(super) page_p99_ms: f64,
    /// With [`IN_FLIGHT`] bundles under way at a time.
    pub(super) bundles_per_s: f64,
    pub(super) blocks_per_s: f64,
    /// Processor time of all nodes together for one bundle meanwhile.
    pub(super) processor_ms_per_bundle: f64,
    /// Of the node that used most, since it was started.
    pub(super) rss_peak_bytes: u64,
    /// Of the node that uses most, at the end.
    pub(super) rss_bytes: u64,
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "one at a time {:.1} ms ({:.1} p99), a page {:.1} ms, {:.0} bundles/s in {:.1} blocks/s, {:.2} ms of processors a bundle, {} MB; \
             Algorithm 2 over {} blocks {:.0} ms; load {:.1}",
            self.p50_ms,
            self.p99_ms,
            self.page_p50_ms,
            self.bundles_per_s,
            self.blocks_per_s,
            self.processor_ms_per_bundle,
            self.rss_peak_bytes / 1_000_000,
            self.comparison.blocks,
            self.comparison.took_ms,
            self.load_average.unwrap_or_default()
        )
    }
}

/// The whole chain of one node, compared with every peer's, block by block.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Comparison {
    /// Blocks of each chain.
    pub(super) blocks: u64,
    /// How long it took.
    pub(super) took_ms: f64,
}

/// Throughput and what it cost.
struct Throughput {
    bundles_per_s: f64,
    blocks_per_s: f64,
    processor_ms_per_bundle: f64,
}

/// Measures everything once.
pub(super) async fn measure(fog: &Fog, samples: usize, start_ms: f64) -> Result<Round, Fault> {
    let load_average = load_average();
    latencies(fog, WARM_UP).await?;
    let comparison = comparison(fog).await?;
    let samples_ms = latencies(fog, samples).await?;
    let pages_ms = pages(fog, samples).await?;
    let throughput = throughput(fog, samples * THROUGHPUT_FACTOR).await?;
    let (rss_bytes, rss_peak_bytes) = fog.memory();
    Ok(Round {
        load_average,
        start_ms,
        comparison,
        p50_ms: percentile(&samples_ms, 0.50),
        p99_ms: percentile(&samples_ms, 0.99),
        samples_ms,
        page_p50_ms: percentile(&pages_ms, 0.50),
        page_p99_ms: percentile(&pages_ms, 0.99),
        bundles_per_s: throughput.bundles_per_s,
        blocks_per_s: throughput.blocks_per_s,
        processor_ms_per_bundle: throughput.processor_ms_per_bundle,
        rss_peak_bytes,
        rss_bytes,
    })
}

/// What `fog-node verify --full` does, from the first node.
async fn comparison(fog: &Fog) -> Result<Comparison, Fault> {
    let network = &fog.network;
    let client = network.callers.with_certificate(&network.nodes[0].tls)?;
    let nodes = network.nodes.iter().map(|node| Audited { url: node.url.clone() });
    let found = audit::compare(&client, &nodes.collect::<Vec<_>>(), &network.genesis).await;
    let found = found.map_err(|e| Fault::Measure(format!("the chains could not be compared: {e}")))?;
    if !found.agrees() || found.nodes.len() != network.nodes.len() {
        return Err(Fault::Measure(format!("the chains are not equal:\n{found}")));
    }
    Ok(Comparison {
        blocks: found.compared + 1,
        took_ms: milliseconds(found.took),
    })
}

/// From handing in a bundle until its receipt was checked, in milliseconds, one after the other.
async fn latencies(fog: &Fog, samples: usize) -> Result<Vec<f64>, Fault> {
    let mut took = Vec::with_capacity(samples);
    for _ in 0..samples {
        let ready = fog.seal(READINGS).await?;
        let started = Instant::now();
        fog.deliver(ready).await?;
        took.push(milliseconds(started.elapsed()));
    }
    Ok(took)
}

/// From asking for a page until all of it is here, in milliseconds, one after the other.
async fn pages(fog: &Fog, samples: usize) -> Result<Vec<f64>, Fault> {
    let mut took = Vec::with_capacity(samples);
    for _ in 0..samples {
        let started = Instant::now();
        fog.ask(PAGE_COUNT).await?;
        took.push(milliseconds(started.elapsed()));
    }
    Ok(took)
}

/// Many bundles, a fixed number of them under way at a time. They are sealed before: the nodes are what is measured.
async fn throughput(fog: &Fog, bundles: usize) -> Result<Throughput, Fault> {
    let mut ready = Vec::with_capacity(bundles);
    for _ in 0..bundles {
        ready.push(fog.seal(READINGS).await?);
    }
    let (height, used, started) = (fog.height().await?, processor_time_of(fog), Instant::now());
    let last = stream::iter(ready)
        .map(|ready| fog.deliver(ready))
        .buffer_unordered(IN_FLIGHT)
        .try_fold(height, async |highest, height| Ok(height.max(highest)))
        .await?;
    let seconds = started.elapsed().as_secs_f64();
    // Nodes that were not asked for a receipt have their part of the work to do as well.
    fog.settle(last).await?;
    let used = processor_time_of(fog).saturating_sub(used);
    Ok(Throughput {
        bundles_per_s: bundles as f64 / seconds,
        blocks_per_s: (last - height) as f64 / seconds,
        processor_ms_per_bundle: milliseconds(used) / bundles as f64,
    })
}

fn processor_time_of(fog: &Fog) -> Duration {
    fog.pids().into_iter().map(processor_time).sum()
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}
