//! A stand-in for a daemon: the commands that a vault sends, over blocks in memory, with the faults that a real daemon does not
//! show on demand. What a real one does is tested on a real one (`tests/vault/run`).

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    str::FromStr as _,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use cid::Cid;
use record::canonical;
use serde_json::{Value as Json, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, UnixListener},
};

use crate::vault::unixfs::{Node, Place};

/// What is wrong with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::vault) enum Fault {
    /// Nothing.
    #[default]
    None,
    /// It closes every connection.
    Away,
    /// It takes requests and never answers.
    Stalls,
    /// It sends the head of an answer and then a byte now and then.
    Drips,
    /// Its answers never end.
    Floods,
    /// It keeps other bytes than it is given.
    Reencodes,
    /// It gives other bytes than it keeps, whatever is put.
    Lies,
    /// It sends callers elsewhere.
    Redirects,
    /// It wants another secret.
    Denies,
    /// Its disk is full.
    IsFull,
    /// It looks for blocks until its time is over, as a busy js-ipfs does.
    Searches,
}

/// A request line and what it carries besides.
#[derive(Clone, Debug)]
pub(in crate::vault) struct Asked {
    pub(in crate::vault) line: String,
    pub(in crate::vault) authorization: Option<String>,
}

struct Shared {
    api: String,
    blocks: BTreeMap<Vec<u8>, Vec<u8>>,
    pins: BTreeSet<Vec<u8>>,
    asked: Vec<Asked>,
    fault: Fault,
    peer: &'static str,
    secret: Option<&'static str>,
    settings: Json,
    repository: PathBuf,
}

impl Shared {
    /// What is pinned, and what is below it.
    fn protected(&self) -> BTreeSet<Vec<u8>> {
        let mut protected = self.pins.clone();
        for pin in &self.pins {
            let mut todo = self.below(pin, None);
            while let Some(place) = todo.pop() {
                let key = place.link.cid.hash().digest().to_vec();
                todo.extend(self.below(&key, Some(&place)));
                protected.insert(key);
            }
        }
        protected
    }

    fn below(&self, key: &[u8], place: Option<&Place>) -> Vec<Place> {
        let block = self
            .blocks
            .get(key)
            .filter(|_| place.is_none_or(|place| !place.is_leaf()));
        block.and_then(|block| Node::decode(block, place)).unwrap_or_default()
    }

    /// What is asked of the daemon itself, not of a block.
    fn of_itself(&self, command: &str, counts_nothing: bool) -> Option<Json> {
        match command {
            "id" => Some(json!({"ID": self.peer, "AgentVersion": "stand-in/1"})),
            "version" => Some(json!({"Version": "0.0.0"})),
            // Kubo leaves out the secrets that it demands.
            "config/show" if self.settings.is_object() => Some(self.settings.clone()),
            // Kubo says where it lies when it has counted its blocks.
            "repo/stat" if counts_nothing => Some(json!({"RepoSize": 1, "RepoPath": ""})),
            "repo/stat" => Some(json!({"RepoSize": 1, "RepoPath": self.repository})),
            "swarm/peers" => Some(json!({"Peers": null})),
            _ => None,
        }
    }
}

impl Shared {
    /// All its blocks, a line for each. Kubo lists raw blocks, whatever they were put as.
    fn listed(&self) -> Vec<u8> {
        let name = |block: &Vec<u8>| Cid::new_v1(canonical::RAW, *canonical::cid_of(block).hash());
        let lines = self
            .blocks
            .values()
            .map(|block| json!({"Ref": name(block).to_string(), "Err": ""}));
        lines.flat_map(|line| format!("{line}\n").into_bytes()).collect()
    }
}

/// The stand-in; it ends with the runtime of the test.
#[derive(Clone)]
// Each connection is a task of its own, and the test looks in from outside.
pub(in crate::vault) struct StandIn(Arc<Mutex<Shared>>);

impl StandIn {
    pub(in crate::vault) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let stand_in = Self::at(format!("/ip4/127.0.0.1/tcp/{port}"));
        let serving = stand_in.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serving.clone().serve(stream));
            }
        });
        stand_in
    }

    /// The same on a Unix socket.
    pub(in crate::vault) fn on_a_socket(path: &Path) -> Self {
        let listener = UnixListener::bind(path).expect("a socket");
        let stand_in = Self::at(format!("/unix{}", path.display()));
        let serving = stand_in.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serving.clone().serve(stream));
            }
        });
        stand_in
    }

    fn at(api: String) -> Self {
        Self(Arc::new(Mutex::new(Shared {
            api,
            blocks: BTreeMap::new(),
            pins: BTreeSet::new(),
            asked: Vec::new(),
            fault: Fault::None,
            peer: "12D3KooWStandIn",
            secret: None,
            settings: Json::Null,
            repository: PathBuf::new(),
        })))
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().expect("nobody panics while it holds the blocks")
    }

    pub(in crate::vault) fn api(&self) -> String {
        self.shared().api.clone()
    }

    pub(in crate::vault) fn has(&self, fault: Fault) {
        self.shared().fault = fault;
    }

    /// It does nothing for who does not show this.
    pub(in crate::vault) fn demands(&self, secret: &'static str) {
        self.shared().secret = Some(secret);
    }

    /// Its configuration, and where it lies.
    pub(in crate::vault) fn is_set(&self, settings: Json, repository: &Path) {
        let mut shared = self.shared();
        shared.settings = settings;
        repository.clone_into(&mut shared.repository);
    }

    /// Another repository under the same address.
    pub(in crate::vault) fn is_replaced(&self) {
        let mut shared = self.shared();
        shared.blocks.clear();
        shared.pins.clear();
        shared.peer = "12D3KooWAnother";
    }

    pub(in crate::vault) fn rot(&self, cid: &Cid) {
        let mut shared = self.shared();
        let block = shared.blocks.get_mut(cid.hash().digest()).expect("it is there");
        let middle = block.len() / 2;
        block[middle] ^= 1;
    }

    pub(in crate::vault) fn unpin(&self, cid: &Cid) -> bool {
        self.shared().pins.remove(cid.hash().digest())
    }

    pub(in crate::vault) fn pins(&self, cid: &Cid) -> bool {
        self.shared().pins.contains(cid.hash().digest())
    }

    pub(in crate::vault) fn counts(&self) -> (usize, usize) {
        let shared = self.shared();
        (shared.blocks.len(), shared.pins.len())
    }

    pub(in crate::vault) fn asked(&self) -> Vec<Asked> {
        self.shared().asked.clone()
    }

    async fn serve(self, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        let Some((head, body)) = request(&mut stream).await else {
            return;
        };
        let line = head.lines().next().unwrap_or_default().to_owned();
        let secret = head
            .lines()
            .find_map(|line| line.strip_prefix("authorization: ").map(str::to_owned));
        let fault = {
            let mut shared = self.shared();
            let is_stranger = shared
                .secret
                .is_some_and(|demanded| secret.as_deref() != Some(demanded));
            shared.asked.push(Asked {
                line: line.clone(),
                authorization: secret,
            });
            if is_stranger { Fault::Denies } else { shared.fault }
        };
        let plain = |status: &str, body: &[u8]| {
            let head = format!(
                "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                body.len()
            );
            [head.as_bytes(), body].concat()
        };
        let endless = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n";
        let answer = match fault {
            Fault::Away => return,
            Fault::Stalls => return tokio::time::sleep(Duration::from_secs(600)).await,
            Fault::Drips => {
                let _ = stream.write_all(endless).await;
                while stream.write_all(b" ").await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                return;
            }
            Fault::Floods => {
                let _ = stream.write_all(endless).await;
                while stream.write_all(&[b' '; 65_536]).await.is_ok() {}
                return;
            }
            Fault::Redirects => plain("307 Temporary Redirect\r\nlocation: http://127.0.0.1:9/", b""),
            Fault::Denies => plain("403 Forbidden", b"Kubo RPC Access Denied"),
            _ => match self.command(&line, &body) {
                Ok(body) => plain("200 OK", &body),
                Err(said) => {
                    let body = json!({"Message": said, "Code": 0, "Type": "error"}).to_string();
                    plain("500 Internal Server Error", body.as_bytes())
                }
            },
        };
        let _ = stream.write_all(&answer).await;
    }

    /// What Kubo answers, in Kubo's words.
    fn command(&self, line: &str, body: &[u8]) -> Result<Vec<u8>, String> {
        let url = line
            .strip_prefix("POST /api/v0/")
            .and_then(|rest| rest.split(' ').next());
        let (command, query) = url.and_then(|url| url.split_once('?')).ok_or("no command")?;
        let argument = |name: &str| {
            let mut pairs = form_urlencoded::parse(query.as_bytes());
            pairs.find_map(|(key, value)| (key == name).then(|| value.into_owned()))
        };
        let cid = argument("arg").and_then(|text| Cid::from_str(&text).ok());
        let key = cid.map(|cid| cid.hash().digest().to_vec()).unwrap_or_default();
        let mut shared = self.shared();
        if let Some(told) = shared.of_itself(command, argument("size-only").is_some()) {
            return Ok(told.to_string().into_bytes());
        }
        let told = match command {
            "dag/put" => {
                if shared.fault == Fault::IsFull {
                    return Err("write blocks/put-1: no space left on device".to_owned());
                }
                let mut block = part(body).to_vec();
                if shared.fault == Fault::Reencodes {
                    block.push(0);
                }
                let cid = canonical::cid_under(codec_of(argument("store-codec").as_deref()), &block);
                let key = cid.hash().digest().to_vec();
                // Like Kubo: what is believed to be there is not written again.
                shared.blocks.entry(key.clone()).or_insert(block);
                if argument("pin").as_deref() == Some("true") {
                    shared.pins.insert(key);
                }
                json!({"Cid": {"/": cid.to_string()}})
            }
            "block/get" if shared.fault == Fault::Searches => return Err("request timed out".to_owned()),
            "block/get" | "block/stat" => {
                let absent = "block was not found locally (offline): ipld: could not find it";
                let mut block = shared.blocks.get(&key).ok_or(absent)?.clone();
                if command == "block/get" {
                    if shared.fault == Fault::Lies {
                        block[0] ^= 1;
                    }
                    return Ok(block);
                }
                json!({"Size": block.len()})
            }
            "block/rm" if shared.protected().contains(&key) => json!({"Hash": "", "Error": "pinned"}),
            "block/rm" => {
                let error = shared
                    .blocks
                    .remove(&key)
                    .is_none()
                    .then_some("ipld: could not find it");
                json!({"Hash": "", "Error": error})
            }
            "pin/ls" if shared.pins.contains(&key) => json!({"Keys": {"it": {"Type": "recursive"}}}),
            "pin/ls" => return Err("path is not pinned".to_owned()),
            "pin/add" => {
                shared.pins.insert(key);
                json!({"Pins": ["it"]})
            }
            "pin/rm" if shared.pins.remove(&key) => json!({"Pins": ["it"]}),
            "pin/rm" => return Err("not pinned or pinned indirectly".to_owned()),
            "refs/local" => return Ok(shared.listed()),
            "repo/gc" => {
                let protected = shared.protected();
                shared.blocks.retain(|key, _| protected.contains(key));
                return Ok(Vec::new());
            }
            _ => return Err(format!("no such command: {command}")),
        };
        Ok(told.to_string().into_bytes())
    }
}

fn codec_of(name: Option<&str>) -> u64 {
    match name {
        Some("raw") => canonical::RAW,
        Some("dag-pb") => canonical::DAG_PB,
        _ => canonical::DAG_CBOR,
    }
}

/// Head and body of a request.
async fn request(stream: &mut (impl AsyncRead + Unpin)) -> Option<(String, Vec<u8>)> {
    let mut all = Vec::new();
    let end = loop {
        if let Some(end) = all.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        if stream.read_buf(&mut all).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8_lossy(&all[..end]).into_owned();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    let length: usize = length.unwrap_or(0);
    while all.len() < end + length {
        if stream.read_buf(&mut all).await.ok()? == 0 {
            return None;
        }
    }
    Some((head, all[end..].to_vec()))
}

/// What the only part of a multipart body holds.
fn part(body: &[u8]) -> &[u8] {
    let boundary = body
        .windows(2)
        .position(|window| window == b"\r\n")
        .expect("a first line");
    let start = body
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .expect("a part has a head")
        + 4;
    // Line feed, boundary, two dashes, line feed.
    &body[start..body.len() - (boundary + 6)]
}
