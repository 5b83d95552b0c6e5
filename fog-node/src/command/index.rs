//! The index on the command line: made anew, compared with the chain, its tables made on a server.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Subcommand;

use super::{EXIT_USAGE, complain, ended, live::live, prepare, say};
use crate::index::{self, Driver};

/// What is done with the index.
#[derive(Debug, Subcommand)]
pub(super) enum About {
    /// Compares every row of a stopped node's index with the chain: missing, altered, invented. Exit code 1 if there are any and
    /// they were not put right.
    Verify {
        /// The node's configuration.
        #[arg(long)]
        config: PathBuf,
        /// Puts right what differs.
        #[arg(long)]
        repair: bool,
    },
    /// Makes this version's tables on every server of `[index.mysql]`, as a user that may make tables; the node's own user may
    /// not.
    Migrate {
        /// The node's configuration.
        #[arg(long)]
        config: PathBuf,
        /// A user that may CREATE, ALTER, INDEX and DROP in the database.
        #[arg(long)]
        user: String,
        /// Its password, in a file that the owner alone can read.
        #[arg(long)]
        password_file: Option<PathBuf>,
    },
}

pub(super) fn about(what: About) -> ExitCode {
    match what {
        About::Verify { config, repair } => verify(&config, repair),
        About::Migrate {
            config,
            user,
            password_file,
        } => migrate(&config, user, password_file),
    }
}

fn verify(path: &Path, repair: bool) -> ExitCode {
    let (config, node) = match prepare(path) {
        Ok(prepared) => prepared,
        Err(code) => return code,
    };
    let found = live(&config.telemetry, |_| node.verify_index(repair, say));
    match found {
        Some(findings) => {
            say(&findings);
            if findings.is_sound() || findings.repaired {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        None => ExitCode::FAILURE,
    }
}

/// Makes the index of a stopped node anew.
pub(super) fn reindex(path: &Path) -> ExitCode {
    let (config, node) = match prepare(path) {
        Ok(prepared) => prepared,
        Err(code) => return code,
    };
    match live(&config.telemetry, |_| node.reindex(say)) {
        Some(summary) => {
            say(summary);
            ExitCode::SUCCESS
        }
        None => ExitCode::FAILURE,
    }
}

fn migrate(path: &Path, user: String, password_file: Option<PathBuf>) -> ExitCode {
    let (config, _) = match prepare(path) {
        Ok(prepared) => prepared,
        Err(code) => return code,
    };
    let mut index = config.index;
    if index.driver != Driver::Mysql {
        complain("index.driver is not mysql: the tables of a file are made when it is opened");
        return ExitCode::from(EXIT_USAGE);
    }
    index.mysql.user = user;
    index.mysql.password_file = password_file;
    let made = || -> anyhow::Result<String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(runtime.block_on(index::Index::migrate(&index))?.join("\n"))
    };
    ended(made())
}
