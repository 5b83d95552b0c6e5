//! `/api/v1/receipts/{bundle}`: the proof that a bundle is final, at once or as soon as there is one.

use std::sync::Arc;

use http::StatusCode;
use serde_json::json;
use tokio::time::{Instant, timeout_at};

use super::{
    Context, answer,
    bundles::{bundle_of, unknown},
    route::{Answered, Request, Route},
};

/// What is served here.
#[must_use]
pub fn routes() -> Vec<Route<Context>> {
    vec![Route::get("/api/v1/receipts/{bundle}", |context, request| {
        Box::pin(receipt(context, request))
    })]
}

async fn receipt(context: Arc<Context>, request: Request) -> Answered {
    let bundle = bundle_of(request.place())?;
    let deadline = Instant::now() + request.wait()?;
    let mut heads = context.chain.watch();
    loop {
        heads.mark_unchanged();
        if let Some(text) = context.chain.receipt(&bundle).await? {
            // Exactly these bytes: a receipt has one text.
            return Ok(answer::bytes(StatusCode::OK, answer::JSON, text));
        }
        if context.intake.progress(&bundle).await?.is_none() {
            return Err(unknown(&bundle));
        }
        // The head is touched as well when votes on an earlier block arrive.
        if timeout_at(deadline, heads.changed()).await.is_err() {
            return Ok(answer::json(StatusCode::ACCEPTED, &json!({"status": "admitted"})));
        }
    }
}
