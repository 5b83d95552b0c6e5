//! The benchmark command; started as fog-node it is that command, as the sandbox is.

use std::process::ExitCode;

fn main() -> ExitCode {
    sandbox::bench::main(std::env::args_os())
}
