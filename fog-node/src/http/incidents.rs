//! `/api/v1/heads/{height}` and `/api/v1/incidents`: this node's signed word on its chain, and what went wrong here.

use std::sync::Arc;

use http::StatusCode;
use ledger::block::Height;

use super::{
    Context, answer,
    fault::Fault,
    route::{Answered, Request, Route},
};

/// What is served here.
#[must_use]
pub fn routes() -> Vec<Route<Context>> {
    vec![
        Route::get("/api/v1/heads/{height}", |context, request| {
            Box::pin(async move { head(&context, &request) })
        }),
        Route::get("/api/v1/incidents", |context, _| {
            Box::pin(async move { Ok(incidents(&context)) })
        }),
    ]
}

/// Signed, so that it counts wherever it is shown; nothing in it is personal.
fn head(context: &Arc<Context>, request: &Request) -> Answered {
    let height: u64 = request
        .place()
        .parse()
        .map_err(|_| Fault::invalid("a height is a whole number, from 0"))?;
    let head = context.recovery.signed_head(Height(height))?;
    let head = head.ok_or_else(|| Fault::not_found("this node has no block of this height yet"))?;
    Ok(answer::json(StatusCode::OK, &head))
}

fn incidents(context: &Arc<Context>) -> http::Response<super::body::Body> {
    answer::json(StatusCode::OK, &context.recovery.incidents())
}
