//! The command line: run a node, check its configuration, check a receipt offline.

use std::{
    ffi::OsString,
    fmt::Display,
    fs,
    io::{self, Write as _},
    panic,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use ledger::proof::{RECEIPT_BYTES_MAX, Receipt, ValidatorSet};
use rustix::{
    fs::Mode,
    process::{Resource, Rlimit, setrlimit, umask},
};

use crate::{
    audit,
    config::{self, Config, Faults},
    node::{self, Node},
    observer::Observer,
    telemetry::{self, Telemetry},
};

/// Bad usage or configuration.
const EXIT_USAGE: u8 = 64;

/// A fog node: stores, agrees, answers.
#[derive(Debug, Parser)]
#[command(name = "fog-node", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the node until SIGTERM or SIGINT.
    Run {
        /// Its configuration, TOML; FOG_SECTION__KEY in the environment overrides a key.
        #[arg(long)]
        config: PathBuf,
    },
    /// Runs an observer until SIGTERM or SIGINT: no vote and no chain, it follows headers and proofs and serves what its
    /// organisation was granted.
    Observe {
        /// Its configuration, TOML; FOG_SECTION__KEY in the environment overrides a key.
        #[arg(long)]
        config: PathBuf,
    },
    /// Reads the configuration and the files it names, and tells everything that is wrong.
    CheckConfig {
        /// The configuration.
        #[arg(long)]
        config: PathBuf,
    },
    /// Compares the whole chain of the running node with every peer's, block by block (the paper's Algorithm 2), and names
    /// the majority. An audit; exit code 1 if this node is not with the majority.
    Verify {
        /// The node's configuration: where it and its peers answer.
        #[arg(long)]
        config: PathBuf,
        /// All of the chain; there is no shorter form, the nodes compare heads by themselves.
        #[arg(long, required = true)]
        full: bool,
    },
    /// Checks a receipt with the validators' public keys alone; asks nobody.
    VerifyReceipt {
        /// The receipt, exactly as /api/v1/receipts/{bundle} gave it.
        receipt: PathBuf,
        /// The validators, as /api/v1/chain/validators gave them; get them from somebody you trust.
        #[arg(long)]
        validators: PathBuf,
    },
}

/// Runs the command line; exit codes 0 done, 1 failed, 64 bad usage or configuration.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(refused) => {
            let code = if refused.use_stderr() {
                ExitCode::from(EXIT_USAGE)
            } else {
                ExitCode::SUCCESS
            };
            // With no terminal left there is nobody to tell.
            let _told = refused.print();
            return code;
        }
    };
    // Another provider can only be there if the caller installed it on purpose.
    let _installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
    match cli.command {
        Command::Run { config } => run(&config),
        Command::Observe { config } => observe(&config),
        Command::CheckConfig { config } => match prepare(&config) {
            Ok(_) => {
                say(format_args!("{}: nothing is wrong", config.display()));
                ExitCode::SUCCESS
            }
            Err(code) => code,
        },
        Command::Verify { config, full: _ } => audit_chain(&config),
        Command::VerifyReceipt { receipt, validators } => match verify(&receipt, &validators) {
            Ok(checked) => {
                say(checked);
                ExitCode::SUCCESS
            }
            Err(error) => {
                complain(format_args!("{}: {error:#}", receipt.display()));
                ExitCode::FAILURE
            }
        },
    }
}

/// Reads everything and tells all faults at once, before anything is opened or bound.
fn prepare(path: &Path) -> Result<(Config, Node), ExitCode> {
    told(
        path,
        Config::load(path).and_then(|config| Ok((config.clone(), Node::prepare(config)?))),
    )
}

fn told<T>(path: &Path, prepared: Result<T, Faults>) -> Result<T, ExitCode> {
    prepared.map_err(|faults| {
        complain(format_args!("{}:\n{}", path.display(), faults.to_string().trim_end()));
        ExitCode::from(EXIT_USAGE)
    })
}

fn run(path: &Path) -> ExitCode {
    match prepare(path) {
        Ok((config, node)) => work(&config.telemetry, |telemetry| node.run(telemetry)),
        Err(code) => code,
    }
}

fn observe(path: &Path) -> ExitCode {
    let prepared = config::Observer::load(path);
    let prepared = prepared.and_then(|config| Ok((config.telemetry.clone(), Observer::prepare(config)?)));
    match told(path, prepared) {
        Ok((config, observer)) => work(&config, |telemetry| observer.run(telemetry)),
        Err(code) => code,
    }
}

/// Runs what was prepared, watched and hardened, until its end.
fn work<F: Future<Output = Result<(), node::Error>>>(
    config: &telemetry::Config,
    run: impl FnOnce(Telemetry) -> F,
) -> ExitCode {
    // Before anything creates a file.
    umask(Mode::RWXG | Mode::RWXO);
    let telemetry = match Telemetry::start(config) {
        Ok(telemetry) => telemetry,
        Err(error) => {
            complain(error);
            return ExitCode::FAILURE;
        }
    };
    harden();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "no runtime");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(run(telemetry)).map_err(anyhow::Error::from);
    // Blocking calls that are under way may not hold the process up.
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn audit_chain(path: &Path) -> ExitCode {
    let (_, node) = match prepare(path) {
        Ok(prepared) => prepared,
        Err(code) => return code,
    };
    let compare = || -> anyhow::Result<audit::Findings> {
        let (client, nodes, genesis) = node.audited()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(runtime.block_on(audit::compare(&client, &nodes, genesis))?)
    };
    match compare() {
        Ok(findings) => {
            say(&findings);
            if findings.agrees() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(error) => {
            complain(format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
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

/// Checks a receipt and says what was checked.
fn verify(receipt: &Path, validators: &Path) -> anyhow::Result<String> {
    let text = read(receipt)?;
    let set: ValidatorSet = serde_json::from_str(&read(validators)?).map_err(|error| {
        anyhow::anyhow!(
            "{} is not what /api/v1/chain/validators gives: {error}",
            validators.display()
        )
    })?;
    let verified = Receipt::verify(&text, &set)?;
    let header = verified.header();
    let (votes, of, quorum) = (verified.votes(), set.validators.len(), set.quorum());
    Ok(format!(
        "the receipt holds\n\
         network     {}\n\
         bundle      {}\n\
         commitment  its Merkle path leads to the transactions root of the block\n\
         block       height {}, digest {}, proposed by {}\n\
         votes       {votes} of {of} validators, each signature checked; {quorum} are needed",
        set.network,
        verified.bundle(),
        header.height,
        header.digest(),
        header.leader,
    ))
}

fn read(path: &Path) -> anyhow::Result<String> {
    use anyhow::Context as _;
    let read = || {
        let length = fs::metadata(path)?.len();
        if length > RECEIPT_BYTES_MAX as u64 {
            return Err(io::Error::other(format!(
                "{length} bytes, at most {RECEIPT_BYTES_MAX} are read"
            )));
        }
        fs::read_to_string(path)
    };
    read().with_context(|| path.display().to_string())
}

fn say(text: impl Display) {
    // A closed pipe is the reader's choice.
    let _said = writeln!(io::stdout(), "{text}");
}

fn complain(text: impl Display) {
    let _said = writeln!(io::stderr(), "fog-node: {text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(all: &[&str]) -> Vec<OsString> {
        all.iter().map(Into::into).collect()
    }

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn bad_usage_and_bad_configuration_exit_64() {
        let bad = format!("{:?}", ExitCode::from(EXIT_USAGE));
        assert_eq!(format!("{:?}", main(arguments(&["fog-node", "fly"]))), bad);
        assert_eq!(
            format!(
                "{:?}",
                main(arguments(&["fog-node", "run", "--config", "/nowhere/at/all"]))
            ),
            bad
        );
        assert_eq!(
            format!("{:?}", main(arguments(&["fog-node", "--version"]))),
            format!("{:?}", ExitCode::SUCCESS)
        );
    }

    #[test]
    fn what_is_no_receipt_is_refused_with_the_reason() {
        let folder = tempfile::tempdir().expect("a folder");
        let (receipt, validators) = (folder.path().join("r.json"), folder.path().join("v.json"));
        fs::write(&receipt, "{}").expect("written");
        fs::write(&validators, "[]").expect("written");
        assert!(
            format!("{:#}", verify(&receipt, &validators).expect_err("no set")).contains("/api/v1/chain/validators")
        );
        let network = record::canonical::Digest::ZERO;
        fs::write(&validators, format!(r#"{{"network":"{network}","validators":[]}}"#)).expect("written");
        assert!(format!("{:#}", verify(&receipt, &validators).expect_err("no receipt")).contains("not a receipt"));
    }
}
