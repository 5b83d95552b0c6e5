//! Grants in force -> [`Permit`]: the proof, asked for by everything that reads a record, that its reader may.

use record::ids::{KeyId, OrganizationId};

use crate::{block::Height, state::State};

/// Proof that, at a height, an organisation may read what a subject key opens. Only [`authorize`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permit {
    reader: OrganizationId,
    key: KeyId,
    height: Height,
}

impl Permit {
    /// Who may read.
    #[must_use]
    pub const fn reader(&self) -> &OrganizationId {
        &self.reader
    }

    /// What the key opens may be read.
    #[must_use]
    pub const fn key(&self) -> KeyId {
        self.key
    }

    /// At which height the grant was found.
    #[must_use]
    pub const fn height(&self) -> Height {
        self.height
    }
}

/// No grant was found; the default.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reader} has no grant for this record; its custodian can give one")]
pub struct Denied {
    reader: OrganizationId,
}

/// Whether an organisation may read what a key opens: its custodian may, and who holds a grant; everybody else may not.
///
/// # Errors
/// [`Denied`].
pub fn authorize(state: &State, reader: &OrganizationId, key: &KeyId) -> Result<Permit, Denied> {
    let is_custodian = state.subject_key(key).is_some_and(|k| k.custodian == *reader);
    if is_custodian || state.is_granted(key, reader) {
        Ok(Permit {
            reader: reader.clone(),
            key: *key,
            height: state.height(),
        })
    } else {
        Err(Denied { reader: reader.clone() })
    }
}
