//! The wire to the daemon: the few commands of Kubo's RPC (`/api/v0`) that a vault needs, each POST, bounded in size and time.
//!
//! The same commands mean the same to Kubo and to js-ipfs, whose dialects differ in what is said when something is absent.
//! **Invariant:** nothing that the daemon says about bytes is believed: callers compare identifiers and hash again.

mod listing;
mod repository;

use std::{str::FromStr as _, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use cid::Cid;
use record::bundle::PAYLOAD_BYTES_MAX;
use reqwest::{Response, StatusCode, header};
use serde_json::Value as Json;
use tokio::{runtime::Handle, sync::Semaphore};
use tokio_util::task::AbortOnDropHandle;

use super::api::Config;

/// Requests under way at a time, at most; callers wait. A daemon that works on many at once is late with each.
const REQUESTS_MAX: usize = 16;
/// Bytes of an answer that is not a payload, at most.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Characters of what the daemon says that are kept of a failure.
const WORDS_MAX: usize = 300;
/// How long is looked for a block that should not be there.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);
/// The daemon is told to give up; we wait this long beyond that for it to say so.
const GRACE: Duration = Duration::from_millis(500);

/// Why the daemon did not do what it was asked; all of it may pass.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Nobody answers, or not in time.
    #[error("it does not answer")]
    Unreachable(#[source] Option<reqwest::Error>),
    /// It wants another secret.
    #[error(
        "it refuses this node ({0}): vault.kubo.authorization_file must hold the AuthSecret of Kubo's API.Authorizations"
    )]
    Denied(StatusCode),
    /// The disk of its repository has no space.
    #[error("its disk is full; free space in its repository")]
    DiskFull,
    /// It holds a block whose bytes are not what the identifier says, and knows it (`Datastore.HashOnRead`).
    #[error("a block of it is damaged")]
    Damaged,
    /// It answers what no Kubo answers.
    #[error("its answer is not understood: {0}; is vault.kubo.api the RPC of Kubo?")]
    Nonsense(&'static str),
    /// Its own words.
    #[error("it says: {0}")]
    Said(String),
}

impl Failure {
    /// What lies under it, in words: what the network said.
    pub(super) fn cause(&self) -> String {
        let causes = std::iter::successors(std::error::Error::source(self), |error| error.source());
        causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
    }
}

/// The client; clones share it.
#[derive(Clone, Debug)]
pub(super) struct Rpc {
    client: reqwest::Client,
    base: reqwest::Url,
    requests: Arc<Semaphore>,
    read: Duration,
    write: Duration,
    runtime: Handle,
}

/// Who the daemon is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Daemon {
    /// The identifier of its key: another repository has another one.
    pub(super) peer: String,
    /// What it calls itself.
    pub(super) agent: String,
}

impl Rpc {
    /// A client of its own: neither this node's certificate nor proxy settings of the environment reach the daemon. It works
    /// on the current tokio runtime; who calls it needs none.
    pub(super) fn new(config: &Config) -> Result<Self, String> {
        let mut headers = header::HeaderMap::new();
        if let Some(secret) = config.authorization()? {
            headers.insert(header::AUTHORIZATION, secret);
        }
        let read = Duration::from_millis(config.read_timeout_ms);
        let mut client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .default_headers(headers)
            .connect_timeout(read)
            .pool_max_idle_per_host(REQUESTS_MAX);
        if let Some(path) = config.api.socket() {
            client = client.unix_socket(path.to_owned());
        }
        Ok(Self {
            client: client.build().map_err(|error| error.to_string())?,
            base: config.api.base(),
            requests: Arc::new(Semaphore::new(REQUESTS_MAX)),
            read,
            write: Duration::from_millis(config.write_timeout_ms),
            runtime: Handle::current(),
        })
    }

    /// Who answers.
    pub(super) async fn id(&self) -> Result<Daemon, Failure> {
        let answer = self.ask("id", &[], self.read).await?;
        let text = |key: &str| answer[key].as_str().map(|text| words(text.as_bytes()));
        Ok(Daemon {
            peer: text("ID").ok_or(Failure::Nonsense("id without ID"))?,
            agent: text("AgentVersion").unwrap_or_default(),
        })
    }

    /// The version it says it has.
    pub(super) async fn version(&self) -> Result<String, Failure> {
        let answer = self.ask("version", &[], self.read).await?;
        let version = answer["Version"].as_str();
        version
            .map(|text| words(text.as_bytes()))
            .ok_or(Failure::Nonsense("version without Version"))
    }

    /// Keeps and pins a DAG-CBOR block in one call; the identifier that the daemon gives it.
    pub(super) async fn put(&self, payload: &[u8]) -> Result<Cid, Failure> {
        self.put_as("dag-cbor", payload, "true").await
    }

    /// Keeps a block of a large record, which nothing pins: a node in dag-pb, or raw bytes.
    pub(super) async fn put_block(&self, is_node: bool, block: &[u8]) -> Result<Cid, Failure> {
        let codec = if is_node { "dag-pb" } else { "raw" };
        self.put_as(codec, block, "false").await
    }

    async fn put_as(&self, codec: &str, payload: &[u8], pin: &str) -> Result<Cid, Failure> {
        let arguments = [
            ("store-codec", codec),
            ("input-codec", codec),
            ("hash", "sha2-256"),
            ("pin", pin),
            ("cid-base", "base32"),
        ];
        let boundary = format!("vitalfog-{:032x}", rand::random::<u128>());
        let mut body = format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"payload\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n"
        )
        .into_bytes();
        body.extend_from_slice(payload);
        body.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
        let request = self
            .request("dag/put", &arguments, self.write)
            .header(
                header::CONTENT_TYPE,
                format!("multipart/form-data; boundary={boundary}"),
            )
            .body(body);
        let answer = json(&self.answer(request, ANSWER_BYTES_MAX).await?)?;
        let cid = answer["Cid"]["/"].as_str().and_then(|text| Cid::from_str(text).ok());
        cid.ok_or(Failure::Nonsense("dag/put without Cid"))
    }

    /// The bytes under an identifier, from the daemon's own disk; nothing if it does not have them. Not hashed yet.
    pub(super) async fn get(&self, cid: &Cid) -> Result<Option<Bytes>, Failure> {
        match self.block(cid).await {
            Err(Failure::Said(said)) if is_out_of_time(&said) => Ok(None),
            got => got,
        }
    }

    /// As [`Rpc::get`], for what was put just now: a daemon that looks for it until its time is over is busy.
    pub(super) async fn get_back(&self, cid: &Cid) -> Result<Option<Bytes>, Failure> {
        match self.block(cid).await {
            Err(Failure::Said(said)) if is_out_of_time(&said) => Err(Failure::Unreachable(None)),
            got => got,
        }
    }

    async fn block(&self, cid: &Cid) -> Result<Option<Bytes>, Failure> {
        let arguments = [("arg", &*cid.to_string()), ("offline", "true")];
        let request = self.request("block/get", &arguments, self.read);
        match self.answer(request, PAYLOAD_BYTES_MAX).await {
            Ok(payload) => Ok(Some(payload)),
            Err(Failure::Said(said)) if is_absent(&said) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// How long a block is, without reading it.
    pub(super) async fn size(&self, cid: &Cid) -> Result<Option<u64>, Failure> {
        self.size_within(cid, self.read).await
    }

    /// As [`Rpc::size`], for what was removed just now: js-ipfs looks for it until its time is over.
    pub(super) async fn size_at_once(&self, cid: &Cid) -> Result<Option<u64>, Failure> {
        self.size_within(cid, self.read.min(LOOK_TIMEOUT)).await
    }

    async fn size_within(&self, cid: &Cid, timeout: Duration) -> Result<Option<u64>, Failure> {
        let cid = cid.to_string();
        let arguments = [("arg", cid.as_str()), ("offline", "true")];
        match self.ask("block/stat", &arguments, timeout).await {
            Ok(answer) => answer["Size"]
                .as_u64()
                .map(Some)
                .ok_or(Failure::Nonsense("block/stat without Size")),
            Err(Failure::Said(said)) if is_absent(&said) || is_out_of_time(&said) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Keeps a block from being collected.
    pub(super) async fn pin(&self, cid: &Cid) -> Result<(), Failure> {
        self.pin_within(cid, Duration::ZERO).await
    }

    /// As [`Rpc::pin`], with all blocks below it, which takes so much longer.
    pub(super) async fn pin_within(&self, cid: &Cid, longer: Duration) -> Result<(), Failure> {
        self.ask("pin/add", &[("arg", &cid.to_string())], self.write + longer)
            .await
            .map(drop)
    }

    /// Lets a block be collected; one that is not pinned is as it should be.
    pub(super) async fn unpin(&self, cid: &Cid) -> Result<(), Failure> {
        match self.ask("pin/rm", &[("arg", &cid.to_string())], self.write).await {
            Err(Failure::Said(said)) if is_not_pinned(&said) => Ok(()),
            done => done.map(drop),
        }
    }

    /// Whether a block is kept for its own sake.
    pub(super) async fn is_pinned(&self, cid: &Cid) -> Result<bool, Failure> {
        let arguments = [("arg", &*cid.to_string()), ("type", "recursive")];
        match self.ask("pin/ls", &arguments, self.read).await {
            Ok(answer) => Ok(answer["Keys"].as_object().is_some_and(|keys| !keys.is_empty())),
            Err(Failure::Said(said)) if is_not_pinned(&said) => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    /// Deletes one block, whether it is there or not.
    pub(super) async fn remove(&self, cid: &Cid) -> Result<(), Failure> {
        let arguments = [("arg", &*cid.to_string()), ("force", "true")];
        let answer = self.ask("block/rm", &arguments, self.write).await?;
        match answer["Error"].as_str() {
            Some(said) if !said.is_empty() && !is_absent(said) => Err(Failure::Said(words(said.as_bytes()))),
            _ => Ok(()),
        }
    }

    /// Deletes everything that is not pinned.
    pub(super) async fn collect(&self, timeout: Duration) -> Result<(), Failure> {
        let request = self.request("repo/gc", &[("quiet", "true")], timeout);
        self.answer(request, 64 * ANSWER_BYTES_MAX).await.map(drop)
    }

    /// Its settings.
    pub(super) async fn settings(&self) -> Result<Json, Failure> {
        self.ask("config/show", &[], self.read).await
    }

    async fn ask(&self, command: &str, arguments: &[(&str, &str)], timeout: Duration) -> Result<Json, Failure> {
        let request = self.request(command, arguments, timeout);
        json(&self.answer(request, ANSWER_BYTES_MAX).await?)
    }

    /// A request that ends in time, whether the daemon keeps to what it is told or not.
    fn request(&self, command: &str, arguments: &[(&str, &str)], timeout: Duration) -> reqwest::RequestBuilder {
        let mut url = self.base.join(command).expect("a command is a path");
        url.query_pairs_mut()
            .extend_pairs(arguments)
            .append_pair("timeout", &format!("{}ms", timeout.as_millis()));
        self.client.post(url).timeout(timeout + GRACE)
    }

    async fn answer(&self, request: reqwest::RequestBuilder, bytes_max: usize) -> Result<Bytes, Failure> {
        let requests = self.requests.clone();
        // A task of its own from the first: who waits in turn and is not looked after would keep the turn from all others.
        let answer = self.runtime.spawn(async move {
            let _turn = requests.acquire().await.expect("the semaphore is never closed");
            answer(request, bytes_max).await
        });
        // The runtime ends, and the node with it.
        AbortOnDropHandle::new(answer)
            .await
            .unwrap_or(Err(Failure::Unreachable(None)))
    }
}

async fn answer(request: reqwest::RequestBuilder, bytes_max: usize) -> Result<Bytes, Failure> {
    let response = request.send().await.map_err(unreachable)?;
    if response.status() != StatusCode::OK {
        return Err(answered_badly(response).await);
    }
    let body = body(response, bytes_max).await?;
    body.ok_or(Failure::Nonsense("too many bytes"))
}

/// What an answer says that is not the answer.
async fn answered_badly(response: Response) -> Failure {
    let status = response.status();
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Failure::Denied(status),
        StatusCode::INTERNAL_SERVER_ERROR => {
            let answer = match body(response, ANSWER_BYTES_MAX).await {
                Ok(answer) => answer.unwrap_or_default(),
                Err(failure) => return failure,
            };
            let message = json(&answer)
                .ok()
                .and_then(|answer| answer["Message"].as_str().map(str::to_owned));
            failure(message.map_or_else(|| words(&answer), |text| words(text.as_bytes())))
        }
        status if status.is_redirection() => Failure::Nonsense("it sends us elsewhere"),
        StatusCode::NOT_FOUND => Failure::Nonsense("it does not know the command"),
        _ => Failure::Nonsense("its status"),
    }
}

/// The body; nothing if it is longer than it may be.
async fn body(mut response: Response, bytes_max: usize) -> Result<Option<Bytes>, Failure> {
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
        if body.len() + chunk.len() > bytes_max {
            return Ok(None);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Some(body.freeze()))
}

/// The first JSON text: some commands answer a line each.
fn json(answer: &[u8]) -> Result<Json, Failure> {
    let first = serde_json::Deserializer::from_slice(answer).into_iter().next();
    first.and_then(Result::ok).ok_or(Failure::Nonsense("no JSON"))
}

fn unreachable(error: reqwest::Error) -> Failure {
    // The address has identifiers in it, and says nothing new.
    Failure::Unreachable(Some(error.without_url()))
}

fn failure(said: String) -> Failure {
    if said.contains("no space left on device") || said.contains("ENOSPC") {
        Failure::DiskFull
    } else if said.contains("different hash than requested") {
        Failure::Damaged
    } else if said.contains("context deadline exceeded") {
        Failure::Unreachable(None)
    } else {
        Failure::Said(said)
    }
}

/// What Kubo's own client takes for absent: `ipld: could not find`.
fn is_absent(said: &str) -> bool {
    ["could not find", "not found", "Not Found"]
        .iter()
        .any(|words| said.contains(words))
}

/// What js-ipfs says when it does not have a block: it has no offline reads, and looks for it until its time is over. A busy
/// one says the same.
fn is_out_of_time(said: &str) -> bool {
    said.contains("request timed out")
}

fn is_not_pinned(said: &str) -> bool {
    said.contains("not pinned")
}

/// What the daemon says, short and in one line.
fn words(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    text.chars().filter(|c| !c.is_control()).take(WORDS_MAX).collect()
}
