//! `/api/v1/possession`: proof of what this node holds, for the other validators; what is known of who holds what, for everybody.

use std::sync::Arc;

use http::StatusCode;
use ledger::holding::{CHALLENGE_BYTES_MAX, Challenge};
use record::canonical;
use serde_json::json;

use super::{
    Context, answer,
    caller::Caller,
    fault::Fault,
    route::{Answered, Request, Route},
};
use crate::possession::Inquiry;

/// What is served here.
#[must_use]
pub fn routes() -> Vec<Route<Context>> {
    vec![
        Route::post("/api/v1/possession", CHALLENGE_BYTES_MAX as u32, |context, request| {
            Box::pin(prove(context, request))
        })
        .from(|context, peer, headers| context.caller_of(peer, headers)?.validator().map(|_| ())),
        Route::get("/api/v1/possession", |context, _| {
            Box::pin(async move { Ok(answer::json(StatusCode::OK, &context.possession.report())) })
        }),
        Route::get("/api/v1/possession/{cid}", |context, request| {
            Box::pin(holders(context, request))
        }),
    ]
}

async fn prove(context: Arc<Context>, request: Request) -> Answered {
    let validator = context.caller(&request)?.validator()?;
    request.expect_media_type(canonical::MEDIA_TYPE)?;
    let challenge = Challenge::decode(&request.body).map_err(|error| Fault::unprocessable(error.to_string()))?;
    let answered = context.possession.answer(validator, &challenge).await?;
    let answered = answered.map_err(|error| Fault::too_many(error.to_string()))?;
    Ok(answer::bytes(StatusCode::OK, answer::DAG_CBOR, answered.encode()))
}

/// Asks the others, so it is for those alone whom the chain knows.
async fn holders(context: Arc<Context>, request: Request) -> Answered {
    match context.caller(&request)? {
        Caller::Validator(_) => {}
        caller => drop(caller.client()?),
    }
    let cid = canonical::parse_cid(request.place()).map_err(Fault::invalid)?;
    match context.possession.who_holds(&cid).await? {
        Inquiry::Busy => Err(Fault::too_many("other inquiries are being made; ask again in a moment")),
        Inquiry::TooOften => Err(Fault::too_many(
            "as many inquiries were made as peers are asked in a minute; ask again in a minute",
        )),
        Inquiry::NotHeld => Err(Fault::not_found(
            "this node does not hold this payload, and cannot judge what others prove of it; ask another node",
        )),
        Inquiry::Holders(peers) => {
            let holders = json!({"cid": cid.to_string(), "here": true, "peers": peers});
            Ok(answer::json(StatusCode::OK, &holders))
        }
    }
}
