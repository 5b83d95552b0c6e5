//! What a device tells whoever keeps the account of its fleet.

use std::time::Duration;

/// What a device has to report.
#[derive(Debug)]
pub(crate) enum Note {
    /// The broker has taken its connection.
    Connected,
    /// The connection is gone.
    Disconnected,
    /// A reading was sent for the first time.
    Published,
    /// A reading is acknowledged.
    Acknowledged {
        /// For `acknowledged.ndjson`.
        line: String,
        /// Since it was sent for the first time.
        waited: Duration,
    },
    /// A reading is refused for good.
    Refused,
    /// A reading has used a number and is not sent: no room, or a fault that drops it.
    Unkept,
}
