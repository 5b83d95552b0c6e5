//! What an operator reads: logs on standard error, metrics for Prometheus. Never a value, a name or a payload.

use std::{io::IsTerminal as _, time::Duration};

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

/// How often old samples are folded away.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);
/// Upper ends of the histograms' buckets, in seconds: from one sync to an outage.
const BUCKETS_SECONDS: [f64; 14] = [
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 30.0, 300.0,
];

/// The name of the histogram that a promise is measured with, and its finer buckets.
const PUBLISH_TO_FINAL: &str = "gateway_outbox_publish_to_final_seconds";
const PUBLISH_TO_FINAL_SECONDS: [f64; 32] = [
    0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1, 0.12, 0.14, 0.16, 0.18, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5,
    0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 60.0, 600.0, 3_600.0,
];

/// The form of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For machines.
    Json,
}

/// What is logged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Levels by target, as `tracing` filters are written.
    pub filter: String,
    /// The form of a line.
    pub format: Format,
}

impl Default for Config {
    fn default() -> Self {
        // What a stranger's connection makes the broker and TLS say is counted in metrics instead.
        Self {
            filter: "info,rmqtt=error,rmqtt_net=error,rumqttc=error,rustls=error".to_owned(),
            format: Format::Text,
        }
    }
}

impl Config {
    /// The filter, parsed.
    ///
    /// # Errors
    /// What is wrong with its text.
    pub fn parsed_filter(&self) -> Result<EnvFilter, String> {
        EnvFilter::try_new(&self.filter).map_err(|e| e.to_string())
    }
}

/// Starts logging; a second start in one process changes nothing.
pub fn log(config: &Config) {
    let filter = config.parsed_filter().unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    let _already_started = match config.format {
        Format::Text => lines.try_init(),
        Format::Json => lines.json().try_init(),
    };
}

/// Starts recording metrics; the handle renders them.
///
/// # Errors
/// [`BuildError`] if the process records elsewhere already.
pub fn record() -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &BUCKETS_SECONDS)?
        .set_buckets_for_metric(Matcher::Full(PUBLISH_TO_FINAL.to_owned()), &PUBLISH_TO_FINAL_SECONDS)?
        .install_recorder()?;
    Ok(handle)
}

/// Folds old samples away for as long as it is polled.
pub async fn upkeep(handle: PrometheusHandle) {
    loop {
        tokio::time::sleep(UPKEEP_EVERY).await;
        handle.run_upkeep();
    }
}
