//! What the edge is measured on: a gateway, the broker in front of it, and four fog nodes or none.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use firmware_sim::signal::Library;
use tokio::time::sleep;

use crate::{
    agreement::agree,
    audit::Auditor,
    children::{Program, Supervised},
    client::{self, Node},
    config::{Broker, Limits},
    enrolment,
    fault::Fault,
    folder::Folder,
    histogram::Buckets,
    household::Household,
    monitor::GatewayStatus,
    network::{Network, Stores},
    ports::Ports,
    processes::Processes,
    promises::OnChain,
};

/// Validators of a network, whether they are started or not.
pub(super) const NODES: u16 = 4;
/// Blocks of an epoch: as many as the sandbox has.
const EPOCH_BLOCKS: u64 = 1_000;
/// How often each node reads its disk again, in seconds: as the sandbox does.
const SCRUB_S: u64 = 300;
/// The pause between two looks.
pub(super) const PAUSE: Duration = Duration::from_millis(100);
/// How long readings took to become final, as the gateway counts it.
const FINAL: &str = "gateway_outbox_publish_to_final_seconds";
/// What each step may take on a slow machine that does something else.
pub(super) const LIMITS: Limits = Limits {
    start_s: 300,
    enrol_s: 600,
    drain_s: 3_600,
    agree_s: 300,
    stop_s: 60,
};

/// What is put on the stage.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) devices: u32,
    /// Whether the fog nodes run.
    pub(super) fog: bool,
    pub(super) broker: Broker,
    /// Whether the gateway runs.
    pub(super) gateway: bool,
    pub(super) ports: Ports,
    /// The one processor of gateway and broker; any if absent.
    pub(super) processor: Option<u16>,
}

/// How long readings took to become final, up to one moment: what was new, and all of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Finals {
    pub(super) new: Buckets,
    pub(super) all: Buckets,
}

/// Everything that runs but for the devices.
pub(super) struct Stage {
    pub(super) network: Network,
    pub(super) nodes: Vec<Node>,
    node_programs: Vec<Program>,
    http: reqwest::Client,
}

impl Stage {
    /// Founds a network and starts what was planned, the gateway with this change of its configuration.
    pub(super) async fn set(
        folder: Folder,
        plan: &Plan,
        change: impl FnOnce(&mut toml::Table),
        processes: &mut Processes,
    ) -> Result<Self, Fault> {
        let devices = usize::try_from(plan.devices).expect("a usize has 32 bits at least");
        let household = Household::furnish(&folder, devices, Library::embedded())?;
        let network = Network::found(folder, plan.ports.clone(), (NODES, EPOCH_BLOCKS), household)?;
        let http = network.callers.anybody()?;
        let nodes = network.nodes.iter().map(|node| Node::at(http.clone(), &node.url));
        let nodes = nodes.collect();
        let node_programs = if plan.fog {
            network.node_programs(SCRUB_S, Stores::default())?
        } else {
            Vec::new()
        };
        let stage = Self {
            network,
            nodes,
            node_programs,
            http,
        };
        if plan.fog {
            stage.start_fog(processes).await?;
            enrolment::enrol(&stage.network, &stage.nodes, LIMITS.enrol()).await?;
        }
        let placed = |program: Program| match plan.processor {
            Some(processor) => program.on_processor(processor),
            None => program,
        };
        if plan.broker == Broker::Mosquitto {
            stage
                .start_broker(placed(stage.network.mosquitto_program()?), processes)
                .await?;
        }
        if !plan.gateway {
            return Ok(stage);
        }
        let program = placed(stage.network.gateway_program(plan.broker)?);
        altered(&stage.network.folder.path("gateway/config.toml"), change)?;
        let gateway = processes.gateway.insert(Supervised::start(program, LIMITS.stop()));
        gateway
            .wait_until("ready", LIMITS.start(), || async { stage.gateway().await.is_ok() })
            .await?;
        Ok(stage)
    }

    /// Starts the fog nodes, for the first time or again.
    pub(super) async fn start_fog(&self, processes: &mut Processes) -> Result<(), Fault> {
        processes
            .start_nodes(self.node_programs.clone(), &self.nodes, &LIMITS)
            .await
    }

    /// Starts the broker and waits until it listens.
    pub(super) async fn start_broker(&self, program: Program, processes: &mut Processes) -> Result<(), Fault> {
        let address = self.network.ports.mqtt();
        let broker = processes.broker.insert(Supervised::start(program, LIMITS.stop()));
        let listens = || async move { tokio::net::TcpStream::connect(address).await.is_ok() };
        broker.wait_until("listening", LIMITS.start(), listens).await
    }

    /// What the gateway says of itself.
    pub(super) async fn gateway(&self) -> Result<GatewayStatus, Fault> {
        let asked = async {
            let answer = self
                .http
                .get(format!("{}/status", self.network.gateway_url()))
                .send()
                .await?;
            client::json(answer).await
        };
        asked.await.map_err(silent)
    }

    /// How long readings took to become final, up to now.
    pub(super) async fn finals(&self) -> Result<Finals, Fault> {
        let asked = async {
            let answer = self
                .http
                .get(format!("{}/metrics", self.network.gateway_url()))
                .send()
                .await?;
            answer.error_for_status()?.text().await
        };
        let text = asked.await.map_err(|error| silent(error.into()))?;
        Ok(Finals {
            new: Buckets::of(&text, FINAL, "lane=\"new\""),
            all: Buckets::of(&text, FINAL, ""),
        })
    }

    /// Waits until the gateway has forgotten every bundle, which it does for a checked receipt only; how long that took.
    pub(super) async fn drain(&self) -> Result<Duration, Fault> {
        let started = Instant::now();
        loop {
            let status = self.gateway().await;
            if status
                .as_ref()
                .is_ok_and(|status| status.spooled == 0 && status.in_flight == 0)
            {
                return Ok(started.elapsed());
            }
            if started.elapsed() > LIMITS.drain() {
                let spooled = status.map(|status| status.spooled);
                return Err(Fault::Measure(format!(
                    "the gateway was not drained in time: {spooled:?}"
                )));
            }
            sleep(PAUSE).await;
        }
    }

    /// What the whole chain holds, once all nodes agree.
    pub(super) async fn audit(&self) -> Result<OnChain, Fault> {
        let names: Vec<_> = self.network.nodes.iter().map(|node| node.name.as_str()).collect();
        let agreement = agree(&self.nodes, &names, LIMITS.agree()).await;
        match (agreement.height(), agreement.fault) {
            (Some(height), None) => Ok(Auditor::of(&self.network)?.walk(height).await),
            (_, fault) => Err(Fault::Measure(
                fault.unwrap_or_else(|| "the nodes do not agree".to_owned()),
            )),
        }
    }
}

fn silent(error: client::CallError) -> Fault {
    Fault::Measure(format!("the gateway does not show itself: {error}"))
}

/// Changes a configuration that was written just now.
fn altered(config: &Path, change: impl FnOnce(&mut toml::Table)) -> Result<(), Fault> {
    let text = fs::read_to_string(config).map_err(Fault::file(config))?;
    let mut settings: toml::Table = toml::from_str(&text).expect("it was written as TOML just now");
    change(&mut settings);
    fs::write(config, settings.to_string()).map_err(Fault::file(config))
}

/// Sets what the embedded broker takes of one device; an outside broker has no such limit.
pub(super) fn limit_devices(settings: &mut toml::Table, (messages_per_s, burst): (u32, u32)) {
    let broker = settings
        .get_mut("mqtt")
        .and_then(|mqtt| mqtt.get_mut("broker"))
        .and_then(toml::Value::as_table_mut);
    if let Some(broker) = broker {
        broker.insert("device_burst_messages_max".to_owned(), i64::from(burst).into());
        broker.insert("device_messages_per_s_max".to_owned(), i64::from(messages_per_s).into());
    }
}
