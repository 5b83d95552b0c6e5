//! The command line: run a node, rebuild a lost one, check its configuration, decide as its organisation, check what it proves offline.

mod check;
mod daemon;
mod decide;
mod index;
mod live;

use std::{
    ffi::OsString,
    fmt::Display,
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use crate::{
    audit,
    config::{Config, Faults},
    node::Node,
};
use clap::{Parser, Subcommand};
use decide::{Edge, For};
use record::ids::KeyId;

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
    /// Rebuilds a node whose disk is lost: blocks with the votes on them and sealed payloads come from its peers. The data
    /// folder must be absent or empty. Interrupted, it can be run again and goes on.
    Replace {
        /// The node's configuration; the key and the certificates that it names must be there.
        #[arg(long)]
        config: PathBuf,
        /// A copy of the node's keyring.sealed. Peers cannot give it back: without it the node opens no record.
        #[arg(long)]
        keyring: Option<PathBuf>,
    },
    /// Fetches the whole chain and all sealed payloads for a node that is to get a vote, as `replace` does, and prints what the
    /// members are asked to vote for (`voice seat`). The data folder must be absent or empty.
    Join {
        /// The node's configuration, with `consensus.newcomer`.
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
    /// Reads the configuration and the files it names, and tells everything that is wrong; also what is wrong with the
    /// settings of the vault's daemon, if there is one and it runs.
    CheckConfig {
        /// The configuration.
        #[arg(long)]
        config: PathBuf,
    },
    /// Puts throw-away payloads to the vault's daemon, step by step, and says whether it does what a vault needs; what it put
    /// is gone again at the end. Exit code 1 if something failed, 64 if a setting is wrong.
    Doctor {
        /// The configuration.
        #[arg(long)]
        config: PathBuf,
        /// Lets the daemon collect, too: it deletes everything in its repository that is not pinned, whoever put it there.
        #[arg(long)]
        gc: bool,
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
    /// Makes the index of a stopped node anew, from chain and vault. Interrupted, it goes on when it is run again or when the node
    /// is started.
    Reindex {
        /// The node's configuration.
        #[arg(long)]
        config: PathBuf,
    },
    /// Looks after the index: compares it with the chain, makes its tables on a server.
    Index {
        #[command(subcommand)]
        about: index::About,
    },
    /// Raises the organisation's voice for a change of the members; it counts in this epoch and the next. With the voices of
    /// more than two thirds of the organisations that vote, a change of the seats takes effect with the epoch after the
    /// next.
    Voice {
        /// The configuration of the organisation's node, which must run.
        #[arg(long)]
        config: PathBuf,
        /// The organisation's private key, PKCS#8 PEM.
        #[arg(long)]
        organization_key: PathBuf,
        #[command(subcommand)]
        change: For,
    },
    /// Decides as the organisation about its gateways and their devices: enrols, rotates keys, revokes. It is final when this
    /// ends.
    Edge {
        /// The configuration of the organisation's node, which must run.
        #[arg(long)]
        config: PathBuf,
        /// The organisation's private key, PKCS#8 PEM.
        #[arg(long)]
        organization_key: PathBuf,
        #[command(subcommand)]
        decision: Edge,
    },
    /// Erases a subject key of which the organisation is the custodian, for good: on every node its private half is destroyed, its
    /// payloads and rows are erased, and the node confirms it on the chain. It cannot be taken back.
    Erase {
        /// The configuration of the organisation's node, which must run.
        #[arg(long)]
        config: PathBuf,
        /// The organisation's private key, PKCS#8 PEM.
        #[arg(long)]
        organization_key: PathBuf,
        /// The id of the key, as the chain names it.
        key: KeyId,
        /// The same id once more: nothing brings back what is erased.
        #[arg(long)]
        yes_erase: KeyId,
    },
    /// Checks a certificate of erasure with the validators' public keys alone; asks nobody.
    VerifyErasure {
        /// The certificate, exactly as /api/v1/erasures/{key}/certificate gave it.
        certificate: PathBuf,
        /// The validators, as /api/v1/chain/validators gave them; get them from somebody you trust.
        #[arg(long)]
        validators: PathBuf,
    },
    /// Prints what `voice seat` takes: this node's organisation, keys and addresses, as its configuration has them.
    Seat {
        /// The node's configuration.
        #[arg(long)]
        config: PathBuf,
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
        Command::Run { config } => live::run(&config),
        Command::Replace { config, keyring } => live::replace(&config, keyring.as_deref()),
        Command::Join { config } => live::join(&config),
        Command::Observe { config } => live::observe(&config),
        Command::CheckConfig { config } => daemon::check_config(&config),
        Command::Doctor { config, gc } => daemon::doctor(&config, gc),
        Command::Verify { config, full: _ } => audit_chain(&config),
        Command::Reindex { config } => index::reindex(&config),
        Command::Index { about } => index::about(about),
        Command::Voice {
            config,
            organization_key,
            change,
        } => match prepare(&config) {
            Ok((_, node)) => ended(decide::raise(&node, &organization_key, change)),
            Err(code) => code,
        },
        Command::Edge {
            config,
            organization_key,
            decision,
        } => match prepare(&config) {
            Ok((_, node)) => ended(decide::decide(&node, &organization_key, decision)),
            Err(code) => code,
        },
        Command::Seat { config } => match prepare(&config) {
            Ok((_, node)) => ended(serde_json::to_string_pretty(&node.seat()).map_err(anyhow::Error::from)),
            Err(code) => code,
        },
        Command::Erase {
            config,
            organization_key,
            key,
            yes_erase,
        } => match prepare(&config) {
            Ok((_, node)) => ended(decide::erase(&node, &organization_key, (key, yes_erase))),
            Err(code) => code,
        },
        Command::VerifyReceipt { receipt, validators } => checked(&receipt, check::receipt(&receipt, &validators)),
        Command::VerifyErasure {
            certificate,
            validators,
        } => checked(&certificate, check::erasure(&certificate, &validators)),
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

/// Says what was checked, or of which file it does not hold.
fn checked(path: &Path, result: anyhow::Result<String>) -> ExitCode {
    match result {
        Ok(text) => {
            say(text);
            ExitCode::SUCCESS
        }
        Err(error) => {
            complain(format_args!("{}: {error:#}", path.display()));
            ExitCode::FAILURE
        }
    }
}

/// Says what came of it.
fn ended(result: anyhow::Result<String>) -> ExitCode {
    match result {
        Ok(text) => {
            say(text);
            ExitCode::SUCCESS
        }
        Err(error) => {
            complain(format_args!("{error:#}"));
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

fn read(path: &Path, bytes_max: usize) -> anyhow::Result<String> {
    use anyhow::Context as _;
    let read = || {
        let length = fs::metadata(path)?.len();
        if length > bytes_max as u64 {
            return Err(io::Error::other(format!(
                "{length} bytes, at most {bytes_max} are read"
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
    use record::signature::SigningKey;

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
        let verify = check::receipt;
        fs::write(&receipt, "{}").expect("written");
        fs::write(&validators, "[]").expect("written");
        assert!(
            format!("{:#}", verify(&receipt, &validators).expect_err("no set")).contains("/api/v1/chain/validators")
        );
        let network = record::canonical::Digest::ZERO;
        let validators_of = |keys: &str| format!(r#"{{"network":"{network}","validators":[{keys}]}}"#);
        fs::write(&validators, validators_of("")).expect("written");
        assert!(format!("{:#}", verify(&receipt, &validators).expect_err("nobody")).contains("is empty"));
        let key = serde_json::to_string(&SigningKey::random().public()).expect("JSON");
        fs::write(&validators, validators_of(&key)).expect("written");
        assert!(format!("{:#}", verify(&receipt, &validators).expect_err("no receipt")).contains("not a receipt"));
    }
}
