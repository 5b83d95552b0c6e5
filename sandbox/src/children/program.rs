//! What to run: an executable, its arguments, its log, and an environment that does not change how it is configured.

use std::{
    ffi::{OsStr, OsString},
    fs::OpenOptions,
    io::{Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::process::{Child, Command};

use crate::lifeline;

/// How much of the end of a log is shown when a child does not come up.
const LOG_TAIL_BYTES: u64 = 2_048;
/// Variables that begin so override configuration files: ours are complete, and four nodes cannot share one override.
const OVERRIDES: [&str; 2] = ["FOG_", "GATEWAY_"];

/// What to run.
#[derive(Clone, Debug)]
pub struct Program {
    /// What people call the process.
    pub name: String,
    /// The file to execute; its name decides what it is.
    pub executable: PathBuf,
    /// Its arguments.
    pub arguments: Vec<PathBuf>,
    /// The file to which its output is appended.
    pub log: PathBuf,
}

impl Program {
    /// The command as a person would type it.
    #[must_use]
    pub fn command_line(&self) -> Vec<String> {
        let parts = std::iter::once(&self.executable).chain(&self.arguments);
        parts.map(|part| part.display().to_string()).collect()
    }

    /// The same program in a network namespace. `ip` becomes the program, so the process that is started is still its own.
    #[must_use]
    pub fn within(self, namespace: &str) -> Self {
        let words = ["netns", "exec", namespace].map(PathBuf::from);
        Self {
            arguments: words
                .into_iter()
                .chain([self.executable])
                .chain(self.arguments)
                .collect(),
            executable: "ip".into(),
            ..self
        }
    }

    /// The same program on one processor alone. `taskset` becomes the program, so the process that is started is still its own.
    #[must_use]
    pub fn on_processor(self, processor: u16) -> Self {
        let words = ["-c".into(), processor.to_string().into(), self.executable];
        Self {
            arguments: words.into_iter().chain(self.arguments).collect(),
            executable: "taskset".into(),
            ..self
        }
    }

    /// The end of what it printed.
    #[must_use]
    pub fn log_tail(&self) -> String {
        tail(&self.log).unwrap_or_default()
    }

    pub(super) fn spawn(&self) -> std::io::Result<Child> {
        let log = OpenOptions::new().append(true).create(true).open(&self.log)?;
        self.command(std::env::vars_os().map(|(name, _)| name))
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
    }

    /// The command with its environment: what the user has set, without what would change a configuration.
    fn command(&self, inherited: impl Iterator<Item = OsString>) -> Command {
        let mut command = Command::new(&self.executable);
        inherited.filter(|name| overrides(name)).for_each(|name| {
            command.env_remove(name);
        });
        command
            .args(&self.arguments)
            .env(lifeline::VARIABLE, lifeline::STDIN)
            // They speak with each other alone; a proxy of the user's environment must not come between.
            .env("NO_PROXY", "*")
            .env("no_proxy", "*");
        command
    }
}

fn overrides(variable: &OsStr) -> bool {
    OVERRIDES
        .iter()
        .any(|prefix| variable.as_encoded_bytes().starts_with(prefix.as_bytes()))
}

fn tail(log: &Path) -> std::io::Result<String> {
    let mut file = std::fs::File::open(log)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_environment_changes_no_configuration() {
        let exported = ["FOG_DATA_DIR", "GATEWAY_HTTP__LISTEN", "PATH", "FOGGY"].map(OsString::from);
        let program = Program {
            name: "shell".to_owned(),
            executable: "/bin/sh".into(),
            arguments: Vec::new(),
            log: "log".into(),
        };
        let command = program.command(exported.into_iter());
        let removed = command.as_std().get_envs().filter(|(_, value)| value.is_none());
        let removed: Vec<_> = removed.filter_map(|(name, _)| name.to_str()).collect();
        assert_eq!(removed, ["FOG_DATA_DIR", "GATEWAY_HTTP__LISTEN"]);
        let line = program.within("node-a").command_line().join(" ");
        assert_eq!(line, "ip netns exec node-a /bin/sh");
    }
}
