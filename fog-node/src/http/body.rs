//! What an answer carries: bytes in memory, or a stream of them that is made while it is sent.

use std::{
    collections::HashMap,
    fmt,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream::BoxStream};
use record::canonical::Digest;

use super::caller::Peer;

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

    /// Takes a turn for a stream to a caller, which it keeps until it is sent or dropped; nothing if there is none.
    #[must_use]
    pub fn in_turn(self, turns: &Arc<Turns>, peer: &Peer) -> Option<Self> {
        match self {
            Self::Streamed(streamed) => {
                let _turn = Some(turns.take(Name::of(peer))?);
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
    _turn: Option<Turn>,
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

/// Who takes turns: the key of a certificate, or where a caller without one connects from.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Name {
    Key(Digest),
    Address(IpAddr),
}

impl Name {
    fn of(peer: &Peer) -> Self {
        let address = || match peer.address.ip().to_canonical() {
            // Whoever has one address of a network of this size has all of them.
            IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
            address @ IpAddr::V4(_) => address,
        };
        peer.tls.map_or_else(|| Self::Address(address()), Self::Key)
    }
}

/// Turns for streams that are under way: so many in all, and so many of one caller, who could keep his without reading.
pub struct Turns {
    max: usize,
    of_one_max: usize,
    // Held for a look or an entry, never across an await; there are no more entries than turns.
    taken: Mutex<HashMap<Name, usize>>,
}

impl fmt::Debug for Turns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Turns").field("max", &self.max).finish_non_exhaustive()
    }
}

impl Turns {
    /// So many in all, and of one caller.
    #[must_use]
    pub fn new(max: usize, of_one_max: usize) -> Self {
        Self {
            max,
            of_one_max,
            taken: Mutex::default(),
        }
    }

    fn take(self: &Arc<Self>, name: Name) -> Option<Turn> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let of_one = taken.get(&name).copied().unwrap_or_default();
        if of_one >= self.of_one_max || taken.values().sum::<usize>() >= self.max {
            return None;
        }
        taken.insert(name, of_one + 1);
        Some(Turn(self.clone(), name))
    }
}

/// A turn; given back when it is dropped.
struct Turn(Arc<Turns>, Name);

impl Drop for Turn {
    fn drop(&mut self) {
        let mut taken = self.0.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_one) = taken.get_mut(&self.1) {
            *of_one -= 1;
            if *of_one == 0 {
                taken.remove(&self.1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_caller_does_not_take_all_turns() {
        let turns = Arc::new(Turns::new(3, 2));
        let name = |address: &str, tls| {
            Name::of(&Peer {
                address: address.parse().expect("an address"),
                tls,
            })
        };
        let (one, other) = (name("[2001:db8::1]:7", None), name("192.0.2.7:7", None));
        assert!(one == name("[2001:db8::2]:8", None), "the same network");
        assert!(other == name("[::ffff:192.0.2.7]:9", None) && other != name("192.0.2.8:7", None));
        assert!(other != name("192.0.2.7:7", Some(Digest::ZERO)));
        let (first, second) = (turns.take(one), turns.take(one));
        assert!(first.is_some() && second.is_some() && turns.take(one).is_none());
        let third = turns.take(other);
        assert!(third.is_some() && turns.take(other).is_none(), "there are three in all");
        drop(first);
        assert!(turns.take(one).is_some());
        drop((second, third));
        assert!(turns.taken.lock().expect("whole").is_empty());
    }
}
