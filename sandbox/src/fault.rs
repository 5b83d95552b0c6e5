//! Why the sandbox stops: bad usage (exit 64), or something that failed (exit 1).

use std::{io, path::PathBuf, process::ExitCode};

/// Exit code of bad usage or configuration (EX_USAGE).
pub const EXIT_USAGE: u8 = 64;

/// Why the sandbox stops.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// What was asked for cannot be done; every reason at once, found before anything was started.
    #[error("{}", .0.join("\n"))]
    Usage(Vec<String>),
    /// A file or folder of the run cannot be read or written.
    #[error("{path}: {source}", path = .path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A key, certificate, keyring or token could not be made.
    #[error("{what} could not be made: {source}")]
    Identity {
        /// Which one.
        what: &'static str,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A process did not come up, or the network did not take what founds it.
    #[error("{0}")]
    Start(String),
    /// What the benchmark was to measure did not happen.
    #[error("{0}")]
    Measure(String),
    /// The user asked to stop before everything was ready.
    #[error("stopped before everything was ready")]
    Interrupted,
}

impl Fault {
    /// A closure for `map_err` that names the file.
    pub fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }

    /// A closure for `map_err` that names what was being made.
    pub fn identity<E>(what: &'static str) -> impl FnOnce(E) -> Self
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        move |source| Self::Identity {
            what,
            source: source.into(),
        }
    }

    /// The exit code the command ends with.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) => ExitCode::from(EXIT_USAGE),
            _ => ExitCode::FAILURE,
        }
    }
}
