//! `/api/v1/transactions`: what organisations decide (enrolments, keys, grants), and what became of it.

use std::sync::Arc;

use http::StatusCode;
use ledger::transaction::{SignedTransaction, TRANSACTION_BYTES_MAX, TransactionId};
use record::canonical::{Digest, MEDIA_TYPE};
use serde_json::json;
use tokio::time::{Instant, timeout_at};

use super::{
    Context, answer,
    fault::Fault,
    route::{Answered, Request, Route},
};

/// What is served here.
#[must_use]
pub fn routes() -> Vec<Route<Context>> {
    vec![
        Route::post(
            "/api/v1/transactions",
            TRANSACTION_BYTES_MAX as u32,
            |context, request| Box::pin(submit(context, request)),
        ),
        Route::get("/api/v1/transactions/{id}", |context, request| {
            Box::pin(outcome(context, request))
        }),
    ]
}

/// No token is asked for: the organisation's signature is in the transaction, and the state decides what it may do.
async fn submit(context: Arc<Context>, request: Request) -> Answered {
    request.expect_media_type(MEDIA_TYPE)?;
    let transaction =
        SignedTransaction::decode(&request.body).map_err(|error| Fault::unprocessable(error.to_string()))?;
    if transaction.payload().is_some() {
        return Err(Fault::unprocessable(
            "a commitment comes with its payload: POST /api/v1/bundles, or /fhir/Binary for a document",
        ));
    }
    let id = context.intake.accept(transaction).await?;
    Ok(answer::json(StatusCode::ACCEPTED, &json!({"id": id})))
}

async fn outcome(context: Arc<Context>, request: Request) -> Answered {
    let digest: Result<Digest, _> = request.place().parse();
    let id = TransactionId(
        digest.map_err(|why| Fault::invalid(format!("not a transaction id (1220 and 64 hex digits): {why}")))?,
    );
    let deadline = Instant::now() + request.wait()?;
    let mut heads = context.chain.watch();
    loop {
        heads.mark_unchanged();
        // The mempool first: what leaves it is in the chain by then.
        let waiting = context.mempool.contains(&id);
        if let Some(placed) = context.chain.transaction(&id).await? {
            let became = json!({"id": id, "height": placed.height, "outcome": placed.outcome});
            return Ok(answer::json(StatusCode::OK, &became));
        }
        if !waiting {
            return Err(Fault::not_found(format!("this node does not know transaction {id}")));
        }
        if timeout_at(deadline, heads.changed()).await.is_err() {
            return Ok(answer::json(
                StatusCode::ACCEPTED,
                &json!({"id": id, "status": "admitted"}),
            ));
        }
    }
}
