//! The fog nodes over HTTP: what their answers mean, and which of them to leave alone for a while.

use std::{collections::BTreeSet, time::Duration};

use record::{canonical::MEDIA_TYPE, ids::BundleId};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, Url, header};
use serde::Serialize;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::Config;
use ledger::{handover::HANDOVERS_BYTES_MAX, proof::RECEIPT_BYTES_MAX};

/// A node's explanation is cut after this many bytes.
const REASON_BYTES_MAX: usize = 2_048;
/// An admission has fewer bytes than this.
const ADMISSION_BYTES_MAX: usize = 16_384;
/// A node's `Retry-After` is believed up to this.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);
/// The question for the committees may take this long.
const VALIDATORS_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection that is silent is tried after this time, and given up after it once more.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// What a receipt question may take beyond its waiting time.
const RECEIPT_GRACE: Duration = Duration::from_secs(5);

/// What a node's answer means.
#[derive(Debug)]
pub(super) enum Reply {
    /// What was asked for.
    Done(Vec<u8>),
    /// Admitted, not yet final.
    Waiting,
    /// The node is fine but cannot take or does not know this bundle now.
    NotYet,
    /// The node is unreachable, busy or broken; it may ask for a pause.
    Failed(Option<Duration>),
    /// These bytes are refused for good, for this reason.
    Refused(String),
}

/// A node as the status shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeState {
    /// Its address.
    pub url: String,
    /// `untried`, `up` or `resting`.
    pub state: &'static str,
}

#[derive(Clone, Copy, Debug, Default)]
struct Health {
    tried: bool,
    failures: u32,
    rests_until: Option<Instant>,
}

impl Health {
    fn is_resting(&self) -> bool {
        self.rests_until.is_some_and(|until| until > Instant::now())
    }
}

/// One fog node.
#[derive(Debug)]
pub(super) struct Node {
    base: Url,
    client: Client,
    patience: Patience,
    health: watch::Sender<Health>,
}

#[derive(Clone, Copy, Debug)]
struct Patience {
    submit: Duration,
    receipt_wait_ms: u64,
    until_final: Duration,
    pause: (Duration, Duration),
}

impl Patience {
    fn pause_after(&self, failures: u32) -> Duration {
        growing(self.pause, failures)
    }
}

/// A pause that doubles with each failure from the first length to the longest, with jitter.
pub(crate) fn growing((first, longest): (Duration, Duration), failures: u32) -> Duration {
    let pause = first.saturating_mul(1 << failures.min(16)).min(longest);
    pause.mul_f64(rand::random_range(0.5..=1.0))
}

/// The fog nodes.
#[derive(Debug)]
pub(super) struct Nodes {
    nodes: Vec<Node>,
}

/// A node's address: https, host and port, nothing before or behind.
pub(super) fn base(text: &str) -> Option<Url> {
    // Anything else would make one node look like two.
    Url::parse(text).ok().filter(|url| {
        let is_bare = url.username().is_empty() && url.password().is_none() && url.fragment().is_none();
        is_bare && url.scheme() == "https" && url.path() == "/" && url.query().is_none()
    })
}

/// A client of fog nodes, which asks nobody else, wherever it is sent.
pub(crate) fn client(tls: rustls::ClientConfig, connect_timeout: Duration) -> Result<Client, reqwest::Error> {
    Client::builder()
        .tls_backend_preconfigured(tls)
        .https_only(true)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(connect_timeout)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .http2_keep_alive_timeout(KEEP_ALIVE)
        .build()
}

impl Nodes {
    pub(super) fn connect(config: &Config, tls: rustls::ClientConfig) -> Result<Self, reqwest::Error> {
        let client = client(tls, Duration::from_millis(config.connect_timeout_ms))?;
        let patience = Patience {
            submit: Duration::from_millis(config.submit_timeout_ms),
            receipt_wait_ms: config.receipt_wait_ms,
            until_final: Duration::from_millis(config.final_timeout_ms),
            pause: (
                Duration::from_millis(config.pause_min_ms),
                Duration::from_millis(config.pause_max_ms),
            ),
        };
        let node = |base| Node {
            base,
            client: client.clone(),
            patience,
            health: watch::Sender::default(),
        };
        // Each once: what a node refuses is one refusal, however often it is named.
        let nodes = config.bases().into_iter().map(node).collect();
        Ok(Self { nodes })
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The first node from `turn` on that is not resting and not among those to `skip`; if all are resting, it waits for
    /// the first to have rested. `None` if only nodes to skip are awake.
    pub(super) async fn ready(&self, turn: u64, skip: &BTreeSet<usize>) -> Option<(usize, &Node)> {
        let count = self.nodes.len();
        let start = usize::try_from(turn % (count as u64)).expect("smaller than the number of nodes");
        loop {
            let awake = |index: &usize| !self.nodes[*index].health.borrow().is_resting();
            let mut from_turn = (0..count).map(|offset| (start + offset) % count);
            if let Some(index) = from_turn.find(|index| awake(index) && !skip.contains(index)) {
                return Some((index, &self.nodes[index]));
            }
            if (0..count).any(|index| awake(&index)) {
                return None;
            }
            let soonest = self
                .nodes
                .iter()
                .filter_map(|node| node.health.borrow().rests_until)
                .min();
            sleep_until(soonest.unwrap_or_else(Instant::now)).await;
        }
    }

    pub(super) fn states(&self) -> Vec<NodeState> {
        let state = |health: Health| match health {
            health if health.is_resting() => "resting",
            health if health.tried => "up",
            _ => "untried",
        };
        let shown = |node: &Node| NodeState {
            url: node.url().to_owned(),
            state: state(*node.health.borrow()),
        };
        self.nodes.iter().map(shown).collect()
    }
}

impl Node {
    pub(super) fn url(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    pub(super) const fn final_timeout(&self) -> Duration {
        self.patience.until_final
    }

    /// Leaves the node alone for a while. Flights that fail together count once.
    pub(super) fn failed(&self, at_least: Option<Duration>) {
        self.health.send_modify(|health| {
            if health.is_resting() {
                return;
            }
            if health.failures == 0 {
                tracing::warn!(node = self.url(), "a fog node fails; its peers take over");
            }
            let pause = self.patience.pause_after(health.failures);
            let pause = at_least.map_or(pause, |asked| asked.min(RETRY_AFTER_MAX).max(pause));
            *health = Health {
                tried: true,
                failures: health.failures + 1,
                rests_until: Some(Instant::now() + pause),
            };
        });
    }

    pub(super) fn succeeded(&self) {
        self.health.send_if_modified(|health| {
            if health.failures > 0 {
                tracing::info!(node = self.url(), "a fog node is back");
            }
            let changed = !health.tried || health.failures > 0;
            *health = Health {
                tried: true,
                failures: 0,
                rests_until: None,
            };
            changed
        });
    }

    /// Submits a bundle.
    pub(super) async fn submit(&self, submission: Vec<u8>) -> Reply {
        let request = self
            .request(Method::POST, "/api/v1/bundles")
            .timeout(self.patience.submit)
            .header(header::CONTENT_TYPE, MEDIA_TYPE)
            .body(submission);
        match request.send().await {
            Ok(response) if response.status() == StatusCode::ACCEPTED => done(response, ADMISSION_BYTES_MAX).await,
            Ok(response) => refusal(response).await,
            Err(error) => unreachable_node(self, &error),
        }
    }

    /// Asks for a bundle's receipt; the node may hold the answer back until there is one.
    pub(super) async fn receipt(&self, bundle: &BundleId) -> Reply {
        let wait_ms = self.patience.receipt_wait_ms;
        let request = self
            .request(Method::GET, &format!("/api/v1/receipts/{bundle}?wait_ms={wait_ms}"))
            .timeout(Duration::from_millis(wait_ms) + RECEIPT_GRACE);
        match request.send().await {
            Ok(response) if response.status() == StatusCode::OK => done(response, RECEIPT_BYTES_MAX).await,
            Ok(response) if response.status() == StatusCode::ACCEPTED => Reply::Waiting,
            Ok(response) => match refusal(response).await {
                // The bytes were admitted: a node that refuses the question has forgotten, or is confused.
                Reply::Refused(_) => Reply::NotYet,
                other => other,
            },
            Err(error) => unreachable_node(self, &error),
        }
    }

    /// The committees, as the node tells of them.
    pub(super) async fn validators(&self) -> Option<Vec<u8>> {
        let request = self.request(Method::GET, "/api/v1/chain/validators");
        let response = request.timeout(VALIDATORS_TIMEOUT).send().await.ok()?;
        if response.status() != StatusCode::OK {
            return None;
        }
        body(response, HANDOVERS_BYTES_MAX).await
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let url = self.base.join(path).expect("a path of ours joins any https base");
        self.client.request(method, url)
    }
}

fn unreachable_node(node: &Node, error: &reqwest::Error) -> Reply {
    // Logged where it is handled: `failed` says it once per outage.
    tracing::debug!(node = node.url(), %error, "no answer");
    Reply::Failed(None)
}

/// What an answer other than the one hoped for means (the contract between gateway and node).
async fn refusal(response: Response) -> Reply {
    let status = response.status();
    let retry_after = response
        .headers()
        .get(header::RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .map(Duration::from_secs);
    match status {
        StatusCode::BAD_REQUEST
        | StatusCode::PAYLOAD_TOO_LARGE
        | StatusCode::UNSUPPORTED_MEDIA_TYPE
        | StatusCode::UNPROCESSABLE_ENTITY => {
            let text = body(response, REASON_BYTES_MAX).await.unwrap_or_default();
            Reply::Refused(format!("{status} {}", String::from_utf8_lossy(&text)))
        }
        // Not enrolled yet, key not announced yet, bundle unknown here: true now, perhaps not in a moment.
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND | StatusCode::CONFLICT => {
            Reply::NotYet
        }
        _ => Reply::Failed(retry_after),
    }
}

/// The body, if all of it comes and it is not larger than it may be.
pub(crate) async fn body(mut response: Response, bytes_max: usize) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.ok()? {
        if body.len() + chunk.len() > bytes_max {
            return None;
        }
        body.extend_from_slice(&chunk);
    }
    Some(body)
}

/// The same as what a node has done.
async fn done(response: Response, bytes_max: usize) -> Reply {
    body(response, bytes_max).await.map_or(Reply::Failed(None), Reply::Done)
}
