//! The benchmark runs to its end on a short history, says what it measured, and leaves nothing running.

use std::fs;

use sandbox::harness::benchmark;
use serde_json::Value as Json;

use crate::sandboxes::folder;

/// Whether a process was started with this text among its arguments.
fn anything_runs_with(text: &str) -> bool {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut lines = processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
    lines.any(|line| String::from_utf8_lossy(&line).contains(text))
}

#[test]
fn a_short_benchmark_measures_everything() {
    let scratch = tempfile::tempdir_in(folder()).expect("the test may write to its folder");
    let (data, report) = (scratch.path().join("data"), scratch.path().join("report.json"));
    let (data, report) = (data.to_str().expect("UTF-8"), report.to_str().expect("UTF-8"));
    let flags = [
        "--history",
        "100",
        "--samples",
        "5",
        "--rounds",
        "1",
        "--data-dir",
        data,
        "--report",
        report,
    ];
    let (passed, printed) = benchmark(env!("CARGO_BIN_EXE_bench").as_ref(), &flags);
    assert!(passed, "{printed}");
    assert!(!anything_runs_with(data), "nothing runs when the benchmark has ended");
    let report: Json = serde_json::from_str(&fs::read_to_string(report).expect("written")).expect("JSON");
    let length = &report["lengths"][0];
    // 20 bundles to warm up, 5 one at a time, 20 for the throughput, a reading in each.
    assert_eq!((&length["history"], &length["readings"]), (&100.into(), &145.into()));
    let round = &length["rounds"][0];
    assert_eq!(round["samples_ms"].as_array().map(Vec::len), Some(5));
    for figure in [
        "p50_ms",
        "bundles_per_s",
        "blocks_per_s",
        "processor_ms_per_bundle",
        "rss_peak_bytes",
    ] {
        assert!(
            round[figure].as_f64().is_some_and(|figure| figure > 0.0),
            "{figure}: {round}"
        );
    }
    assert!(round["comparison"]["blocks"].as_u64().is_some_and(|blocks| blocks > 2));
    assert!(length["disk"]["vault_bytes"].as_u64().is_some_and(|bytes| bytes > 0));
    assert!(printed.contains("Algorithm 2 literally"), "{printed}");
}
