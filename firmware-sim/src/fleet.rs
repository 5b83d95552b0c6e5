//! All devices of a home (or of a benchmark) in one process, and the account of what they sent and got acknowledged.

mod latency;
mod status;

use std::{io, sync::Arc, time::Duration};

use tokio::{
    sync::mpsc,
    task::{JoinHandle, JoinSet},
    time,
};
use tokio_util::sync::CancellationToken;

use crate::device::{self, Home, Parts};
use status::Status;
pub use status::Summary;

/// Notes that wait to be counted; devices wait when the disk is slower than they are.
const NOTES_MAX: usize = 8_192;
/// After the stop the devices have so long to get their last acknowledgements.
pub const FAREWELL: Duration = Duration::from_secs(30);
// A broker that comes back just after the stop is noticed only when the longest back-off ends; then connecting and the
// answers take their time.
const _: () = assert!(
    FAREWELL.as_millis() >= 2 * device::LONGEST_MS as u128,
    "the farewell ends before a device tries again"
);

/// Why a fleet ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// `status.json` or `acknowledged.ndjson` cannot be written.
    #[error("cannot write the fleet's account: {0}")]
    Account(#[source] io::Error),
    /// A device cannot make its boot counter durable.
    #[error("a device cannot start: {0}")]
    Device(#[source] io::Error),
}

/// Devices that are ready to be switched on.
pub(crate) struct Fleet {
    pub(crate) home: Home,
    pub(crate) devices: Vec<Parts>,
}

impl Fleet {
    /// Runs all devices until `stop`; then no device measures any more and the last acknowledgements are awaited.
    pub(crate) async fn run(self, stop: CancellationToken) -> Result<Summary, FleetError> {
        let status = Status::open(&self.home.data_dir, self.devices.len(), self.home.captures)
            .await
            .map_err(FleetError::Account)?;
        let (notes, inbox) = mpsc::channel(NOTES_MAX);
        let mut account = tokio::spawn(status.keep(inbox));
        let mut devices = JoinSet::new();
        let home = Arc::new(self.home);
        for parts in self.devices {
            devices.spawn(device::run(parts, home.clone(), notes.clone(), stop.clone()));
        }
        drop(notes);
        let outcome = tokio::select! {
            error = first_failure(&mut devices) => Err(FleetError::Device(error)),
            written = &mut account => return written_down(written),
            () = stop.cancelled() => Ok(()),
        };
        stop.cancel();
        let ended = async { while devices.join_next().await.is_some() {} };
        if time::timeout(FAREWELL, ended).await.is_err() {
            tracing::warn!(
                devices = devices.len(),
                "devices were switched off with readings unacknowledged"
            );
        }
        // Dropping the last device closes the inbox, and with it the account.
        devices.shutdown().await;
        let summary = finish(account).await;
        outcome.and(summary)
    }
}

async fn first_failure(devices: &mut JoinSet<io::Result<()>>) -> io::Error {
    while let Some(ended) = devices.join_next().await {
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return error,
            Err(error) => return io::Error::other(error),
        }
    }
    std::future::pending().await
}

async fn finish(account: JoinHandle<io::Result<Summary>>) -> Result<Summary, FleetError> {
    written_down(account.await)
}

fn written_down(written: Result<io::Result<Summary>, tokio::task::JoinError>) -> Result<Summary, FleetError> {
    written
        .unwrap_or_else(|error| Err(io::Error::other(error)))
        .map_err(FleetError::Account)
}
