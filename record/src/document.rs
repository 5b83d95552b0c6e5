//! A large record (an X-ray, a PDF), sealed to a subject's key as a stream, and any range of it opened again.
//!
//! A sealed document is a frame of four bytes (the length of the head, big endian), the head, and the body. The head is
//! canonical and says in the clear what the envelope of a bundle says: key, category, epoch, author. Sealed in it (HPKE, the
//! suite of bundles, padded to one size) are a random content key, the media type and the exact length.
//!
//! The body is the content and zeros up to a size that says little ([`padded_bytes`]), cut into segments of [`SEGMENT_BYTES`],
//! each AES-256-GCM under the content key: the STREAM construction of Hoang, Reyhanitabar, Rogaway and Vizár, "Online
//! Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance" (CRYPTO 2015). The nonce is the number of the segment and
//! whether it is the last one, the associated data is the digest of frame and head. So nothing opens in another place, behind
//! another head or cut short, nothing is handed out before its tag was checked, and a range costs its own segments only.

mod head;
mod opener;
mod sealer;
#[cfg(test)]
mod tests;

use std::{fmt, ops::Range, str::FromStr};

use aws_lc_rs::aead::{AES_256_GCM, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};

use crate::canonical::CanonicalError;

pub use self::{
    head::{HEAD_BYTES_MAX, SealedHead},
    opener::{OpenError, Opener, Part},
    sealer::{Padding, SealError, Sealer},
};

/// Version of the sealed form.
pub const VERSION: u8 = 1;
/// Plain bytes of a segment; the last one may have fewer.
pub const SEGMENT_BYTES: u64 = 65_536;
/// Content of one document, at most: what a network takes is less, this bounds what a format may claim.
pub const CONTENT_BYTES_MAX: u64 = 1 << 30;
/// Content is padded to this much at least.
pub const PADDED_BYTES_MIN: u64 = 4_096;
/// Bytes of a media type, at most.
pub const MEDIA_TYPE_BYTES_MAX: usize = 255;
/// What AES-256-GCM adds to a segment.
const TAG_BYTES: u64 = 16;
/// A content key.
const KEY_BYTES: usize = 32;

/// The size that content is padded to: the length's first bits stay and the others become zero, so that of a length of n bits
/// about log2 n are told, for at most 12 % more (PADMÉ of Nikitin, Barman, Lueks, Underwood, Hubaux and Ford, "Reducing Metadata
/// Leakage from Encrypted Files and Communication with PURBs", PoPETs 2019), from [`PADDED_BYTES_MIN`] on.
#[must_use]
pub const fn padded_bytes(bytes: u64) -> u64 {
    let bytes = if bytes < PADDED_BYTES_MIN {
        PADDED_BYTES_MIN
    } else {
        bytes
    };
    let exponent = bytes.ilog2();
    let kept = exponent.ilog2() + 1;
    let mask = (1 << (exponent - kept)) - 1;
    bytes.saturating_add(mask) & !mask
}

/// What kind of document it is, as RFC 9110 writes it: `application/pdf`, `text/plain; charset=utf-8`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MediaType(String);

/// A text that is no media type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a media type is `type/subtype`, perhaps with parameters, of at most {MEDIA_TYPE_BYTES_MAX} visible ASCII characters"
)]
pub struct NoMediaType;

impl MediaType {
    /// The media type as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for MediaType {
    type Error = NoMediaType;

    fn try_from(text: String) -> Result<Self, NoMediaType> {
        let is_token = |part: &str| {
            let tokens = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
            !part.is_empty() && part.bytes().all(tokens)
        };
        let essence = text.split(';').next().unwrap_or_default().trim_end_matches(' ');
        let is_type = essence
            .split_once('/')
            .is_some_and(|(kind, subtype)| is_token(kind) && is_token(subtype));
        let is_header = text.len() <= MEDIA_TYPE_BYTES_MAX && text.bytes().all(|b| (b' '..=b'~').contains(&b));
        if is_type && is_header && !text.ends_with(' ') {
            Ok(Self(text))
        } else {
            Err(NoMediaType)
        }
    }
}

impl FromStr for MediaType {
    type Err = NoMediaType;

    fn from_str(text: &str) -> Result<Self, NoMediaType> {
        Self::try_from(text.to_owned())
    }
}

impl From<MediaType> for String {
    fn from(media_type: MediaType) -> Self {
        media_type.0
    }
}

impl fmt::Display for MediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is said of a document inside its seal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    /// What kind of document it is.
    pub media_type: MediaType,
    /// Exact length of the content.
    pub bytes: u64,
}

/// Where what stands in a sealed document: arithmetic alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    /// Bytes of frame and head.
    head: u64,
    /// Bytes of content and padding.
    padded: u64,
}

impl Layout {
    const fn of(head: u64, content: u64) -> Self {
        let padded = padded_bytes(content);
        Self { head, padded }
    }

    /// The layout of a document with a head and a size, if there is one that [`padded_bytes`] allows.
    fn of_size(head: u64, bytes: u64) -> Option<Self> {
        let body = bytes.checked_sub(head)?;
        let segments = body.div_ceil(SEGMENT_BYTES + TAG_BYTES);
        let padded = body.checked_sub(segments * TAG_BYTES)?;
        let is_padded = padded <= padded_bytes(CONTENT_BYTES_MAX) && padded_bytes(padded) == padded;
        Some(Self { head, padded }).filter(|layout| is_padded && layout.bytes() == bytes)
    }

    const fn segments(self) -> u64 {
        self.padded.div_ceil(SEGMENT_BYTES)
    }

    /// Bytes of the whole sealed document.
    const fn bytes(self) -> u64 {
        self.head + self.padded + self.segments() * TAG_BYTES
    }

    /// Plain bytes of a segment.
    fn plain(self, segment: u64) -> usize {
        let plain = (self.padded - segment * SEGMENT_BYTES).min(SEGMENT_BYTES);
        usize::try_from(plain).expect("a segment is small")
    }

    /// Where these segments stand.
    fn sealed(self, segments: Range<u64>) -> Range<u64> {
        let start = |segment| self.bytes().min(self.head + segment * (SEGMENT_BYTES + TAG_BYTES));
        start(segments.start)..start(segments.end)
    }

    /// The number of a segment and whether it is the last one.
    fn nonce(self, segment: u64) -> Nonce {
        let mut nonce = [0; NONCE_LEN];
        let (number, last) = nonce.split_at_mut(NONCE_LEN - 1);
        number[3..].copy_from_slice(&segment.to_be_bytes());
        last[0] = u8::from(segment + 1 == self.segments());
        Nonce::assume_unique_for_key(nonce)
    }
}

fn cipher(content_key: &[u8]) -> Option<LessSafeKey> {
    UnboundKey::new(&AES_256_GCM, content_key).ok().map(LessSafeKey::new)
}

/// Whether a document's bytes belong together: what a voter, who cannot open it, checks.
///
/// # Errors
/// [`CanonicalError`]: no head that we know, or a size that no document of this head has.
pub fn head_of(start: &[u8], bytes: u64) -> Result<SealedHead, CanonicalError> {
    let (head, framed) = SealedHead::read(start)?;
    match Layout::of_size(framed, bytes) {
        Some(_) => Ok(head),
        None => Err(CanonicalError::Malformed(format!(
            "{bytes} bytes are not the size of a sealed document: it was cut, or padded in another way"
        ))),
    }
}
