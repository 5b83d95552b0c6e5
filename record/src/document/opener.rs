//! A range of a sealed document, opened segment by segment: nothing is handed out whose tag was not checked.

use std::{fmt, ops::Range};

use aws_lc_rs::aead::{Aad, LessSafeKey};

use super::{Layout, Metadata, SEGMENT_BYTES, TAG_BYTES, cipher, head::SealedHead};
use crate::{
    bundle::SubjectSecret,
    canonical::{CanonicalError, Digest},
    ids::NetworkId,
};

/// Why a document does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It does not begin with a head that we know.
    #[error("not a document we know: {0}")]
    Malformed(#[from] CanonicalError),
    /// Another key, another network, or altered bytes.
    #[error("the document does not open with this key on this network: it was sealed for another or was altered")]
    NotOpened,
    /// It is not as long as its head says.
    #[error("the document has {bytes} bytes and should have {expected}: it was cut or something was added")]
    OtherSize {
        /// How many it has.
        bytes: u64,
        /// How many its head says.
        expected: u64,
    },
    /// The range is not within the content.
    #[error("the range ends behind the {bytes} bytes of the content, or begins behind its end")]
    OutOfRange {
        /// How many there are.
        bytes: u64,
    },
}

/// A document whose head was opened.
pub struct Opener {
    key: LessSafeKey,
    head: Digest,
    layout: Layout,
    metadata: Metadata,
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Opener({} sealed bytes)", self.layout.bytes())
    }
}

impl Opener {
    /// Opens the head of a document, given its first bytes ([`super::HEAD_BYTES_MAX`] are enough) and how many it has in all.
    ///
    /// # Errors
    /// [`OpenError::Malformed`], [`OpenError::NotOpened`] or [`OpenError::OtherSize`].
    pub fn open(network: &NetworkId, secret: &SubjectSecret, (start, bytes): (&[u8], u64)) -> Result<Self, OpenError> {
        let (head, framed) = SealedHead::read(start)?;
        let (content_key, metadata) = head.open(network, secret).ok_or(OpenError::NotOpened)?;
        if metadata.bytes > super::CONTENT_BYTES_MAX {
            return Err(OpenError::NotOpened);
        }
        let layout = Layout::of(framed, metadata.bytes);
        if layout.bytes() != bytes {
            let expected = layout.bytes();
            return Err(OpenError::OtherSize { bytes, expected });
        }
        Ok(Self {
            key: cipher(&*content_key).ok_or(OpenError::NotOpened)?,
            head: SealedHead::digest(&head.framed()),
            layout,
            metadata,
        })
    }

    /// What is said of the document inside its seal.
    #[must_use]
    pub const fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Begins to read a range of the content.
    ///
    /// # Errors
    /// [`OpenError::OutOfRange`].
    pub fn part(self, content: Range<u64>) -> Result<Part, OpenError> {
        let bytes = self.metadata.bytes;
        if content.start > content.end || content.end > bytes {
            return Err(OpenError::OutOfRange { bytes });
        }
        let segments = if content.is_empty() {
            0..0
        } else {
            content.start / SEGMENT_BYTES..content.end.div_ceil(SEGMENT_BYTES)
        };
        Ok(Part {
            sealed: self.layout.sealed(segments.clone()),
            opener: self,
            segments,
            content,
            buffer: Vec::new(),
        })
    }
}

/// A range of a document's content that is being read.
#[derive(Debug)]
pub struct Part {
    opener: Opener,
    sealed: Range<u64>,
    /// Segments that are still to come.
    segments: Range<u64>,
    /// What was asked for.
    content: Range<u64>,
    buffer: Vec<u8>,
}

impl Part {
    /// Which bytes of the sealed document are to be pushed, in order.
    #[must_use]
    pub fn sealed(&self) -> Range<u64> {
        self.sealed.clone()
    }

    /// Takes the next sealed bytes and gives the content of the segments that they complete. After an error nothing more opens.
    ///
    /// # Errors
    /// [`OpenError::NotOpened`]: altered, cut, in another order, of another document, or more than was to be pushed.
    pub fn push(&mut self, mut sealed: &[u8]) -> Result<Vec<u8>, OpenError> {
        let mut content = Vec::new();
        while !sealed.is_empty() {
            if self.segments.is_empty() {
                return Err(OpenError::NotOpened);
            }
            let size = self.opener.layout.plain(self.segments.start) + usize::try_from(TAG_BYTES).expect("small");
            let (now, later) = sealed.split_at(sealed.len().min(size - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            sealed = later;
            if self.buffer.len() == size && self.open(&mut content).is_none() {
                self.segments = 0..0;
                return Err(OpenError::NotOpened);
            }
        }
        Ok(content)
    }

    /// All sealed bytes were pushed.
    ///
    /// # Errors
    /// [`OpenError::NotOpened`] if they were not.
    pub fn finish(self) -> Result<(), OpenError> {
        if self.segments.is_empty() && self.buffer.is_empty() {
            Ok(())
        } else {
            Err(OpenError::NotOpened)
        }
    }

    /// Opens the segment in the buffer, and takes from it what was asked for.
    fn open(&mut self, content: &mut Vec<u8>) -> Option<()> {
        let segment = self.segments.start;
        let (nonce, aad) = (
            self.opener.layout.nonce(segment),
            Aad::from(self.opener.head.as_bytes()),
        );
        let plain = self.opener.key.open_in_place(nonce, aad, &mut self.buffer).ok()?;
        let start = segment * SEGMENT_BYTES;
        let within = |at: u64| usize::try_from(at.saturating_sub(start)).map_or(plain.len(), |at| at.min(plain.len()));
        let padding = &plain[within(self.opener.metadata.bytes)..];
        if padding.iter().any(|byte| *byte != 0) {
            return None;
        }
        content.extend_from_slice(&plain[within(self.content.start)..within(self.content.end)]);
        self.buffer.clear();
        self.segments.start += 1;
        Some(())
    }
}
