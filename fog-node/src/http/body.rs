//! What an answer carries: bytes in memory, or a stream of them that is made while it is sent.

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream::BoxStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Why a stream could not go on: the connection is cut then, so that nobody takes a part for the whole.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The body of an answer.
#[derive(Debug)]
pub enum Body {
    /// All of it.
    Whole(Bytes),
    /// What comes.
    Streamed(Streamed),
}

impl Body {
    /// A stream, and how many bytes it has if that is known. Nothing is asked of it while the caller does not read, and it is
    /// dropped when the caller is gone; how long a caller may take is the connection's affair.
    pub fn streamed<E: Into<Failure>>(
        stream: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
        length: Option<u64>,
    ) -> Self {
        Self::Streamed(Streamed {
            stream: Mutex::new(stream.map(|piece| piece.map_err(Into::into)).boxed()),
            length,
            _turn: None,
        })
    }

    /// Takes a turn for a stream, which it keeps until it is sent or dropped; nothing if there is none.
    #[must_use]
    pub fn in_turn(self, turns: &Arc<Semaphore>) -> Option<Self> {
        match self {
            Self::Streamed(streamed) => {
                let _turn = Some(turns.clone().try_acquire_owned().ok()?);
                Some(Self::Streamed(Streamed { _turn, ..streamed }))
            }
            Self::Whole(bytes) => Some(Self::Whole(bytes)),
        }
    }

    /// How many bytes it has, if that is known.
    #[must_use]
    pub fn length(&self) -> Option<u64> {
        match self {
            Self::Whole(bytes) => Some(bytes.len() as u64),
            Self::Streamed(streamed) => streamed.length,
        }
    }

    /// The bytes, of a body that is in memory.
    #[must_use]
    pub const fn in_memory(&self) -> Option<&Bytes> {
        match self {
            Self::Whole(bytes) => Some(bytes),
            Self::Streamed(_) => None,
        }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self::Whole(bytes)
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Whole(bytes.into())
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Self::Whole(text.into())
    }
}

/// A body that is made while it is sent.
pub struct Streamed {
    // Never locked: it lets a stream that one thread polls at a time be shared as hyper asks.
    stream: Mutex<BoxStream<'static, Result<Bytes, Failure>>>,
    length: Option<u64>,
    // Given back when it is dropped.
    _turn: Option<OwnedSemaphorePermit>,
}

impl fmt::Debug for Streamed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Streamed")
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}

impl Stream for Streamed {
    type Item = Result<Bytes, Failure>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let stream = self.stream.get_mut().unwrap_or_else(PoisonError::into_inner);
        stream.poll_next_unpin(context)
    }
}
