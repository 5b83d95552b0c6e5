//! The web framework's side of the table: a request taken apart for it, and its answer put together again.

use std::sync::Arc;

use http::{HeaderValue, Response, StatusCode, header};
use warp::Filter as _;

use super::{
    super::{answer, body::Body, caller::Peer},
    Head, Table,
};

/// The one filter, once per prefix: everything of the request, to the table.
pub(super) fn answered_by<C: Send + Sync + 'static>(
    table: Arc<Table<C>>,
) -> warp::filters::BoxedFilter<(warp::reply::Response,)> {
    let query = warp::query::raw().map(Some).or(warp::any().map(|| None)).unify();
    warp::method()
        .and(warp::path::full())
        .and(query)
        .and(warp::header::headers_cloned())
        .and(warp::ext::optional::<Peer>())
        .map(|method, path: warp::path::FullPath, query, headers, peer| Head {
            method,
            path: path.as_str().to_owned(),
            query,
            headers,
            peer,
        })
        .and(warp::body::stream())
        .then(move |head, body| {
            let table = table.clone();
            async move { table.answer(head, body).await }
        })
        .boxed()
}

/// Adds the safe headers; a HEAD keeps the length and drops the body.
pub(super) fn into_warp(response: Response<Body>, is_head: bool) -> warp::reply::Response {
    let (mut head, body) = response.into_parts();
    answer::secure(&mut head.headers);
    if let Some(length) = body.length().filter(|_| head.status != StatusCode::NO_CONTENT) {
        head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    let mut response = match body {
        _ if is_head => warp::reply::Response::default(),
        Body::Whole(bytes) => warp::reply::Response::new(bytes.into()),
        Body::Streamed(stream) => warp::Reply::into_response(warp::reply::stream(stream)),
    };
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    response
}
