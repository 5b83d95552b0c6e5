//! The command line: which of the four commands this process is, and what the sandbox was asked to do.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::Parser;
use firmware_sim::signal::Library;

use crate::{
    config::{Broker, Config},
    fault::{EXIT_USAGE, Fault},
    folder::Folder,
    hardening, lifeline,
    network::mosquitto_obstacle,
    ports::Ports,
    run::{self, Order},
};

/// Threads of the sandbox itself: it mostly waits.
const WORKERS: usize = 2;

/// Runs fog nodes, a gateway and a fleet of home devices on this machine, as separate processes on loopback.
///
/// Every run founds a network of its own, with fresh keys and certificates. Started as (or with the first argument)
/// fog-node, gateway or firmware-sim, it is that command instead.
#[derive(Debug, Parser)]
#[command(name = "sandbox", version)]
struct Arguments {
    /// Run for this long (60s, 5m, 1h), or until SIGUSR1, then check every promise: exit 0 only if all of them held.
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    run_for: Option<Duration>,
    /// Write addresses, credentials and counters to this file: when everything is ready, and again at the end.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Fog nodes [default: 4]; 3f + 1 of them tolerate f that crash or lie.
    #[arg(long, value_name = "N")]
    nodes: Option<u16>,
    /// Home devices [default: 50].
    #[arg(long, value_name = "N")]
    devices: Option<u32>,
    /// A new or empty folder for everything [default: ./vitalfog-data/<time>].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Replay the recordings in this file or folder (.csv, .csv.gz) instead of the built-in ones.
    #[arg(long, value_name = "FILE|DIR")]
    replay: Option<PathBuf>,
    /// Move all ports [default: 8400]: nodes answer from N + 1 on, devices publish to N + 10430.
    #[arg(long, value_name = "N")]
    port_base: Option<u16>,
    /// Read defaults from this file; config/sandbox.toml lists every key.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Runs the command that the arguments (the program's name first) ask for.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    lifeline::watch();
    match delegated(arguments.into_iter().collect()) {
        Ok(code) => code,
        Err(arguments) => sandbox(arguments),
    }
}

/// Runs the command of another program of ours, if the program's name or the first argument is that of one; else gives the
/// arguments back.
pub(crate) fn delegated(mut arguments: Vec<OsString>) -> Result<ExitCode, Vec<OsString>> {
    if let Some(command) = arguments.first().and_then(command_of) {
        return Ok(command(arguments));
    }
    match arguments.get(1).and_then(command_of) {
        Some(command) => Ok(command(arguments.split_off(1))),
        None => Err(arguments),
    }
}

/// The command with this name, whatever folder it is called from.
fn command_of(name: &OsString) -> Option<fn(Vec<OsString>) -> ExitCode> {
    match Path::new(name).file_name()?.to_str()? {
        "fog-node" => Some(fog_node::command::main),
        "gateway" => Some(gateway::command::main),
        "firmware-sim" => Some(firmware_sim::command::main),
        _ => None,
    }
}

fn sandbox(arguments: Vec<OsString>) -> ExitCode {
    match parsed(arguments) {
        Ok(arguments) => concluded(order(arguments).and_then(|order| on_runtime(run::run(order)))),
        Err(code) => code,
    }
}

/// Reads the flags; if there is nothing to run, what was to be said about them is said, and the exit code given.
pub(crate) fn parsed<T: Parser>(arguments: Vec<OsString>) -> Result<T, ExitCode> {
    T::try_parse_from(arguments).map_err(|e| {
        // Nobody may be reading; the exit code says it as well.
        let _ = e.print();
        if e.use_stderr() {
            ExitCode::from(EXIT_USAGE)
        } else {
            ExitCode::SUCCESS
        }
    })
}

/// Hardens this process and does the work in it.
pub(crate) fn on_runtime<T>(work: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
    hardening::harden();
    // An error means that a provider is installed already, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build();
    runtime
        .map_err(|e| Fault::Start(format!("no asynchronous runtime: {e}")))?
        .block_on(work)
}

/// The exit code of a run that held what it promised, or did not, or could not be made.
pub(crate) fn concluded(run: Result<bool, Fault>) -> ExitCode {
    match run {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(fault) => {
            use std::io::Write as _;
            let _ = writeln!(std::io::stderr(), "sandbox: {fault}");
            fault.exit_code()
        }
    }
}

/// Checks everything that can be checked before anything is started, and names all faults at once.
fn order(arguments: Arguments) -> Result<Order, Fault> {
    let mut faults = Vec::new();
    let mut config = arguments
        .config
        .as_deref()
        .map_or_else(|| Ok(Config::default()), read_config)
        .unwrap_or_else(|fault| {
            faults.push(fault);
            Config::default()
        });
    config.nodes = arguments.nodes.unwrap_or(config.nodes);
    config.devices = arguments.devices.unwrap_or(config.devices);
    config.port_base = arguments.port_base.unwrap_or(config.port_base);
    faults.extend(config.faults());
    faults.extend(hardening::files_obstacle(config.devices));
    if config.mqtt.broker == Broker::Mosquitto {
        faults.extend(mosquitto_obstacle());
    }
    let ports = Ports::plan(config.port_base, config.nodes).map(|ports| ports.on(config.hosts.clone()));
    faults.extend(ports.iter().flat_map(Ports::taken));
    let data_dir = arguments.data_dir.unwrap_or_else(default_data_dir);
    faults.extend(Folder::obstacle(&data_dir));
    let replay = arguments.replay.map(|path| {
        let library = Library::read(&path).map_err(|e| format!("--replay: {e}"))?;
        let path = path
            .canonicalize()
            .map_err(|e| format!("--replay {}: {e}", path.display()))?;
        Ok((path, library))
    });
    let replay = replay.transpose().unwrap_or_else(|fault: String| {
        faults.push(fault);
        None
    });
    faults.extend(arguments.report.as_deref().and_then(report_obstacle));
    match ports {
        Some(ports) if faults.is_empty() => Ok(Order {
            config,
            ports,
            run_for: arguments.run_for,
            report: arguments.report,
            data_dir,
            replay,
        }),
        _ => Err(Fault::Usage(faults)),
    }
}

fn read_config(path: &Path) -> Result<Config, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("--config {}: {e}", path.display()))?;
    Config::parse(&text).map_err(|e| format!("--config {}: {e}", path.display()))
}

fn default_data_dir() -> PathBuf {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H-%M-%SZ").to_string();
    Path::new("vitalfog-data").join(now)
}

/// Why no report can be written there, if none can.
pub(crate) fn report_obstacle(report: &Path) -> Option<String> {
    let parent = report
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    if report.is_dir() {
        return Some(format!("--report {} is a folder, not a file", report.display()));
    }
    (!parent.is_dir()).then(|| format!("--report {}: there is no folder {}", report.display(), parent.display()))
}

/// A number of seconds, minutes or hours: `90`, `60s`, `5m`, `1h`.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3_600,
        _ => return Err("a time is a number and s, m or h".to_owned()),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| "a time is a whole number and s, m or h".to_owned())?;
    number
        .checked_mul(factor)
        .map(Duration::from_secs)
        .ok_or_else(|| "that is too long".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(flags: &[&str]) -> Result<Order, Fault> {
        let arguments = Arguments::try_parse_from(std::iter::once(&"sandbox").chain(flags)).expect("parses");
        order(arguments)
    }

    #[test]
    fn times_are_read_as_people_write_them() {
        let seconds = |text| duration(text).map(|time| time.as_secs());
        assert_eq!(
            (seconds("60s"), seconds("5m"), seconds("2h"), seconds("7")),
            (Ok(60), Ok(300), Ok(7_200), Ok(7))
        );
        for bad in ["", "s", "1d", "-1s", "1.5s", "99999999999999999999h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_fault_is_named_before_anything_starts() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(dir.path().join("letter"), "mine").expect("writes");
        let path = dir.path().to_str().expect("UTF-8");
        let report = format!("{path}/absent/report.json");
        let flags = [
            "--nodes",
            "0",
            "--devices",
            "0",
            "--data-dir",
            path,
            "--report",
            &report,
            "--replay",
            "absent.csv",
        ];
        let Err(Fault::Usage(faults)) = parsed(&flags) else {
            panic!("it must be refused")
        };
        assert_eq!(faults.len(), 5, "{faults:?}");
    }

    #[test]
    fn flags_win_over_the_file() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let file = dir.path().join("sandbox.toml");
        std::fs::write(&file, "nodes = 7\ndevices = 3\nport_base = 12000").expect("writes");
        let data = dir.path().join("data");
        let flags = [
            "--config",
            file.to_str().expect("UTF-8"),
            "--devices",
            "9",
            "--data-dir",
            data.to_str().expect("UTF-8"),
        ];
        let order = parsed(&flags).expect("free ports");
        assert_eq!((order.config.nodes, order.config.devices), (7, 9));
    }

    #[test]
    fn the_name_decides_the_command() {
        assert!(command_of(&"/somewhere/bin/fog-node".into()).is_some());
        assert!(command_of(&"gateway".into()).is_some());
        assert!(command_of(&"/somewhere/sandbox".into()).is_none());
        assert!(command_of(&"--for".into()).is_none());
    }
}
