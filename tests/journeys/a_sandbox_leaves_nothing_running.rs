//! However a sandbox ends, its processes end with it; and what cannot be started says so before anything is.

use std::net::TcpListener;

use sandbox::{
    children::{self, is_running},
    harness::{Builder, Sandbox},
};

use crate::sandboxes::{calm, folder, program};

/// A node, a gateway and a fleet: all kinds of processes there are.
fn small(label: &str) -> Builder {
    Sandbox::builder(program(), folder(), label).nodes(1).devices(2)
}

fn pids(sandbox: &Sandbox) -> Vec<u32> {
    let report = sandbox.report();
    let nodes = report.nodes.iter().map(|node| &node.process);
    nodes
        .chain([&report.gateway.process, &report.fleet.process])
        .map(|process| process.pid.expect("it runs"))
        .collect()
}

/// Nothing asks the processes to end: they see that the sandbox is gone.
fn nothing_outlives(label: &str, end: impl Fn(u32)) {
    let sandbox = small(label).start();
    let pids = pids(&sandbox);
    assert!(pids.len() == 3 && pids.iter().all(|pid| is_running(*pid)));
    end(sandbox.pid());
    assert!(!sandbox.wait_until_stopped(), "it has failed");
    sandbox.wait_for("every process has ended", || !pids.iter().any(|pid| is_running(*pid)));
}

/// The sandbox stops its processes itself, and none has to be killed.
fn everything_ends_in_order(sandbox: &Sandbox, ask: impl Fn(u32)) {
    let pids = pids(sandbox);
    ask(sandbox.pid());
    assert!(sandbox.wait_until_stopped(), "{}", sandbox.printed());
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
fn a_killed_sandbox_leaves_nothing_running() {
    nothing_outlives("killed", children::kill);
}

#[test]
fn a_panicked_sandbox_leaves_nothing_running() {
    // The hook of a panic ends the process by this signal, and nothing else of it runs after that.
    nothing_outlives("panicked", children::abort);
}

#[test]
fn ctrl_c_stops_everything_in_order() {
    everything_ends_in_order(&small("interrupted").start(), children::interrupt);
}

#[test]
fn a_closed_terminal_stops_everything_in_order() {
    everything_ends_in_order(&small("hung-up").start(), children::hang_up);
}

#[test]
fn what_the_user_exported_moves_nothing() {
    let elsewhere = folder().join("exported-elsewhere");
    let path = elsewhere.to_str().expect("UTF-8");
    let sandbox = small("exported")
        .exported("FOG_DATA_DIR", path)
        .exported("GATEWAY_DATA_DIR", path)
        .start();
    let report = sandbox.report();
    assert!(report.nodes[0].data_dir.join("chain.redb").exists());
    assert!(report.gateway.data_dir.join("outbox.redb").exists());
    assert!(!elsewhere.exists());
    everything_ends_in_order(&sandbox, children::terminate);
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
