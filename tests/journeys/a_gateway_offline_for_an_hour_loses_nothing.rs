//! A gateway that reaches no fog node keeps what it acknowledges, and hands it in when they are back; what is new does not wait for it.

use std::fs;

use sandbox::harness::benchmark;
use serde_json::Value as Json;

use crate::sandboxes::folder;

/// Readings of each of the fifty devices; by hand it is 3,600, an hour's.
const READINGS: u64 = 200;

#[test]
fn stored_readings_come_once_and_new_ones_do_not_wait() {
    let scratch = tempfile::tempdir_in(folder()).expect("the test may write to its folder");
    let (data, report) = (scratch.path().join("data"), scratch.path().join("report.json"));
    let (data, report) = (data.to_str().expect("UTF-8"), report.to_str().expect("UTF-8"));
    let readings = READINGS.to_string();
    let flags = ["--hour", &readings, "--data-dir", data, "--report", report];
    let (_within_bounds, printed) = benchmark(env!("CARGO_BIN_EXE_bench").as_ref(), &flags);
    let report = fs::read_to_string(report).unwrap_or_else(|_| panic!("no report:\n{printed}"));
    let report: Json = serde_json::from_str(&report).expect("JSON");
    assert_eq!(report["failures"], Json::Array(Vec::new()), "{printed}");
    let number = |of: &str| report.pointer(of).and_then(Json::as_f64).expect("a number");
    assert!(number("/hour/spooled") >= 50.0 * READINGS as f64, "{report}");
    assert_eq!(number("/hour/outcome/lost") + number("/hour/outcome/duplicates"), 0.0);
    assert!(number("/hour/outcome/acknowledged") > 50.0 * READINGS as f64);
    // While the spool drains new ones are final, too; how soon is said by hand, on a machine that does nothing else.
    assert!(number("/hour/draining/final_new") > 0.0, "{report}");
}
