//! One run from founding to the last check: nodes first, then what the chain must know, then the gateway, then the fleet.

use std::{path::PathBuf, time::Duration};

use firmware_sim::signal::Library;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    banner,
    children::Supervised,
    client::Node,
    config::{Broker, Config},
    ending::{self, Ending},
    enrolment,
    fault::Fault,
    folder::{Folder, replace_json},
    household::Household,
    identities::{SCOPE, Tokens, access_token},
    interruption,
    monitor::Monitor,
    network::{Network, Stores},
    ports::Ports,
    processes::Processes,
    report::Report,
    reporting,
    status::Screen,
};

/// How often everything is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What was asked for on the command line, checked.
#[derive(Debug)]
pub struct Order {
    /// File and flags together.
    pub config: Config,
    /// Where everything listens.
    pub ports: Ports,
    /// Stop after this time, and check every promise.
    pub run_for: Option<Duration>,
    /// Where the report goes.
    pub report: Option<PathBuf>,
    /// The data folder to make.
    pub data_dir: PathBuf,
    /// Recordings to replay instead of the built-in ones, and where they come from.
    pub replay: Option<(PathBuf, Library)>,
}

/// A run.
#[derive(Debug)]
pub struct Run {
    order: Order,
    network: Network,
    tokens: Tokens,
    nodes: Vec<Node>,
    processes: Processes,
    monitor: Monitor,
    screen: Screen,
}

/// Founds a network, runs it until its time is over or somebody interrupts, and returns whether every promise held. SIGUSR1
/// says that its time is over now.
///
/// # Errors
/// [`Fault`] if it does not come up; everything that was started is stopped then, too.
pub async fn run(order: Order) -> Result<bool, Fault> {
    let (interrupted, mut time_is_over) = (interruption::listen()?, listen(SignalKind::user_defined1())?);
    let mut run = Run::found(order)?;
    let lived = run.live(&interrupted, &mut time_is_over).await;
    run.screen.say("stopping everything");
    let failures = run.processes.stop().await;
    let mut ending = lived?;
    ending.failures.extend(failures);
    run.conclude(&ending)?;
    Ok(ending.passed().unwrap_or(true))
}

impl Run {
    fn found(order: Order) -> Result<Self, Fault> {
        let mut screen = Screen::open();
        let folder = Folder::create(&order.data_dir)?;
        let config = &order.config;
        screen.say(&format!(
            "founding a network of {} fog nodes in {}",
            config.nodes,
            folder.root().display()
        ));
        let recordings = match &order.replay {
            Some((_, library)) => library,
            None => Library::embedded(),
        };
        let devices = config.devices.saturating_add(config.spare_devices);
        let devices = usize::try_from(devices).expect("at most some thousand");
        let household = Household::furnish(&folder, devices, recordings)?;
        let network = Network::found(
            folder,
            order.ports.clone(),
            (config.nodes, config.epoch_blocks),
            household,
        )?;
        let http = network.callers.anybody()?;
        let nodes: Vec<_> = network
            .nodes
            .iter()
            .map(|node| Node::at(http.clone(), &node.url))
            .collect();
        let monitor = Monitor::of(
            http,
            nodes.clone(),
            &network.gateway_url(),
            network.fleet_data_dir().join("status.json"),
        );
        let lifetime = Duration::from_secs(config.token_hours * 3_600);
        let token = |member: &crate::network::Member| {
            access_token(
                (member.id(), &member.key),
                (&member.client_id(), SCOPE),
                network.id(),
                lifetime,
            )
        };
        network.write_observers(lifetime)?;
        network.write_newcomer()?;
        let tokens = Tokens {
            hospital: token(network.custodian())?,
            stranger: token(network.stranger())?,
        };
        Ok(Self {
            order,
            network,
            tokens,
            nodes,
            processes: Processes::default(),
            monitor,
            screen,
        })
    }

    /// From the first process to the last check.
    async fn live(&mut self, interrupted: &CancellationToken, time_is_over: &mut Signal) -> Result<Ending, Fault> {
        tokio::select! {
            started = self.start() => started?,
            () = interrupted.cancelled() => return Err(Fault::Interrupted),
        }
        self.monitor.look(&self.processes).await;
        self.write_report(&Ending::default())?;
        self.screen.say(&banner::text(
            &self.network,
            &self.tokens,
            self.order.config.mqtt.broker,
        ));
        tokio::select! {
            () = self.watch() => {}
            _ = time_is_over.recv() => {}
            () = interrupted.cancelled() => return Ok(Ending::interrupted(self.order.run_for.is_some())),
        }
        let limits = self.order.config.limits;
        let (monitor, screen, processes) = (&mut self.monitor, &mut self.screen, &mut self.processes);
        let scene = ending::Scene {
            network: &self.network,
            nodes: &self.nodes,
            token: &self.tokens.hospital,
            limits,
        };
        tokio::select! {
            ending = scene.end(processes, monitor, screen) => Ok(ending),
            () = interrupted.cancelled() => Ok(Ending::interrupted(true)),
        }
    }

    async fn start(&mut self) -> Result<(), Fault> {
        let limits = self.order.config.limits;
        self.screen.say("starting the fog nodes");
        let config = &self.order.config;
        let stores = Stores {
            daemons: &config.daemons,
            mysql: config.mysql.as_ref(),
        };
        let programs = self.network.node_programs(config.scrub_s, stores)?;
        self.processes.start_nodes(programs, &self.nodes, &limits).await?;
        let (people, devices) = (
            self.network.household.people.len(),
            self.network.household.devices.len(),
        );
        self.screen.say(&format!(
            "enrolling the gateway, {devices} devices and the keys of {people} patients on the chain"
        ));
        enrolment::enrol(&self.network, &self.nodes, limits.enrol()).await?;
        self.screen.say("starting the gateway and the fleet");
        let broker = self.order.config.mqtt.broker;
        if broker == Broker::Mosquitto {
            self.start_mosquitto().await?;
        }
        let gateway = Supervised::start(self.network.gateway_program(broker)?, limits.stop());
        let gateway = self.processes.gateway.insert(gateway);
        let monitor = &self.monitor;
        gateway
            .wait_until("ready", limits.start(), || async { monitor.gateway().await.is_ok() })
            .await?;
        let replay = self.order.replay.as_ref().map(|(path, _)| path.as_path());
        let devices = usize::try_from(self.order.config.devices).expect("at most a few thousand");
        let fleet = self
            .network
            .fleet_program((broker, devices), replay, self.order.config.speed)?;
        self.processes.fleet = Some(Supervised::start(fleet, firmware_sim::fleet::FAREWELL + limits.stop()));
        self.wait_for_fleet(limits.start()).await
    }

    /// Ready means that it listens: the gateway and the devices dial until it lets them in.
    async fn start_mosquitto(&mut self) -> Result<(), Fault> {
        let limits = self.order.config.limits;
        let mosquitto = Supervised::start(self.network.mosquitto_program()?, limits.stop());
        let mosquitto = self.processes.broker.insert(mosquitto);
        let address = self.network.ports.mqtt();
        let listens = || async move { tokio::net::TcpStream::connect(address).await.is_ok() };
        mosquitto.wait_until("listening", limits.start(), listens).await
    }

    /// Ready means that readings flow: every device is connected and the first was acknowledged.
    async fn wait_for_fleet(&mut self, within: Duration) -> Result<(), Fault> {
        let deadline = tokio::time::Instant::now() + within;
        loop {
            let fleet = &self.monitor.look(&self.processes).await.fleet;
            if fleet.devices > 0 && fleet.connected == fleet.devices && fleet.acknowledged > 0 {
                return Ok(());
            }
            let over = self.processes.fleet.as_ref().is_none_or(|process| process.life().over);
            if over || tokio::time::Instant::now() >= deadline {
                let (connected, devices) = (fleet.connected, fleet.devices);
                let tail = self
                    .processes
                    .fleet
                    .as_ref()
                    .map(|process| process.program().log_tail())
                    .unwrap_or_default();
                let state =
                    format!("{connected} of {devices} devices are connected and nothing, or little, is acknowledged");
                return Err(Fault::Start(format!(
                    "the fleet did not come up: {state}; the end of its log:\n{tail}"
                )));
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// Shows the status until the time is over; without a time, for ever.
    async fn watch(&mut self) {
        let run_for = self.order.run_for;
        let mut over = std::pin::pin!(async move {
            match run_for {
                Some(run_for) => sleep(run_for).await,
                None => std::future::pending().await,
            }
        });
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = &mut over => return,
                _ = ticks.tick() => {
                    let before = self.monitor.last().pids();
                    let now = self.monitor.look(&self.processes).await;
                    let restarted = now.pids() != before;
                    self.screen.show("running", now);
                    if restarted {
                        // Whoever reads the report finds the new process id; the end writes it again in any case.
                        let _ = self.write_report(&Ending::default());
                    }
                }
            }
        }
    }

    fn conclude(&mut self, ending: &Ending) -> Result<(), Fault> {
        let report = self.write_report(ending)?;
        self.screen.say(&reporting::summary(&report));
        Ok(())
    }

    fn write_report(&self, ending: &Ending) -> Result<Report, Fault> {
        let report = reporting::report(&self.network, &self.tokens, self.monitor.last(), ending);
        if let Some(path) = &self.order.report {
            replace_json(path, &report)?;
        }
        Ok(report)
    }
}

fn listen(kind: SignalKind) -> Result<Signal, Fault> {
    signal(kind).map_err(|e| Fault::Start(format!("signals cannot be received: {e}")))
}
