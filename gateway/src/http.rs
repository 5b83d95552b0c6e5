//! What the gateway shows of itself on loopback: `/healthz`, `/metrics`, `/status`; and two doors to it: for readings from a
//! file, and to have a device asked.

pub mod resend;
pub mod resync;
mod unserved;

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, Response, StatusCode, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::PrometheusHandle;
use record::ids::{GatewayId, NetworkId};
use serde::{Deserialize, Serialize};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};

use self::unserved::Unserved;
use crate::{
    directory::Directory,
    intake::Intake,
    mqtt::{
        Connected,
        presence::{Presence, Silence},
        resend::Asker,
        subscriber::LinkState,
    },
    outbox::{Gap, Outbox, Percentiles, Refused, Report, Shortage, Summary},
    transit::{Sealed, Shown, Transit},
    uplink::{self, NodeState},
};

/// Connections at a time, at most.
const CONNECTIONS_MAX: usize = 64;
/// A request's head must have arrived within this time; on loopback it takes no longer, and idle connections give way.
const HEAD_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection ends after this time, whatever it does.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(300);
/// The outbox must answer within this time to be healthy.
const REPORT_TIMEOUT: Duration = Duration::from_secs(2);

/// Where the gateway shows itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Loopback only: there is neither TLS nor a login here.
    pub listen: SocketAddr,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8480)),
        }
    }
}

/// What is shown, from the rooms that know it.
#[derive(Clone, Debug)]
pub struct Sources {
    /// The network it belongs to.
    pub network: NetworkId,
    /// The gateway's name.
    pub gateway: GatewayId,
    /// What devices seal to.
    pub transit: Transit,
    /// Which devices there are.
    pub devices: Directory,
    /// Who is connected.
    pub connected: Connected,
    /// Where readings from a file go.
    pub intake: Intake,
    /// Who is silent.
    pub presence: Presence,
    /// Who asks devices for what is missing.
    pub asker: Asker,
    /// Counters, spool, quarantine, gaps.
    pub outbox: Outbox,
    /// Bundles under way and the nodes.
    pub uplink: uplink::View,
    /// The recorded metrics.
    pub metrics: PrometheusHandle,
}

/// The body of `/status`.
#[derive(Debug, Serialize)]
struct Status {
    network: NetworkId,
    gateway: GatewayId,
    /// Whether messages in the clear are taken.
    sealed: Sealed,
    /// What devices seal to; new ones are given the first.
    reading_keys: Vec<Shown>,
    devices: usize,
    /// Devices whose readings are taken and served to nobody: the chain does not know them. Null before enough fog nodes have told.
    not_on_chain: Option<Unserved>,
    connected: usize,
    /// The link to the outside broker; absent with the embedded one.
    #[serde(skip_serializing_if = "Option::is_none")]
    broker: Option<LinkState>,
    /// Devices of which no reading has come for too long.
    silent: Silence,
    received: u64,
    acknowledged: u64,
    duplicates: u64,
    /// Why nothing new is taken: `spool` or `disk`; null when it is.
    full: Option<Shortage>,
    /// Why waveforms are not taken, which give way first; null when they are.
    waves_refused: Option<Shortage>,
    spooled_bundles: u64,
    spooled_readings: u64,
    spooled_bytes: u64,
    in_flight: usize,
    final_bundles: u64,
    final_readings: u64,
    quarantined: Summary,
    gaps: Vec<Gap>,
    refused_bundles: u64,
    damaged_bundles: u64,
    refused_bytes: u64,
    /// The last bundles that were set aside, refused or damaged.
    refused: Vec<Refused>,
    latency_ms: Latencies,
    nodes: Vec<NodeState>,
}

/// How long readings took.
#[derive(Debug, Serialize)]
struct Latencies {
    publish_to_final: Percentiles,
    received_to_final: Percentiles,
}

impl Sources {
    fn status(&self, report: Report) -> Status {
        Status {
            network: self.network,
            gateway: self.gateway.clone(),
            sealed: self.transit.demand(),
            reading_keys: self.transit.shown(),
            devices: self.devices.len(),
            not_on_chain: Unserved::of(&self.devices),
            connected: self.connected.count(),
            broker: self.connected.link(),
            silent: self.presence.silence(),
            received: report.counters.received,
            acknowledged: report.counters.acknowledged,
            duplicates: report.counters.duplicates,
            full: report.full,
            waves_refused: report.waves_refused,
            spooled_bundles: report.spooled_bundles,
            spooled_readings: report.spooled_readings,
            spooled_bytes: report.spooled_bytes,
            in_flight: self.uplink.in_flight(),
            final_bundles: report.counters.final_bundles,
            final_readings: report.counters.final_readings,
            quarantined: report.quarantined,
            gaps: report.gaps,
            refused_bundles: report.counters.refused_bundles,
            damaged_bundles: report.counters.damaged_bundles,
            refused_bytes: report.refused_bytes,
            refused: report.refused,
            latency_ms: Latencies {
                publish_to_final: report.publish_to_final,
                received_to_final: report.received_to_final,
            },
            nodes: self.uplink.nodes(),
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() == Method::POST && request.uri().path() == resync::PATH {
            return resync::answer(&self.intake, request).await;
        }
        if request.method() == Method::POST && request.uri().path() == resend::PATH {
            return resend::answer((&self.asker, &self.devices), request).await;
        }
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return response(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET and HEAD\n");
        }
        match request.uri().path() {
            "/healthz" => match self.report().await {
                Some(_) => response(StatusCode::OK, "text/plain", "ok\n"),
                None => silent(),
            },
            "/metrics" => {
                // Counted when somebody asks: silence is what does not happen.
                let silence = self.presence.silence();
                metrics::gauge!("gateway_devices_silent").set(silence.devices as f64);
                metrics::gauge!("gateway_devices_online").set(silence.online as f64);
                if let Some(unserved) = self.devices.count_not_on_chain() {
                    metrics::gauge!("gateway_devices_not_on_chain").set(unserved as f64);
                }
                response(StatusCode::OK, "text/plain; version=0.0.4", self.metrics.render())
            }
            "/status" => match self.report().await {
                Some(report) => {
                    let status = serde_json::to_string(&self.status(report)).expect("a status has string keys");
                    response(StatusCode::OK, "application/json", status)
                }
                None => silent(),
            },
            _ => response(
                StatusCode::NOT_FOUND,
                "text/plain",
                "try /healthz, /metrics or /status\n",
            ),
        }
    }

    async fn report(&self) -> Option<Report> {
        timeout(REPORT_TIMEOUT, self.outbox.report()).await.ok().flatten()
    }
}

fn silent() -> Response<Full<Bytes>> {
    response(
        StatusCode::SERVICE_UNAVAILABLE,
        "text/plain",
        "the spool does not answer\n",
    )
}

fn response(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    Response::builder()
        .status(status)
        .header("content-type", content_type)
        .header("cache-control", "no-store")
        .body(Full::new(body.into()))
        .expect("static headers are well-formed")
}

/// Serves until it is dropped.
pub async fn serve(listener: TcpListener, sources: Sources) {
    let sources = Arc::new(sources);
    let seats = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let seat = Arc::clone(&seats)
            .acquire_owned()
            .await
            .expect("nobody closes the semaphore");
        let stream = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_ended) = connections.join_next() => continue,
        };
        match stream {
            Ok((stream, _)) => {
                let sources = Arc::clone(&sources);
                connections.spawn(async move {
                    // A client that is too slow or breaks off is its own loss.
                    let _ended = timeout(CONNECTION_TIMEOUT, serve_connection(stream, sources)).await;
                    drop(seat);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accepting on the status port failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_connection(stream: TcpStream, sources: Arc<Sources>) -> Result<(), hyper::Error> {
    let service = service_fn(move |request| {
        let sources = Arc::clone(&sources);
        async move { Ok::<_, Infallible>(sources.answer(request).await) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(64)
        .serve_connection(TokioIo::new(stream), service)
        .await
}
