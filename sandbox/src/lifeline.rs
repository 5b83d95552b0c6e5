//! No process outlives the one that started it: it holds a pipe to its parent, and ends when the pipe closes.
//!
//! The kernel closes the pipe whatever happens to the parent: an exit, a panic, a SIGKILL. A process that ends this way
//! does so at once, as if its power had failed; everything durable is built for that.

use std::{
    io::{self, Read as _},
    process::exit,
    thread,
};

/// The environment variable that asks a process to watch its standard input.
pub const VARIABLE: &str = "VITALFOG_PARENT_PIPE";
/// Its value.
pub const STDIN: &str = "stdin";
/// The exit code of a process whose parent is gone.
const EXIT_ORPHANED: i32 = 1;

/// Watches the parent from a thread of its own, if the environment asks for it.
///
/// # Panics
/// If the system gives no thread: better no process than one that nobody can stop.
#[expect(
    clippy::disallowed_methods,
    reason = "the lifeline is between two processes, not configuration of one"
)]
pub fn watch() {
    if std::env::var(VARIABLE).is_ok_and(|value| value == STDIN) {
        let watch = thread::Builder::new().name("lifeline".to_owned()).spawn(wait_for_end);
        watch.expect("a starting process gets a thread");
    }
}

fn wait_for_end() {
    let mut stdin = io::stdin().lock();
    let mut ignored = [0; 64];
    loop {
        match stdin.read(&mut ignored) {
            Ok(0) => exit(EXIT_ORPHANED),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => exit(EXIT_ORPHANED),
        }
    }
}
