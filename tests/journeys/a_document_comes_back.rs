//! A document of many megabytes is handed in while a node is killed; it becomes final, comes back byte for byte to whoever may
//! read it, lies on every node and is readable on none, and no node has it in memory.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use cid::Cid;
use futures::{StreamExt as _, stream};
use ledger::{document::DocumentCommitment, handover::Committees, proof::Receipt};
use reqwest::{Body, Client, Response, StatusCode};
use sandbox::{
    client::Callers,
    harness::{Sandbox, Visitor},
};

use crate::sandboxes::{VICTIM, eventually, folder, program};

/// Its length: not a round number.
const BYTES: usize = 48_000_011;
/// What its sender sends at a time.
const PIECE_BYTES: usize = 64 << 10;
/// A node's memory may grow by less than a half of the document meanwhile: by caches, and by what else it does.
const GROWTH_MAX: u64 = BYTES as u64 / 2;
/// It comes and goes within this time, also beside other tests.
const PATIENCE: Duration = Duration::from_secs(300);
/// What stands in the document every now and then, and nowhere else.
const READABLE: &[u8] = b"thorax, two views, no pathological findings";

/// Noise with readable words in it.
fn document() -> Bytes {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut content = Vec::with_capacity(BYTES + 8);
    while content.len() < BYTES {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        content.extend_from_slice(&state.to_le_bytes());
    }
    content.truncate(BYTES);
    for at in (0..BYTES - READABLE.len()).step_by(1_000_003) {
        content[at..at + READABLE.len()].copy_from_slice(READABLE);
    }
    content.into()
}

/// The document as a stream; a node is killed when half of it was sent.
fn sent(content: &Bytes, sandbox: Arc<Sandbox>) -> Body {
    let pieces: Vec<_> = (0..BYTES)
        .step_by(PIECE_BYTES)
        .map(|at| content.slice(at..BYTES.min(at + PIECE_BYTES)))
        .collect();
    let half = pieces.len() / 2;
    let pieces = stream::iter(pieces.into_iter().enumerate()).map(move |(at, piece)| {
        if at == half {
            sandbox.kill(VICTIM);
        }
        Ok::<_, std::io::Error>(piece)
    });
    Body::wrap_stream(pieces)
}

/// The most memory that a process has had, in bytes.
fn memory_max(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("a line");
    let kib: u64 = line
        .split_whitespace()
        .nth(1)
        .expect("a number")
        .parse()
        .expect("a number");
    kib << 10
}

/// What was read, unless it vanished meanwhile: what cannot be read for another reason is not clean.
fn there<T>(read: io::Result<T>, path: &Path) -> Option<T> {
    match read {
        Ok(read) => Some(read),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => panic!("{} cannot be looked into: {error}", path.display()),
    }
}

/// Where a node keeps the blocks of a large record.
fn pack(data_dir: &Path, root: &Cid) -> PathBuf {
    let name = hex::encode(root.hash().digest());
    data_dir
        .join("vault-objects")
        .join(&name[..2])
        .join(format!("{name}.car"))
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = there(fs::read_dir(folder), folder).into_iter().flatten();
    let paths = entries.filter_map(|entry| there(entry.map(|entry| entry.path()), folder));
    paths
        .flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] })
        .collect()
}

fn client(visitor: &Visitor) -> Client {
    let authority = fs::read_to_string(&visitor.report.hospital.ca_file).expect("the authority");
    Callers::trusting(&authority)
        .and_then(|callers| callers.anybody())
        .expect("a client")
}

async fn read(client: &Client, url: &str, token: &str, range: Option<&str>) -> Response {
    let request = client.get(url).bearer_auth(token).timeout(PATIENCE);
    let request = range
        .iter()
        .fold(request, |request, range| request.header("range", *range));
    request.send().await.expect("answers")
}

/// Hands the document in for the first patient; the address where it is then.
async fn hand_in(sandbox: &Arc<Sandbox>, visitor: &Visitor, content: &Bytes) -> String {
    let hospital = &visitor.report.hospital;
    let request = client(visitor)
        .post(format!("{}/Binary", hospital.fhir))
        .bearer_auth(&hospital.token);
    let request = request.header(
        "x-security-context",
        format!("Patient/{}", visitor.report.patients[0].id),
    );
    let request = request
        .header("content-type", "application/pdf")
        .header("content-length", BYTES)
        .timeout(PATIENCE);
    let taken = request
        .body(sent(content, sandbox.clone()))
        .send()
        .await
        .expect("answers");
    let (status, location) = (taken.status(), taken.headers().get("location").cloned());
    assert_eq!(status, StatusCode::CREATED, "{:?}", taken.text().await);
    location.expect("where it is").to_str().expect("text").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_comes_back() {
    let sandbox = Arc::new(Sandbox::builder(program(), folder(), "document").start());
    let visitor = sandbox.visitor();
    let (client, hospital, content) = (client(&visitor), &visitor.report.hospital, document());
    let nodes = &visitor.report.nodes;
    let pids: Vec<_> = nodes
        .iter()
        .filter(|node| node.name != VICTIM)
        .map(|node| node.process.pid.expect("it runs"))
        .collect();
    let before: Vec<_> = pids.iter().map(|pid| memory_max(*pid)).collect();

    let location = hand_in(&sandbox, &visitor, &content).await;
    let whole = read(&client, &location, &hospital.token, None).await;
    assert_eq!(
        (whole.status(), &whole.headers()["content-type"]),
        (StatusCode::OK, &"application/pdf".parse().expect("a header"))
    );
    assert!(whole.bytes().await.expect("whole") == content, "byte for byte");
    let part = read(&client, &location, &hospital.token, Some("bytes=30000000-30000099")).await;
    assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(part.bytes().await.expect("a part"), content[30_000_000..30_000_100]);
    for (pid, before) in pids.iter().zip(before) {
        let grown = memory_max(*pid).saturating_sub(before);
        assert!(grown < GROWTH_MAX, "process {pid} grew by {grown} bytes");
    }

    let stranger = read(&client, &location, &visitor.report.stranger.token, None).await;
    assert_eq!(stranger.status(), StatusCode::NOT_FOUND, "nobody granted it anything");
    for node in &nodes[1..] {
        let elsewhere = location.replace(&nodes[0].http, &node.http);
        let answer = read(&client, &elsewhere, &hospital.token, None).await;
        assert!(
            !answer.status().is_success(),
            "{} has no key: {}",
            node.name,
            answer.status()
        );
    }

    let cid: Cid = location.rsplit('/').next().expect("an id").parse().expect("a root");
    let receipt = eventually("its receipt", async || {
        visitor
            .node(1)
            .receipt(&DocumentCommitment::id_of(&cid))
            .await
            .ok()
            .flatten()
    });
    let committees = Committees::of(visitor.node(1).handovers().await.expect("answers")).expect("proven");
    Receipt::verify(&receipt.await, &committees).expect("it is final");

    for node in nodes {
        eventually(&format!("all of it at {}", node.name), async || {
            let bytes = fs::metadata(pack(&node.data_dir, &cid)).ok()?.len();
            (bytes > BYTES as u64).then_some(())
        })
        .await;
        for file in files(&node.data_dir) {
            let Some(bytes) = there(fs::read(&file), &file) else {
                continue;
            };
            let found = bytes.windows(READABLE.len()).any(|window| window == READABLE);
            assert!(!found, "readable in {}", file.display());
        }
    }
}
