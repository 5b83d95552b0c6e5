//! The figures as a table that people read: a column for each length of history.

use std::fmt::Write as _;

use super::figures::{Figures, Length, Spread, Summary};

/// Width of the column that says what a row is.
const NAMES_WIDTH: usize = 46;
/// Width of a column of figures.
const FIGURES_WIDTH: usize = 24;

type Row = (&'static str, fn(&Length, &Summary) -> String);

const ROWS: [Row; 19] = [
    ("readings of history", |l, _| l.history.to_string()),
    ("blocks, at the comparison", |_, s| range(s.comparison_blocks, 0)),
    ("one bundle until its receipt is checked, p50 ms", |_, s| {
        range(s.p50_ms, 1)
    }),
    ("    p99 ms", |_, s| range(s.p99_ms, 1)),
    ("bundles/s, many in flight", |_, s| range(s.bundles_per_s, 0)),
    ("    blocks/s meanwhile", |_, s| range(s.blocks_per_s, 1)),
    ("    ms of processors a bundle, all nodes", |_, s| {
        range(s.processor_ms_per_bundle, 2)
    }),
    ("20 newest observations of a patient, p50 ms", |_, s| {
        range(s.page_p50_ms, 1)
    }),
    ("start until all nodes are ready, ms", |_, s| range(s.start_ms, 0)),
    ("memory of a node, peak MB", |_, s| {
        range(megabytes(s.rss_peak_bytes), 0)
    }),
    ("    while the history was made", |l, _| {
        (l.filling.rss_peak_bytes / 1_000_000).to_string()
    }),
    ("disk of a node, MB", |l, _| disk(l.disk.total_bytes)),
    ("    chain", |l, _| disk(l.disk.chain_bytes)),
    ("    payloads", |l, _| disk(l.disk.vault_bytes)),
    ("    index", |l, _| disk(l.disk.index_bytes)),
    ("    the engine's own", |l, _| disk(l.disk.consensus_bytes)),
    ("Algorithm 2 literally, ms a comparison", |_, s| {
        range(s.comparison_ms, 0)
    }),
    ("    one bundle that waits for it, ms (times)", |_, s| {
        times(s.with_comparison_ms, s)
    }),
    ("    the same, a block a reading (computed)", |_, s| {
        times(s.with_comparison_computed_ms, s)
    }),
];

/// The whole table, and how it came about.
pub(super) fn text(figures: &Figures) -> String {
    let load = |load: Option<f64>| load.map_or_else(|| "unknown".to_owned(), |load| format!("{load:.1}"));
    let machine = &figures.machine;
    let mut out = format!(
        "\n{} fog nodes on {} processors; {} rounds of {} bundles one at a time, {} in flight for the throughput;\n\
         the middle of the rounds (their range); load average {} before, {} after\n\n",
        figures.nodes,
        machine.processors,
        figures.rounds,
        figures.samples,
        figures.in_flight,
        load(machine.load_average_before),
        load(machine.load_average_after)
    );
    for (name, of) in ROWS {
        let _ = write!(out, "{name:<NAMES_WIDTH$}");
        for length in &figures.lengths {
            let cell = length.summary.as_ref().map(|summary| of(length, summary));
            let _ = write!(out, "{:>FIGURES_WIDTH$}", cell.unwrap_or_default());
        }
        out.push('\n');
    }
    out
}

fn range(of: Spread, digits: usize) -> String {
    let Spread { median, min, max } = of;
    format!("{median:.digits$} ({min:.digits$}-{max:.digits$})")
}

fn megabytes(of: Spread) -> Spread {
    let in_mb = |bytes: f64| bytes / 1e6;
    Spread {
        median: in_mb(of.median),
        min: in_mb(of.min),
        max: in_mb(of.max),
    }
}

fn disk(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / 1e6)
}

fn times(ms: f64, summary: &Summary) -> String {
    format!("{ms:.0} ({:.0}x)", ms / summary.p50_ms.median)
}
