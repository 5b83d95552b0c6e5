//! `/api/v1/chain/..`, `/api/v1/members` and `/api/v1/peers`: the ledger for everybody; nothing in it is personal.

use std::sync::Arc;

use http::StatusCode;
use ledger::block::{Block, FinalizedBlock, Height};
use record::canonical::MEDIA_TYPE;
use serde_json::{Value as Json, json};

use super::{
    Context, answer,
    fault::Fault,
    route::{Answered, Request, Route},
};

/// What is served here.
#[must_use]
pub fn routes() -> Vec<Route<Context>> {
    vec![
        Route::get("/api/v1/chain/head", |context, _| Box::pin(head(context))),
        Route::get("/api/v1/chain/blocks/{height}", |context, request| {
            Box::pin(block(context, request))
        }),
        Route::get("/api/v1/chain/validators", |context, _| Box::pin(validators(context))),
        Route::get("/api/v1/members", |context, _| Box::pin(members(context))),
        Route::get("/api/v1/peers", |context, _| Box::pin(peers(context))),
    ]
}

async fn head(context: Arc<Context>) -> Answered {
    let head = context.chain.head();
    let head = json!({"height": head.height, "digest": head.digest, "state_digest": head.state_digest});
    Ok(answer::json(StatusCode::OK, &head))
}

async fn block(context: Arc<Context>, request: Request) -> Answered {
    let height: u64 = request
        .place()
        .parse()
        .map_err(|_| Fault::invalid("a height is a whole number, from 0"))?;
    if request.accepts(MEDIA_TYPE) && !request.accepts("application/json") {
        // For another node: the exact bytes, with the votes.
        let carried = context.chain.carried(Height(height)).await?;
        let carried = carried.ok_or_else(|| Fault::not_found("this node has no block of this height yet"))?;
        return Ok(answer::bytes(StatusCode::OK, answer::DAG_CBOR, carried.encode()));
    }
    if height == 0 {
        let block = Block::genesis(&context.genesis);
        return Ok(answer::json(StatusCode::OK, &page(&block, &block.header.digest())));
    }
    let found = context.chain.block(Height(height)).await?;
    let FinalizedBlock { block, digest, .. } =
        found.ok_or_else(|| Fault::not_found("this node has no block of this height yet"))?;
    Ok(answer::json(StatusCode::OK, &page(&block, &digest)))
}

fn page(block: &Block, digest: &record::canonical::Digest) -> Json {
    let transactions: Vec<_> = block
        .transactions
        .iter()
        .map(|transaction| {
            let mut line = json!({"kind": transaction.claims().action.kind(), "id": transaction.id()});
            if let Some(payload) = transaction.payload() {
                line["bundle"] = json!(payload.id);
            }
            line
        })
        .collect();
    json!({
        "height": block.header.height,
        "digest": digest,
        "parent": block.header.parent,
        "timestamp": record::fhir::instant(i64::try_from(block.header.timestamp_ms).unwrap_or(i64::MAX)),
        "proposer": block.header.leader,
        "nonce": block.header.nonce,
        "transactions": transactions,
    })
}

async fn validators(context: Arc<Context>) -> Answered {
    let handovers = context.chain.handovers().await?;
    Ok(answer::json(StatusCode::OK, &handovers))
}

/// Who votes, now, next and as decided; every committee there was; the changes that are asked for, and by whom.
async fn members(context: Arc<Context>) -> Answered {
    Ok(answer::json(StatusCode::OK, context.chain.state().seats()))
}

async fn peers(context: Arc<Context>) -> Answered {
    let state = context.chain.state();
    let peers: Vec<_> = state
        .seats()
        .all()
        .map(|v| json!({"organization": v.organization, "validator": v.key, "self": v.key == context.validator}))
        .collect();
    Ok(answer::json(StatusCode::OK, &peers))
}
