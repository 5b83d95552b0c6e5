//! The accept loop with real TLS: slow, oversize and half-open requests, client certificates, the graceful end.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use ::http::{Response, StatusCode};
use bytes::Bytes;
use record::canonical::{Digest, Domain};
use rustls::pki_types::ServerName;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::sync::CancellationToken;

use super::{
    answer,
    body::Body,
    route::{Bounds, Handler, Route, Table},
    server::{self, Limits},
    tls::{Identity, tests::Authority},
};

const HEADER_TIMEOUT: Duration = Duration::from_millis(300);
const SECONDS: Duration = Duration::from_secs(5);

struct Server {
    address: std::net::SocketAddr,
    identity: Identity,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

async fn start(connections_max: usize) -> Server {
    start_with(connections_max, SECONDS).await
}

async fn start_with(connections_max: usize, idle_timeout: Duration) -> Server {
    let who: Handler<()> =
        |_, request| Box::pin(async move { Ok(answer::json(StatusCode::OK, &json!({"tls": request.peer.tls}))) });
    let slow: Handler<()> = |_, _| {
        Box::pin(async {
            sleep(HEADER_TIMEOUT * 3).await;
            Ok(answer::nothing())
        })
    };
    // More than all the buffers on the way hold.
    let flood: Handler<()> =
        |_, _| Box::pin(async { Ok(answer::bytes(StatusCode::OK, answer::RAW, vec![b'x'; 64 << 20])) });
    let routes = vec![
        Route::get("/fhir/who", who),
        Route::post("/fhir/who", 1_024, who),
        Route::get("/api/flood", flood),
        Route::get("/api/slow", slow),
    ];
    serve(routes, Arc::new(()), (connections_max, idle_timeout)).await
}

async fn serve<C: Send + Sync + 'static>(
    routes: Vec<Route<C>>,
    context: Arc<C>,
    (connections_max, idle_timeout): (usize, Duration),
) -> Server {
    let bounds = Bounds {
        body_timeout: SECONDS,
        answer_timeout: SECONDS,
    };
    let limits = Limits {
        connections_max,
        connections_per_address_max: connections_max,
        streams_max: 8,
        header_timeout: HEADER_TIMEOUT,
        idle_timeout,
        drain_timeout: SECONDS,
    };
    let (identity, shutdown) = (Authority::new().issue(), CancellationToken::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let service = Table::new(routes, context, bounds).into_service(&["fhir", "api"]);
    let tls = identity.server().expect("fits");
    let task = tokio::spawn(server::serve(listener, tls, service, limits, shutdown.clone()));
    Server {
        address,
        identity,
        shutdown,
        task,
    }
}

impl Server {
    /// A TLS connection that speaks HTTP/1.1 by hand, without a certificate.
    async fn connect(&self) -> std::io::Result<TlsStream<TcpStream>> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS12])
            .expect("TLS 1.2 is known")
            .with_root_certificates(self.identity.roots.clone())
            .with_no_client_auth();
        let stream = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from("127.0.0.1").expect("a name");
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    fn client(&self) -> reqwest::Client {
        let tls = self.identity.client().expect("fits");
        reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .no_proxy()
            .build()
            .expect("a client")
    }

    fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.address)
    }
}

/// Everything the server sends until it closes; an error is an end as well.
async fn until_closed(stream: &mut TlsStream<TcpStream>) -> String {
    let mut answer = Vec::new();
    let _end = timeout(SECONDS, stream.read_to_end(&mut answer))
        .await
        .expect("the server closes it");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_half_sent_header_is_closed_in_time() {
    let server = start(8).await;
    for begun in [
        "GET /fhir/who HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        "PRI * HTTP/2.0\r\n",
        "",
    ] {
        let mut stream = server.connect().await.expect("connects");
        let since = Instant::now();
        stream.write_all(begun.as_bytes()).await.expect("sends");
        let answer = until_closed(&mut stream).await;
        assert!(!answer.contains("200 OK"), "{answer}");
        assert!(
            since.elapsed() >= HEADER_TIMEOUT / 2 && since.elapsed() < HEADER_TIMEOUT * 5,
            "{:?} {begun:?}",
            since.elapsed()
        );
    }
}

#[tokio::test]
async fn no_handshake_is_waited_for_forever() {
    let server = start(8).await;
    let mut stream = TcpStream::connect(server.address).await.expect("connects");
    let mut nothing = [0; 1];
    let read = timeout(HEADER_TIMEOUT * 5, stream.read(&mut nothing))
        .await
        .expect("closed in time");
    assert!(matches!(read, Ok(0) | Err(_)));
}

#[tokio::test]
async fn an_oversize_body_is_refused_announced_or_not() {
    let server = start(8).await;
    let announced = server
        .client()
        .post(server.url("/fhir/who"))
        .body(vec![0; 1_025])
        .send()
        .await
        .expect("answers");
    assert_eq!(announced.status(), 413);
    assert_eq!(
        announced.json::<serde_json::Value>().await.expect("JSON")["issue"][0]["code"],
        "too-long"
    );
    let mut stream = server.connect().await.expect("connects");
    let head = "POST /fhir/who HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
    let body = format!("800\r\n{}\r\n0\r\n\r\n", "x".repeat(0x800));
    stream
        .write_all(format!("{head}{body}").as_bytes())
        .await
        .expect("sends");
    assert!(until_closed(&mut stream).await.starts_with("HTTP/1.1 413"));
}

#[tokio::test]
async fn a_client_certificate_becomes_the_peers_identity() {
    let server = start(8).await;
    let key = rustls::server::ParsedCertificate::try_from(&server.identity.chain[0]).expect("parses");
    let pin = Digest::of(Domain::TLS_KEY, &[key.subject_public_key_info().as_ref()]);
    let with = server
        .client()
        .get(server.url("/fhir/who"))
        .send()
        .await
        .expect("answers");
    assert_eq!(with.version(), ::http::Version::HTTP_2);
    assert_eq!(with.headers()["x-content-type-options"], "nosniff");
    assert_eq!(
        with.json::<serde_json::Value>().await.expect("JSON"),
        json!({"tls": pin})
    );
    let mut without = server.connect().await.expect("connects");
    without
        .write_all(b"GET /fhir/who HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await
        .expect("sends");
    assert!(until_closed(&mut without).await.ends_with(r#"{"tls":null}"#));
}

#[tokio::test]
async fn a_certificate_of_another_ca_is_refused() {
    let server = start(8).await;
    let mut other = Authority::new().issue();
    other.roots = server.identity.roots.clone();
    let tls = other.client().expect("fits");
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .build()
        .expect("a client");
    assert!(client.get(server.url("/fhir/who")).send().await.is_err());
}

#[tokio::test]
async fn every_wrong_address_and_method_is_an_operation_outcome() {
    let server = start(8).await;
    let client = server.client();
    for (request, status) in [
        (client.get(server.url("/elsewhere")), 404),
        (client.get(server.url("/fhir")), 404),
        (client.delete(server.url("/fhir/who")), 405),
        (
            client.post(server.url("/fhir/who")).header("content-encoding", "gzip"),
            415,
        ),
    ] {
        let answer = request.send().await.expect("answers");
        assert_eq!(answer.status(), status);
        assert_eq!(answer.headers()["content-type"], "application/fhir+json; charset=utf-8");
        assert_eq!(
            answer.json::<serde_json::Value>().await.expect("JSON")["resourceType"],
            "OperationOutcome"
        );
    }
    let head = client.head(server.url("/fhir/who")).send().await.expect("answers");
    assert_eq!(head.status(), 200);
    assert!(head.headers()["content-length"] != "0");
}

#[tokio::test]
async fn one_connection_too_many_is_turned_away_until_another_ends() {
    let server = start(1).await;
    let first = server.connect().await.expect("connects");
    assert!(server.connect().await.is_err());
    drop(first);
    let again = async {
        while server.connect().await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SECONDS, again).await.expect("room again");
}

#[tokio::test]
async fn a_request_under_way_is_answered_before_the_end() {
    let server = start(8).await;
    let slow = server.client().get(server.url("/api/slow")).send();
    let (answer, ()) = tokio::join!(slow, async {
        sleep(HEADER_TIMEOUT).await;
        server.shutdown.cancel();
    });
    assert_eq!(answer.expect("answers").status(), 204);
    timeout(SECONDS, server.task).await.expect("drained").expect("ended");
    assert!(TcpStream::connect(server.address).await.is_err());
}

#[tokio::test]
async fn who_does_not_read_its_answer_does_not_keep_its_place() {
    let server = start_with(1, HEADER_TIMEOUT * 2).await;
    let mut stream = server.connect().await.expect("connects");
    stream
        .write_all(b"GET /api/flood HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .expect("asks");
    // Not one byte is read; the only place is taken until the watchman cuts it off.
    let freed = async {
        loop {
            let answered = server.client().get(server.url("/fhir/who")).send().await;
            if answered.is_ok_and(|answer| answer.status() == 200) {
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(SECONDS * 4, freed).await.expect("the place is free again");
    drop(stream);
}

/// Bytes that the stream brings in all.
const LONG_BYTES: usize = 64 << 20;

/// A server with a long answer that is made while it is sent; how many of its pieces were made.
async fn streaming(idle_timeout: Duration) -> (Server, Arc<AtomicUsize>) {
    let made = Arc::new(AtomicUsize::new(0));
    let long: Handler<AtomicUsize> = |made, request| {
        let breaks_off = request.parameters.last("breaks") == Some("off");
        Box::pin(async move {
            let pieces = (0..LONG_BYTES / 65_536).map(move |at| {
                made.fetch_add(1, Ordering::Relaxed);
                let cut = breaks_off && at == 100;
                if cut {
                    Err("the rest is gone")
                } else {
                    Ok(Bytes::from(vec![b'x'; 65_536]))
                }
            });
            Ok(Response::new(Body::streamed(futures::stream::iter(pieces), None)))
        })
    };
    let routes = vec![Route::get("/api/long", long)];
    (serve(routes, made.clone(), (8, idle_timeout)).await, made)
}

#[tokio::test]
async fn a_streamed_answer_is_made_while_it_is_read_and_may_take_its_time() {
    let idle_timeout = HEADER_TIMEOUT * 2;
    let (server, made) = streaming(idle_timeout).await;
    let since = Instant::now();
    let mut answer = server
        .client()
        .get(server.url("/api/long"))
        .send()
        .await
        .expect("answers");
    assert_eq!(answer.status(), 200);
    let mut bytes = 0;
    while let Some(piece) = answer.chunk().await.expect("it comes whole") {
        bytes += piece.len();
        let (taken, made) = (bytes / 65_536, made.load(Ordering::Relaxed));
        assert!(made < taken + 400, "{made} pieces were made when {taken} were read");
        // A reader who is slow, and yet reads.
        if since.elapsed() < idle_timeout * 3 {
            sleep(Duration::from_millis(20)).await;
        }
    }
    assert_eq!(bytes, LONG_BYTES);
    let head = server
        .client()
        .head(server.url("/api/long"))
        .send()
        .await
        .expect("answers");
    assert_eq!(head.status(), 200);
    assert!(
        since.elapsed() > idle_timeout,
        "it took longer than a connection may be quiet"
    );
}

#[tokio::test]
async fn a_stream_that_breaks_off_is_no_whole_answer() {
    let (server, _) = streaming(SECONDS).await;
    let answer = server
        .client()
        .get(server.url("/api/long?breaks=off"))
        .send()
        .await
        .expect("answers");
    assert_eq!(answer.status(), 200, "it had begun");
    assert!(answer.bytes().await.is_err());
    let mut stream = server.connect().await.expect("connects");
    let request = b"GET /api/long?breaks=off HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await.expect("asks");
    let answer = until_closed(&mut stream).await;
    assert!(answer.contains("transfer-encoding: chunked") && !answer.ends_with("0\r\n\r\n"));
}

#[tokio::test]
async fn who_does_not_read_a_stream_is_cut_off() {
    let (server, made) = streaming(HEADER_TIMEOUT * 2).await;
    let mut stream = server.connect().await.expect("connects");
    stream
        .write_all(b"GET /api/long HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .expect("asks");
    sleep(HEADER_TIMEOUT * 8).await;
    let before = made.load(Ordering::Relaxed);
    assert!((1..LONG_BYTES / 65_536).contains(&before), "{before} pieces");
    // The connection is gone: what was sent before comes, and then its end.
    let mut sink = Vec::new();
    let _cut = timeout(SECONDS, stream.read_to_end(&mut sink))
        .await
        .expect("it was cut off");
    assert!(sink.len() < LONG_BYTES);
    assert_eq!(made.load(Ordering::Relaxed), before, "nothing more was made");
}
