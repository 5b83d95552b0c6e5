//! The outer door: HTTPS for gateways, other nodes and hospitals; one file a resource, who asks in `caller`, how it fails in
//! `fault`.

pub mod answer;
pub mod body;
pub mod bundles;
pub mod caller;
pub mod chain;
pub mod devices;
pub mod documents;
pub mod erasures;
pub mod fault;
pub mod fhir;
pub mod health;
pub mod incidents;
pub mod light;
pub mod observer;
pub mod parameters;
pub mod payloads;
pub mod possession;
pub mod ranges;
pub mod receipts;
mod request;
pub mod route;
pub mod server;
pub mod standby;
pub mod tls;
pub mod token;
pub mod transactions;
pub mod upload;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use ::http::HeaderMap;
use ledger::{admission::SUBMISSION_BYTES_MAX, block::Height, genesis::Genesis};
use record::signature::PublicKey;
use serde::{Deserialize, Serialize};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

use crate::{
    chain::{Chain, Head},
    disclosure::Disclosure,
    documents::Documents,
    index::Index,
    intake::Intake,
    mempool::Mempool,
    possession::Possession,
    query::Query,
    recovery::{Recovery, Standing},
    telemetry::Telemetry,
    vault::Vault,
};
use caller::{Caller, Peer};
use fault::Fault;
use route::{Bounds, Request, Route, Service, Table};
use server::Limits;
use tls::Identity;

/// Bytes of a body, at most: 1 MiB, which a submission fits in.
pub const BODY_BYTES_MAX: u32 = 1 << 20;
const _: () = assert!(SUBMISSION_BYTES_MAX <= BODY_BYTES_MAX as usize);
/// Bytes of a search's form, at most.
pub const FORM_BYTES_MAX: u32 = 64 << 10;
/// How long a caller may ask to wait for something, in milliseconds.
pub const WAIT_MS_MAX: u64 = 30_000;
/// The first words of addresses; everything else is not here.
const PREFIXES: [&str; 6] = ["fhir", "api", "ipfs", "healthz", "readyz", "metrics"];

/// What an operator may set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where to listen.
    pub listen: SocketAddr,
    /// How callers reach this node; links in answers begin with it. Empty: `https://` and the listening address.
    pub public_url: String,
    /// This node's certificate chain, PEM, the leaf first.
    pub certificate: PathBuf,
    /// Its private key, PEM, readable by the owner alone.
    pub private_key: PathBuf,
    /// The network's CA, PEM: who shows a certificate shows one of its.
    pub ca: PathBuf,
    /// Open connections, at most.
    pub connections_max: usize,
    /// Open connections from one address, at most.
    pub connections_per_address_max: usize,
    /// Requests at a time on one HTTP/2 connection, at most.
    pub streams_max: u32,
    /// Time for the TLS handshake, and for each header.
    pub header_timeout_ms: u64,
    /// Time for a body to arrive.
    pub body_timeout_ms: u64,
    /// Time for an answer.
    pub answer_timeout_ms: u64,
    /// Time a connection may be open without a request.
    pub idle_timeout_ms: u64,
    /// Time for requests under way when the node stops.
    pub drain_timeout_ms: u64,
    /// `/readyz`: the last block may be this old.
    pub head_age_ms_max: u64,
    /// Records are neither taken nor read when the last block is older than this: consent may have changed elsewhere.
    pub stale_after_ms: u64,
    /// `/readyz`: the index may be this many blocks behind.
    pub projection_lag_blocks_max: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8401)),
            public_url: String::new(),
            certificate: "node.crt".into(),
            private_key: "node.key".into(),
            ca: "ca.crt".into(),
            connections_max: 2_048,
            connections_per_address_max: 1_024,
            streams_max: 64,
            header_timeout_ms: 10_000,
            body_timeout_ms: 30_000,
            answer_timeout_ms: 45_000,
            idle_timeout_ms: 60_000,
            drain_timeout_ms: 5_000,
            head_age_ms_max: 15_000,
            stale_after_ms: 15_000,
            projection_lag_blocks_max: 50,
        }
    }
}

impl Config {
    /// What is wrong with it, each with the key to change.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let least = [
            ("connections_max", self.connections_max as u64, 1),
            (
                "connections_per_address_max",
                self.connections_per_address_max as u64,
                1,
            ),
            ("streams_max", u64::from(self.streams_max), 1),
            ("header_timeout_ms", self.header_timeout_ms, 1),
            ("body_timeout_ms", self.body_timeout_ms, 1),
            // A caller who may wait this long must get its answer.
            ("answer_timeout_ms", self.answer_timeout_ms, WAIT_MS_MAX + 1_000),
            ("idle_timeout_ms", self.idle_timeout_ms, self.header_timeout_ms),
            // Blocks come about once a second: less would flap.
            ("stale_after_ms", self.stale_after_ms, 5_000),
            ("head_age_ms_max", self.head_age_ms_max, 5_000),
        ];
        let too_small = least.iter().filter(|(_, value, least)| value < least);
        let mut faults: Vec<_> = too_small
            .map(|(key, _, least)| format!("http.{key} must be at least {least}"))
            .collect();
        if !self.public_url.is_empty() && !self.public_url.starts_with("https://") {
            faults.push("http.public_url must begin with https://".to_owned());
        }
        faults
    }

    fn fhir_base(&self) -> String {
        let listen = format!("https://{}", self.listen);
        let url = if self.public_url.is_empty() {
            &listen
        } else {
            &self.public_url
        };
        format!("{}/fhir", url.trim_end_matches('/'))
    }

    fn limits(&self) -> Limits {
        Limits {
            connections_max: self.connections_max,
            connections_per_address_max: self.connections_per_address_max,
            streams_max: self.streams_max,
            header_timeout: Duration::from_millis(self.header_timeout_ms),
            idle_timeout: Duration::from_millis(self.idle_timeout_ms),
            drain_timeout: Duration::from_millis(self.drain_timeout_ms),
        }
    }

    fn bounds(&self) -> Bounds {
        Bounds {
            body_timeout: Duration::from_millis(self.body_timeout_ms),
            answer_timeout: Duration::from_millis(self.answer_timeout_ms),
        }
    }
}

/// The rooms behind the door.
#[derive(Debug)]
pub struct Rooms {
    /// Finalized blocks and the state.
    pub chain: Chain,
    /// What waits for a block.
    pub mempool: Mempool,
    /// Payloads.
    pub vault: Vault,
    /// The projection, for `/readyz`.
    pub index: Index,
    /// What is handed in.
    pub intake: Intake,
    /// Large records.
    pub documents: Documents,
    /// What is asked.
    pub query: Query,
    /// What a member without a chain may learn of it.
    pub disclosure: Disclosure,
    /// What this node proves, and what others have proven to it.
    pub possession: Possession,
    /// Whether this node may answer, and what went wrong here.
    pub recovery: Recovery,
    /// What is counted.
    pub telemetry: Telemetry,
    /// Whether the engine runs.
    pub consensus_runs: watch::Receiver<bool>,
}

/// What handlers work with.
#[derive(Debug)]
pub struct Context {
    config: Config,
    fhir_base: String,
    genesis: Genesis,
    validator: PublicKey,
    rooms: Rooms,
}

impl std::ops::Deref for Context {
    type Target = Rooms;

    fn deref(&self) -> &Rooms {
        &self.rooms
    }
}

impl Context {
    /// The door of the node with this key.
    #[must_use]
    pub fn new(config: Config, genesis: Genesis, validator: PublicKey, rooms: Rooms) -> Self {
        Self {
            fhir_base: config.fhir_base(),
            config,
            genesis,
            validator,
            rooms,
        }
    }

    /// Who asks, by the state of this moment.
    fn caller(&self, request: &Request) -> Result<Caller, Fault> {
        self.caller_of(&request.peer, &request.headers)
    }

    fn caller_of(&self, peer: &Peer, headers: &HeaderMap) -> Result<Caller, Fault> {
        Caller::of(&self.chain.state(), peer, headers)
    }

    /// Whether this node may answer for the network now: its chain is the majority's, and fresh. A node that is cut off
    /// would go on reading after a grant was taken back elsewhere.
    fn may_answer(&self) -> Result<(), Fault> {
        match self.recovery.standing() {
            Standing::Answering => {}
            Standing::Diverged => {
                return Err(Fault::unavailable(
                    "this node's chain is not the majority's; it mends itself, ask another node meanwhile",
                ));
            }
            Standing::Repairing => {
                return Err(Fault::unavailable(
                    "this node makes its chain anew from good blocks; ask another node meanwhile",
                ));
            }
        }
        if head_age_ms(&self.chain.head()) > self.config.stale_after_ms {
            return Err(Fault::unavailable(
                "this node has had no block for too long: it is cut off, or the quorum is lost; ask another node",
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

impl fhir::Server for Context {
    fn caller_of(&self, peer: &Peer, headers: &HeaderMap) -> Result<Caller, Fault> {
        Self::caller_of(self, peer, headers)
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
        let lag = self.chain.head().height.0.saturating_sub(projected.0);
        (lag, self.config.projection_lag_blocks_max)
    }

    fn own_routes() -> Vec<Route<Self>> {
        fhir::binary::routes()
    }
}

/// How old the last block is by this node's clock, in milliseconds; blocks come about once a second even when nothing
/// happens.
fn head_age_ms(head: &Head) -> u64 {
    let now_ms = u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or_default();
    now_ms.saturating_sub(head.timestamp_ms)
}

/// The whole table of addresses.
#[must_use]
pub fn routes() -> Vec<Route<Context>> {
    [
        bundles::routes(),
        documents::routes(),
        receipts::routes(),
        erasures::routes(),
        transactions::routes(),
        devices::routes(),
        payloads::routes(),
        possession::routes(),
        chain::routes(),
        light::routes(),
        health::routes(),
        incidents::routes(),
        fhir::routes(),
    ]
    .into_iter()
    .flatten()
    .collect()
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
) -> Result<(), tls::TlsError> {
    let (tls, limits) = (identity.server()?, context.config.limits());
    server::serve(listener, tls, context.into_service(), limits, shutdown).await;
    Ok(())
}

#[cfg(test)]
mod binaries;
#[cfg(test)]
mod clinic;
#[cfg(test)]
mod journeys;
#[cfg(test)]
mod tests;
