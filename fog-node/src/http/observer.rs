//! The door of an observer: the same reads as a fog node's, from what it has proven; everything else is not here.

use std::sync::Arc;

use ::http::{HeaderMap, StatusCode};
use ledger::{block::Height, genesis::Genesis};
use record::ids::OrganizationId;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{
    BODY_BYTES_MAX, Config, PREFIXES, answer,
    bundles::bundle_of,
    caller::{Caller, Peer},
    fault::Fault,
    fhir, head_age_ms,
    health::{Freshness, UNCOUNTED},
    route::{Answered, Request, Route, Service, Table},
    server,
    tls::{Identity, TlsError},
};
use crate::{index::Index, proofs::Proofs, query::Query, recovery::Incidents, telemetry::Telemetry, vault::Vault};

/// The rooms behind the door of an observer.
#[derive(Debug)]
pub struct Rooms {
    /// What it has proven.
    pub proofs: Proofs,
    /// Payloads, for `/readyz`.
    pub vault: Vault,
    /// The projection, for `/readyz`.
    pub index: Index,
    /// What is asked.
    pub query: Query,
    /// What went wrong.
    pub incidents: Incidents,
    /// What is counted.
    pub telemetry: Telemetry,
}

/// What an observer's handlers work with.
#[derive(Debug)]
pub struct Context {
    config: Config,
    fhir_base: String,
    genesis: Genesis,
    organization: OrganizationId,
    rooms: Rooms,
}

impl fhir::Server for Context {
    fn caller_of(&self, peer: &Peer, headers: &HeaderMap) -> Result<Caller, Fault> {
        Caller::of(&self.rooms.proofs.state(), peer, headers)
    }

    fn query(&self) -> &Query {
        &self.rooms.query
    }

    fn fhir_base(&self) -> &str {
        &self.fhir_base
    }

    fn genesis(&self) -> &Genesis {
        &self.genesis
    }

    fn lag_blocks(&self, projected: Height) -> (u64, u64) {
        let lag = self.rooms.proofs.head().height.0.saturating_sub(projected.0);
        (lag, self.config.projection_lag_blocks_max)
    }
}

impl Context {
    /// The door of an organisation's observer.
    #[must_use]
    pub fn new(config: Config, genesis: Genesis, organization: OrganizationId, rooms: Rooms) -> Self {
        Self {
            fhir_base: config.fhir_base(),
            config,
            genesis,
            organization,
            rooms,
        }
    }

    /// Whether what it knows is the network's, and fresh: it would go on reading after a grant was taken back.
    fn may_answer(&self) -> Result<(), Fault> {
        if self.rooms.proofs.is_forked() {
            return Err(Fault::unavailable(
                "two blocks of one height have two thirds of the votes; /api/v1/incidents has the evidence",
            ));
        }
        if head_age_ms(&self.rooms.proofs.head()) > self.config.stale_after_ms {
            return Err(Fault::unavailable(
                "this observer has proven no block for too long: it reaches too few fog nodes, or the quorum is lost",
            ));
        }
        Ok(())
    }

    fn into_service(self) -> Service {
        let bounds = self.config.bounds();
        Table::new(routes(), Arc::new(self), bounds)
            .answering_if(Self::may_answer)
            .into_service(&PREFIXES)
    }
}

/// The whole table of an observer; what a fog node answers besides is 501 here.
#[must_use]
pub fn routes() -> Vec<Route<Context>> {
    let mut routes = fhir::routes::<Context>();
    routes.extend([
        Route::get("/api/v1/receipts/{bundle}", |context, request| {
            Box::pin(async move { receipt(&context, &request) })
        }),
        Route::get("/api/v1/chain/head", |context, _| {
            Box::pin(async move { Ok(head(&context)) })
        }),
        Route::get("/api/v1/incidents", |context, _| {
            Box::pin(async move { Ok(answer::json(StatusCode::OK, &context.rooms.incidents.list())) })
        }),
        Route::get("/healthz", |_, _| {
            Box::pin(async { Ok(answer::json(StatusCode::OK, &json!({"status": "alive"}))) })
        }),
        Route::get("/readyz", |context, _| Box::pin(ready(context))),
        Route::get("/metrics", |context, _| {
            Box::pin(async move {
                Ok(answer::bytes(
                    StatusCode::OK,
                    answer::TEXT,
                    context.rooms.telemetry.render(),
                ))
            })
        }),
    ]);
    let is_served = |node: &Route<super::Context>, own: &[Route<Context>]| {
        own.iter()
            .any(|route| route.path == node.path && route.method == node.method)
    };
    for node in super::routes() {
        if !is_served(&node, &routes) {
            routes.push(elsewhere(&node));
        }
    }
    routes
}

/// An address that fog nodes alone answer.
fn elsewhere(node: &Route<super::Context>) -> Route<Context> {
    if node.method == ::http::Method::POST {
        // No body is read for it.
        Route::post(node.path, BODY_BYTES_MAX, |_, _| Box::pin(async { Err(not_here()) }))
            .from(|_, _, _| Err(not_here()))
    } else {
        Route::get(node.path, |_, _| Box::pin(async { Err(not_here()) }))
    }
}

fn not_here() -> Fault {
    Fault::not_implemented("an observer takes nothing and holds no chain: ask a fog node")
}

fn receipt(context: &Context, request: &Request) -> Answered {
    let bundle = bundle_of(request.place())?;
    let receipt = context.rooms.proofs.receipt(&bundle)?;
    let receipt = receipt.ok_or_else(|| {
        Fault::not_found("this observer has no receipt of this bundle: unknown, or of a key that it was not granted")
    })?;
    // Exactly these bytes: a receipt has one text.
    Ok(answer::bytes(StatusCode::OK, answer::JSON, receipt))
}

fn head(context: &Context) -> ::http::Response<super::body::Body> {
    let (head, anchor) = (context.rooms.proofs.head(), context.rooms.proofs.anchor());
    let voted = json!({"height": anchor.header.height, "digest": anchor.header.digest()});
    let head = json!({
        "height": head.height,
        "digest": head.digest,
        "state_digest": head.state_digest,
        "newest_voted_header": voted,
    });
    answer::json(StatusCode::OK, &head)
}

/// Ready means: what is read here is proven and fresh.
async fn ready(context: Arc<Context>) -> Answered {
    let proofs = &context.rooms.proofs;
    let freshness = Freshness::of(proofs.head(), &context.rooms.index).await;
    let keys_behind = proofs.keys_behind(&context.organization)?;
    let checks = [
        (
            proofs.is_forked(),
            "two blocks of one height have two thirds of the votes",
        ),
        (
            freshness.head_age_ms > context.config.head_age_ms_max,
            "the last proven block is too old: too few fog nodes are reached, or the quorum is lost",
        ),
        (
            keys_behind > 0,
            "the bundles of keys granted lately are still being learned",
        ),
        (
            !context.rooms.vault.answers(),
            "the vault's daemon does not answer: no payload is kept here",
        ),
        (freshness.lag_blocks.is_none(), "the index does not answer"),
        (!freshness.is_counted, UNCOUNTED),
        (
            freshness.lag_blocks > Some(context.config.projection_lag_blocks_max),
            "the index lags behind what is proven",
        ),
    ];
    Ok(freshness.readiness(checks))
}

/// Serves until `shutdown`, then lets requests under way finish.
///
/// # Errors
/// Key and certificate do not fit.
pub async fn serve(
    listener: TcpListener,
    identity: &Identity,
    context: Context,
    shutdown: CancellationToken,
) -> Result<(), TlsError> {
    let (tls, limits) = (identity.server()?, context.config.limits());
    server::serve(listener, tls, context.into_service(), limits, shutdown).await;
    Ok(())
}
