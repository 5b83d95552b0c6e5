//! Ctrl-C, SIGTERM and a closed terminal: the first asks a run to stop in order, the second ends it at once.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::fault::Fault;

/// The exit code after a second Ctrl-C.
const EXIT_IMPATIENT: i32 = 130;

/// Cancelled by Ctrl-C, SIGTERM or a closed terminal; a second of these ends the process at once, and with it all others.
///
/// # Errors
/// [`Fault::Start`] if the system lets no signals be received.
pub fn listen() -> Result<CancellationToken, Fault> {
    let interrupted = CancellationToken::new();
    let token = interrupted.clone();
    let listen = |kind| signal(kind).map_err(|e| Fault::Start(format!("signals cannot be received: {e}")));
    let (mut int, mut term) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    let mut hangup = listen(SignalKind::hangup())?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = int.recv() => {}
                _ = term.recv() => {}
                _ = hangup.recv() => {}
            }
            if token.is_cancelled() {
                std::process::exit(EXIT_IMPATIENT);
            }
            token.cancel();
        }
    });
    Ok(interrupted)
}
