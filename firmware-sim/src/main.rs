//! The devices' process; everything is in the library, so that the sandbox can start it too.

use std::process::ExitCode;

fn main() -> ExitCode {
    firmware_sim::command::main(std::env::args_os())
}
