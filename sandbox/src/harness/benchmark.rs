//! The benchmark as a test runs it: the real program, on ports of its own, until it ends.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use super::bases::Base;
use crate::lifeline;

/// Fog nodes, as many as it has by itself.
const NODES: u16 = 4;

/// Runs the benchmark, which ends by itself (each of its steps has a limit), and returns whether it succeeded, and what it
/// printed.
///
/// # Panics
/// If the program cannot be executed.
#[must_use]
pub fn benchmark(program: &Path, flags: &[&str]) -> (bool, String) {
    let base = Base::draw(NODES);
    let mut process = Command::new(program)
        .args(flags)
        .args(["--port-base", &base.number.to_string()])
        .env(lifeline::VARIABLE, lifeline::STDIN)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program is built");
    // Held until it has ended: should this process end before, it does so too.
    let _lifeline = process.stdin.take();
    let output = process.wait_with_output().expect("a child can be waited for");
    let printed = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&printed).into_owned())
}
