//! fog-node
fn main() {}
