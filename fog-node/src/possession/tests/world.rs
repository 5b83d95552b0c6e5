//! A chain that names payloads, nodes over it with rooms of their own, and doors behind which they are honest or not.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use cid::Cid;
use ledger::{
    block::{Block, FinalizedBlock, Height},
    genesis::Genesis,
    holding::{Answer, Challenge},
    state::Outcome,
    transaction::{Action, Author, Erasure, SignedTransaction, Transaction},
};
use record::{
    bundle::SealedBundle,
    canonical::{self, Digest, Domain, cid_of},
    signature::SigningKey,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use super::super::{Config, Possession, Rooms};
use crate::{
    chain::{self, Chain},
    consensus::codec::tests::{child, commitment, enrolments_of, founded},
    index::{self, Index},
    keyring::{Keyring, Passphrase},
    mempool::{self, Mempool},
    projection::Projection,
    recovery::{self, Incidents, Recovery},
    retention::Retention,
    vault::{self, Peer, Vault},
};

/// Payloads in one block.
const IN_A_BLOCK: usize = 2;
/// Blocks above the last payload: peers are asked only for what lies that deep.
const ABOVE: usize = 8;
/// Nothing takes so long, on whatever machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until something holds.
pub(super) async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not in time");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What is agreed.
pub(super) struct Network {
    pub(super) keys: Vec<SigningKey>,
    gateway: SigningKey,
    genesis: Genesis,
    blocks: Vec<FinalizedBlock>,
    payloads: Vec<bytes::Bytes>,
}

fn tls(of: usize) -> Digest {
    Digest::of(Domain::TLS_KEY, &[&of.to_be_bytes()])
}

impl Network {
    /// Four validators, and a chain that names so many payloads.
    pub(super) fn of(payloads: usize) -> Self {
        let keys: Vec<_> = (0..4).map(|_| SigningKey::random()).collect();
        let gateway = SigningKey::random();
        let mut genesis = founded(&keys);
        for (at, validator) in genesis.validators.iter_mut().enumerate() {
            validator.tls = tls(at);
        }
        let payloads: Vec<bytes::Bytes> = (0..payloads).map(|at| format!("payload {at}").into()).collect();
        let mut network = Self {
            blocks: Vec::new(),
            keys,
            gateway,
            genesis,
            payloads,
        };
        let mut last = Block::genesis(&network.genesis);
        let enrolments = enrolments_of(&network.genesis, &network.keys[0], &network.gateway);
        let mut contents = vec![enrolments];
        contents.extend(
            network
                .payloads
                .chunks(IN_A_BLOCK)
                .map(|some| some.iter().map(|payload| network.commits(payload)).collect()),
        );
        contents.extend((0..ABOVE).map(|_| Vec::new()));
        let now_ms = u64::try_from(jiff::Timestamp::now().as_millisecond()).expect("after 1970");
        for transactions in contents {
            let next = network.after(&last, transactions, now_ms);
            last = next.block.clone();
            network.blocks.push(next);
        }
        network
    }

    fn after(&self, last: &Block, transactions: Vec<SignedTransaction>, now_ms: u64) -> FinalizedBlock {
        let mut block = child(&self.genesis, last, transactions);
        block.header.timestamp_ms = block.header.timestamp_ms.max(now_ms);
        block.header = self.genesis.policy.mine(block.header).0;
        FinalizedBlock {
            digest: block.header.digest(),
            block,
            finalization: None,
        }
    }

    /// The next block: the key to which every payload is sealed is erased.
    pub(super) fn erases(&self) -> FinalizedBlock {
        let key = self.unnamed_commitment().commitment().expect("it is one").key;
        let erase = Transaction {
            network: self.genesis.network(),
            author: Author::Organization(self.genesis.organizations[0].id.clone()),
            sequence: 0,
            action: Action::Erase(Erasure { key }),
        };
        let last = &self.blocks.last().expect("there are some").block;
        self.after(last, vec![erase.sign(&self.keys[0])], last.header.timestamp_ms)
    }

    fn commits(&self, payload: &[u8]) -> SignedTransaction {
        let mut claims: Transaction = commitment(&self.genesis, &self.gateway).claims().clone();
        if let Action::Commit(commitment) = &mut claims.action {
            commitment.bundle = SealedBundle::id_of(payload);
            commitment.cid = cid_of(payload);
        }
        claims.sign(&self.gateway)
    }

    /// A commitment to the payload `sealed`, which is in no block.
    pub(super) fn unnamed_commitment(&self) -> SignedTransaction {
        commitment(&self.genesis, &self.gateway)
    }

    pub(super) fn cids(&self) -> Vec<Cid> {
        self.payloads.iter().map(|payload| cid_of(payload)).collect()
    }

    pub(super) fn height(&self) -> Height {
        Height(self.blocks.len() as u64)
    }
}

/// How a door answers challenges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    /// As the node does.
    Honest,
    /// With proofs of bytes that it does not have.
    Guesses,
    /// With another validator's answer.
    Borrows,
    /// Behind a certificate that no validator has.
    IsAStranger,
    /// Never.
    Stalls,
    /// Without end.
    Floods,
    /// With what it answered first.
    Repeats,
}

/// A node.
pub(super) struct Member {
    _dir: tempfile::TempDir,
    at: usize,
    key: SigningKey,
    pub(super) mempool: Mempool,
    pub(super) vault: Vault,
    pub(super) possession: Possession,
    pub(super) incidents: Incidents,
    network: record::ids::NetworkId,
    challenger: record::signature::PublicKey,
    thief: SigningKey,
    retention: std::sync::Mutex<Option<Retention>>,
    tasks: Arc<std::sync::Mutex<JoinSet<()>>>,
}

impl Member {
    /// One that has the whole chain and every payload.
    pub(super) async fn open(network: &Network, at: usize, peers: &[&str], config: Config) -> Self {
        let member = Self::new(network, at, (peers, network.blocks.len(), 64 << 30), config).await;
        member.fill(network, network.height()).await;
        member
    }

    /// One that has come up to a height, and has no recent block.
    pub(super) async fn open_at(network: &Network, at: usize, height: u64, config: Config) -> Self {
        let blocks = usize::try_from(height).expect("small");
        let member = Self::new(network, at, (&[], blocks, 64 << 30), config).await;
        member.fill(network, Height(height)).await;
        member
    }

    /// One with a small vault.
    pub(super) async fn open_small(network: &Network, at: usize, bytes_max: u64, config: Config) -> Self {
        let member = Self::new(network, at, (&[], network.blocks.len(), bytes_max), config).await;
        member.fill(network, network.height()).await;
        member
    }

    async fn new(
        network: &Network,
        at: usize,
        (peers, blocks, bytes_max): (&[&str], usize, u64),
        config: Config,
    ) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let dir = tempfile::tempdir().expect("a folder");
        let chain = Chain::open(&chain::Config::default(), dir.path(), &network.genesis).expect("opens");
        let outcomes = chain.append_all(&network.blocks[..blocks]).expect("appends");
        assert!(outcomes.iter().flatten().all(|outcome| *outcome == Outcome::Applied));
        let mut settings = vault::Config {
            bytes_max,
            ..vault::Config::default()
        };
        settings.exchange.peers = peers.iter().map(|peer| address(peer)).collect();
        let vault = Vault::open(&settings, dir.path(), reqwest::Client::new())
            .await
            .expect("opens");
        let incidents = Incidents::open(dir.path()).expect("opens");
        let mempool = Mempool::new(&mempool::Config::default());
        let key = network.keys[at].clone();
        let (retention, repairs) = Retention::new(chain.clone(), vault.clone());
        let rooms = Rooms {
            recovery: looked_after(&chain, &vault, (dir.path(), &key), &incidents).await,
            chain,
            mempool: mempool.clone(),
            vault: vault.clone(),
            repairs,
            incidents: incidents.clone(),
        };
        let possession = Possession::new(config, key.clone(), rooms, (reqwest::Client::new(), shown));
        Self {
            _dir: dir,
            at,
            key,
            mempool,
            vault,
            possession,
            incidents,
            network: network.genesis.network(),
            challenger: network.keys[0].public(),
            thief: network.keys[3].clone(),
            retention: std::sync::Mutex::new(Some(retention)),
            tasks: Arc::default(),
        }
    }

    async fn fill(&self, network: &Network, up_to: Height) {
        let blocks = network.blocks.iter().take(usize::try_from(up_to.0).expect("small"));
        let cids: Vec<_> = blocks
            .flat_map(|block| &block.block.transactions)
            .filter_map(|transaction| Some(transaction.commitment()?.cid))
            .collect();
        let puts = network
            .payloads
            .iter()
            .filter(|payload| cids.contains(&cid_of(payload)))
            .map(|payload| self.vault.put(payload.clone()));
        futures::future::try_join_all(puts).await.expect("kept");
        self.vault.note_retained(up_to.0).await.expect("notes");
    }

    /// Has another block.
    pub(super) fn follows(&self, block: &FinalizedBlock) {
        let chain = &self.possession.0.rooms.chain;
        let outcomes = chain.append_all(std::slice::from_ref(block)).expect("appends");
        assert!(outcomes.iter().flatten().all(|outcome| *outcome == Outcome::Applied));
    }

    /// Another node, in both directions.
    pub(super) fn knows(&self, peer: &str) {
        self.vault.keep(&[address(peer)]);
    }

    /// Looks after what it has, as a node does; challenges come every two seconds.
    pub(super) fn runs(&self) {
        self.looks_after_itself();
        let possession = self.possession.clone();
        self.tasks.lock().expect("no panic").spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_secs(2)).await;
                possession.challenge_all().await;
            }
        });
    }

    /// Looks after what it has, and asks nobody for proof.
    pub(super) fn looks_after_itself(&self) {
        let mut tasks = self.tasks.lock().expect("no panic");
        let retention = self.retention.lock().expect("no panic").take().expect("it runs once");
        tasks.spawn(retention.run());
        let possession = self.possession.clone();
        tasks.spawn(async move { possession.sweep_for_ever().await });
    }

    /// Takes so many payloads out of the vault behind the node's back.
    pub(super) async fn loses(&self, count: usize) -> Vec<Cid> {
        let mut all = self.named().await;
        let lost = all.split_off(all.len() - count);
        self.loses_these(&lost).await;
        lost
    }

    /// What the chain names, from the first block on.
    async fn named(&self) -> Vec<Cid> {
        let chain = &self.possession.0.rooms.chain;
        let mut all = Vec::new();
        for height in (1..=chain.head().height.0).map(Height) {
            let commitments = chain.commitments(height).await.expect("reads").expect("there");
            all.extend(commitments.into_iter().map(|commitment| commitment.cid));
        }
        all
    }

    /// Takes these out of the vault behind the node's back.
    pub(super) async fn loses_these(&self, lost: &[Cid]) {
        let mut inventory = self.vault.inventory(Duration::ZERO).await.expect("lists");
        for cid in self.named().await {
            assert!(lost.contains(&cid) || inventory.name(&cid));
        }
        let gone = self.vault.collect(&inventory).await.expect("removes");
        assert_eq!(gone, lost.len() as u64);
    }

    /// Opens a door to this node, with its manner; where it is.
    pub(super) async fn serve(&self, manner: Manner) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let shown = match manner {
            Manner::IsAStranger => tls(99),
            _ => tls(self.at),
        };
        let door = Arc::new(Door {
            manner,
            shown,
            possession: self.possession.clone(),
            vault: self.vault.clone(),
            parties: (self.network, self.challenger),
            keys: (self.key.clone(), self.thief.clone()),
            first: std::sync::Mutex::default(),
        });
        self.tasks.lock().expect("no panic").spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(door.clone().answer(stream));
            }
        });
        url
    }
}

fn address(url: &str) -> Peer {
    Peer::try_from(url.to_owned()).expect("a URL")
}

/// Who answered: the test's doors say it in a header, where real ones show a certificate.
fn shown(response: &reqwest::Response) -> Option<Digest> {
    response.headers().get("x-shown")?.to_str().ok()?.parse().ok()
}

async fn looked_after(
    chain: &Chain,
    vault: &Vault,
    (dir, key): (&Path, &SigningKey),
    incidents: &Incidents,
) -> Recovery {
    let passphrase = Passphrase::new("correct horse battery".to_owned().into()).expect("long enough");
    let keyring = Keyring::create(&dir.join("keyring.sealed"), &passphrase, Vec::new()).expect("creates");
    let index = Index::open(&index::Config::default(), dir).await.expect("opens");
    let rooms = recovery::Rooms {
        chain: chain.clone(),
        vault: vault.clone(),
        projection: Projection::new(chain.clone(), vault.clone(), index, keyring),
    };
    let peers = (reqwest::Client::new(), &[][..]);
    Recovery::new(
        recovery::Config::default(),
        key.clone(),
        rooms,
        peers,
        incidents.clone(),
    )
}

struct Door {
    manner: Manner,
    shown: Digest,
    possession: Possession,
    vault: Vault,
    parties: (record::ids::NetworkId, record::signature::PublicKey),
    keys: (SigningKey, SigningKey),
    first: std::sync::Mutex<Option<Vec<u8>>>,
}

impl Door {
    async fn answer(self: Arc<Self>, mut stream: TcpStream) {
        let Some((head, body)) = request(&mut stream).await else {
            return;
        };
        if let Some(cid) = head.strip_prefix("GET /ipfs/") {
            let cid = cid.split(['?', ' ']).next().expect("a word");
            let cid = canonical::parse_cid(cid).expect("a CID");
            let (status, payload) = match self.vault.local(&cid).await.expect("reads") {
                Some(payload) => ("200 OK", payload),
                None => ("404 Not Found", bytes::Bytes::new()),
            };
            return self.write(&mut stream, status, &payload).await;
        }
        assert!(head.starts_with("POST /api/v1/possession "), "{head}");
        let challenge = Challenge::decode(&body).expect("a challenge");
        let answer = match self.manner {
            Manner::Stalls => return tokio::time::sleep(Duration::from_secs(600)).await,
            Manner::Floods => {
                let head = format!(
                    "HTTP/1.1 200 OK\r\nx-shown: {}\r\nconnection: close\r\n\r\n",
                    self.shown
                );
                let _ = stream.write_all(head.as_bytes()).await;
                while stream.write_all(&[b' '; 65_536]).await.is_ok() {}
                return;
            }
            Manner::Guesses => self.forged(&challenge, &self.keys.0),
            Manner::Borrows => self.forged(&challenge, &self.keys.1),
            Manner::Honest | Manner::IsAStranger | Manner::Repeats => {
                let answered = self.possession.answer(self.parties.1, &challenge).await.expect("reads");
                match answered {
                    Ok(answer) => answer.encode(),
                    Err(_) => return self.write(&mut stream, "429 Too Many Requests", b"").await,
                }
            }
        };
        let answer = if self.manner == Manner::Repeats {
            self.first.lock().expect("no panic").get_or_insert(answer).clone()
        } else {
            answer
        };
        self.write(&mut stream, "200 OK", &answer).await;
    }

    /// An answer without the bytes, signed with some validator's key.
    fn forged(&self, challenge: &Challenge, key: &SigningKey) -> Vec<u8> {
        let proof = |cid: &Cid| Some(challenge.proof(&self.parties.0, &key.public(), &cid.to_bytes()));
        let proofs = challenge.payloads().iter().map(proof).collect();
        Answer::sign(&self.parties.0, challenge, (Height(1_000), proofs), key).encode()
    }

    async fn write(&self, stream: &mut TcpStream, status: &str, body: &[u8]) {
        let head = format!(
            "HTTP/1.1 {status}\r\nx-shown: {}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            self.shown,
            body.len()
        );
        let _ = stream.write_all(&[head.as_bytes(), body].concat()).await;
    }
}

/// Head and body of a request.
async fn request(stream: &mut TcpStream) -> Option<(String, Vec<u8>)> {
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
