//! The gateway's process: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    gateway::command::main(std::env::args_os())
}
