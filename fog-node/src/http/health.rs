//! `/healthz`, `/readyz`, `/metrics`: whether the process lives, whether it should be asked, and what it counts.

use std::sync::Arc;

use http::{Response, StatusCode};
use serde_json::json;

use super::{
    Context, answer,
    body::Body,
    head_age_ms,
    route::{Answered, Route},
};
use crate::{chain::Head, index::Index, recovery::Standing};

/// Why a node with a full disk is not ready.
pub(super) const FULL: &str = "the disk is full: nothing new is kept until there is room";
/// What `/readyz` says while the index is looked at, row by row.
pub(super) const UNCOUNTED: &str = "the rows of the index are being counted";

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

/// How old what is served here is: what `/readyz` says of a fog node and of an observer.
pub(super) struct Freshness {
    head: Head,
    pub(super) head_age_ms: u64,
    /// Blocks that the index lags behind; `None` if it does not answer.
    pub(super) lag_blocks: Option<u64>,
    /// Whether the rows of the index were counted: nothing is answered from them before.
    pub(super) is_counted: bool,
}

impl Freshness {
    pub(super) async fn of(head: Head, index: &Index) -> Self {
        let projected = index.projected().await;
        Self {
            head,
            head_age_ms: head_age_ms(&head),
            is_counted: index.is_counted().await,
            lag_blocks: projected.map(|height| head.height.0.saturating_sub(height.0)).ok(),
        }
    }

    /// 200 when no check holds, else 503 with the reason of each that does.
    pub(super) fn readiness<const N: usize>(&self, checks: [(bool, &str); N]) -> Response<Body> {
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
            "height": self.head.height,
            "head_age_ms": self.head_age_ms,
            "projection_lag_blocks": self.lag_blocks,
        });
        answer::json(status, &body)
    }
}

/// Ready means: answers from here are fresh. Blocks come about once a second even when nothing happens, so an old head
/// means that this node is cut off or the quorum is lost.
async fn ready(context: Arc<Context>) -> Answered {
    let freshness = Freshness::of(context.chain.head(), &context.index).await;
    let checks = [
        (!*context.consensus_runs.borrow(), "consensus is not running"),
        (
            context.recovery.standing() != Standing::Answering,
            "this node's chain is not the majority's, or is being made anew",
        ),
        (context.vault.space().is_short(), FULL),
        (
            freshness.head_age_ms > context.config.head_age_ms_max,
            "the last block is too old: cut off from the quorum, or it is lost",
        ),
        (
            !context.vault.answers(),
            "the vault's daemon does not answer: no payload is kept here",
        ),
        (freshness.lag_blocks.is_none(), "the index does not answer"),
        (!freshness.is_counted, UNCOUNTED),
        (
            freshness.lag_blocks > Some(context.config.projection_lag_blocks_max),
            "the index lags behind the chain",
        ),
    ];
    Ok(freshness.readiness(checks))
}

async fn metrics(context: Arc<Context>) -> Answered {
    Ok(answer::bytes(StatusCode::OK, answer::TEXT, context.telemetry.render()))
}
