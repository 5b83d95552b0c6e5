//! However a sandbox ends, its processes end with it; and what cannot be started says so before anything is.

use std::{net::TcpListener, path::Path, time::Duration};

use sandbox::{children, harness::Sandbox};

use crate::sandboxes::{calm, folder, program};

fn small(label: &str) -> Sandbox {
    Sandbox::builder(program(), folder(), label).devices(2).start()
}

fn pids(sandbox: &Sandbox) -> Vec<u32> {
    let report = sandbox.report();
    let nodes = report.nodes.iter().map(|node| &node.process);
    nodes
        .chain([&report.gateway.process, &report.fleet.process])
        .map(|process| process.pid.expect("it runs"))
        .collect()
}

fn is_running(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

#[test]
fn a_killed_sandbox_leaves_nothing_running() {
    let sandbox = small("killed");
    let pids = pids(&sandbox);
    assert!(pids.len() == 6 && pids.iter().all(|pid| is_running(*pid)));
    children::kill(sandbox.pid());
    assert!(!sandbox.wait_until_over(Duration::from_secs(10)));
    sandbox.wait_for("every process has ended", || !pids.iter().any(|pid| is_running(*pid)));
}

#[test]
fn ctrl_c_stops_everything_in_order() {
    let sandbox = small("stopped");
    let pids = pids(&sandbox);
    assert!(sandbox.stop(), "{}", sandbox.printed());
    assert!(
        !pids.iter().any(|pid| is_running(*pid)),
        "nothing runs when the sandbox has ended"
    );
    let report = sandbox.report();
    assert_eq!(
        (report.passed, report.failures),
        (None, Vec::new()),
        "and nothing had to be killed"
    );
}

#[test]
fn a_taken_port_is_named_and_nothing_starts() {
    let (port, _listener) = (9_001..9_900)
        .find_map(|port| Some((port, TcpListener::bind(("127.0.0.1", port)).ok()?)))
        .expect("one of many ports is free");
    let data = calm().scratch().join("never");
    let base = (port - 1).to_string();
    let (passed, printed) = calm().command(&["--port-base", &base, "--data-dir", data.to_str().expect("UTF-8")]);
    assert!(
        !passed && printed.contains(&format!("port {port}")) && printed.contains("--port-base"),
        "{printed}"
    );
    assert!(!data.exists());
}
