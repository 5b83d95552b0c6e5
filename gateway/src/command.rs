//! The process: command line, exit codes, signals.

mod home;
mod quarantine;
mod spool;
mod transit;

use std::{
    ffi::OsString,
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    str::FromStr,
    time::Duration,
};

use clap::{Parser, Subcommand};
use record::ids::DeviceId;
use rustix::{
    fs::Mode,
    process::{Resource, Rlimit, getrlimit, setrlimit, umask},
};
use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{SignalKind, signal},
    time::timeout,
};

use crate::{
    config::{Config, Faults, Prepared},
    gateway::Gateway,
    outbox, resync, telemetry,
};

/// Something failed while running.
const FAILED: u8 = 1;
/// Bad usage or configuration.
const USAGE: u8 = 64;
/// Threads that serve connections: a gateway is a small machine.
const WORKERS: usize = 2;
/// Threads for reads of the spool.
const BLOCKING_MAX: usize = 4;
/// What a spool that cannot be read back makes us say.
const DAMAGED: &str = "the spool is damaged and cannot be read back; nothing was changed or deleted, see OPERATIONS.md";
/// What was taken must be durable within this time after the signal to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// The edge: MQTT in, sealed bundles out.
#[derive(Debug, Parser)]
#[command(name = "gateway", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the gateway until SIGTERM or SIGINT.
    Run {
        /// Its configuration, TOML.
        #[arg(long)]
        config: PathBuf,
    },
    /// Checks a configuration and every file it names, and binds no port.
    CheckConfig {
        /// The configuration, TOML.
        #[arg(long)]
        config: PathBuf,
    },
    /// Gets readings that are missing to the running gateway: from a file, or by asking their device now.
    Resync {
        /// The gateway's configuration, TOML.
        #[arg(long)]
        config: PathBuf,
        #[command(flatten)]
        source: Source,
    },
    /// Shows what is not final yet, or carries it away; the gateway must be stopped.
    #[command(subcommand)]
    Spool(spool::Spool),
    /// Makes and shows one-time codes by which new devices come to this gateway; it may run meanwhile.
    #[command(subcommand)]
    Claim(home::Claim),
    /// Shows and changes the keys that devices seal their messages to; the gateway may run meanwhile.
    #[command(subcommand)]
    ReadingKey(transit::ReadingKey),
    /// Says whom a shared device measures, from a time on; the gateway may run meanwhile.
    Assign(home::Assign),
    /// Shows whom shared devices measure: device, from when on, key.
    Assignments {
        /// The gateway's configuration, TOML.
        #[arg(long)]
        config: PathBuf,
    },
    /// Shows bundles that were set aside, or gives them back to the queue; the gateway must be stopped.
    #[command(subcommand)]
    Refused(spool::Refused),
    /// Shows what was refused, and opens it with the quarantine's key; the gateway must be stopped.
    #[command(subcommand)]
    Quarantine(quarantine::Quarantine),
}

/// Where readings that are missing are.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Source {
    /// The file: each line is a message as its device signed it, in its JSON form, or the base64 of its bytes.
    #[arg(long)]
    from: Option<PathBuf>,
    /// The device that is asked.
    #[arg(long)]
    device: Option<DeviceId>,
}

/// Runs a command line; its first word is the program's name.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Standard output may be closed; the exit code still says it.
            let _unprinted = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    // Another part of the same program may have installed it before.
    let _installed_before = rustls::crypto::aws_lc_rs::default_provider().install_default();
    match arguments.command {
        Command::Run { config } => match prepare(&config) {
            Ok(prepared) => run(prepared),
            Err(faults) => refuse(&faults),
        },
        Command::CheckConfig { config } => match prepare(&config) {
            Ok(prepared) => {
                for warning in prepared.config.mqtt.warnings() {
                    // Standard error may be closed; it is a warning.
                    let _unprinted = writeln!(std::io::stderr(), "warning: {warning}");
                }
                ExitCode::SUCCESS
            }
            Err(faults) => refuse(&faults),
        },
        Command::Claim(claim) => {
            let config = claim.config().to_owned();
            beside(&config, |prepared| claim.run(prepared))
        }
        Command::ReadingKey(command) => {
            let config = command.config().to_owned();
            beside(&config, |prepared| command.run(prepared))
        }
        Command::Assign(assign) => beside(&assign.config.clone(), |prepared| assign.run(prepared)),
        Command::Assignments { config } => beside(&config, home::assignments),
        Command::Resync { config, source } => resync(&config, source),
        Command::Spool(command) => command.run(),
        Command::Refused(command) => command.run(),
        Command::Quarantine(command) => command.run(),
    }
}

/// Does something beside a gateway that may be running, and says what came of it.
fn beside(config: &Path, work: impl FnOnce(&Prepared) -> Result<String, String>) -> ExitCode {
    let prepared = match prepare(config) {
        Ok(prepared) => prepared,
        Err(faults) => return refuse(&faults),
    };
    umask(Mode::RWXG | Mode::RWXO);
    let said = work(&prepared);
    let printed = match &said {
        Ok(text) => std::io::stdout().write_all(text.as_bytes()),
        Err(why) => writeln!(std::io::stderr(), "{why}"),
    };
    match (said, printed) {
        (Ok(_), Ok(())) => ExitCode::SUCCESS,
        _ => ExitCode::from(FAILED),
    }
}

/// Says what became of the readings in a file, or what a device was asked for.
fn resync(config: &Path, source: Source) -> ExitCode {
    let config = match Config::load(config) {
        Ok(config) => config,
        Err(faults) => return refuse(&faults),
    };
    let got = runtime().map_err(|e| e.to_string()).and_then(|runtime| {
        let said = runtime.block_on(got(config.http.listen, source));
        said.map_err(|error| match error {
            resync::Error::Unknown(_) => home::among(&error.to_string(), &config),
            _ => error.to_string(),
        })
    });
    match got {
        Ok(said) => match writeln!(std::io::stdout(), "{said}") {
            Ok(()) => ExitCode::SUCCESS,
            Err(_unprinted) => ExitCode::from(FAILED),
        },
        Err(why) => {
            // Standard error may be closed; the exit code still says it.
            let _unprinted = writeln!(std::io::stderr(), "{why}");
            ExitCode::from(FAILED)
        }
    }
}

async fn got(gateway: SocketAddr, source: Source) -> Result<String, resync::Error> {
    match (source.from, source.device) {
        (Some(file), _) => {
            let tally = resync::hand_in(gateway, &file).await?;
            Ok(resync::summary(&tally))
        }
        (None, device) => {
            let device = device.expect("one of both is required");
            let asked = resync::ask(gateway, device).await?;
            Ok(resync::asked(&asked))
        }
    }
}

/// An identifier that a list has printed.
fn identifier<T: FromStr>(text: &str) -> Result<T, String> {
    let expected = "expected 68 lower-case hexadecimal digits that begin with 1220, whole, as the list prints them";
    text.parse().map_err(|_| expected.to_owned())
}

fn prepare(path: &Path) -> Result<Prepared, Faults> {
    Config::load(path)?.prepare()
}

fn refuse(faults: &Faults) -> ExitCode {
    // Standard error may be closed; the exit code still says it.
    let _unprinted = writeln!(std::io::stderr(), "the configuration cannot be used:\n{faults}");
    ExitCode::from(USAGE)
}

fn run(prepared: Prepared) -> ExitCode {
    telemetry::log(&prepared.config.telemetry);
    harden();
    for warning in prepared.config.mqtt.warnings() {
        tracing::warn!("{warning}");
    }
    let outcome = runtime().map_err(|e| e.to_string()).and_then(|runtime| {
        let outcome = runtime.block_on(serve(prepared));
        // Connections that still hang on are dropped: what they sent is durable or was not acknowledged.
        runtime.shutdown_background();
        outcome
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error, "the gateway failed");
            ExitCode::from(FAILED)
        }
    }
}

fn runtime() -> std::io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING_MAX)
        .enable_all()
        .build()
}

/// Files for nobody else, no core dump, and no process that goes on half dead after a panic.
fn harden() {
    umask(Mode::RWXG | Mode::RWXO);
    if let Err(error) = setrlimit(
        Resource::Core,
        Rlimit {
            current: Some(0),
            maximum: Some(0),
        },
    ) {
        tracing::warn!(%error, "core dumps cannot be switched off");
    }
    // A device's connection takes three: as many as the machine allows, not as many as a shell would like.
    let files = getrlimit(Resource::Nofile);
    let all = Rlimit {
        current: files.maximum,
        ..files
    };
    if let Err(error) = setrlimit(Resource::Nofile, all) {
        tracing::warn!(%error, "the number of open files cannot be raised");
    }
    end_on_panic();
}

/// A panic ends the process; one that a damaged spool causes is said as that, once, and is an ordinary failure.
fn end_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        // The place, not the message: a message might hold what was being handled.
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        if outbox::is_reading_back() {
            if tracing::dispatcher::has_been_set() {
                tracing::error!(place, "{DAMAGED}");
            } else {
                // Standard error may be closed; the exit code still says it.
                let _unprinted = writeln!(std::io::stderr(), "{DAMAGED}");
            }
            std::process::exit(i32::from(FAILED));
        }
        tracing::error!(place, "panic; the process ends");
        std::process::abort();
    }));
}

async fn serve(prepared: Prepared) -> Result<(), String> {
    let mut terminate = signal(SignalKind::terminate()).map_err(|e| e.to_string())?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|e| e.to_string())?;
    let metrics = telemetry::record().map_err(|e| e.to_string())?;
    let name = prepared.config.gateway.clone();
    let mut gateway = Gateway::start(prepared, metrics.clone())
        .await
        .map_err(|e| e.to_string())?;
    tracing::info!(gateway = %name, "the gateway runs");
    let failure = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        failure = gateway.failed() => Some(failure.to_string()),
        () = telemetry::upkeep(metrics) => None,
    };
    if timeout(STOP_TIMEOUT, gateway.stop()).await.is_err() {
        return Err("what was taken could not be made durable in time".to_owned());
    }
    tracing::info!(gateway = %name, "the gateway has stopped");
    failure.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::{SPOOL, Shelf, tests::Home};
    use std::{fs, process};

    const PAGE_BYTES: usize = 4_096;

    /// In a process of its own: looks at the spool in the folder that the variable names.
    #[test]
    fn a_child_reads_a_spool_back() {
        let Some(folder) = std::env::vars_os().find(|(name, _)| name == "SPOOL_OF_THE_CHILD") else {
            return;
        };
        let sealer = Home::open().sealer;
        end_on_panic();
        let listed = Shelf::open(Path::new(&folder.1), &sealer).and_then(|shelf| Ok(shelf.refused()?));
        process::exit(i32::from(listed.is_err()));
    }

    #[tokio::test]
    async fn a_damaged_spool_is_an_error_and_no_abort() {
        let home = Home::open();
        for seq in 1..=8 {
            home.spool(&home.oximeter, seq).await;
            home.outbox
                .set_aside(seq - 1, outbox::Why::Refused("422".to_owned()))
                .await;
        }
        home.outbox.stop().await;
        let file = home.folder.path().join(SPOOL);
        let good = fs::read(&file).expect("reads");
        let mut said = 0;
        for page in (0..good.len()).step_by(PAGE_BYTES) {
            if good[page..page + PAGE_BYTES].iter().all(|byte| *byte == 0) {
                continue;
            }
            let mut bad = good.clone();
            bad[page..page + 8].iter_mut().for_each(|byte| *byte ^= 0x5a);
            fs::write(&file, bad).expect("writes");
            let child = process::Command::new(std::env::current_exe().expect("this test"))
                .args(["a_child_reads_a_spool_back", "--nocapture"])
                .env("SPOOL_OF_THE_CHILD", home.folder.path())
                .output()
                .expect("runs");
            assert!(matches!(child.status.code(), Some(0 | 1)), "page {page}: {child:?}");
            said += usize::from(String::from_utf8_lossy(&child.stderr).contains(DAMAGED));
        }
        assert!(said > 0, "no page made the library panic");
    }

    #[test]
    fn a_requeue_names_one_bundle_or_all_and_never_neither() {
        let parses = |words: &[&str]| {
            let line = ["gateway", "refused", "requeue", "--config", "c.toml"];
            Arguments::try_parse_from(line.iter().chain(words)).is_ok()
        };
        let id = record::canonical::Digest::ZERO.to_string();
        assert!(parses(&["--all"]) && parses(&["--bundle", &id]));
        assert!(!parses(&[]) && !parses(&["--all", "--bundle", &id]) && !parses(&["--bundle", "that one"]));
    }
}
