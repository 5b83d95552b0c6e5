//! The accept loop: TLS with optional client certificates, every wait bounded, connections counted, a graceful end.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::{caller::Peer, route::Service};

/// Headers of a request, at most.
const HEADERS_MAX: usize = 64;
/// Bytes of all headers of a request, at most.
const HEADER_BYTES_MAX: u32 = 16_384;
/// Streams a client may reset before we served them (HTTP/2 rapid reset), at most.
const RESETS_MAX: usize = 32;
/// How long to wait when no connection can be accepted, e.g. for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What connections may do.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Open connections in all.
    pub connections_max: usize,
    /// Open connections from one address.
    pub connections_per_address_max: usize,
    /// Requests at a time on one HTTP/2 connection.
    pub streams_max: u32,
    /// Time for the TLS handshake, and again for the first whole header, and for each header after it.
    pub header_timeout: Duration,
    /// Time a connection may be open without a request.
    pub idle_timeout: Duration,
    /// Time for requests under way when the node stops.
    pub drain_timeout: Duration,
}

/// The loop's constants, shared by its connections.
struct Shared {
    tls: TlsAcceptor,
    service: Service,
    limits: Limits,
    shutdown: CancellationToken,
}

/// Serves until `shutdown`, then lets requests under way finish within the drain time.
pub async fn serve(
    listener: TcpListener,
    tls: ServerConfig,
    service: Service,
    limits: Limits,
    shutdown: CancellationToken,
) {
    let shared = Arc::new(Shared {
        tls: TlsAcceptor::from(Arc::new(tls)),
        service,
        limits,
        shutdown: shutdown.clone(),
    });
    let mut connections: JoinSet<IpAddr> = JoinSet::new();
    let mut per_address: HashMap<IpAddr, usize> = HashMap::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(ended) = connections.join_next() => {
                let address = ended.expect("a panic aborts the process before a join can see it");
                left(&mut per_address, address);
            }
            accepted = listener.accept() => match accepted {
                Ok((stream, from)) if has_room(&connections, &per_address, from.ip(), &limits) => {
                    *per_address.entry(from.ip()).or_default() += 1;
                    let shared = shared.clone();
                    connections.spawn(async move {
                        connection(&shared, stream, from).await;
                        from.ip()
                    });
                }
                Ok(_) => metrics::counter!("fog_http_connections_refused_total").increment(1),
                Err(error) => {
                    tracing::warn!(%error, "no connection could be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
        }
        metrics::gauge!("fog_http_connections").set(u32::try_from(connections.len()).unwrap_or(u32::MAX));
    }
    drop(listener);
    let drained = timeout(limits.drain_timeout, async {
        while connections.join_next().await.is_some() {}
    })
    .await;
    if drained.is_err() {
        tracing::warn!(
            open = connections.len(),
            "connections were cut off: they did not end in time"
        );
    }
}

fn has_room(all: &JoinSet<IpAddr>, per_address: &HashMap<IpAddr, usize>, from: IpAddr, limits: &Limits) -> bool {
    let of_address = per_address.get(&from).copied().unwrap_or_default();
    all.len() < limits.connections_max && of_address < limits.connections_per_address_max
}

fn left(per_address: &mut HashMap<IpAddr, usize>, address: IpAddr) {
    if let Some(open) = per_address.get_mut(&address) {
        *open -= 1;
        if *open == 0 {
            per_address.remove(&address);
        }
    }
}

/// What has happened on a connection, for its watchman.
#[derive(Default)]
struct Activity {
    /// Requests, and parts of answers that were taken.
    begun: AtomicU64,
    under_way: AtomicUsize,
}

/// Counts a request as under way until dropped.
struct UnderWay(Arc<Activity>);

impl UnderWay {
    fn begin(activity: &Arc<Activity>) -> Self {
        activity.begun.fetch_add(1, Ordering::Relaxed);
        activity.under_way.fetch_add(1, Ordering::Relaxed);
        Self(activity.clone())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A body whose every part that the caller takes is a sign of life of its connection: a large answer may take as long as it
/// likes, a caller that takes nothing may not.
struct Watched {
    body: WarpBody,
    activity: Arc<Activity>,
}

type WarpBody = <warp::reply::Response as IntoBody>::Body;

/// Names the type of a response's body.
trait IntoBody {
    type Body;
}

impl<B> IntoBody for http::Response<B> {
    type Body = B;
}

impl Body for Watched {
    type Data = Bytes;
    type Error = warp::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if polled.is_ready() {
            self.activity.begun.fetch_add(1, Ordering::Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

async fn connection(shared: &Shared, stream: TcpStream, from: SocketAddr) {
    // Small answers must not wait for more to send.
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let stream = match timeout(shared.limits.header_timeout, shared.tls.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake failed"),
        Err(_) => return tracing::debug!("TLS handshake took too long"),
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let peer = Peer {
        address: from,
        tls: certificate.and_then(Peer::identity),
    };
    let activity = Arc::new(Activity::default());
    let counted = activity.clone();
    let service = shared.service.clone();
    let service = tower::service_fn(move |mut request: http::Request<Incoming>| {
        request.extensions_mut().insert(peer);
        let (service, under_way) = (service.clone(), UnderWay::begin(&counted));
        async move {
            let answer = service.oneshot(request).await;
            let activity = under_way.0.clone();
            drop(under_way);
            answer.map(|answer| answer.map(|body| Watched { body, activity }))
        }
    });
    let builder = builder(&shared.limits);
    let mut http =
        pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(service)));
    let mut watchman = Watchman::new(&shared.limits);
    let mut draining = false;
    loop {
        tokio::select! {
            ended = http.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection ended early");
                }
                return;
            }
            () = shared.shutdown.cancelled(), if !draining => {
                draining = true;
                http.as_mut().graceful_shutdown();
            }
            () = sleep_until(watchman.next) => match watchman.look(&activity) {
                Verdict::Fine => {}
                Verdict::Silent | Verdict::Stuck => return,
                Verdict::Idle => http.as_mut().graceful_shutdown(),
            },
        }
    }
}

fn builder(limits: &Limits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // Without a timer hyper has no timeouts at all.
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEADER_BYTES_MAX as usize);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(limits.idle_timeout / 3)
        .keep_alive_timeout(limits.header_timeout)
        .max_concurrent_streams(limits.streams_max)
        .max_pending_accept_reset_streams(RESETS_MAX)
        .max_local_error_reset_streams(RESETS_MAX)
        .max_header_list_size(HEADER_BYTES_MAX);
    builder
}

/// Looks after one connection from outside hyper, whose own header timeout covers HTTP/1 only, and that only once it knows
/// that it is HTTP/1.
struct Watchman {
    next: Instant,
    every: Duration,
    quiet_since: Instant,
    idle_timeout: Duration,
    begun: u64,
    told: bool,
}

enum Verdict {
    Fine,
    /// Not one request in the time for the first header.
    Silent,
    /// No request for too long: it is told to end.
    Idle,
    /// It was told to end and has not: its peer does not read what we sent.
    Stuck,
}

impl Watchman {
    fn new(limits: &Limits) -> Self {
        let now = Instant::now();
        let every = limits.header_timeout;
        Self {
            next: now + every,
            every,
            quiet_since: now,
            idle_timeout: limits.idle_timeout,
            begun: 0,
            told: false,
        }
    }

    fn look(&mut self, activity: &Activity) -> Verdict {
        let now = Instant::now();
        self.next = now + self.every;
        let begun = activity.begun.load(Ordering::Relaxed);
        if begun == 0 {
            return Verdict::Silent;
        }
        if begun != self.begun || activity.under_way.load(Ordering::Relaxed) > 0 {
            (self.begun, self.quiet_since) = (begun, now);
        }
        match now - self.quiet_since >= self.idle_timeout {
            false => Verdict::Fine,
            true if self.told => Verdict::Stuck,
            true => {
                self.told = true;
                Verdict::Idle
            }
        }
    }
}
