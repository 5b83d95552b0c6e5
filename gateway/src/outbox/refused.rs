//! Bundles that are not sent as they are: the fog refuses them for good, or this disk has damaged them. They are kept with
//! the reason, count as part of the spool, and go back into the queue by hand only.

use std::collections::VecDeque;

use record::ids::BundleId;
use serde::{Serialize, Serializer};

use super::store::SetAside;

/// Bundles that the status shows.
const SHOWN_MAX: usize = 20;

/// Why a bundle is set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// The fog refuses it for good, and says why.
    Refused(String),
    /// Its bytes are not those that were sealed.
    Damaged,
}

impl Why {
    pub(super) fn sentence(self) -> String {
        match self {
            Self::Refused(reason) => reason,
            Self::Damaged => "damaged: the bytes on the disk are not those that were sealed".to_owned(),
        }
    }
}

/// A bundle that was set aside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refused {
    /// The bundle.
    pub bundle: BundleId,
    /// How many readings it holds.
    pub readings: u32,
    /// How many bytes are kept for it.
    pub bytes: u64,
    /// Why, as the last node to refuse it said.
    #[serde(serialize_with = "one_line")]
    pub reason: String,
    /// When, in milliseconds since 1970.
    pub at_ms: i64,
}

impl Refused {
    pub(super) fn of(aside: &SetAside) -> Self {
        Self {
            bundle: aside.ticket.bundle,
            readings: aside.ticket.readings,
            bytes: aside.ticket.bytes,
            reason: aside.reason.clone(),
            at_ms: aside.at_ms,
        }
    }

    /// The reason without line breaks and other control characters: a node wrote it, and a terminal would obey it.
    #[must_use]
    pub fn reason_in_one_line(&self) -> String {
        self.reason.replace(char::is_control, " ").trim_end().to_owned()
    }
}

#[expect(clippy::ptr_arg, reason = "serde hands the field itself")]
fn one_line<S: Serializer>(reason: &String, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&reason.replace(char::is_control, " ").trim_end())
}

/// What is set aside, as the writer knows it.
#[derive(Debug, Default)]
pub(super) struct Aside {
    bytes: u64,
    recent: VecDeque<Refused>,
}

impl Aside {
    pub(super) fn of(all: Vec<Refused>) -> Self {
        let mut aside = Self::default();
        all.into_iter().for_each(|one| aside.add(one));
        aside
    }

    pub(super) fn add(&mut self, one: Refused) {
        self.bytes += one.bytes;
        self.recent.push_back(one);
        if self.recent.len() > SHOWN_MAX {
            self.recent.pop_front();
        }
    }

    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The last ones, the newest first.
    pub(super) fn recent(&self) -> Vec<Refused> {
        self.recent.iter().rev().cloned().collect()
    }
}
