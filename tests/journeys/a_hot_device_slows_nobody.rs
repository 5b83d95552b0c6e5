//! A device that floods the gateway gets its rate and no more; the others do not wait for it, and memory stays as it is.

use std::fs;

use sandbox::harness::benchmark;
use serde_json::Value as Json;

use crate::sandboxes::folder;

/// The flood is measured for so long.
const SECONDS: &str = "6";
/// What a machine that does something else as well may add to the usual answer meanwhile, in milliseconds.
const BUSY_MS: f64 = 50.0;
/// The slowest hundredth is an answer or two: one sync that stalls makes it. It is no longer than such a stall.
const STALL_MAX_MS: f64 = 8_000.0;

/// What a gateway and a fleet of thirty came to, with these flags.
fn fleet(flags: &[&str]) -> Json {
    let scratch = tempfile::tempdir_in(folder()).expect("the test may write to its folder");
    let (data, report) = (scratch.path().join("data"), scratch.path().join("report.json"));
    let (data, report) = (data.to_str().expect("UTF-8"), report.to_str().expect("UTF-8"));
    let usual = [
        "--fleet",
        "30",
        "--cadence-s",
        "1",
        "--seconds",
        SECONDS,
        "--data-dir",
        data,
        "--report",
        report,
    ];
    let (passed, printed) = benchmark(env!("CARGO_BIN_EXE_bench").as_ref(), &[&usual[..], flags].concat());
    assert!(passed, "{printed}");
    let report: Json = serde_json::from_str(&fs::read_to_string(report).expect("written")).expect("JSON");
    report["fleets"][0].clone()
}

#[test]
fn the_others_do_not_wait_for_a_hot_device() {
    let number = |figures: &Json, of: &str| figures.pointer(of).and_then(Json::as_f64).expect("a number");
    let calm = fleet(&[]);
    let hot = fleet(&["--hot", "1000"]);
    let seconds = number(&hot, "/measured_s") + number(&hot, "/connected_s") + 1.0;
    let (taken, burst) = (number(&hot, "/hot_acknowledged"), number(&hot, "/hot_limit/burst"));
    let allowed = burst + number(&hot, "/hot_limit/messages_per_s") * seconds;
    // Without a limit it would get several times as much: it is this that fails then, whatever the others see of it.
    // Its burst may be over before the last of the others is connected and counting begins.
    assert!((1.0..=allowed).contains(&taken), "it is held back, and heard: {hot}");
    let (with, without) = (number(&hot, "/puback_p50_ms"), number(&calm, "/puback_p50_ms"));
    assert!(
        with <= 3.0 * without + BUSY_MS,
        "{with} ms instead of {without} ms: {hot}"
    );
    let slowest = number(&hot, "/puback_p99_ms");
    assert!(slowest < STALL_MAX_MS, "{slowest} ms: {hot}");
    let (with, without) = (
        number(&hot, "/gateway/rss_peak_bytes"),
        number(&calm, "/gateway/rss_peak_bytes"),
    );
    assert!(with <= 2.0 * without, "{with} bytes instead of {without}");
    assert_eq!(hot["unexpected"], 0);
}
