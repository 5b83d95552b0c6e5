//! A run whose processes broke down has not kept every promise, even if no reading was lost; one that was killed may have.

use std::time::Duration;

use sandbox::{
    children,
    harness::{END_MAX, Sandbox},
};

use crate::sandboxes::{folder, program};

/// Long enough for the gateway to be back.
const RUN: Duration = Duration::from_secs(20);

#[test]
fn a_breakdown_breaks_the_promise() {
    let sandbox = Sandbox::builder(program(), folder(), "breakdown")
        .nodes(1)
        .devices(2)
        .run_for(RUN)
        .start();
    let before = sandbox.process("gateway");
    children::abort(before.pid.expect("it runs"));
    assert!(!sandbox.wait_until_over(RUN + END_MAX), "{}", sandbox.printed());
    let report = sandbox.report();
    assert_eq!(report.passed, Some(false));
    assert!(
        report.failures.len() == 1 && report.failures[0].starts_with("gateway broke down (signal: 6"),
        "{:?}",
        report.failures
    );
    assert_eq!((report.gaps, report.duplicates), (0, 0), "nothing else is wrong");
    assert!(report.acknowledged > 0);
}
