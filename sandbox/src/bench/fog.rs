//! A network with a history of one length: founded, filled, started and stopped again and again.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use firmware_sim::signal::Library;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use ledger::{handover::Committees, proof::Receipt};
use serde::Serialize;
use tokio::{
    task::spawn_blocking,
    time::{sleep, timeout},
};

use super::{
    Order,
    edge::{Edge, Ready},
    figures::Disk,
    usage::disk_bytes,
};
use crate::{
    children::Program,
    client::Node,
    config::Limits,
    enrolment,
    fault::Fault,
    folder::Folder,
    household::Household,
    identities::{SCOPE, access_token},
    memory::Memory,
    network::{Network, Stores},
    processes::Processes,
};

/// Blocks of an epoch: as many as the sandbox has.
const EPOCH_BLOCKS: u64 = 1_000;
/// Devices of a network: as many as the sandbox has.
const DEVICES: usize = 50;
/// Readings in one bundle of the history: with as many, the bundle just stays below a padding class of 16 KiB.
pub(super) const HISTORY_READINGS: u32 = 50;
/// Bundles of the history that are under way at a time.
const FILL_IN_FLIGHT: usize = 16;
/// From handing in a bundle until its receipt is checked, at most.
const FINAL_MAX: Duration = Duration::from_secs(120);
/// From the last receipt until every node has the block, and the hospital's node has projected it, at most.
const SETTLE_MAX: Duration = Duration::from_secs(3_600);
/// How long the hospital's token is valid: longer than any benchmark lasts.
const TOKEN_LIFETIME: Duration = Duration::from_secs(7 * 86_400);
/// The pause between two looks.
const PAUSE: Duration = Duration::from_millis(100);
/// What each step may take on a slow machine that compiles something else.
const LIMITS: Limits = Limits {
    start_s: 300,
    enrol_s: 300,
    drain_s: 300,
    agree_s: 300,
    stop_s: 60,
};

/// How the history was made.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Filling {
    readings: u64,
    bundles: u64,
    /// Until every bundle had its receipt.
    seconds: f64,
    /// Until the hospital's node had projected all of it.
    projected_seconds: f64,
    pub(super) rss_peak_bytes: u64,
}

impl fmt::Display for Filling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let readings = self.readings as f64;
        write!(
            f,
            "{} readings in {} bundles final after {:.1} s ({:.0} readings/s), projected after {:.1} s; memory at most {} MB a node",
            self.readings,
            self.bundles,
            self.seconds,
            readings / self.seconds,
            self.projected_seconds,
            self.rss_peak_bytes / 1_000_000
        )
    }
}

/// A network, whether it runs or not.
pub(super) struct Fog {
    pub(super) network: Network,
    programs: Vec<Program>,
    edge: Arc<Edge>,
    committees: Committees,
    /// Of a client of the custodian.
    token: String,
    /// The nodes as the gateway reaches them; anew after each start, since connections end with a process.
    doors: Vec<Node>,
    processes: Processes,
    turn: AtomicU64,
    readings: AtomicU64,
}

impl Fog {
    /// Founds a network in a folder; nothing runs yet.
    pub(super) fn found(folder: Folder, order: &Order) -> Result<Self, Fault> {
        let household = Household::furnish(&folder, DEVICES, Library::embedded())?;
        let network = Network::found(folder, order.ports.clone(), (order.nodes, EPOCH_BLOCKS), household)?;
        let custodian = network.custodian();
        let signer = (custodian.id(), &custodian.key);
        let token = access_token(signer, (&custodian.client_id(), SCOPE), network.id(), TOKEN_LIFETIME)?;
        Ok(Self {
            programs: network.node_programs(order.scrub_s, Stores::default())?,
            edge: Arc::new(Edge::of(&network)?),
            committees: Committees::founding(&network.genesis),
            token,
            doors: Vec::new(),
            processes: Processes::default(),
            turn: AtomicU64::new(0),
            readings: AtomicU64::new(0),
            network,
        })
    }

    /// Starts the nodes, and returns how many milliseconds it took until all were ready.
    pub(super) async fn start(&mut self) -> Result<f64, Fault> {
        let started = Instant::now();
        let http = self.network.callers.with_certificate(&self.network.gateway.tls)?;
        let nodes = self.network.nodes.iter();
        self.doors = nodes.map(|node| Node::at(http.clone(), &node.url)).collect();
        let programs = self.programs.clone();
        self.processes.start_nodes(programs, &self.doors, &LIMITS).await?;
        Ok(started.elapsed().as_secs_f64() * 1_000.0)
    }

    /// Stops the nodes; a sentence for each that had to be killed or that broke down.
    pub(super) async fn stop(&mut self) -> Vec<String> {
        self.processes.stop().await
    }

    /// Starts the nodes, enrols everything and makes this many readings final.
    pub(super) async fn fill(&mut self, history: u64) -> Result<Filling, Fault> {
        self.start().await?;
        enrolment::enrol(&self.network, &self.doors, LIMITS.enrol()).await?;
        let started = Instant::now();
        let height = stream::iter(sizes(history))
            .map(|readings| self.make_final(readings))
            .buffer_unordered(FILL_IN_FLIGHT)
            .try_fold(0, async |highest, height| Ok(height.max(highest)))
            .await?;
        let seconds = started.elapsed().as_secs_f64();
        self.settle(height).await?;
        Ok(Filling {
            readings: history,
            bundles: history.div_ceil(u64::from(HISTORY_READINGS)),
            seconds,
            projected_seconds: started.elapsed().as_secs_f64(),
            rss_peak_bytes: self.memory().1,
        })
    }

    async fn make_final(&self, readings: u32) -> Result<u64, Fault> {
        let ready = self.seal(readings).await?;
        self.deliver(ready).await
    }

    /// Seals a bundle of this many readings, on a thread for long work.
    pub(super) async fn seal(&self, readings: u32) -> Result<Ready, Fault> {
        let edge = self.edge.clone();
        let ready = spawn_blocking(move || edge.seal(readings)).await;
        let ready = ready.expect("sealing does not panic")?;
        self.readings.fetch_add(u64::from(readings), Ordering::Relaxed);
        Ok(ready)
    }

    /// Hands a bundle to one of the nodes, in turn, waits for its receipt, checks it, and returns the height of its block.
    pub(super) async fn deliver(&self, ready: Ready) -> Result<u64, Fault> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let at = usize::try_from(turn % self.doors.len() as u64).expect("smaller than the number of nodes");
        let id = ready.id;
        let lost = |why: String| Fault::Measure(format!("bundle {id} did not become final: {why}"));
        let delivered = timeout(FINAL_MAX, self.delivered_at(&self.doors[at], ready)).await;
        let late = || lost(format!("it has no receipt after {} s", FINAL_MAX.as_secs()));
        delivered.map_err(|_| late())?.map_err(lost)
    }

    async fn delivered_at(&self, node: &Node, ready: Ready) -> Result<u64, String> {
        node.hand_in(ready.submission).await.map_err(|e| e.to_string())?;
        loop {
            if let Some(text) = node.receipt(&ready.id).await.map_err(|e| e.to_string())? {
                let receipt = Receipt::verify(&text, &self.committees).map_err(|e| e.to_string())?;
                if receipt.bundle() != ready.id {
                    return Err("the receipt is about another bundle".to_owned());
                }
                return Ok(receipt.header().height.0);
            }
        }
    }

    /// Asks as the hospital for the newest observations of one patient, and returns how many it got.
    pub(super) async fn ask(&self, count: u32) -> Result<usize, Fault> {
        let page = self.doors[0]
            .newest(self.edge.first_patient(), count, &self.token)
            .await;
        page.map(|page| page.resources.len())
            .map_err(|e| Fault::Measure(format!("the hospital has no answer: {e}")))
    }

    /// Waits until every node has the block at a height, and the hospital's node has projected it.
    pub(super) async fn settle(&self, height: u64) -> Result<(), Fault> {
        let settled = async {
            for node in &self.doors {
                while !node.head().await.is_ok_and(|head| head.height >= height) {
                    sleep(PAUSE).await;
                }
            }
            while self.projected().await.is_none_or(|projected| projected < height as f64) {
                sleep(PAUSE).await;
            }
        };
        let late = || format!("not every node has applied and projected block {height} in time");
        timeout(SETTLE_MAX, settled).await.map_err(|_| Fault::Measure(late()))
    }

    /// The height up to which the node that holds the patients' keys has projected the chain.
    async fn projected(&self) -> Option<f64> {
        let text = self.doors[0].metrics().await.ok()?;
        let value = |line: &str| line.strip_prefix("fog_projection_height ")?.trim().parse().ok();
        text.lines().find_map(value)
    }

    /// The height of the first node.
    pub(super) async fn height(&self) -> Result<u64, Fault> {
        let head = self.doors[0].head().await;
        head.map(|head| head.height)
            .map_err(|e| Fault::Measure(format!("the first node does not tell its height: {e}")))
    }

    /// Process ids of the nodes that run.
    pub(super) fn pids(&self) -> Vec<u32> {
        let pids = self.processes.nodes.iter().map(|node| node.life().pid);
        pids.flatten().collect()
    }

    /// Memory of the node that uses most: now, and at its peak since it was started.
    pub(super) fn memory(&self) -> (u64, u64) {
        let memory: Vec<_> = self.pids().into_iter().map(Memory::of).collect();
        let most = |of: fn(&Memory) -> Option<u64>| memory.iter().filter_map(of).max().unwrap_or_default();
        (most(|memory| memory.now_bytes), most(|memory| memory.peak_bytes))
    }

    /// What the node that holds the patients' keys has on its disk.
    pub(super) fn disk(&self) -> Disk {
        let data_dir = &self.network.nodes[0].data_dir;
        let of = |name: &str| disk_bytes(&data_dir.join(name));
        Disk {
            total_bytes: disk_bytes(data_dir),
            chain_bytes: of("chain.redb"),
            vault_bytes: of("vault.redb"),
            index_bytes: of("index.sqlite") + of("index.sqlite-wal"),
            consensus_bytes: of("consensus"),
        }
    }

    /// Readings that were ever sealed for this network.
    pub(super) fn readings(&self) -> u64 {
        self.readings.load(Ordering::Relaxed)
    }
}

/// Sizes of bundles that hold this many readings together.
fn sizes(readings: u64) -> impl Iterator<Item = u32> {
    let full = readings / u64::from(HISTORY_READINGS);
    let rest = u32::try_from(readings % u64::from(HISTORY_READINGS)).expect("less than one bundle");
    (0..full)
        .map(|_| HISTORY_READINGS)
        .chain(Some(rest).filter(|rest| *rest > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bundles_hold_exactly_the_history() {
        for readings in [1, 49, 50, 100, 10_001] {
            assert_eq!(sizes(readings).map(u64::from).sum::<u64>(), readings);
            assert_eq!(
                sizes(readings).count() as u64,
                readings.div_ceil(u64::from(HISTORY_READINGS))
            );
        }
    }
}
