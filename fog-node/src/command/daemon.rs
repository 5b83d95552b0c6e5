//! What is said of the vault's daemon: whether its settings keep payloads inside the network, and whether it does what a vault
//! needs.

use std::{path::Path, process::ExitCode};

use super::{EXIT_USAGE, complain, prepare, say};
use crate::{
    config::Faults,
    vault::{self, Driver, kubo},
};

/// Reads the configuration and the files it names, and asks the daemon for its settings, if one is configured.
pub(super) fn check_config(path: &Path) -> ExitCode {
    let (config, _) = match prepare(path) {
        Ok(prepared) => prepared,
        Err(code) => return code,
    };
    let code = settings(path, &config.vault);
    if code == ExitCode::SUCCESS {
        say(format_args!("{}: nothing is wrong", path.display()));
    }
    code
}

/// Puts throw-away payloads to the daemon, step by step, and looks at its settings; says all that was found.
pub(super) fn doctor(path: &Path, collects: bool) -> ExitCode {
    let (config, _) = match prepare(path) {
        Ok(prepared) => prepared,
        Err(code) => return code,
    };
    if config.vault.driver == Driver::Embedded {
        say("vault.driver is \"embedded\": there is no daemon to look at");
        return ExitCode::SUCCESS;
    }
    let Some(findings) = on_a_runtime(kubo::examine(&config.vault.kubo, collects)) else {
        return ExitCode::FAILURE;
    };
    let mut is_well = true;
    for finding in &findings {
        is_well &= finding.result.is_ok();
        say(finding);
    }
    if !is_well {
        return ExitCode::FAILURE;
    }
    let code = settings(path, &config.vault);
    if code == ExitCode::SUCCESS {
        say("ok      its settings keep payloads inside the network");
    }
    code
}

fn settings(path: &Path, config: &vault::Config) -> ExitCode {
    if config.driver == Driver::Embedded {
        return ExitCode::SUCCESS;
    }
    match on_a_runtime(kubo::look_at_settings(&config.kubo)) {
        Some(Ok(wrong)) if wrong.is_empty() => ExitCode::SUCCESS,
        Some(Ok(wrong)) => {
            let mut faults = Faults::default();
            faults.extend(wrong);
            complain(format_args!(
                "{}: the settings of the daemon at vault.kubo.api {} (`ipfs config KEY --json VALUE`, then start it anew):\n{}",
                path.display(),
                config.kubo.api,
                faults.to_string().trim_end()
            ));
            ExitCode::from(EXIT_USAGE)
        }
        Some(Err(failure)) => {
            complain(format_args!(
                "{}: the file is right, but the settings of the daemon at vault.kubo.api {} could not be looked at: {failure}",
                path.display(),
                config.kubo.api
            ));
            ExitCode::FAILURE
        }
        None => ExitCode::FAILURE,
    }
}

fn on_a_runtime<T>(work: impl Future<Output = T>) -> Option<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map(|runtime| runtime.block_on(work)).map_err(complain).ok()
}
