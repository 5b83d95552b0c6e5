//! A network of four for tests: its chain with votes, and peers that answer over HTTP, honestly or not.

use std::{sync::Arc, time::Duration};

use ledger::{
    agreement::{Position, SignedHead},
    block::{Block, FinalizedBlock, Height},
    genesis::Genesis,
    handover::Committees,
    proof::{CarriedBlock, Finalization, Vote, vote_message},
};
use record::signature::SigningKey;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::{Donors, Error, Progress, Rooms, Summary, rebuild};
use crate::{
    chain::{self, Chain},
    consensus::codec::tests::{child, commitment, enrolments_of, founded},
    recovery::Peers,
    vault::{self, Peer, Vault},
};

/// More than two windows.
pub(super) const BLOCKS: usize = 150;
/// A block that is final through descendants only, in the last place of the first window.
pub(super) const UNPROVEN: [u64; 3] = [63, 64, 65];
/// What the chain names.
pub(super) const PAYLOAD: &[u8] = b"sealed";

/// What a peer answers to a path.
pub(super) enum Reply {
    Body(Vec<u8>),
    Absent,
    Stall,
}

type Answers = Box<dyn Fn(&str) -> Reply + Send + Sync>;

/// The network, and what its honest nodes have.
pub(super) struct Village {
    pub(super) genesis: Genesis,
    /// The first one is of the node that is lost.
    pub(super) keys: Vec<SigningKey>,
    /// From height 0 on.
    pub(super) blocks: Vec<CarriedBlock>,
    pub(super) positions: Vec<Position>,
}

impl Village {
    pub(super) fn found() -> Self {
        Self::grown(BLOCKS)
    }

    pub(super) fn grown(height: usize) -> Self {
        let keys: Vec<_> = (0..4).map(|_| SigningKey::random()).collect();
        let (genesis, gateway) = (founded(&keys), SigningKey::random());
        let mut village = Self {
            keys,
            blocks: Vec::new(),
            positions: Vec::new(),
            genesis,
        };
        let first = enrolments_of(&village.genesis, &village.keys[0], &gateway);
        let second = vec![commitment(&village.genesis, &gateway)];
        let mut contents = [vec![], first, second].into_iter();
        let mut block = Block::genesis(&village.genesis);
        for at in 0..=height {
            let transactions = contents.next().unwrap_or_default();
            if at > 0 {
                block = child(&village.genesis, &block, transactions);
            }
            let is_proven = at > 0 && !UNPROVEN.contains(&(at as u64));
            village.blocks.push(CarriedBlock {
                finalization: is_proven.then(|| village.votes(&block)),
                block: block.clone(),
            });
        }
        village.positions = village.applied();
        village
    }

    /// Three of four votes.
    pub(super) fn votes(&self, block: &Block) -> Finalization {
        let message = vote_message(&block.header);
        let vote = |key: &SigningKey| Vote {
            validator: key.public(),
            signature: key.sign_raw(&message),
        };
        let mut votes: Vec<_> = self.keys[1..].iter().map(vote).collect();
        votes.sort_by_key(|vote| vote.validator);
        Finalization { votes }
    }

    /// Another history above a height, with votes as well: more than a third have voted twice.
    pub(super) fn forked(&self, above: usize, height: usize) -> Self {
        let mut forked = Self {
            genesis: self.genesis.clone(),
            keys: self.keys.clone(),
            blocks: self.blocks[..=above].to_vec(),
            positions: Vec::new(),
        };
        let mut block = self.blocks[above].block.clone();
        for _ in above..height {
            block = child(&self.genesis, &block, vec![]);
            block.header.timestamp_ms += 1;
            block.header = self.genesis.policy.mine(block.header).0;
            forked.blocks.push(CarriedBlock {
                finalization: Some(self.votes(&block)),
                block: block.clone(),
            });
        }
        forked.positions = forked.applied();
        forked
    }

    fn applied(&self) -> Vec<Position> {
        let dir = tempfile::tempdir().expect("a folder");
        let chain = Chain::open(&chain::Config::default(), dir.path(), &self.genesis).expect("opens");
        let finalized: Vec<_> = self.blocks[1..].iter().map(unproven).collect();
        chain.append_all(&finalized).expect("appends");
        let position = |height| chain.position_at(Height(height)).expect("reads").expect("there");
        (0..self.blocks.len() as u64).map(position).collect()
    }

    /// What the node of a key answers whose chain ends at a height.
    pub(super) fn honest(&self, key: usize, height: usize) -> Answers {
        let (network, key) = (self.genesis.network(), self.keys[key].clone());
        let positions = self.positions[..=height].to_vec();
        let blocks: Vec<_> = self.blocks[..=height].iter().map(CarriedBlock::encode).collect();
        Box::new(move |path| {
            let place = path.rsplit('/').next().and_then(|last| last.parse::<usize>().ok());
            let body = if path == "/api/v1/chain/head" {
                Some(
                    json!({"height": height, "digest": positions[height].digest})
                        .to_string()
                        .into_bytes(),
                )
            } else if path.starts_with("/api/v1/heads/") {
                place.and_then(|at| positions.get(at)).map(|position| {
                    let head = SignedHead::sign(network, *position, &key);
                    serde_json::to_vec(&head).expect("JSON")
                })
            } else if path.starts_with("/api/v1/chain/blocks/") {
                place.and_then(|at| blocks.get(at)).cloned()
            } else {
                path.starts_with("/ipfs/").then(|| PAYLOAD.to_vec())
            };
            body.map_or(Reply::Absent, Reply::Body)
        })
    }

    /// Three honest peers with all of the chain.
    pub(super) fn all_honest(&self) -> Vec<Answers> {
        let height = self.blocks.len() - 1;
        (1..4).map(|key| self.honest(key, height)).collect()
    }

    /// Rebuilds the first node in a folder, from peers that answer so.
    pub(super) async fn rebuild(&self, dir: &std::path::Path, answers: Vec<Answers>) -> (Rebuilt, Rooms) {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let mut peers = Vec::new();
        for answers in answers {
            peers.push(peer(answers).await);
        }
        let client = reqwest::Client::new();
        let mut config = vault::Config::default();
        config.exchange.peers.clone_from(&peers);
        config.exchange.get_timeout_ms = 1_500;
        let rooms = Rooms {
            chain: Chain::open(&chain::Config::default(), dir, &self.genesis).expect("opens"),
            vault: Vault::open(&config, dir, client.clone()).await.expect("opens"),
            projection: None,
        };
        let committees = Committees::founding(&self.genesis);
        let donors = Donors::new(
            Peers::new(client, &peers, Duration::from_secs(2)),
            committees,
            &self.genesis.policy,
        );
        let result = rebuild(&rooms, &donors, &self.keys[0].public(), &mut Progress::to(|_| {})).await;
        (Rebuilt { result, peers }, rooms)
    }
}

/// What came of it, and who was asked.
pub(super) struct Rebuilt {
    pub(super) result: Result<Summary, Error>,
    peers: Vec<Peer>,
}

impl Rebuilt {
    /// Which of the peers, in their order, were left for another.
    pub(super) fn left(&self) -> Vec<bool> {
        let gifts = &self.result.as_ref().expect("rebuilt").gifts;
        assert!(
            gifts.iter().map(|gift| &gift.peer).eq(self
                .peers
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .iter())
        );
        gifts.iter().map(|gift| gift.was_left).collect()
    }
}

/// Answers like another one, except where this says something else.
pub(super) fn except(otherwise: Answers, lie: impl Fn(&str, Reply) -> Reply + Send + Sync + 'static) -> Answers {
    Box::new(move |path| lie(path, otherwise(path)))
}

/// Lies about blocks alone, each as it would be given.
pub(super) fn except_blocks(
    otherwise: Answers,
    lie: impl Fn(CarriedBlock) -> CarriedBlock + Send + Sync + 'static,
) -> Answers {
    except(otherwise, move |path, reply| match reply {
        Reply::Body(bytes) if path.contains("/blocks/") => {
            let carried = CarriedBlock::decode(&bytes).expect("an honest block");
            Reply::Body(lie(carried).encode())
        }
        other => other,
    })
}

fn unproven(carried: &CarriedBlock) -> FinalizedBlock {
    FinalizedBlock {
        digest: carried.block.header.digest(),
        block: carried.block.clone(),
        finalization: None,
    }
}

async fn peer(answers: Answers) -> Peer {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let answers = Arc::new(answers);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answers = answers.clone();
            tokio::spawn(async move {
                let mut request = vec![0; 4_096];
                let length = stream.read(&mut request).await.unwrap_or_default();
                let line = String::from_utf8_lossy(&request[..length]).into_owned();
                let path = line.split([' ', '?']).nth(1).unwrap_or_default();
                let (status, body) = match answers(path) {
                    Reply::Body(body) => ("200 OK", body),
                    Reply::Absent => ("404 Not Found", Vec::new()),
                    Reply::Stall => return std::future::pending().await,
                };
                let length = body.len();
                let head = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
                let _ = stream.write_all(&[head.as_bytes(), &body].concat()).await;
            });
        }
    });
    Peer::try_from(url).expect("a URL")
}
