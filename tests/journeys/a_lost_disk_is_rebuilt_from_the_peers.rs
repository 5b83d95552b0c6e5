//! The disk of the hospital's node is lost under load; `replace` brings it back from the peers, and it answers as before.

use std::{collections::BTreeSet, fs, path::Path, thread, time::Duration};

use sandbox::{
    children,
    harness::{END_MAX, Sandbox, Visitor},
    report::NodeReport,
};
use serde_json::json;
use tokio::runtime::Runtime;

use crate::sandboxes::{folder, program};

/// The run is ended when all was looked at; by itself it ends only if that comes to nothing.
const RUN_MAX: Duration = Duration::from_secs(1_200);
/// How long readings flow before the disk is lost.
const FLOW: Duration = Duration::from_secs(20);

/// The configuration a node was started with.
fn config(node: &NodeReport) -> &str {
    node.process.command.last().expect("it was started with a file")
}

/// Runs a command of the fog node's on a node's configuration.
fn command(sandbox: &Sandbox, node: &NodeReport, command: &[&str]) -> (bool, String) {
    let arguments = [&["fog-node"], command, &["--config", config(node)]].concat();
    sandbox.command(&arguments)
}

/// Kills the node, deletes all that it had, and rebuilds it; gives what `replace` printed. The sandbox, which would start the
/// node again at once, is held meanwhile, as an operator holds a service.
fn lose_and_replace(sandbox: &Sandbox, node: &NodeReport) -> String {
    let (done, said) = command(sandbox, node, &["replace"]);
    assert!(
        !done && said.contains("is not empty"),
        "a sound node is not replaced: {said}"
    );
    let (pid, copy) = (
        node.process.pid.expect("it runs"),
        sandbox.scratch().join("keyring.copy"),
    );
    children::freeze(sandbox.pid());
    children::kill(pid);
    sandbox.wait_for("the node is dead", || !children::is_running(pid));
    fs::copy(node.data_dir.join("keyring.sealed"), &copy).expect("an operator's copy");
    fs::remove_dir_all(&node.data_dir).expect("the disk is lost");

    // An attempt that ended with its first write.
    fs::create_dir(&node.data_dir).expect("a new disk");
    fs::write(node.data_dir.join("replace.unfinished"), "").expect("writes");
    let (ran, said) = command(sandbox, node, &["run"]);
    assert!(
        !ran && said.contains("run `fog-node replace"),
        "half a node does not run: {said}"
    );

    let keyring = copy.to_str().expect("a path of ours");
    let (done, said) = command(sandbox, node, &["replace", "--keyring", keyring]);
    assert!(done, "{said}");
    assert!(!node.data_dir.join("replace.unfinished").exists() && !node.data_dir.join("consensus").exists());
    children::thaw(sandbox.pid());
    sandbox.wait_for("the node is started again", || {
        sandbox.process(&node.name).restarts == 1
    });
    said
}

/// All that the hospital reads.
async fn observations(visitor: &Visitor) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for patient in &visitor.report.patients {
        let observations = visitor.observations(patient.id).await;
        all.extend(observations.iter().map(ToString::to_string));
    }
    all
}

fn line_of<'a>(text: &'a str, beginning: &str) -> &'a str {
    text.lines()
        .find(|line| line.starts_with(beginning))
        .unwrap_or_default()
}

#[test]
fn a_lost_disk_is_rebuilt_from_the_peers() {
    let sandbox = Sandbox::builder(program(), folder(), "lost-disk")
        .run_for(RUN_MAX)
        .start();
    let runtime = Runtime::new().expect("a runtime");
    let visitor = runtime.block_on(async { sandbox.visitor() });
    thread::sleep(FLOW);
    let node = &visitor.report.nodes[0];
    let height = runtime.block_on(visitor.node(1).head()).expect("answers").height;
    let before = runtime.block_on(observations(&visitor));

    let said = lose_and_replace(&sandbox, node);
    println!("{said}");
    for line in ["head", "state", "blocks", "payloads", "from", "keys", "took"] {
        assert!(!line_of(&said, line).is_empty(), "{line}: {said}");
    }
    let rebuilt: u64 = line_of(&said, "blocks")
        .split_whitespace()
        .nth(1)
        .map_or(0, |count| count.trim_end_matches(',').parse().expect("a number"));
    assert!(rebuilt >= height, "{rebuilt} of at least {height} blocks: {said}");

    sandbox.wait_for("the node is ready", || runtime.block_on(visitor.node(0).is_ready()));
    let after = runtime.block_on(observations(&visitor));
    let lost = before.difference(&after).count();
    assert_eq!(lost, 0, "of {} observations that the hospital had read", before.len());
    let incidents = runtime.block_on(visitor.get(&format!("{}/api/v1/incidents", node.http), None));
    assert_eq!(incidents.json(), json!([]), "nothing is wrong with it");
    let metrics = runtime.block_on(visitor.node(0).metrics()).expect("answers");
    let missing = line_of(&metrics, "fog_retention_payloads_missing_total");
    assert!(missing.is_empty(), "{missing}");
    let (agrees, compared) = command(&sandbox, node, &["verify", "--full"]);
    assert!(agrees, "{compared}");

    children::end_run(sandbox.pid());
    let passed = sandbox.wait_until_over(END_MAX);
    let report = sandbox.report();
    assert!(passed, "{:?}\n{}", report.failures, sandbox.printed());
    assert_eq!(
        report.nodes[0].process.restarts, 1,
        "it was killed once, and never broke down"
    );
    let heads: Vec<_> = report.nodes.iter().map(|node| (node.head, node.state_digest)).collect();
    assert!(
        heads.iter().all(|head| *head == heads[0] && head.0.is_some()),
        "{heads:?}"
    );
    assert!(Path::new(&report.nodes[0].data_dir).join("keyring.sealed").exists());
}
