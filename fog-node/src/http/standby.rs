//! The door of a node that waits for room on its disk: it lives, it counts, and answers everything else with 503.

use std::sync::Arc;

use ::http::{Method, StatusCode};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{
    BODY_BYTES_MAX, Config, PREFIXES, answer,
    fault::Fault,
    health::FULL,
    route::{Route, Table},
    server,
    tls::{Identity, TlsError},
};
use crate::telemetry::Telemetry;

/// The whole table: the addresses of a fog node. None is a 4xx: a gateway would take that as final.
fn routes() -> Vec<Route<Telemetry>> {
    let mut routes = vec![
        Route::get("/healthz", |_, _| {
            Box::pin(async { Ok(answer::json(StatusCode::OK, &json!({"status": "alive"}))) })
        }),
        Route::get("/readyz", |_, _| {
            let body = json!({"ready": false, "reasons": [FULL]});
            Box::pin(async move { Ok(answer::json(StatusCode::SERVICE_UNAVAILABLE, &body)) })
        }),
        Route::get("/metrics", |telemetry: Arc<Telemetry>, _| {
            Box::pin(async move { Ok(answer::bytes(StatusCode::OK, answer::TEXT, telemetry.render())) })
        }),
    ];
    for node in super::routes() {
        let is_there = |own: &Route<Telemetry>| own.path == node.path && own.method == node.method;
        if !routes.iter().any(is_there) {
            routes.push(later(&node));
        }
    }
    routes
}

fn later(node: &Route<super::Context>) -> Route<Telemetry> {
    if node.method == Method::POST {
        // No body is read for it.
        Route::post(node.path, BODY_BYTES_MAX, |_, _| Box::pin(async { Err(not_now()) })).from(|_, _, _| Err(not_now()))
    } else {
        Route::get(node.path, |_, _| Box::pin(async { Err(not_now()) }))
    }
}

fn not_now() -> Fault {
    Fault::unavailable(FULL)
}

/// Serves until `done`.
///
/// # Errors
/// Key and certificate do not fit.
pub async fn serve(
    listener: TcpListener,
    identity: &Identity,
    (config, telemetry): (&Config, Telemetry),
    done: CancellationToken,
) -> Result<(), TlsError> {
    let service = Table::new(routes(), Arc::new(telemetry), config.bounds()).into_service(&PREFIXES);
    server::serve(listener, identity.server()?, service, config.limits(), done).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_of_a_fog_node_is_answered() {
        let own = routes();
        for node in super::super::routes() {
            let same = own
                .iter()
                .filter(|route| route.path == node.path && route.method == node.method);
            assert_eq!(same.count(), 1, "{} {}", node.method, node.path);
        }
        assert_eq!(not_now().status(), StatusCode::SERVICE_UNAVAILABLE);
    }
}
