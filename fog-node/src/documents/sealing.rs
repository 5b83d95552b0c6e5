//! A stream of content becomes a stream of sealed bytes; what is held is one segment and one piece.

use std::io;

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use record::document::{Padding, Sealer};

/// Where the sealing of a stream stands.
enum Stage<S> {
    Content(Sealer, S),
    Padding(Padding),
}

/// The sealed bytes of what a stream brings.
pub(super) fn sealed<S>(sealer: Sealer, head: Vec<u8>, content: S) -> impl Stream<Item = io::Result<Bytes>> + Send
where
    S: Stream<Item = io::Result<Bytes>> + Send + 'static,
{
    let body = stream::unfold(Some(Stage::Content(sealer, content.boxed())), |stage| async move {
        let (sealed, next) = match stage? {
            Stage::Content(mut sealer, mut content) => match content.next().await {
                Some(piece) => {
                    let sealed = piece.and_then(|piece| sealer.push(&piece).map_err(io::Error::other));
                    (sealed, Some(Stage::Content(sealer, content)))
                }
                None => match sealer.finish() {
                    Ok(padding) => (Ok(Vec::new()), Some(Stage::Padding(padding))),
                    Err(error) => (Err(io::Error::other(error)), None),
                },
            },
            Stage::Padding(mut padding) => {
                let sealed = padding.next()?.map_err(io::Error::other);
                (sealed, Some(Stage::Padding(padding)))
            }
        };
        let next = next.filter(|_| sealed.is_ok());
        Some((sealed.map(Bytes::from), next))
    });
    stream::iter([Ok(Bytes::from(head))]).chain(body)
}
