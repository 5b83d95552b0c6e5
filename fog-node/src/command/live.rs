//! What runs for long: a node, an observer, the rebuilding of a lost node; each under telemetry, hardened, on a runtime of its own.

use std::{panic, path::Path, process::ExitCode};

use rustix::{
    fs::Mode,
    process::{Resource, Rlimit, setrlimit, umask},
};

use super::{EXIT_USAGE, complain, prepare, say, told};
use crate::{
    config,
    node::{self, Keys},
    observer::Observer,
    replace::Progress,
    telemetry::{self, Telemetry},
};

/// Runs a node until it is told to stop.
pub(super) fn run(path: &Path) -> ExitCode {
    let (config, node) = match prepare(path) {
        Ok(prepared) => prepared,
        Err(code) => return code,
    };
    if node.is_half_rebuilt() {
        complain(format_args!(
            "data_dir {} is being rebuilt and is not whole: run `fog-node replace --config {}` (again) until it ends",
            config.data_dir.display(),
            path.display()
        ));
        return ExitCode::from(EXIT_USAGE);
    }
    // Before anything is written: what `run` left there, `replace` would refuse.
    if node.lacks_its_keyring() {
        complain(format_args!(
            "data_dir {} has no keyring.sealed. If its disk was lost: `fog-node replace --config {} --keyring COPY`; \
             if the keyring alone was: put a copy of it there",
            config.data_dir.display(),
            path.display()
        ));
        return ExitCode::from(EXIT_USAGE);
    }
    code(live(&config.telemetry, |telemetry| node.run(telemetry)))
}

/// Runs an observer until it is told to stop.
pub(super) fn observe(path: &Path) -> ExitCode {
    let prepared = config::Observer::load(path);
    let prepared = prepared.and_then(|config| Ok((config.telemetry.clone(), Observer::prepare(config)?)));
    match told(path, prepared) {
        Ok((config, observer)) => code(live(&config, |telemetry| observer.run(telemetry))),
        Err(code) => code,
    }
}

/// Rebuilds a node whose disk is lost.
pub(super) fn replace(path: &Path, keyring: Option<&Path>) -> ExitCode {
    let (config, node) = match prepare(path) {
        Ok(prepared) => prepared,
        Err(code) => return code,
    };
    // Before anything creates a file.
    umask(Mode::RWXG | Mode::RWXO);
    let claim = match node.claim(keyring) {
        Ok(claim) => claim,
        Err(faults) => {
            complain(faults.to_string().trim_end());
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let rebuilt = live(&config.telemetry, |_| {
        node.replace(claim, Progress::to(|line| say(line)))
    });
    let Some((summary, keys)) = rebuilt else {
        return ExitCode::FAILURE;
    };
    say(format_args!("rebuilt in {}\n{summary}", config.data_dir.display()));
    say(match keys {
        Keys::NotConfigured => "keys        none, as it is configured".to_owned(),
        Keys::Restored(count) => format!("keys        {count}, from the copy"),
        Keys::Lost => {
            "keys        NONE: without a copy of its keyring.sealed this node opens no record until keys are \
                       handed to it again; it stores, votes and serves payloads without them"
                .to_owned()
        }
    });
    ExitCode::SUCCESS
}

/// Fetches everything for a node that is none of the founders, and says what the members are asked to vote for.
pub(super) fn join(path: &Path) -> ExitCode {
    let (config, node) = match prepare(path) {
        Ok(prepared) => prepared,
        Err(code) => return code,
    };
    if !config.consensus.newcomer {
        complain("consensus.newcomer is not set: a founder does not join; `fog-node replace` rebuilds it");
        return ExitCode::from(EXIT_USAGE);
    }
    let seat = match serde_json::to_string_pretty(&node.seat()) {
        Ok(seat) => seat,
        Err(error) => {
            complain(error);
            return ExitCode::FAILURE;
        }
    };
    let ended = replace(path, None);
    if ended == ExitCode::SUCCESS {
        say(format_args!(
            "the members vote for this with `fog-node voice .. seat FILE`:\n{seat}"
        ));
    }
    ended
}

fn code(ended: Option<()>) -> ExitCode {
    match ended {
        Some(()) => ExitCode::SUCCESS,
        None => ExitCode::FAILURE,
    }
}

/// Does some work under telemetry, on a runtime of its own; a failure is logged.
pub(super) fn live<T, W: Future<Output = Result<T, node::Error>>>(
    config: &telemetry::Config,
    work: impl FnOnce(Telemetry) -> W,
) -> Option<T> {
    // Before anything creates a file.
    umask(Mode::RWXG | Mode::RWXO);
    let telemetry = match Telemetry::start(config) {
        Ok(telemetry) => telemetry,
        Err(error) => {
            complain(error);
            return None;
        }
    };
    harden();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "no runtime");
            return None;
        }
    };
    let ended = runtime.block_on(work(telemetry)).map_err(anyhow::Error::from);
    // Blocking calls that are under way may not hold the process up.
    runtime.shutdown_background();
    ended.inspect_err(|error| tracing::error!("{error:#}")).ok()
}

/// No core dump, and no process that goes on half dead: a panic anywhere is a broken invariant, the
/// process stops at once, and its supervisor starts it anew. Only the place and our own words are logged; a formatted
/// message could repeat what somebody measured.
fn harden() {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    if let Err(error) = setrlimit(Resource::Core, none) {
        tracing::warn!(%error, "core dumps cannot be switched off");
    }
    panic::set_hook(Box::new(|panicked| {
        // A store may panic over an altered page; who opened it catches that and heals.
        if crate::containment::is_contained() {
            return;
        }
        let place = panicked.location().map(ToString::to_string).unwrap_or_default();
        let words = panicked
            .payload()
            .downcast_ref::<&'static str>()
            .copied()
            .unwrap_or("a message that is not logged");
        tracing::error!(%place, "panicked: {words}");
        std::process::abort();
    }));
}
