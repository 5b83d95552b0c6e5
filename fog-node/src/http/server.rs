//! The accept loop: TLS with optional client certificates, every wait bounded, connections counted, a graceful end.

use std::{
    collections::HashMap,
    fs, io,
    net::{IpAddr, SocketAddr},
    path::Path,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
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

/// TLS files that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is missing or is not PEM of the right kind.
    #[error("{path}: {source}")]
    File {
        /// Which file.
        path: String,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// The key does not fit the certificate, or the like.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The CA cannot verify clients.
    #[error("TLS client certificates: {0}")]
    Verifier(#[from] rustls::client::VerifierBuilderError),
}

/// Certificates and key of this node, read from PEM files.
#[derive(Debug)]
pub struct Identity {
    /// The leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its private key.
    pub key: PrivateKeyDer<'static>,
    /// The network's CA.
    pub roots: Arc<RootCertStore>,
}

impl Identity {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn read(certificate: &Path, key: &Path, ca: &Path) -> Result<Self, TlsError> {
        let file = |path: &Path| {
            let path = path.display().to_string();
            move |source| TlsError::File { path, source }
        };
        let certificates = |path: &Path| -> Result<Vec<_>, TlsError> {
            let all: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(file(path))?.collect();
            let all = all.map_err(file(path))?;
            if all.is_empty() {
                Err(file(path)(rustls::pki_types::pem::Error::NoItemsFound))
            } else {
                Ok(all)
            }
        };
        let mut roots = RootCertStore::empty();
        for root in certificates(ca)? {
            roots.add(root)?;
        }
        let key = PrivateKeyDer::from_pem_file(key).map_err(file(key))?;
        Ok(Self {
            chain: certificates(certificate)?,
            key,
            roots: Arc::new(roots),
        })
    }

    /// TLS 1.2 and 1.3; a client may show a certificate, and then it must be one of the CA.
    ///
    /// # Errors
    /// [`TlsError`] if key and certificate do not fit.
    pub fn server(&self) -> Result<ServerConfig, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots.clone(), provider.clone());
        let verifier = verifier.allow_unauthenticated().build()?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain.clone(), self.key.clone_key())?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }

    /// TLS 1.3 to other nodes, with our certificate.
    ///
    /// # Errors
    /// [`TlsError`] if key and certificate do not fit.
    pub fn client(&self) -> Result<rustls::ClientConfig, TlsError> {
        let config = rustls::ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(self.roots.clone())
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())?;
        Ok(config)
    }
}

/// Whether only its owner can read a file; a key that others can read is none.
///
/// # Errors
/// The file cannot be looked at.
pub fn is_private(path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::PermissionsExt as _;
    Ok(fs::metadata(path)?.permissions().mode() & 0o077 == 0)
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
            drop(under_way);
            answer
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
                Verdict::Silent => return,
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
}

enum Verdict {
    Fine,
    /// Not one request in the time for the first header.
    Silent,
    /// No request for too long.
    Idle,
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
        if now - self.quiet_since >= self.idle_timeout {
            Verdict::Idle
        } else {
            Verdict::Fine
        }
    }
}
