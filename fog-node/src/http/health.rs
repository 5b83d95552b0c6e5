//! `/healthz`, `/readyz`, `/metrics`: whether the process lives, whether it should be asked, and what it counts.

use std::sync::Arc;

use http::StatusCode;
use serde_json::json;

use super::{
    Context, answer, head_age_ms,
    route::{Answered, Route},
};
use crate::recovery::Standing;

/// What is served here.
#[must_use]
pub fn routes() -> Vec<Route<Context>> {
    vec![
        Route::get("/healthz", |_, _| {
            Box::pin(async { Ok(answer::json(StatusCode::OK, &json!({"status": "alive"}))) })
        }),
        Route::get("/readyz", |context, _| Box::pin(ready(context))),
        Route::get("/metrics", |context, _| Box::pin(metrics(context))),
    ]
}

/// Ready means: answers from here are fresh. Blocks come about once a second even when nothing happens, so an old head
/// means that this node is cut off or the quorum is lost.
async fn ready(context: Arc<Context>) -> Answered {
    let head = context.chain.head();
    let head_age_ms = head_age_ms(&head);
    let lag_blocks = context
        .index
        .projected()
        .await
        .map(|height| head.height.0.saturating_sub(height.0))
        .ok();
    let checks = [
        (!*context.consensus_runs.borrow(), "consensus is not running"),
        (
            context.recovery.standing() != Standing::Answering,
            "this node's chain is not the majority's, or is being made anew",
        ),
        (
            head_age_ms > context.config.head_age_ms_max,
            "the last block is too old: cut off from the quorum, or it is lost",
        ),
        (lag_blocks.is_none(), "the index does not answer"),
        (
            lag_blocks > Some(context.config.projection_lag_blocks_max),
            "the index lags behind the chain",
        ),
    ];
    let reasons: Vec<_> = checks
        .into_iter()
        .filter_map(|(holds, reason)| holds.then_some(reason))
        .collect();
    let status = if reasons.is_empty() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let body = json!({
        "ready": reasons.is_empty(),
        "reasons": reasons,
        "height": head.height,
        "head_age_ms": head_age_ms,
        "projection_lag_blocks": lag_blocks,
    });
    Ok(answer::json(status, &body))
}

async fn metrics(context: Arc<Context>) -> Answered {
    Ok(answer::bytes(StatusCode::OK, answer::TEXT, context.telemetry.render()))
}
