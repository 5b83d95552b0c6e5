//! What handlers answer with: FHIR JSON, plain JSON, text or bytes, in memory or streamed, and with safe headers.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde::Serialize;

use super::body::Body;

/// The media type of every FHIR body.
pub const FHIR_JSON: HeaderValue = HeaderValue::from_static("application/fhir+json; charset=utf-8");
/// The media type of every other JSON body.
pub const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// The media type of metrics.
pub const TEXT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
/// The media type of a payload, as IPFS trustless gateways name it.
pub const RAW: HeaderValue = HeaderValue::from_static("application/vnd.ipld.raw");

/// The media type of a block as one node hands it to another.
pub const DAG_CBOR: HeaderValue = HeaderValue::from_static(record::canonical::MEDIA_TYPE);

/// An answer of these bytes.
#[must_use]
pub fn bytes(status: StatusCode, media_type: HeaderValue, body: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, media_type);
    response
}

/// An answer in plain JSON.
///
/// # Panics
/// Never: what we answer has string keys and finite numbers.
#[must_use]
pub fn json(status: StatusCode, body: &impl Serialize) -> Response<Body> {
    let body = serde_json::to_vec(body).expect("answers have string keys and finite numbers");
    bytes(status, JSON, body)
}

/// 200 with a FHIR resource.
///
/// # Panics
/// Never: resources have string keys and finite numbers.
#[must_use]
pub fn fhir(resource: &impl Serialize) -> Response<Body> {
    let body = serde_json::to_vec(resource).expect("resources have string keys and finite numbers");
    bytes(StatusCode::OK, FHIR_JSON, body)
}

/// 204.
#[must_use]
pub fn nothing() -> Response<Body> {
    let mut response = Response::new(Bytes::new().into());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

/// Headers that every answer carries: not to be cached, sniffed, framed or fetched without TLS.
pub fn secure(headers: &mut HeaderMap) {
    let always = [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::STRICT_TRANSPORT_SECURITY, "max-age=31536000"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; frame-ancestors 'none'",
        ),
    ];
    for (name, value) in always {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
}
