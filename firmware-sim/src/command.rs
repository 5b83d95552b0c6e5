//! The command line: run a fleet, check its configuration, make a key, sign by hand, judge a foreign device's messages.

mod check;
mod codes;
mod sign;

use std::{
    ffi::OsString,
    fs::OpenOptions,
    io::{self, IsTerminal as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use record::signature::SigningKey;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::{config::Config, fleet::Fleet};

#[cfg(test)]
pub(crate) use codes::codes;

/// Bad usage or configuration (EX_USAGE).
const EXIT_USAGE: u8 = 64;
/// Open files besides the one connection of each device.
const FILES_BESIDES: u64 = 64;

/// A fleet of home devices that replays real recordings over MQTT.
#[derive(Debug, Parser)]
#[command(name = "firmware-sim", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the devices until SIGTERM or Ctrl-C, or for a time, and then say whether every answer was as it had to be.
    Run(Run),
    /// Say everything that is wrong with a configuration and the files it names.
    CheckConfig(FromConfig),
    /// Make a device key; its public half is printed in hex.
    Keygen {
        /// The new PEM file, readable by the owner only.
        #[arg(long)]
        out: PathBuf,
    },
    /// Print a signed reading in the JSON form, or the bytes of a sealed one, e.g. for mosquitto_pub.
    Sign(sign::Request),
    /// Judge the messages of a foreign device as the gateway would; exit 1 on any fault.
    Check(check::Request),
    /// Print the codes, units and limits that are known.
    Codes,
}

#[derive(Debug, clap::Args)]
struct FromConfig {
    /// The TOML file.
    #[arg(long)]
    config: PathBuf,
}

#[derive(Debug, clap::Args)]
struct Run {
    #[command(flatten)]
    from: FromConfig,
    /// Stop after so many seconds (`60s` or `60`), wait for the last answers, print what became of all readings, and exit
    /// with 1 if one has no answer, or another answer than it had to have.
    #[arg(long = "for", value_name = "SECONDS", value_parser = seconds)]
    limit: Option<Duration>,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.strip_suffix('s').unwrap_or(text).parse::<u32>();
    number
        .map(|seconds| Duration::from_secs(seconds.into()))
        .map_err(|_| "it must be a whole number of seconds".to_owned())
}

/// Runs the command with these arguments (the first is the program's name): 0 done, 1 failed, 64 bad usage or configuration.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(args) {
        Ok(arguments) => arguments,
        Err(error) => {
            let code = if error.use_stderr() { EXIT_USAGE } else { 0 };
            // Nobody reads the output: the exit code still says it.
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    start_logging();
    // An error means that the process has one already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    match perform(arguments.command) {
        Ok(code) => code,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(Run { from, limit }) => match ready(&from.config) {
            Some(fleet) => run(fleet, limit),
            None => Ok(ExitCode::from(EXIT_USAGE)),
        },
        Command::CheckConfig(FromConfig { config }) => match ready(&config) {
            Some(fleet) => say(&format!("the configuration is good: {} devices", fleet.devices.len())),
            None => Ok(ExitCode::from(EXIT_USAGE)),
        },
        Command::Keygen { out } => say(&keygen(&out)?),
        Command::Check(request) => match request.check(&mut io::stdout()) {
            Ok(outcome) if outcome.faults == 0 => Ok(ExitCode::SUCCESS),
            Ok(_faults) => Ok(ExitCode::FAILURE),
            Err(complaint) => {
                complain(&complaint);
                Ok(ExitCode::from(EXIT_USAGE))
            }
        },
        Command::Codes => say(&codes::codes()),
        Command::Sign(request) => match request.message() {
            Ok(message) => {
                io::stdout().write_all(&message).context("writing to standard output")?;
                Ok(ExitCode::SUCCESS)
            }
            Err(complaint) => {
                complain(&complaint);
                Ok(ExitCode::from(EXIT_USAGE))
            }
        },
    }
}

/// The fleet of a configuration file, or everything that is wrong with it on standard error.
fn ready(config: &Path) -> Option<Fleet> {
    match Config::load(config).and_then(|config| config.fleet()) {
        Ok(fleet) => Some(fleet),
        Err(complaints) => {
            complain(&format!(
                "the configuration {} cannot be used:\n{complaints}",
                config.display()
            ));
            None
        }
    }
}

fn run(fleet: Fleet, limit: Option<Duration>) -> anyhow::Result<ExitCode> {
    allow_files(fleet.devices.len());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    runtime.block_on(async {
        let data_dir = &fleet.home.data_dir;
        std::fs::create_dir_all(data_dir).with_context(|| format!("making {}", data_dir.display()))?;
        let stop = CancellationToken::new();
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let told = stop.clone();
        let listener = tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                () = until(limit) => {}
            }
            told.cancel();
        });
        tracing::info!(devices = fleet.devices.len(), "the fleet starts");
        let outcome = fleet.run(stop).await;
        listener.abort();
        let summary = outcome.context("the fleet ended")?;
        if limit.is_none() {
            return Ok(ExitCode::SUCCESS);
        }
        say(&summary.to_string())?;
        Ok(if summary.is_as_expected() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    })
}

async fn until(limit: Option<Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => std::future::pending().await,
    }
}

/// Each device is a connection: as many open files as the system allows.
fn allow_files(devices: usize) {
    let files = getrlimit(Resource::Nofile);
    let all = Rlimit {
        current: files.maximum,
        ..files
    };
    if let Err(error) = setrlimit(Resource::Nofile, all) {
        tracing::debug!(%error, "the number of open files stays as it is");
    }
    let allowed = getrlimit(Resource::Nofile).current;
    if allowed.is_some_and(|allowed| allowed < devices as u64 + FILES_BESIDES) {
        tracing::warn!(
            devices,
            allowed,
            "fewer files may be open than devices want to connect: raise the limit (ulimit -n)"
        );
    }
}

fn keygen(out: &Path) -> anyhow::Result<String> {
    let key = SigningKey::random();
    let pem = key.to_pem().context("encoding the key")?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(out)
        .with_context(|| format!("making {}", out.display()))?;
    file.write_all(pem.as_bytes())?;
    file.sync_all()?;
    Ok(key.public().to_string())
}

fn say(text: &str) -> anyhow::Result<ExitCode> {
    writeln!(io::stdout(), "{text}").context("writing to standard output")?;
    Ok(ExitCode::SUCCESS)
}

fn complain(text: &str) {
    // Nobody reads it: the exit code still says it.
    let _ = writeln!(io::stderr(), "firmware-sim: {text}");
}

fn start_logging() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,rumqttc_v5=error"));
    // An error means that somebody logs already: the sandbox, or another test.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .try_init();
    std::panic::set_hook(Box::new(|panic| {
        // A device with a broken invariant must not go on numbering readings. The place, not the message: a message might
        // hold what was being measured.
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(place, "panic; the process ends");
        std::process::abort();
    }));
}
