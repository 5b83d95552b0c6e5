//! `/api/v1/payloads` and `/ipfs/{cid}`: sealed payloads between the nodes of the network: pushed with the commitment that
//! admits them, fetched by content identifier.

mod archive;
mod block;

use std::sync::Arc;

use archive::Scope;
use block::{Form, Part};
use bytes::Bytes;
use http::{Response, StatusCode};
use ledger::admission::Submission;
use record::canonical;

use super::{
    BODY_BYTES_MAX, Context, answer,
    body::Body,
    caller::Caller,
    fault::Fault,
    light::observing,
    route::{Answered, Request, Route},
};
use crate::vault::{self, Refusal};

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

/// A block of an IPFS trustless gateway, from this node's own disk; it never asks others on a caller's behalf.
async fn give(context: Arc<Context>, request: Request) -> Answered {
    // A node fetches what it must hold; a member's observer what is sealed to a key that the member was granted.
    let reader = match context.caller(&request)? {
        Caller::Client(_) => Some(observing(&context, &request)?),
        caller => caller.validator().map(|_| None)?,
    };
    if request.place() == block::PROBE {
        return Ok(probed());
    }
    let form = Form::asked(&request)?;
    let cid = canonical::parse_cid(request.place()).map_err(Fault::invalid)?;
    let part = match (&reader, form) {
        // A member reads what is sealed to its keys, which is one block each.
        (Some(reader), _) => context.disclosure.payload(reader, &cid).await?.map(Part::Block),
        (None, Form::Raw) => context.vault.local(&cid).await?.map(Part::Block),
        (None, Form::Car) => {
            let scope = Scope::asked(&request)?;
            let archive = archive::of(&context.vault, &cid, &scope).await?;
            archive.map(|archive| Part::Archive(archive, scope.mark()))
        }
    };
    match part {
        Some(part) => block::answered(&request, form, &cid, part),
        None if block::wants_only_cached(&request.headers) => {
            Err(Fault::precondition_failed("this node does not hold this payload"))
        }
        // Who may see everything is told that it is no use to look for it elsewhere.
        None => match reader {
            None if context.vault.is_erased(&cid).await? => Err(vault::Error::from(Refusal::Erased(cid)).into()),
            _ => Err(Fault::not_found("this node does not hold this payload")),
        },
    }
}

/// Clients ask for no bytes at all to learn whether this is a gateway.
fn probed() -> Response<Body> {
    answer::bytes(StatusCode::OK, answer::RAW, Bytes::new())
}

#[cfg(test)]
mod journey;
