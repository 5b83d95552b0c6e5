//! What a device tells whoever keeps the account of its fleet.

use std::{sync::Arc, time::Duration};

/// What a device has to report.
#[derive(Debug)]
pub(crate) enum Note {
    /// The broker has taken its connection.
    Connected,
    /// The connection is gone.
    Disconnected,
    /// A reading was sent for the first time.
    Published {
        /// For `capture.ndjson`, if that is kept.
        capture: Option<String>,
    },
    /// A reading is acknowledged.
    Acknowledged {
        /// For `acknowledged.ndjson`.
        line: String,
        /// Since it was sent for the first time.
        waited: Duration,
        /// The device's profile, if it has one.
        profile: Option<Arc<str>>,
        /// Whether it had to be refused.
        is_unexpected: bool,
    },
    /// A reading is refused for good.
    Refused {
        /// For `refused.ndjson`.
        line: String,
        /// Whether it had to be taken.
        is_unexpected: bool,
    },
    /// Numbers that nobody can have: for `missing.ndjson`.
    Missing(String),
    /// A reading has used a number and is not sent: no room, or a fault that drops it.
    Unkept,
    /// What had been acknowledged before was sent once more, and answered.
    Replayed {
        /// Whether the answer was a refusal.
        is_unexpected: bool,
    },
}
