//! What an operator sees: events on standard error and the text of `/metrics`. Never a measured value, a name or a payload.

use std::{fmt, time::Duration};

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use serde::{Deserialize, Serialize};
use tracing_subscriber::{EnvFilter, util::TryInitError};

/// Upper bounds of the buckets of every `_seconds` histogram: from one commit to a lost night.
const SECONDS_BUCKETS: [f64; 18] = [
    0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 600.0, 3_600.0,
];
/// How often recorded samples are moved into their buckets when nobody scrapes.
const UPKEEP: Duration = Duration::from_secs(5);

/// How events are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Lines for people.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

/// What is written, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Which events, as tracing's `EnvFilter` reads it: `info`, `info,fog_node::vault=debug`.
    pub filter: String,
    /// How they are written.
    pub format: Format,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            // The engine's own spans and notes are for those who look for them.
            filter: "info,commonware=warn".to_owned(),
            format: Format::Human,
        }
    }
}

impl Config {
    /// What is wrong with it, each with the key to change.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let parsed = EnvFilter::try_new(&self.filter);
        parsed
            .err()
            .map(|e| format!("telemetry.filter {:?}: {e}", self.filter))
            .into_iter()
            .collect()
    }
}

/// Why the process cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter does not parse.
    #[error("telemetry.filter: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// Events go elsewhere already: started twice in one process.
    #[error("events cannot be written: {0}")]
    Events(#[from] TryInitError),
    /// Metrics go elsewhere already: started twice in one process.
    #[error("metrics cannot be recorded: {0}")]
    Metrics(#[from] BuildError),
}

/// The recorder of this process. Clones share it.
#[derive(Clone)]
pub struct Telemetry(PrometheusHandle);

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Telemetry(..)")
    }
}

impl Telemetry {
    /// Starts writing events and recording metrics, once in a process.
    ///
    /// # Errors
    /// [`Error`].
    pub fn start(config: &Config) -> Result<Self, Error> {
        use tracing_subscriber::util::SubscriberInitExt as _;
        let events = tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::try_new(&config.filter)?)
            .with_writer(std::io::stderr)
            .with_target(true);
        match config.format {
            Format::Human => events.with_ansi(false).finish().try_init()?,
            Format::Json => events.json().flatten_event(true).finish().try_init()?,
        }
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS_BUCKETS)?
            .install_recorder()?;
        Ok(Self(recorder))
    }

    /// The text of `/metrics`.
    #[must_use]
    pub fn render(&self) -> String {
        self.0.render()
    }

    /// Keeps the memory of unscraped samples bounded; runs until it is dropped.
    pub async fn keep_up(self) {
        let mut ticks = tokio::time::interval(UPKEEP);
        loop {
            ticks.tick().await;
            self.0.run_upkeep();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_does_not_parse_is_named() {
        assert_eq!(Config::default().faults(), Vec::<String>::new());
        let config = Config {
            filter: "fog_node=loudly".to_owned(),
            ..Config::default()
        };
        assert!(config.faults()[0].contains("telemetry.filter"));
        assert!(matches!(Telemetry::start(&config), Err(Error::Filter(_))));
    }
}
