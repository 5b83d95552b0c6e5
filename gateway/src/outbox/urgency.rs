//! How soon a reading has to reach the fog: an alarm at once, what was measured days ago when there is time.

use serde::{Deserialize, Serialize};

/// How soon a reading, or the bundle it is in, has to reach the fog. Readings of different urgency never share a bundle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Urgency {
    /// A fall, an alarm: committed without waiting for others, and first in the uplink.
    Alarm,
    /// Measured just now, or nobody knows when.
    #[default]
    Live,
    /// Measured long before it came: a device hands in what it has stored.
    Backfill,
}

impl Urgency {
    /// As people read it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Alarm => "alarm",
            Self::Live => "live",
            Self::Backfill => "backfill",
        }
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands the field itself")]
    pub(super) fn is_live(&self) -> bool {
        *self == Self::Live
    }
}
