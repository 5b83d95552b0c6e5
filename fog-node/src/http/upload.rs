//! A body that is handed on while it comes, for what is too large to be collected; it has to keep a pace.

use std::{io, sync::Arc, time::Duration};

use bytes::{Buf, Bytes};
use futures::{Stream, StreamExt as _, future::BoxFuture, stream, stream::BoxStream};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout, timeout_at},
};

use super::route::{Answered, Request};

/// A body on its way in. It ends with an error when it is cut off or too slow.
pub type Incoming = BoxStream<'static, io::Result<Bytes>>;
/// A handler that takes the body while it comes.
pub type Upload<C> = fn(Arc<C>, Request, Incoming) -> BoxFuture<'static, Answered>;

/// Who sends fewer bytes a second in the long run keeps a place from others.
const BYTES_PER_S_MIN: u64 = 64 << 10;

/// Pieces that have come and wait for the handler, at most.
const PIECES_MAX: usize = 4;
/// Bytes that are read, and thrown away, of a body that nobody wants any more, at most.
const UNWANTED_BYTES_MAX: usize = 8 << 20;
/// How long they are read.
const UNWANTED_TIMEOUT: Duration = Duration::from_secs(5);

/// How fast a body has to come.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Each piece comes within this time of the one before.
    pub silence_max: Duration,
    /// All of them come at this many bytes a second, beside that time once.
    pub bytes_per_s_min: u64,
}

impl Pace {
    /// The pace that everybody has to keep, with this much patience.
    #[must_use]
    pub const fn of(silence_max: Duration) -> Self {
        Self {
            silence_max,
            bytes_per_s_min: BYTES_PER_S_MIN,
        }
    }

    /// When the next piece has to be there after so many bytes.
    fn due(self, began: Instant, bytes: u64) -> Instant {
        let in_the_long_run = began + self.silence_max + Duration::from_secs(bytes / self.bytes_per_s_min);
        in_the_long_run.min(Instant::now() + self.silence_max)
    }
}

/// The body, piece by piece, as long as it keeps the pace.
pub fn paced<B: Buf + 'static, E: 'static>(
    body: impl Stream<Item = Result<B, E>> + Send + 'static,
    pace: Pace,
) -> Incoming {
    let began = Instant::now();
    let pieces = stream::unfold(Some((body.boxed(), 0_u64)), move |body| async move {
        let (mut body, bytes) = body?;
        let piece = match timeout_at(pace.due(began, bytes), body.next()).await {
            Ok(None) => return None,
            Ok(Some(Ok(mut piece))) => Ok(piece.copy_to_bytes(piece.remaining())),
            Ok(Some(Err(_))) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the body was cut off")),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the body came too slowly")),
        };
        let next = piece.as_ref().ok().map(|piece| (body, bytes + piece.len() as u64));
        Some((piece, next))
    });
    pieces.boxed()
}

/// The same body; what the handler leaves of it is still read for a while. A client that is refused early writes on, and over
/// HTTP/1.1 would find its connection broken before it had read why.
pub fn heard_out(mut body: Incoming) -> Incoming {
    let (give, take) = mpsc::channel(PIECES_MAX);
    tokio::spawn(async move {
        while let Some(piece) = body.next().await {
            if give.send(piece).await.is_err() {
                // Whoever sends more than that is cut off.
                let _ended = timeout(UNWANTED_TIMEOUT, throw_away(body)).await;
                return;
            }
        }
    });
    stream::unfold(take, |mut take| async move { Some((take.recv().await?, take)) }).boxed()
}

async fn throw_away(mut body: Incoming) {
    let mut bytes = 0;
    while let Some(Ok(piece)) = body.next().await {
        bytes += piece.len();
        if bytes > UNWANTED_BYTES_MAX {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// More than any test here needs.
    const EVENTUALLY: Duration = Duration::from_secs(60);

    async fn kinds(mut body: Incoming) -> Vec<Result<usize, io::ErrorKind>> {
        let mut kinds = Vec::new();
        while let Some(piece) = body.next().await {
            kinds.push(piece.map(|piece| piece.len()).map_err(|error| error.kind()));
        }
        kinds
    }

    fn parts(
        parts: &'static [Result<&'static str, ()>],
    ) -> impl Stream<Item = Result<&'static [u8], ()>> + Send + 'static {
        stream::iter(parts.iter().map(|part| part.map(str::as_bytes)))
    }

    fn patient(bytes_per_s_min: u64) -> Pace {
        Pace {
            silence_max: EVENTUALLY,
            bytes_per_s_min,
        }
    }

    fn hasty(bytes_per_s_min: u64) -> Pace {
        Pace {
            silence_max: Duration::from_millis(200),
            bytes_per_s_min,
        }
    }

    #[tokio::test]
    async fn a_body_that_is_cut_off_or_falls_silent_ends_with_an_error() {
        let whole = kinds(paced(parts(&[Ok("ab"), Ok("c")]), patient(1))).await;
        assert_eq!(whole, [Ok(2), Ok(1)]);
        let cut = kinds(paced(parts(&[Ok("ab"), Err(()), Ok("c")]), patient(1))).await;
        assert_eq!(
            cut,
            [Ok(2), Err(io::ErrorKind::UnexpectedEof)],
            "and nothing after that"
        );
        let silent = stream::pending::<Result<Bytes, ()>>();
        assert_eq!(kinds(paced(silent, hasty(1))).await, [Err(io::ErrorKind::TimedOut)]);
    }

    #[tokio::test]
    async fn a_trickle_without_end_is_ended() {
        let trickle = stream::repeat(()).then(|()| async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            Ok::<_, ()>(Bytes::from_static(b"a"))
        });
        let ended = tokio::time::timeout(EVENTUALLY, kinds(paced(trickle, hasty(1 << 30)))).await;
        assert_eq!(ended.expect("ended").last(), Some(&Err(io::ErrorKind::TimedOut)));
    }

    #[test]
    fn what_came_buys_time_and_never_more_than_the_patience_at_once() {
        let (patience, began) = (Duration::from_secs(30), Instant::now());
        let pace = Pace::of(patience);
        assert_eq!(pace.due(began, 0), began + patience);
        let burst = pace.due(began, u64::from(u32::MAX));
        assert!(
            burst >= began + patience && burst <= Instant::now() + patience,
            "no licence to fall silent"
        );
    }

    #[tokio::test]
    async fn a_body_that_nobody_wants_any_more_is_read_on_and_not_for_ever() {
        let read = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let endless = stream::repeat_with({
            let read = read.clone();
            move || {
                read.fetch_add(1 << 20, std::sync::atomic::Ordering::Relaxed);
                Ok(Bytes::from_static(&[0; 1 << 20]))
            }
        });
        let mut body = heard_out(endless.boxed());
        assert_eq!(body.next().await.expect("a piece").expect("whole").len(), 1 << 20);
        drop(body);
        let (mut before, now) = (0, || read.load(std::sync::atomic::Ordering::Relaxed));
        while before != now() || before < UNWANTED_BYTES_MAX {
            before = now();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(before < 2 * UNWANTED_BYTES_MAX, "{before}");
        let whole = heard_out(paced(parts(&[Ok("ab"), Ok("c")]), patient(1)));
        assert_eq!(kinds(whole).await, [Ok(2), Ok(1)]);
    }
}
