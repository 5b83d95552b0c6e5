//! The gateway is killed while readings flow: nothing acknowledged is missing afterwards, nothing is there twice.

use crate::sandboxes::storm;

#[test]
fn a_killed_gateway_loses_nothing() {
    let storm = storm();
    let report = &storm.report;
    assert!(report.gateway.process.restarts >= 1, "it was killed");
    assert!(
        storm.passed && report.passed == Some(true),
        "{:?}\n{}",
        report.failures,
        storm.printed
    );
    assert!(report.acknowledged > 100, "readings flowed: {}", report.acknowledged);
    assert_eq!((report.final_readings, report.unconfirmed), (report.acknowledged, 0));
    assert_eq!((report.duplicates, report.gaps), (0, 0));
}
