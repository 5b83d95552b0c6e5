//! Four fog nodes over loopback that answer from one real chain, each with its own way to lie, and an observer of them.

use std::{
    ops::Range,
    sync::{Arc, Mutex},
    time::Duration,
};

use ledger::{
    admission::MatchedSubmission,
    agreement::SignedHead,
    block::{Block, FinalizedBlock, Height},
    genesis::Genesis,
    handover::Committees,
    light::{CarriedHeader, CarriedHeaders, Included, IncludedInBlock, ProvenHeader},
    proof::{Finalization, Vote, vote_message},
    transaction::{Action, Author, DeviceEnrolment, GatewayEnrolment, Grant, SignedTransaction, Transaction},
};
use record::{
    bundle::{Bundle, Category, Entry, SubjectKey, SubjectSecret},
    canonical::Digest,
    fhir::Patient,
    ids::{BootId, BundleId, OrganizationId, SubjectId},
    reading::{Measured, MeasurementState, Reading, TimeQuality, VERSION},
    signature::SigningKey,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::super::{Config, Follower, Rooms};
use crate::{
    chain::{self, Chain},
    consensus::codec::tests::{child, founded},
    disclosure::Disclosure,
    http::parameters::Parameters,
    index::{self, Index},
    keyring::{Holding, Keyring, Passphrase},
    projection::Projection,
    proofs::Proofs,
    recovery::Incidents,
    vault::{self, Peer, Vault},
};

/// How a node deceives.
#[derive(Clone, Debug, Default)]
pub(super) enum Lie {
    /// Not at all.
    #[default]
    Honest,
    /// It never answers.
    Silent,
    /// It answers as if the chain ended here.
    Stale(Height),
    /// Its headers carry votes of other headers.
    ForgedVotes,
    /// It has another chain, with votes.
    Fork(Vec<CarriedHeader>),
    /// It leaves out every commitment.
    Omits,
    /// It gives other payloads.
    WrongPayload,
    /// It tells of a transaction that was refused.
    Refused,
}

#[derive(Clone)]
struct Node {
    chain: Chain,
    disclosure: Disclosure,
    genesis: Genesis,
    key: SigningKey,
    lie: Arc<Mutex<Lie>>,
}

pub(super) struct World {
    pub(super) dir: TempDir,
    pub(super) genesis: Genesis,
    pub(super) keys: Vec<SigningKey>,
    pub(super) lies: Vec<Arc<Mutex<Lie>>>,
    peers: Vec<Peer>,
    chain: Chain,
    vault: Vault,
    device: SigningKey,
    pub(super) holding: Holding,
}

pub(super) struct Observed {
    pub(super) follower: Follower,
    pub(super) proofs: Proofs,
    pub(super) projection: Projection<Proofs>,
    pub(super) index: Index,
    pub(super) incidents: Incidents,
}

fn holding() -> Holding {
    let (secret, key) = SubjectSecret::generate(Category::Vitals, 1).expect("random numbers");
    let patient = Patient {
        id: SubjectId::random(),
        family: "F".to_owned(),
        given: "G".to_owned(),
        gender: "female".to_owned(),
        birth_date: "1957-11-14".to_owned(),
    };
    Holding { key, secret, patient }
}

impl World {
    pub(super) async fn new() -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let dir = tempfile::tempdir().expect("a folder");
        let mut keys: Vec<_> = (0..4).map(|_| SigningKey::random()).collect();
        keys.sort_by_key(SigningKey::public);
        let genesis = founded(&keys);
        let chain = Chain::open(&chain::Config::default(), dir.path(), &genesis).expect("opens");
        let config = vault::Config::default();
        let vault = Vault::open(&config, dir.path(), reqwest::Client::new())
            .await
            .expect("opens");
        let lies: Vec<Arc<Mutex<Lie>>> = keys.iter().map(|_| Arc::default()).collect();
        let mut peers = Vec::new();
        for (key, lie) in keys.iter().zip(&lies) {
            let node = Node {
                chain: chain.clone(),
                disclosure: Disclosure::new(chain.clone(), vault.clone()),
                genesis: genesis.clone(),
                key: key.clone(),
                lie: lie.clone(),
            };
            peers.push(node.listen().await);
        }
        Self {
            dir,
            genesis,
            keys,
            lies,
            peers,
            chain,
            vault,
            device: SigningKey::random(),
            holding: holding(),
        }
    }

    pub(super) fn set(&self, node: usize, lie: Lie) {
        *self.lies[node].lock().expect("nobody panics") = lie;
    }

    pub(super) fn sign(&self, organization: usize, sequence: u64, action: Action) -> SignedTransaction {
        let author = Author::Organization(self.genesis.organizations[organization].id.clone());
        let network = self.genesis.network();
        let transaction = Transaction {
            network,
            author,
            sequence,
            action,
        };
        transaction.sign(&self.keys[organization])
    }

    pub(super) fn enrolments(&self) -> Vec<SignedTransaction> {
        let gateway = GatewayEnrolment {
            gateway: "home-1".parse().expect("good"),
            key: self.keys[0].public(),
            tls: Digest::ZERO,
        };
        let place = (gateway.gateway.clone(), "oximeter-1".parse().expect("good"));
        let device = DeviceEnrolment::of(&self.genesis.network(), place, &self.device);
        let actions = [
            Action::EnrolGateway(gateway),
            Action::EnrolDevice(device),
            Action::AnnounceKey(self.holding.key.clone()),
        ];
        actions.into_iter().map(|action| self.sign(0, 0, action)).collect()
    }

    pub(super) fn grant_to(&self, organization: usize) -> SignedTransaction {
        let grant = Grant {
            key: self.holding.key.id(),
            grantee: self.genesis.organizations[organization].id.clone(),
        };
        self.sign(0, 1, Action::Grant(grant))
    }

    /// A bundle of one reading that the nodes hold, and the commitment to it.
    pub(super) async fn commit(&self, seq: u64) -> (BundleId, SignedTransaction) {
        self.commit_to(&self.holding.key, &self.readings(seq..seq + 1)).await
    }

    /// Readings of the one device.
    pub(super) fn readings(&self, sequence: Range<u64>) -> Bundle {
        let entry = |seq| {
            let reading = Reading {
                v: VERSION,
                device: "oximeter-1".parse().expect("good"),
                boot: BootId { counter: 1, random: 2 },
                seq,
                up_ms: 1,
                wall: Some(1_000),
                time_quality: TimeQuality::Synced,
                observations: vec![Measured {
                    code: "59408-5".to_owned(),
                    value: Some("97".parse().expect("decimal")),
                    samples: None,
                    unit: "%".to_owned(),
                    state: MeasurementState::Valid,
                }],
            };
            Entry::new(1_000, reading.sign(&self.device))
        };
        Bundle::new(sequence.map(entry).collect())
    }

    /// A bundle sealed to a key, which the nodes hold, and the commitment to it.
    pub(super) async fn commit_to(&self, key: &SubjectKey, bundle: &Bundle) -> (BundleId, SignedTransaction) {
        let home = "home-1".parse().expect("good");
        let author = (&self.genesis.network(), &home, &self.keys[0]);
        let sealed = MatchedSubmission::seal(author, (key, bundle), 0).expect("seals");
        let id = sealed.commitment().bundle;
        let (transaction, payload) = sealed.into_parts();
        self.vault.put(payload.into()).await.expect("kept");
        (id, transaction)
    }

    pub(super) fn votes(&self, block: &Block) -> Finalization {
        let message = vote_message(&block.header);
        let vote = |key: &SigningKey| Vote {
            validator: key.public(),
            signature: key.sign_raw(&message),
        };
        Finalization {
            votes: self.keys.iter().map(vote).collect(),
        }
    }

    /// The next block on every node; without votes of its own, if so wanted.
    pub(super) async fn append(&self, transactions: Vec<SignedTransaction>, is_voted: bool) -> Block {
        let head = self.chain.head().height;
        let parent = self.chain.block(head).await.expect("reads").expect("the head").block;
        let block = child(&self.genesis, &parent, transactions);
        let finalized = FinalizedBlock {
            digest: block.header.digest(),
            block: block.clone(),
            finalization: is_voted.then(|| self.votes(&block)),
        };
        self.chain.append(finalized).await.expect("appends");
        block
    }

    /// An observer of an organisation in a folder, with the key of the one patient.
    pub(super) async fn observe(&self, organization: usize, name: &str) -> Observed {
        let dir = self.dir.path().join(name);
        std::fs::create_dir_all(&dir).expect("a folder");
        let passphrase = Passphrase::new("correct horse battery".to_owned().into()).expect("long enough");
        let file = dir.join("keyring.sealed");
        let keyring = if file.exists() {
            Keyring::open(&file, &passphrase).expect("opens")
        } else {
            Keyring::create(&file, &passphrase, vec![self.holding.clone()]).expect("creates")
        };
        let organization = self.genesis.organizations[organization].id.clone();
        let client = self.client(&organization);
        let proofs = Proofs::open(&dir, &self.genesis).expect("opens");
        let mut config = vault::Config::default();
        config.exchange.peers.clone_from(&self.peers);
        let vault = Vault::open(&config, &dir, client.clone()).await.expect("opens");
        let index = Index::open(&index::Config::default(), &dir).await.expect("opens");
        let projection = Projection::new(proofs.clone(), vault, index.clone(), keyring.clone());
        let incidents = Incidents::open(&dir).expect("opens");
        let rooms = Rooms {
            proofs: proofs.clone(),
            projection: projection.clone(),
            keyring,
            incidents: incidents.clone(),
        };
        let config = Config {
            nodes: self.peers.clone(),
            answer_timeout_ms: 1_000,
            ..Config::default()
        };
        let member = (organization, Committees::founding(&self.genesis));
        Observed {
            follower: Follower::new(&config, member, &client, dir, rooms),
            proofs,
            projection,
            index,
            incidents,
        }
    }

    /// The door and its tokens are tested elsewhere: here the organisation's name stands for its token.
    fn client(&self, organization: &OrganizationId) -> reqwest::Client {
        let name = organization.to_string().parse().expect("a header");
        let headers = http::HeaderMap::from_iter([(http::header::AUTHORIZATION, name)]);
        reqwest::Client::builder()
            .default_headers(headers)
            .build()
            .expect("a client")
    }
}

impl Observed {
    /// Rounds, until one came to nothing.
    pub(super) async fn rounds(&mut self, count: usize) {
        for _ in 0..count {
            // A round that fails is told by what it did not reach.
            let _tried = self.follower.round().await;
        }
    }

    pub(super) fn height(&self) -> u64 {
        self.proofs.head().height.0
    }

    /// Waits until so many observations are in the index.
    pub(super) async fn indexed(&self, count: u64) {
        let task = tokio::spawn(self.projection.clone().run());
        let all = async {
            while self.index.counts().await.expect("counts").observations < count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), all)
            .await
            .expect("in time");
        task.abort();
    }
}

impl Node {
    async fn listen(self) -> Peer {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(self.clone().serve(stream));
            }
        });
        Peer::try_from(url).expect("a URL")
    }

    async fn serve(self, mut stream: TcpStream) {
        let mut request = [0; 16_384];
        let length = stream.read(&mut request).await.unwrap_or_default();
        let request = String::from_utf8_lossy(&request[..length]).into_owned();
        let line = |name: &str| request.lines().find_map(|line| line.strip_prefix(name));
        let (Some(target), Some(reader)) = (
            line("GET ").and_then(|rest| rest.split(' ').next()),
            line("authorization: ").and_then(|name| name.parse::<OrganizationId>().ok()),
        ) else {
            return;
        };
        let lie = self.lie.lock().expect("nobody panics").clone();
        if matches!(lie, Lie::Silent) {
            // Until whoever asked gives up.
            let _end = stream.read(&mut [0]).await;
            return;
        }
        let body = self.answer(target, &reader, &lie).await;
        let status = if body.is_some() { "200 OK" } else { "404 Not Found" };
        let body = body.unwrap_or_default();
        let length = body.len();
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
        let _ = stream.write_all(&[head.as_bytes(), &body].concat()).await;
    }

    async fn answer(&self, target: &str, reader: &OrganizationId, lie: &Lie) -> Option<Vec<u8>> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let parameters = Parameters::parse(query);
        let number = |name: &str| parameters.last(name).and_then(|text| text.parse().ok()).unwrap_or(0);
        let end = if let Lie::Stale(end) = lie {
            *end
        } else {
            Height(u64::MAX)
        };
        if let Some(height) = path.strip_prefix("/api/v1/heads/") {
            let height = Height(height.parse().ok()?);
            let position = self.chain.position_at(height).ok()?.filter(|_| height <= end)?;
            let head = SignedHead::sign(self.genesis.network(), position, &self.key);
            return serde_json::to_vec(&head).ok();
        }
        if let Some(cid) = path.strip_prefix("/ipfs/") {
            let cid = record::canonical::parse_cid(cid).ok()?;
            let payload = self.disclosure.payload(reader, &cid).await.ok()??;
            let is_wrong = matches!(lie, Lie::WrongPayload);
            return Some(if is_wrong {
                b"other bytes".to_vec()
            } else {
                payload.to_vec()
            });
        }
        match path {
            "/api/v1/chain/headers" => Some(self.headers(Height(number("from")), end, lie).await.encode()),
            "/api/v1/chain/state" => {
                let known = parameters.last("known").and_then(|known| known.parse().ok());
                let state = self.disclosure.state(reader, known).await.ok()??;
                (state.position.height <= end).then(|| state.encode())
            }
            "/api/v1/chain/commitments" => {
                let range = (Height(number("from")), Height(number("to")).min(end));
                let keys = parameters.all("key").filter_map(|key| key.parse().ok()).collect();
                let mut told = self.disclosure.commitments(reader, range, keys).await.ok()?;
                match lie {
                    Lie::Omits => told.blocks.clear(),
                    Lie::Refused => told.blocks.extend(self.refused(range.0).await),
                    _ => {}
                }
                Some(told.encode())
            }
            _ => None,
        }
    }

    /// The last commitment of the last block, whatever became of it.
    async fn refused(&self, from: Height) -> Option<IncludedInBlock> {
        let head = self.chain.head().height;
        let block = self.chain.block(head).await.ok()??;
        let at = block.block.transactions.len().checked_sub(1)?;
        let included = Included {
            transaction: block.block.transactions[at].clone(),
            path: record::merkle::Path::of(&block.block.leaves(), at)?,
        };
        let block = ProvenHeader {
            headers: vec![block.block.header],
            finalization: block.finalization?,
        };
        (from <= head).then(|| IncludedInBlock {
            block,
            included: vec![included],
        })
    }

    async fn headers(&self, from: Height, end: Height, lie: &Lie) -> CarriedHeaders {
        if let Lie::Fork(headers) = lie {
            let mut headers = headers.clone();
            headers.retain(|carried| carried.header.height >= from);
            return CarriedHeaders(headers);
        }
        let mut headers = self.chain.carried_headers(from, 256).await.expect("reads");
        headers.0.retain(|carried| carried.header.height <= end);
        if matches!(lie, Lie::ForgedVotes) {
            let other = headers.0.iter().find_map(|carried| carried.finalization.clone());
            for carried in headers.0.iter_mut().skip(1) {
                carried.finalization.clone_from(&other);
            }
        }
        headers
    }
}
