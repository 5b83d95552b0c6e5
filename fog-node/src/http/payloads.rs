//! `/api/v1/payloads` and `/ipfs/{cid}`: sealed payloads between the nodes of the network: pushed with the commitment that
//! admits them, fetched by content identifier.

use std::sync::Arc;

use http::{HeaderValue, StatusCode, header};
use ledger::admission::Submission;
use record::canonical;

use super::{
    BODY_BYTES_MAX, Context, answer,
    caller::Caller,
    fault::Fault,
    light::observing,
    route::{Answered, Request, Route},
};

/// What is served here.
#[must_use]
pub fn routes() -> Vec<Route<Context>> {
    vec![
        Route::post("/api/v1/payloads", BODY_BYTES_MAX, |context, request| {
            Box::pin(keep(context, request))
        })
        .from(|context, peer, headers| context.caller_of(peer, headers)?.validator().map(|_| ())),
        Route::get("/ipfs/{cid}", |context, request| Box::pin(give(context, request))),
    ]
}

/// 204 only when the payload is durable: the sender counts on it. A validator alone cannot fill our disk: what it pushes
/// was committed to by an enrolled gateway.
async fn keep(context: Arc<Context>, request: Request) -> Answered {
    context.caller(&request)?.validator()?;
    request.expect_media_type(canonical::MEDIA_TYPE)?;
    let submission = Submission::decode(&request.body).map_err(|error| Fault::unprocessable(error.to_string()))?;
    context.intake.keep(submission).await?;
    Ok(answer::nothing())
}

/// The raw block of an IPFS trustless gateway, from this node's own disk; it never asks others on a caller's behalf.
async fn give(context: Arc<Context>, request: Request) -> Answered {
    // A node fetches what it must hold; a member's observer what is sealed to a key that the member was granted.
    let reader = match context.caller(&request)? {
        Caller::Client(_) => Some(observing(&context, &request)?),
        caller => caller.validator().map(|_| None)?,
    };
    let wants_raw = request.parameters.last("format") == Some("raw") || request.accepts("application/vnd.ipld.raw");
    if !wants_raw {
        return Err(Fault::not_acceptable(
            "only raw blocks are served: ask with ?format=raw or Accept: application/vnd.ipld.raw",
        ));
    }
    let cid = canonical::parse_cid(request.place()).map_err(Fault::invalid)?;
    let payload = match reader {
        Some(reader) => context.disclosure.payload(&reader, &cid).await?,
        None => context.vault.local(&cid).await?,
    };
    let payload = payload.ok_or_else(|| Fault::not_found("this node does not hold this payload"))?;
    let mut response = answer::bytes(StatusCode::OK, answer::RAW, payload);
    // A content identifier never names other bytes; only the holder's own client may keep them.
    let forever = HeaderValue::from_static("private, max-age=31536000, immutable");
    response.headers_mut().insert(header::CACHE_CONTROL, forever);
    response
        .headers_mut()
        .insert(header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
    Ok(response)
}
