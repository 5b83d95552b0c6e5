//! Content in, sealed bytes out: what is held is one segment.

use std::fmt;

use aws_lc_rs::aead::{Aad, LessSafeKey};
use zeroize::Zeroizing;

use super::{CONTENT_BYTES_MAX, KEY_BYTES, Layout, Metadata, SEGMENT_BYTES, TAG_BYTES, cipher, head::SealedHead};
use crate::{
    bundle::SubjectKey,
    canonical::Digest,
    ids::{GatewayId, NetworkId},
};

/// Why a document cannot be sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// More than a document may have.
    #[error("a document of {bytes} bytes is too large, at most {CONTENT_BYTES_MAX} are allowed: split it")]
    TooLarge {
        /// How many there are.
        bytes: u64,
    },
    /// More or fewer bytes came than were announced.
    #[error("the content has not the {bytes} bytes that were announced: send it again, with its exact length")]
    OtherLength {
        /// How many were announced.
        bytes: u64,
    },
    /// The cryptographic library failed.
    #[error("the cryptographic library failed (no random numbers, or a malformed key)")]
    Crypto,
}

/// A document that is being sealed.
pub struct Sealer {
    key: LessSafeKey,
    head: Digest,
    layout: Layout,
    /// Content as announced, and how much of it is still to come.
    bytes: u64,
    left: u64,
    /// The segment that is being filled.
    segment: u64,
    plain: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealer({} of {} bytes are to come)", self.left, self.bytes)
    }
}

impl Sealer {
    /// Begins a document of exactly this length, with a content key of its own, and gives the bytes that it begins with.
    ///
    /// # Errors
    /// [`SealError::TooLarge`] or [`SealError::Crypto`].
    pub fn begin(
        network: &NetworkId,
        (author, key): (&GatewayId, &SubjectKey),
        metadata: &Metadata,
    ) -> Result<(Self, Vec<u8>), SealError> {
        let bytes = metadata.bytes;
        if bytes > CONTENT_BYTES_MAX {
            return Err(SealError::TooLarge { bytes });
        }
        let content_key = Zeroizing::new(rand::random::<[u8; KEY_BYTES]>());
        let head = SealedHead::seal((network, author, key), &content_key, metadata).ok_or(SealError::Crypto)?;
        let framed = head.framed();
        let sealer = Self::with(&*content_key, &framed, bytes).ok_or(SealError::Crypto)?;
        Ok((sealer, framed))
    }

    pub(super) fn with(content_key: &[u8], framed: &[u8], bytes: u64) -> Option<Self> {
        Some(Self {
            key: cipher(content_key)?,
            head: SealedHead::digest(framed),
            layout: Layout::of(framed.len() as u64, bytes),
            bytes,
            left: bytes,
            segment: 0,
            plain: Zeroizing::new(Vec::new()),
        })
    }

    /// Bytes that the sealed document will have.
    #[must_use]
    pub const fn sealed_bytes(&self) -> u64 {
        self.layout.bytes()
    }

    /// Takes the next bytes of the content and gives the segments that they complete, if any.
    ///
    /// # Errors
    /// [`SealError::OtherLength`] for more than was announced; [`SealError::Crypto`].
    pub fn push(&mut self, content: &[u8]) -> Result<Vec<u8>, SealError> {
        let bytes = self.bytes;
        self.left = self
            .left
            .checked_sub(content.len() as u64)
            .ok_or(SealError::OtherLength { bytes })?;
        self.fill(content)
    }

    /// All content was pushed: what is left is padding, which comes segment by segment.
    ///
    /// # Errors
    /// [`SealError::OtherLength`] if content is missing.
    pub fn finish(self) -> Result<Padding, SealError> {
        let bytes = self.bytes;
        if self.left == 0 {
            Ok(Padding(self))
        } else {
            Err(SealError::OtherLength { bytes })
        }
    }

    fn fill(&mut self, mut bytes: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut sealed = Vec::new();
        while !bytes.is_empty() {
            let size = self.layout.plain(self.segment);
            if self.plain.capacity() < size {
                // At once: a vector that grows leaves copies behind.
                self.plain = Zeroizing::new(Vec::with_capacity(size));
            }
            let (now, later) = bytes.split_at(bytes.len().min(size - self.plain.len()));
            self.plain.extend_from_slice(now);
            bytes = later;
            if self.plain.len() == size {
                self.seal(&mut sealed)?;
            }
        }
        Ok(sealed)
    }

    fn seal(&mut self, sealed: &mut Vec<u8>) -> Result<(), SealError> {
        let (nonce, aad) = (self.layout.nonce(self.segment), Aad::from(self.head.as_bytes()));
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce, aad, &mut self.plain)
            .map_err(|_| SealError::Crypto)?;
        debug_assert_eq!(tag.as_ref().len() as u64, TAG_BYTES);
        sealed.extend_from_slice(&self.plain);
        sealed.extend_from_slice(tag.as_ref());
        self.plain.clear();
        self.segment += 1;
        Ok(())
    }

    /// Plain bytes that were neither sealed nor pushed.
    fn padding_left(&self) -> u64 {
        self.layout.padded - (self.segment * SEGMENT_BYTES).min(self.layout.padded) - self.plain.len() as u64
    }
}

/// The rest of a document: zeros, sealed.
#[derive(Debug)]
pub struct Padding(Sealer);

impl Iterator for Padding {
    type Item = Result<Vec<u8>, SealError>;

    fn next(&mut self) -> Option<Self::Item> {
        let left = self.0.padding_left();
        if left == 0 {
            return None;
        }
        let room = self.0.layout.plain(self.0.segment) - self.0.plain.len();
        let zeros = vec![0; room.min(usize::try_from(left).unwrap_or(room))];
        Some(self.0.fill(&zeros))
    }
}
