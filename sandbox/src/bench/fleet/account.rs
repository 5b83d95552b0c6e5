//! What one fleet came to, and the accounts of fleet and gateway that say so.

use std::{collections::BTreeMap, fmt, fs, path::Path};

use serde::{Deserialize, Serialize};

/// What the gateway takes of one device.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Limit {
    pub(super) burst: u32,
    pub(super) messages_per_s: u32,
}

/// What one fleet came to.
#[derive(Debug, Serialize)]
pub(super) struct Figures {
    pub(super) devices: u32,
    /// From the first connection to the last.
    pub(super) connected_s: f64,
    /// How long it was measured then.
    pub(super) measured_s: f64,
    /// Readings acknowledged meanwhile.
    pub(super) acknowledged: u64,
    pub(super) acknowledged_per_s: f64,
    /// Of all devices; of the others, if one is hot.
    pub(super) puback_p50_ms: f64,
    pub(super) puback_p99_ms: f64,
    /// From the device's clock to a receipt that the gateway has checked; none without fog nodes.
    pub(super) final_p50_ms: Option<f64>,
    pub(super) final_p99_ms: Option<f64>,
    /// Readings that became final meanwhile.
    pub(super) final_per_s: Option<f64>,
    /// Readings in the spool when the time was over.
    pub(super) spooled: u64,
    /// Readings of the hot device that were acknowledged.
    pub(super) hot_acknowledged: Option<u64>,
    /// What may be acknowledged of it.
    pub(super) hot_limit: Option<Limit>,
    pub(super) gateway: Use,
    pub(super) fleet: Use,
    /// Mosquitto, if it is between them.
    pub(super) broker: Option<Use>,
    /// All fog nodes together; memory and files of the one that has most.
    pub(super) nodes: Option<Use>,
    /// What became of all readings, as the fleet says at its end.
    pub(super) unanswered: u64,
    pub(super) unexpected: u64,
    /// Numbers that the gateway misses.
    pub(super) gaps: u64,
    /// Numbers for which a device had no room, so that it never sent them.
    pub(super) unkept: u64,
    pub(super) load_average: Option<f64>,
}

/// What a process uses.
#[derive(Debug, Serialize)]
pub(super) struct Use {
    pub(super) rss_peak_bytes: u64,
    pub(super) open_files: usize,
    /// Of one processor, while it was measured.
    pub(super) processor_percent: f64,
}

/// What the fleet's `status.json` says that is looked at here.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Status {
    pub(super) connected: u64,
    pub(super) published: u64,
    pub(super) acknowledged: u64,
    pub(super) refused: u64,
    pub(super) unkept: u64,
    pub(super) unexpected: u64,
    pub(super) latency_ms: Latency,
    pub(super) profiles: BTreeMap<String, Part>,
}

/// What the gateway's `/status` says of numbers that did not come.
#[derive(Debug, Deserialize)]
pub(super) struct GatewayStatus {
    pub(super) gaps: Vec<Gap>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Gap {
    pub(super) missing: Vec<(u64, u64)>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Part {
    pub(super) acknowledged: u64,
    pub(super) latency_ms: Latency,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Latency {
    pub(super) publish_to_puback: Percentiles,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Percentiles {
    pub(super) p50: f64,
    pub(super) p99: f64,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |process: &Use| {
            format!(
                "{} MB, {} files, {:.0} % of a processor",
                process.rss_peak_bytes / 1_000_000,
                process.open_files,
                process.processor_percent
            )
        };
        write!(
            f,
            "{} devices: connected in {:.1} s; {:.0} readings/s for {:.0} s, to PUBACK p50 {:.1} ms, p99 {:.1} ms; gateway {}; \
             fleet {}; {} without an answer, {} gaps; load {:.1}",
            self.devices,
            self.connected_s,
            self.acknowledged_per_s,
            self.measured_s,
            self.puback_p50_ms,
            self.puback_p99_ms,
            of(&self.gateway),
            of(&self.fleet),
            self.unanswered,
            self.gaps,
            self.load_average.unwrap_or_default()
        )?;
        match self.hot_acknowledged {
            Some(hot) => write!(f, "; the hot device got {hot} acknowledged"),
            None => Ok(()),
        }
    }
}

/// The fleet's own account; nothing yet if there is none.
pub(super) fn status(file: &Path) -> Status {
    let text = fs::read(file).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

/// A column for each fleet.
pub(super) fn table(fleets: &[Figures]) -> String {
    type Row = (&'static str, fn(&Figures) -> String);
    const ROWS: [Row; 15] = [
        ("devices", |of| of.devices.to_string()),
        ("all connected after, s", |of| format!("{:.1}", of.connected_s)),
        ("readings/s", |of| format!("{:.0}", of.acknowledged_per_s)),
        ("publish to PUBACK, p50 ms", |of| format!("{:.1}", of.puback_p50_ms)),
        ("    p99 ms", |of| format!("{:.1}", of.puback_p99_ms)),
        ("publish to final, p50 ms", |of| optional(of.final_p50_ms)),
        ("    p99 ms", |of| optional(of.final_p99_ms)),
        ("final readings/s", |of| optional(of.final_per_s)),
        ("gateway: memory, peak MB", |of| megabytes(&of.gateway)),
        ("gateway: open files", |of| of.gateway.open_files.to_string()),
        ("gateway: % of a processor", |of| {
            format!("{:.0}", of.gateway.processor_percent)
        }),
        ("broker: memory, peak MB", |of| {
            of.broker.as_ref().map_or_else(|| "-".to_owned(), megabytes)
        }),
        ("fog nodes: the most memory, peak MB", |of| {
            of.nodes.as_ref().map_or_else(|| "-".to_owned(), megabytes)
        }),
        ("fog nodes: % of a processor, all", |of| {
            optional(of.nodes.as_ref().map(|nodes| nodes.processor_percent))
        }),
        ("simulator: memory, peak MB", |of| megabytes(&of.fleet)),
    ];
    let mut text = String::new();
    for (name, of) in ROWS {
        let cells: String = fleets.iter().map(|fleet| format!("{:>12}", of(fleet))).collect();
        text.push_str(&format!("{name:<38}{cells}\n"));
    }
    text
}

fn optional(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.0}"))
}

fn megabytes(of: &Use) -> String {
    (of.rss_peak_bytes / 1_000_000).to_string()
}
