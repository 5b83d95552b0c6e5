//! Where the next page of a search begins, as an opaque text.

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ledger::block::Height;

use super::{Error, Row};

/// Where the next page begins, and in which state of the index. Opaque to callers; it grants nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    pub(super) effective_ms: i64,
    pub(super) id: [u8; 16],
    pub(super) height: Height,
}

/// A cursor that this software has not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a cursor of this server: follow the `next` link as it was given")]
pub struct BadCursor;

/// First byte of a cursor's encoding.
const CURSOR_VERSION: u8 = 1;

impl Cursor {
    /// The height as of which the pages are cut.
    #[must_use]
    pub const fn height(&self) -> Height {
        self.height
    }

    /// After the given row.
    pub(super) fn after(row: &Row, height: Height) -> Result<Self, Error> {
        let mut id = [0; 16];
        hex::decode_to_slice(&row.id, &mut id).map_err(|_| Error::Damaged("id"))?;
        Ok(Self {
            effective_ms: row.effective_ms,
            id,
            height,
        })
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            &[CURSOR_VERSION][..],
            &self.effective_ms.to_be_bytes(),
            &self.id,
            &self.height.0.to_be_bytes(),
        ];
        f.write_str(&URL_SAFE_NO_PAD.encode(parts.concat()))
    }
}

impl FromStr for Cursor {
    type Err = BadCursor;

    fn from_str(text: &str) -> Result<Self, BadCursor> {
        let mut bytes = [0; 33];
        let length = URL_SAFE_NO_PAD.decode_slice(text, &mut bytes).map_err(|_| BadCursor)?;
        if length != bytes.len() || bytes[0] != CURSOR_VERSION {
            return Err(BadCursor);
        }
        let (effective_ms, rest) = bytes[1..].split_first_chunk().ok_or(BadCursor)?;
        let (id, rest) = rest.split_first_chunk().ok_or(BadCursor)?;
        let (height, _) = rest.split_first_chunk().ok_or(BadCursor)?;
        let height = Height(u64::from_be_bytes(*height));
        Ok(Self {
            effective_ms: i64::from_be_bytes(*effective_ms),
            id: *id,
            height,
        })
    }
}
