//! Starts a fog node.

use std::process::ExitCode;

fn main() -> ExitCode {
    fog_node::command::main(std::env::args_os())
}
