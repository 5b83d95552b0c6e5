//! The sandbox command; started as fog-node, gateway or firmware-sim it is that command.

use std::process::ExitCode;

fn main() -> ExitCode {
    sandbox::command::main(std::env::args_os())
}
