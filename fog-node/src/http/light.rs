//! `/api/v1/chain/headers`, `/state`, `/commitments`: for observers, which hold no chain and believe nobody.
//!
//! Headers are for everybody, as blocks are. The rest asks for an organisation's token with the scope `system/Bundle.rs`: it
//! opens sealed things alone, so that an observer may show it to nodes that it does not trust.

use std::{collections::BTreeSet, sync::Arc};

use http::StatusCode;
use ledger::{block::Height, light::HEADERS_MAX};
use record::{
    canonical::Digest,
    ids::{KeyId, OrganizationId},
};

use super::{
    Context, answer,
    fault::Fault,
    route::{Answered, Request, Route},
    token::Right,
};

/// Keys named in one question, at most.
pub const KEYS_MAX: usize = 100;

/// What is served here.
#[must_use]
pub fn routes() -> Vec<Route<Context>> {
    vec![
        Route::get("/api/v1/chain/headers", |context, request| {
            Box::pin(headers(context, request))
        }),
        Route::get("/api/v1/chain/state", |context, request| {
            Box::pin(state(context, request))
        })
        .for_all(),
        Route::get("/api/v1/chain/commitments", |context, request| {
            Box::pin(commitments(context, request))
        })
        .for_all(),
    ]
}

/// The organisation that may learn of sealed bundles.
///
/// # Errors
/// 401 without a token, 403 without the scope.
pub(super) fn observing(context: &Context, request: &Request) -> Result<OrganizationId, Fault> {
    context.caller(request)?.reader("Bundle", Right::Search)
}

async fn headers(context: Arc<Context>, request: Request) -> Answered {
    let from = number(&request, "from")?.ok_or_else(|| Fault::invalid("from is missing: a height"))?;
    let count = number(&request, "count")?.map_or(HEADERS_MAX, |count| usize::try_from(count).unwrap_or(usize::MAX));
    if !(1..=HEADERS_MAX).contains(&count) {
        return Err(Fault::invalid(format!("count is from 1 to {HEADERS_MAX}")));
    }
    let headers = context.chain.carried_headers(Height(from), count).await?;
    Ok(answer::bytes(StatusCode::OK, answer::DAG_CBOR, headers.encode()))
}

async fn state(context: Arc<Context>, request: Request) -> Answered {
    let reader = observing(&context, &request)?;
    let known = request.parameters.last("known").map(str::parse::<Digest>).transpose();
    let known = known.map_err(|why| Fault::invalid(format!("known is the digest of a register: {why}")))?;
    let state = context.disclosure.state(&reader, known).await?;
    let state = state.ok_or_else(|| Fault::not_found("this node has no block yet"))?;
    Ok(answer::bytes(StatusCode::OK, answer::DAG_CBOR, state.encode()))
}

async fn commitments(context: Arc<Context>, request: Request) -> Answered {
    let reader = observing(&context, &request)?;
    let from = number(&request, "from")?.filter(|from| *from > 0);
    let from = from.ok_or_else(|| Fault::invalid("from is missing: a height, from 1"))?;
    let to = number(&request, "to")?.unwrap_or(u64::MAX);
    let keys: Result<BTreeSet<KeyId>, _> = request.parameters.all("key").map(str::parse).collect();
    let keys = keys.map_err(|why| Fault::invalid(format!("key is the id of a subject key: {why}")))?;
    if keys.len() > KEYS_MAX {
        return Err(Fault::invalid(format!("at most {KEYS_MAX} keys can be named")));
    }
    let range = (Height(from), Height(to));
    let commitments = context.disclosure.commitments(&reader, range, keys).await?;
    Ok(answer::bytes(StatusCode::OK, answer::DAG_CBOR, commitments.encode()))
}

fn number(request: &Request, name: &str) -> Result<Option<u64>, Fault> {
    let number = request.parameters.last(name).map(str::parse).transpose();
    number.map_err(|_| Fault::invalid(format!("{name} is a whole number, from 0")))
}
