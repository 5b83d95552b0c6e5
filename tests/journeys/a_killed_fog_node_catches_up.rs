//! One of four fog nodes is cut off and killed: finality goes on without it, and started again it reaches the same head.

use std::collections::BTreeSet;

use crate::sandboxes::{VICTIM, storm};

#[test]
fn finality_goes_on_without_one_node() {
    let (before, after) = storm().heights_without_one;
    assert!(after > before, "blocks became final: {before} to {after}");
}

#[test]
fn a_killed_fog_node_catches_up() {
    let storm = storm();
    let nodes = &storm.report.nodes;
    let victim = nodes
        .iter()
        .find(|node| node.name == VICTIM)
        .expect("it is one of the nodes");
    assert_eq!(victim.process.restarts, 1, "it was killed once");
    assert!(storm.passed, "{:?}\n{}", storm.report.failures, storm.printed);
    assert!(
        victim.height > Some(storm.heights_without_one.1),
        "it has what became final without it"
    );
    // Each node's own words, when all were asked at the same height.
    let heads: BTreeSet<_> = nodes
        .iter()
        .map(|node| (node.height, node.head, node.state_digest))
        .collect();
    assert!(heads.len() == 1 && victim.state_digest.is_some(), "{heads:?}");
}
