//! The process: command line, exit codes, signals.

use std::{ffi::OsString, io::Write as _, path::PathBuf, process::ExitCode, time::Duration};

use clap::{Parser, Subcommand};
use rustix::{
    fs::Mode,
    process::{Resource, Rlimit, setrlimit, umask},
};
use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{SignalKind, signal},
    time::timeout,
};

use crate::{
    config::{Config, Faults, Prepared},
    gateway::Gateway,
    telemetry,
};

/// Something failed while running.
const FAILED: u8 = 1;
/// Bad usage or configuration.
const USAGE: u8 = 64;
/// Threads that serve connections: a gateway is a small machine.
const WORKERS: usize = 2;
/// Threads for reads of the spool.
const BLOCKING_MAX: usize = 4;
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
            Ok(_) => ExitCode::SUCCESS,
            Err(faults) => refuse(&faults),
        },
    }
}

fn prepare(path: &std::path::Path) -> Result<Prepared, Faults> {
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
    std::panic::set_hook(Box::new(|panic| {
        // The place, not the message: a message might hold what was being handled.
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
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
