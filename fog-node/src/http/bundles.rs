//! `/api/v1/bundles`: a gateway hands over a sealed bundle; where a bundle stands.

use std::sync::Arc;

use http::StatusCode;
use ledger::admission::Submission;
use record::{canonical::MEDIA_TYPE, ids::BundleId};
use serde_json::json;

use super::{
    BODY_BYTES_MAX, Context, answer,
    fault::Fault,
    route::{Answered, Request, Route},
};
use crate::intake::Progress;

/// What is served here.
#[must_use]
pub fn routes() -> Vec<Route<Context>> {
    vec![
        Route::post("/api/v1/bundles", BODY_BYTES_MAX, |context, request| {
            Box::pin(submit(context, request))
        })
        .from(|context, peer, headers| context.caller_of(peer, headers)?.gateway().map(|_| ()))
        .for_all(),
        Route::get("/api/v1/bundles/{id}", |context, request| {
            Box::pin(standing(context, request))
        }),
    ]
}

async fn submit(context: Arc<Context>, request: Request) -> Answered {
    let gateway = context.caller(&request)?.gateway()?;
    request.expect_media_type(MEDIA_TYPE)?;
    let submission = Submission::decode(&request.body).map_err(|error| Fault::unprocessable(error.to_string()))?;
    let admission = context.intake.admit(&gateway, submission).await?;
    Ok(answer::json(StatusCode::ACCEPTED, &admission))
}

async fn standing(context: Arc<Context>, request: Request) -> Answered {
    let bundle = bundle_of(request.place())?;
    let standing = match context.intake.progress(&bundle).await? {
        Some(Progress::Admitted) => json!({"bundle": bundle, "status": "admitted"}),
        Some(Progress::Final(height)) => json!({"bundle": bundle, "status": "finalized", "height": height}),
        None => return Err(unknown(&bundle)),
    };
    Ok(answer::json(StatusCode::OK, &standing))
}

/// The bundle named in an address.
///
/// # Errors
/// 400 if it is no bundle id.
pub fn bundle_of(text: &str) -> Result<BundleId, Fault> {
    text.parse()
        .map_err(|why| Fault::invalid(format!("not a bundle id (1220 and 64 hex digits): {why}")))
}

/// 404 for a bundle this node does not know.
#[must_use]
pub fn unknown(bundle: &BundleId) -> Fault {
    Fault::not_found(format!(
        "this node does not know bundle {bundle}; its gateway may hand it in again"
    ))
}
