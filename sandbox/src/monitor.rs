//! What a run looks like right now: asked of every process over its public interface, and of the kernel.

use std::{path::PathBuf, time::Duration};

use futures::future::{join, join_all};
use serde::Deserialize;

use crate::{
    children::Supervised,
    client::{self, Head, Node},
    histogram::percentiles_ms,
    memory::Memory,
    processes::Processes,
    report::{Percentiles, ProcessReport},
};

/// The histogram of how long readings took until a query at the custodian's node returns them.
const VISIBLE: &str = "fog_projection_publish_to_visible_seconds";
/// What a process does not answer within this time is left out of the picture.
const GLANCE_MAX: Duration = Duration::from_secs(3);
/// Notices that are kept.
const NOTICES_MAX: usize = 5;

/// The gateway's `/status`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct GatewayStatus {
    /// Readings that are durable in the gateway and not yet final.
    #[serde(rename = "spooled_readings")]
    pub spooled: u64,
    /// Bundles that are submitted and not yet final.
    pub in_flight: u64,
    /// Readings that became durable, and were acknowledged.
    pub acknowledged: u64,
    /// Readings with a receipt that the gateway has checked.
    pub final_readings: u64,
    /// Bundles that the fog refuses for good.
    pub refused_bundles: u64,
    /// What was refused.
    pub quarantined: Quarantined,
    /// How long readings took.
    pub latency_ms: GatewayLatencies,
}

/// What the gateway refused.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Quarantined {
    /// Messages.
    pub total: u64,
    /// The same by reason.
    pub by_reason: std::collections::BTreeMap<String, u64>,
    /// The last ones.
    pub recent: Vec<Refused>,
}

/// A message in quarantine.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Refused {
    /// Who it says sent it.
    pub device: Option<String>,
    /// The reason code.
    pub reason: String,
    /// What to change.
    pub detail: String,
}

/// The gateway's latencies.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct GatewayLatencies {
    /// From the device's clock to a verified receipt.
    pub publish_to_final: Percentiles,
}

/// The fleet's `status.json`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct FleetStatus {
    /// Devices there are.
    pub devices: u64,
    /// Devices with a connection.
    pub connected: u64,
    /// Readings published, however often each was sent.
    pub published: u64,
    /// Readings with a PUBACK.
    pub acknowledged: u64,
    /// How long readings took.
    pub latency_ms: FleetLatencies,
}

/// The fleet's latencies.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct FleetLatencies {
    /// Until the PUBACK.
    pub publish_to_puback: Percentiles,
}

/// A process at this moment.
#[derive(Clone, Debug, Default)]
pub struct ProcessView {
    /// Its name.
    pub name: String,
    /// Memory it uses now.
    pub rss_bytes: Option<u64>,
    /// What the report says of it.
    pub report: ProcessReport,
}

/// A fog node at this moment.
#[derive(Clone, Debug, Default)]
pub struct NodeView {
    /// Its head, if it answers.
    pub head: Option<Head>,
    /// Its process.
    pub process: ProcessView,
}

/// A run at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The fog nodes, in the order of the members.
    pub nodes: Vec<NodeView>,
    /// The gateway, as it last answered.
    pub gateway: GatewayStatus,
    /// Its process.
    pub gateway_process: ProcessView,
    /// The broker's process, if it has one of its own.
    pub broker_process: ProcessView,
    /// The fleet, as it last wrote; `published` and `acknowledged` over all its starts.
    pub fleet: FleetStatus,
    /// Its process.
    pub fleet_process: ProcessView,
    /// How long readings took until a query returns them.
    pub publish_to_visible: Percentiles,
    /// What happened to processes, the latest last.
    pub notices: Vec<String>,
}

impl Snapshot {
    /// The ids of all processes, in a fixed order.
    #[must_use]
    pub fn pids(&self) -> Vec<Option<u32>> {
        let others = [&self.broker_process, &self.gateway_process, &self.fleet_process];
        self.nodes
            .iter()
            .map(|node| &node.process)
            .chain(others)
            .map(|process| process.report.pid)
            .collect()
    }
}

/// Looks at a run again and again, and remembers what a single look cannot show.
#[derive(Debug)]
pub struct Monitor {
    http: reqwest::Client,
    nodes: Vec<Node>,
    gateway_status_url: String,
    fleet_status_file: PathBuf,
    last: Snapshot,
    /// What earlier starts of the fleet published and had acknowledged: its own counters begin anew.
    fleet_before: (u64, u64),
    fleet_now: (u64, u64),
}

impl Monitor {
    /// A monitor of these nodes, of the gateway at this address, and of the fleet that writes this file.
    #[must_use]
    pub fn of(http: reqwest::Client, nodes: Vec<Node>, gateway: &str, fleet_status_file: PathBuf) -> Self {
        Self {
            http,
            nodes,
            gateway_status_url: format!("{gateway}/status"),
            fleet_status_file,
            last: Snapshot::default(),
            fleet_before: (0, 0),
            fleet_now: (0, 0),
        }
    }

    /// What was seen last.
    #[must_use]
    pub const fn last(&self) -> &Snapshot {
        &self.last
    }

    /// Looks at everything; what does not answer keeps its last counters.
    pub async fn look(&mut self, processes: &Processes) -> &Snapshot {
        let heads = join_all(self.nodes.iter().map(async |node| glance(node.head()).await));
        let (heads, (gateway, metrics)) =
            join(heads, join(glance(self.gateway()), glance(self.nodes[0].metrics()))).await;
        let last = std::mem::take(&mut self.last);
        let earlier = |i: usize| last.nodes.get(i).map(|n| n.process.clone()).unwrap_or_default();
        let mut notices = last.notices;
        let nodes = heads.into_iter().enumerate();
        let nodes = nodes.map(|(i, head)| NodeView {
            head,
            process: view(processes.nodes.get(i), earlier(i), &mut notices),
        });
        self.last = Snapshot {
            nodes: nodes.collect(),
            broker_process: view(processes.broker.as_ref(), last.broker_process, &mut notices),
            gateway_process: view(processes.gateway.as_ref(), last.gateway_process, &mut notices),
            fleet_process: view(processes.fleet.as_ref(), last.fleet_process, &mut notices),
            gateway: gateway.unwrap_or(last.gateway),
            fleet: self.fleet().unwrap_or(last.fleet),
            publish_to_visible: metrics.map_or(last.publish_to_visible, |text| percentiles_ms(&text, VISIBLE)),
            notices,
        };
        let excess = self.last.notices.len().saturating_sub(NOTICES_MAX);
        self.last.notices.drain(..excess);
        &self.last
    }

    /// The gateway's status.
    ///
    /// # Errors
    /// [`client::CallError`].
    pub async fn gateway(&self) -> Result<GatewayStatus, client::CallError> {
        client::json(
            self.http
                .get(&self.gateway_status_url)
                .timeout(GLANCE_MAX)
                .send()
                .await?,
        )
        .await
    }

    /// What the fleet wrote last, added to what its earlier starts wrote.
    fn fleet(&mut self) -> Option<FleetStatus> {
        let text = std::fs::read_to_string(&self.fleet_status_file).ok()?;
        let mut status: FleetStatus = serde_json::from_str(&text).ok()?;
        if status.published < self.fleet_now.0 {
            self.fleet_before.0 += self.fleet_now.0;
            self.fleet_before.1 += self.fleet_now.1;
        }
        self.fleet_now = (status.published, status.acknowledged);
        status.published += self.fleet_before.0;
        status.acknowledged += self.fleet_before.1;
        Some(status)
    }
}

async fn glance<T, E>(question: impl Future<Output = Result<T, E>>) -> Option<T> {
    tokio::time::timeout(GLANCE_MAX, question).await.ok()?.ok()
}

fn view(process: Option<&Supervised>, last: ProcessView, notices: &mut Vec<String>) -> ProcessView {
    let Some(process) = process else { return last };
    let life = process.life();
    let program = process.program();
    if life.restarts > last.report.restarts {
        let end = life.last_end.as_deref().unwrap_or("it died");
        notices.push(format!("{} was started again ({end})", program.name));
    }
    let memory = life.pid.map(Memory::of).unwrap_or_default();
    ProcessView {
        name: program.name.clone(),
        rss_bytes: memory.now_bytes,
        report: ProcessReport {
            pid: life.pid,
            rss_bytes: memory.peak_bytes.max(last.report.rss_bytes),
            restarts: life.restarts,
            command: program.command_line(),
            log: program.log.clone(),
        },
    }
}
