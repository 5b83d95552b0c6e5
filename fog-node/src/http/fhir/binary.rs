//! `/fhir/Binary`: documents as FHIR has them. Raw bytes in, as they come; raw bytes out, or a range of them, or a small
//! document as a resource.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures::TryStreamExt as _;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use record::{
    canonical,
    document::{MediaType, Metadata},
    fhir,
    ids::{OrganizationId, SubjectId},
};
use serde_json::json;

use super::{
    super::{
        Context, answer,
        body::Body,
        caller::Peer,
        fault::Fault,
        ranges,
        route::{Answered, Request, Route},
        token::Right,
        upload::Incoming,
    },
    search,
};
use crate::documents::{Document, Progress};

/// Whose document it is: FHIR's header for a Binary that is not in a resource.
const SECURITY_CONTEXT: HeaderName = HeaderName::from_static("x-security-context");
/// A document that is served as a resource, in base64, has at most this many bytes.
const RESOURCE_BYTES_MAX: u64 = 1 << 20;

/// What is served here.
#[must_use]
pub fn routes() -> Vec<Route<Context>> {
    let routes = [
        Route::upload("/fhir/Binary", may_write, |context, request, body| {
            Box::pin(create(context, request, body))
        })
        .is("Binary", "create"),
        Route::get("/fhir/Binary/{id}", |context, request| Box::pin(read(context, request))).is("Binary", "read"),
    ];
    routes.into_iter().map(Route::for_all).collect()
}

/// Asked before any of the body is read.
fn may_write(context: &Context, peer: &Peer, headers: &HeaderMap) -> Result<(), Fault> {
    context
        .caller_of(peer, headers)?
        .reader("Binary", Right::Create)
        .map(|_| ())
}

async fn create(context: Arc<Context>, request: Request, body: Incoming) -> Answered {
    let writer = context.caller(&request)?.reader("Binary", Right::Create)?;
    let metadata = metadata(&request.headers)?;
    let subject = subject(context.fhir_base.as_str(), &request.headers)?;
    let key = context.documents.key_for(&writer, subject)?;
    let (cid, progress) = context.documents.put(key, &metadata, body).await?;
    let location = HeaderValue::try_from(format!("{}/Binary/{cid}", context.fhir_base));
    let location = location.map_err(|_| Fault::internal("http.public_url is no header"))?;
    let mut response = match progress {
        Progress::Final(_) => {
            let mut response = answer::nothing();
            *response.status_mut() = StatusCode::CREATED;
            response
        }
        Progress::Admitted => {
            let told = "two thirds of the nodes hold the document; its commitment is not final yet: read Location, and send it \
                        again only if that stays 404";
            let told = fhir::operation_outcome("information", "incomplete", told).to_string();
            answer::bytes(StatusCode::ACCEPTED, answer::FHIR_JSON, told)
        }
    };
    response.headers_mut().insert(header::LOCATION, location);
    Ok(response)
}

fn metadata(headers: &HeaderMap) -> Result<Metadata, Fault> {
    let length = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse().ok());
    let bytes = length.ok_or_else(|| Fault::length_required("say the document's exact length (Content-Length)"))?;
    let said = headers
        .get(header::CONTENT_TYPE)
        .map_or(Ok("application/octet-stream"), HeaderValue::to_str);
    let media_type: Result<MediaType, _> = said.unwrap_or_default().parse();
    let media_type = media_type.map_err(|error| Fault::unsupported_media(format!("Content-Type: {error}")))?;
    if media_type.as_str().starts_with("application/fhir+") {
        return Err(Fault::unsupported_media(
            "send the document itself with its own Content-Type; a Binary resource with base64 in it is not read",
        ));
    }
    Ok(Metadata { media_type, bytes })
}

fn subject(base: &str, headers: &HeaderMap) -> Result<SubjectId, Fault> {
    let told = "say whose document it is, once: X-Security-Context: Patient/{id}";
    let mut all = headers.get_all(SECURITY_CONTEXT).iter();
    let said = all
        .next()
        .filter(|_| all.next().is_none())
        .and_then(|value| value.to_str().ok());
    let said = said
        .filter(|said| said.contains("Patient/"))
        .ok_or_else(|| Fault::invalid(told))?;
    search::patient(base, said)
        .ok_or_else(|| Fault::not_found("no such patient is in your organization's care on this node"))
}

async fn read(context: Arc<Context>, request: Request) -> Answered {
    let reader = context.caller(&request)?.reader("Binary", Right::Read)?;
    let document = find(&context, &reader, request.place()).await?;
    if wants_resource(&request) {
        return resource(request.place(), document).await;
    }
    let bytes = document.metadata().bytes;
    let asked = request.headers.get(header::RANGE).and_then(|range| range.to_str().ok());
    let part = ranges::part(asked, bytes)?;
    let mut response = Response::new(Bytes::new().into());
    let headers = response.headers_mut();
    let media_type = HeaderValue::from_str(document.metadata().media_type.as_str());
    headers.insert(
        header::CONTENT_TYPE,
        media_type.unwrap_or(HeaderValue::from_static("application/octet-stream")),
    );
    let whose = HeaderValue::try_from(format!("Patient/{}", document.subject())).expect("an id is ASCII");
    headers.insert(SECURITY_CONTEXT, whose);
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    // Whatever a document is, it is no page of this server.
    headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
    let range = part.clone().unwrap_or(0..bytes);
    if let Some(part) = part {
        let said = format!("bytes {}-{}/{bytes}", part.start, part.end - 1);
        headers.insert(
            header::CONTENT_RANGE,
            HeaderValue::try_from(said).expect("digits and signs"),
        );
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    let length = range.end - range.start;
    let content = document.content(range).await?;
    *response.body_mut() = Body::streamed(content, Some(length));
    Ok(response)
}

async fn find(context: &Context, reader: &OrganizationId, id: &str) -> Result<Document, Fault> {
    let unknown = || Fault::not_found("no such document is visible to your organization on this node");
    let cid = canonical::parse_cid(id)
        .ok()
        .filter(|cid| cid.to_string() == id)
        .ok_or_else(unknown)?;
    context.documents.find(reader, &cid).await?.ok_or_else(unknown)
}

/// Whether the caller asks for FHIR by name: who accepts anything gets the document as it is.
fn wants_resource(request: &Request) -> bool {
    if let Some(format) = request.parameters.last("_format") {
        return format.contains("json");
    }
    let accepted = request
        .headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|range| {
        range
            .split(';')
            .next()
            .unwrap_or_default()
            .trim()
            .eq_ignore_ascii_case("application/fhir+json")
    })
}

async fn resource(id: &str, document: Document) -> Answered {
    let Metadata { media_type, bytes } = document.metadata().clone();
    if bytes > RESOURCE_BYTES_MAX {
        return Err(Fault::not_acceptable(format!(
            "a document of more than {RESOURCE_BYTES_MAX} bytes is not served as a resource: ask for it as it is, with Accept: */*"
        )));
    }
    let whose = format!("Patient/{}", document.subject());
    let content = document.content(0..bytes).await?;
    let content: Vec<Bytes> = content
        .try_collect()
        .await
        .map_err(|_| Fault::unavailable("the document could not be read to its end; try again, or ask another node"))?;
    Ok(answer::fhir(&json!({
        "resourceType": "Binary",
        "id": id,
        "contentType": media_type,
        "securityContext": {"reference": whose},
        "data": STANDARD.encode(content.concat()),
    })))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(all: &[(&str, &str)]) -> HeaderMap {
        let each = all.iter().map(|(name, value)| {
            let name: HeaderName = name.parse().expect("a name");
            (name, HeaderValue::from_str(value).expect("a value"))
        });
        each.collect()
    }

    #[test]
    fn a_document_says_its_length_and_what_it_is() {
        let read = metadata(&headers(&[
            ("content-length", "7"),
            ("content-type", "application/pdf"),
        ]))
        .expect("good");
        assert_eq!((read.bytes, read.media_type.as_str()), (7, "application/pdf"));
        let unsaid = metadata(&headers(&[("content-length", "7")])).expect("good");
        assert_eq!(unsaid.media_type.as_str(), "application/octet-stream");
        let status = |all: &[(&str, &str)]| metadata(&headers(all)).expect_err("wrong").status().as_u16();
        assert_eq!(status(&[("content-type", "application/pdf")]), 411);
        assert_eq!(status(&[("content-length", "7"), ("content-type", "pdf")]), 415);
        assert_eq!(
            status(&[("content-length", "7"), ("content-type", "application/fhir+json")]),
            415
        );
    }

    #[test]
    fn a_document_is_somebodys() {
        let id = SubjectId::random();
        let of = |text: String| subject("https://h/fhir", &headers(&[("x-security-context", &text)]));
        assert_eq!(of(format!("Patient/{id}")).expect("named"), id);
        assert_eq!(of(format!("https://h/fhir/Patient/{id}")).expect("named"), id);
        assert_eq!(of("Patient/nobody".to_owned()).expect_err("nobody").status(), 404);
        assert_eq!(of(format!("Observation/{id}")).expect_err("no patient").status(), 400);
        assert_eq!(subject("", &HeaderMap::new()).expect_err("unsaid").status(), 400);
    }
}
