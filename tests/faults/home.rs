//! A home whose gateway is started and killed by hand: complete files of a founded network, of which nothing else runs.

use std::{
    ffi::OsString,
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use firmware_sim::signal::Library;
use gateway::{
    config::{Config, Prepared},
    outbox::Sealer,
};
use sandbox::{config::Broker, folder::Folder, household::Household, lifeline, network::Network, ports::Ports};
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::publisher::Device;

/// What is waited for comes within this time, or never.
pub(crate) const EVENTUALLY: Duration = Duration::from_secs(60);
/// Lines of a log that a failure shows.
const LAST_LINES: usize = 20;
/// The pause between two looks.
pub(crate) const PAUSE: Duration = Duration::from_millis(10);

/// A home, its gateway's files, and a runtime for its devices.
pub(crate) struct Home {
    pub(crate) network: Network,
    pub(crate) runtime: Runtime,
    folder: TempDir,
    config: PathBuf,
    mqtt: SocketAddr,
    http: SocketAddr,
    settings: Vec<(&'static str, String)>,
}

/// A gateway process.
pub(crate) struct Gateway {
    child: Child,
    log: PathBuf,
}

/// Ports of a home, each another one, on which nobody listens.
fn free_ports() -> Ports {
    let draws =
        std::iter::repeat_with(|| Ports::plan(rand::random_range(2_000..9_900), 4).expect("there are such ports"));
    let is_free = |ports: &Ports| ports.taken().is_empty();
    draws.take(1_000).find(is_free).expect("some ports are free")
}

/// What the kernel knows of a port: who could have it, should it be taken.
fn sockets_of(port: u16) -> String {
    let all = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let port = format!(":{port:04X} ");
    let lines: Vec<_> = all.lines().filter(|line| line.contains(&port)).collect();
    lines.join("\n")
}

impl Home {
    pub(crate) fn found(devices: usize) -> Self {
        // Another part may have installed it before.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let temporary = tempfile::tempdir().expect("a temporary folder");
        let folder = Folder::create(&temporary.path().join("home")).expect("makes the folder");
        let household = Household::furnish(&folder, devices, Library::embedded()).expect("furnishes");
        let network = Network::found(folder, free_ports(), (4, 1_000), household).expect("founds");
        let program = network
            .gateway_program(Broker::Embedded)
            .expect("writes the configuration");
        let config = program.arguments.last().expect("run --config FILE").clone();
        let (mqtt, http) = (network.ports.mqtt(), network.ports.gateway_http());
        let home = Self {
            network,
            runtime: Runtime::new().expect("a runtime"),
            folder: temporary,
            config,
            mqtt,
            http,
            settings: Vec::new(),
        };
        let node = format!("[\"{}\"]", home.network.nodes[0].url);
        home.set("GATEWAY_UPLINK__NODES", node)
            // Down and up again within a test.
            .set("GATEWAY_UPLINK__PAUSE_MAX_MS", 200)
            .set("GATEWAY_UPLINK__BACKLOG_BUNDLES_PER_S_MAX", 10_000)
    }

    /// With a setting that is another than the file's.
    pub(crate) fn set(mut self, name: &'static str, value: impl ToString) -> Self {
        self.settings.retain(|(other, _)| *other != name);
        self.settings.push((name, value.to_string()));
        self
    }

    pub(crate) fn scratch(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn data_dir(&self) -> &Path {
        &self.network.gateway.data_dir
    }

    /// One of the files beside the gateway's configuration.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.config.with_file_name(name)
    }

    /// A device that publishes by itself.
    pub(crate) fn device(&self, index: usize) -> Device {
        Device::of(&self.network, index, self.mqtt)
    }

    /// Who this gateway seals and signs as.
    pub(crate) fn sealer(&self) -> Sealer {
        let Prepared { sealer, .. } = Config::load(&self.config)
            .and_then(Config::prepare)
            .expect("a good configuration");
        sealer
    }

    fn command(&self, prefix: &[OsString], words: &[&str]) -> Command {
        let program = env!("CARGO_BIN_EXE_sandbox");
        let mut line = prefix.iter().cloned().chain([program.into(), "gateway".into()]);
        let mut command = Command::new(line.next().expect("a program"));
        command.args(line).args(words).arg("--config").arg(&self.config);
        command.envs(self.settings.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs a command of the gateway that ends by itself: whether it was done, and what it printed.
    pub(crate) fn run(&self, words: &[&str]) -> (bool, String) {
        let output = self.command(&[], words).output().expect("runs");
        let printed = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&printed).into_owned())
    }

    /// Starts the gateway and waits until it answers.
    pub(crate) fn start(&self) -> Gateway {
        self.start_within(&[])
    }

    /// The same through another program, which becomes the gateway or runs it.
    pub(crate) fn start_within(&self, prefix: &[OsString]) -> Gateway {
        let mut gateway = self.spawn(prefix);
        eventually("the gateway answers", || {
            let ended = gateway.child.try_wait().expect("a child of ours");
            assert!(
                ended.is_none(),
                "it ended with {ended:?}:\n{}\n{}",
                gateway.log(),
                sockets_of(self.mqtt.port())
            );
            self.status().is_some()
        });
        gateway
    }

    pub(crate) fn spawn(&self, prefix: &[OsString]) -> Gateway {
        let log = self.scratch().join(format!("gateway-{}.log", rand::random::<u32>()));
        let output = fs::File::create(&log).expect("a log");
        let child = self
            .command(prefix, &["run"])
            .env(lifeline::VARIABLE, lifeline::STDIN)
            .stdin(Stdio::piped())
            .stdout(output.try_clone().expect("a log"))
            .stderr(output)
            .spawn()
            .expect("starts");
        Gateway { child, log }
    }

    /// What `/status` says, if it answers.
    pub(crate) fn status(&self) -> Option<Value> {
        let mut stream = TcpStream::connect_timeout(&self.http, Duration::from_secs(1)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        stream
            .write_all(b"GET /status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        head.contains(" 200 ")
            .then(|| serde_json::from_str(body).expect("a status"))
    }

    /// Waits until the gateway's status has it.
    pub(crate) fn until(&self, what: &str, mut is_so: impl FnMut(&Value) -> bool) {
        eventually(what, || self.status().is_some_and(|status| is_so(&status)));
    }
}

impl Gateway {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The end of the log.
    pub(crate) fn last_words(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
    }

    /// How many lines of the log have it.
    pub(crate) fn says(&self, what: &str) -> usize {
        self.log().lines().filter(|line| line.contains(what)).count()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child of ours").is_none()
    }

    /// SIGKILL: the power of this one process fails.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("a child of ours");
        self.child.wait().expect("a child of ours");
    }

    /// SIGTERM: the operator stops it.
    pub(crate) fn stop(mut self) {
        sandbox::children::terminate(self.pid());
        assert_eq!(self.wait().code(), Some(0), "{}", self.log());
    }

    /// Waits until it has ended by itself.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let mut ended = None;
        eventually("the gateway ends", || {
            ended = self.child.try_wait().expect("a child of ours");
            ended.is_some()
        });
        ended.expect("it has ended")
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // It may have ended; and what runs it may not pass the signal on, but its lifeline breaks.
        drop(self.child.stdin.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until something is so.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < EVENTUALLY, "not within {EVENTUALLY:?}: {what}");
        thread::sleep(PAUSE);
    }
}
