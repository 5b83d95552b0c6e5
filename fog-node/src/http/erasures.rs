//! `/api/v1/erasures/{key}`: how far the erasure of a subject key is, and its certificate when every validator has confirmed.

use std::sync::Arc;

use http::StatusCode;
use ledger::register::Register;
use record::{ids::KeyId, signature::PublicKey};
use serde_json::{Value as Json, json};
use tokio::time::{Instant, timeout_at};

use super::{
    Context, answer,
    fault::Fault,
    route::{Answered, Request, Route},
};
use crate::chain::ErasureProgress;

/// What is served here. Everybody may ask: a key's id names nobody.
#[must_use]
pub fn routes() -> Vec<Route<Context>> {
    vec![
        Route::get("/api/v1/erasures/{key}", |context, request| {
            Box::pin(progress(context, request))
        }),
        Route::get("/api/v1/erasures/{key}/certificate", |context, request| {
            Box::pin(certificate(context, request))
        }),
    ]
}

async fn progress(context: Arc<Context>, request: Request) -> Answered {
    let key = key_of(request.place())?;
    let far = erasure(&context, &key).await?;
    Ok(answer::json(
        StatusCode::OK,
        &page(&key, &far, context.chain.state().register()),
    ))
}

/// 200 with the certificate's exact text, as soon as there is one; 202 with how far it is if it is not there in time.
async fn certificate(context: Arc<Context>, request: Request) -> Answered {
    let key = key_of(request.place())?;
    let deadline = Instant::now() + request.wait()?;
    let mut heads = context.chain.watch();
    loop {
        heads.mark_unchanged();
        let far = erasure(&context, &key).await?;
        // Proofs are made only when there is something to prove.
        let text = if far.is_complete() {
            context.chain.erasure_certificate(&key).await?
        } else {
            None
        };
        if let Some(text) = text {
            return Ok(answer::bytes(StatusCode::OK, answer::JSON, text));
        }
        if timeout_at(deadline, heads.changed()).await.is_err() {
            let page = page(&key, &far, context.chain.state().register());
            return Ok(answer::json(StatusCode::ACCEPTED, &page));
        }
    }
}

async fn erasure(context: &Context, key: &KeyId) -> Result<ErasureProgress, Fault> {
    let far = context.chain.erasure(key).await?;
    far.ok_or_else(|| Fault::not_found(format!("the chain of this node has no tombstone of key {key}")))
}

fn key_of(text: &str) -> Result<KeyId, Fault> {
    let wrong = |why| Fault::invalid(format!("not the id of a subject key (1220 and 64 hex digits): {why}"));
    text.parse().map_err(wrong)
}

fn page(key: &KeyId, far: &ErasureProgress, register: &Register) -> Json {
    let node = |validator: &PublicKey| {
        let seated = register.seats().all().find(|seated| seated.key == *validator);
        json!({"validator": validator, "organization": seated.map(|seated| &seated.organization)})
    };
    let confirmed = far.confirmed.iter().map(|one| {
        let mut node = node(&one.validator);
        node["height"] = json!(one.height);
        node["payloads"] = json!(one.confirmation.payloads);
        node["cids"] = json!(one.confirmation.cids);
        node["private_half"] = json!(one.confirmation.private_half);
        node
    });
    json!({
        "key": key,
        "custodian": far.tombstone.custodian,
        "transaction": far.tombstone.transaction,
        "height": far.tombstone.at.height,
        "erased_ms": far.tombstone.at.at_ms,
        "confirmed": confirmed.collect::<Vec<_>>(),
        "missing": far.missing.iter().map(node).collect::<Vec<_>>(),
        "agree": far.agree,
        "complete": far.is_complete(),
    })
}
