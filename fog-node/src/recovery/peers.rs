//! What the other nodes are asked when something is to be compared or mended: their signed heads, and blocks by digest.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use bytes::BytesMut;
use futures::future::join_all;
use ledger::{
    agreement::SignedHead,
    block::Height,
    genesis::{Genesis, VALIDATORS_MAX},
    handover::{Committees, HANDOVERS_BYTES_MAX, Handovers},
    proof::{CARRIED_BYTES_MAX, CarriedBlock},
};
use record::canonical::{Digest, MEDIA_TYPE};
use reqwest::{Response, StatusCode, header};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::runtime::Handle;

use crate::{chain::Source, vault::Peer};

/// A head, signed or not, has at most this many bytes of JSON.
const HEAD_BYTES_MAX: usize = 4_096;

/// The other nodes. Clones share the client.
#[derive(Clone, Debug)]
pub struct Peers {
    client: reqwest::Client,
    configured: Arc<[Peer]>,
    // Read by every question, written when a node gets a seat.
    peers: Arc<RwLock<Vec<Peer>>>,
    timeout: Duration,
}

/// A block as a peer gave it.
#[derive(Clone, Debug)]
pub struct Given {
    /// Believed by nobody yet.
    pub carried: CarriedBlock,
    /// How many bytes it sent.
    pub bytes: u64,
}

/// Why a peer gave no block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Miss {
    /// It is behind, or does not keep it.
    #[error("it has no block of this height")]
    Absent,
    /// It is down, slow, or fails.
    #[error("it does not answer in time, or not as agreed")]
    Failed,
    /// What it gave is not what it must be.
    #[error("it gave {0}")]
    Lied(&'static str),
}

impl Miss {
    /// The word of the metric.
    const fn outcome(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Failed => "failed",
            Self::Lied(_) => "lied",
        }
    }
}

/// What an unsigned head says.
#[derive(Deserialize)]
struct Head {
    height: Height,
}

impl Peers {
    /// These peers, each with so much time for an answer. The client carries this node's certificate.
    #[must_use]
    pub fn new(client: reqwest::Client, peers: &[Peer], timeout: Duration) -> Self {
        Self {
            client,
            configured: peers.into(),
            peers: Arc::new(RwLock::new(peers.to_vec())),
            timeout,
        }
    }

    /// Asks these and the configured peers from now on, and nobody else.
    pub(super) fn keep(&self, seated: &[Peer]) {
        let new = seated.iter().filter(|peer| !self.configured.contains(peer));
        let all = self.configured.iter().chain(new).take(VALIDATORS_MAX);
        *self.peers.write().unwrap_or_else(PoisonError::into_inner) = all.cloned().collect();
    }

    /// The same ones, each with so much time for an answer.
    #[must_use]
    pub fn waiting(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Who is asked.
    #[must_use]
    pub fn list(&self) -> Vec<Peer> {
        self.peers.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The committees of the network: of what the peers tell, what is proven from the founders on and superseded by nothing else.
    pub async fn committees(&self, genesis: &Genesis) -> Committees {
        let peers = self.list();
        let asked = peers.iter().map(|peer| self.handovers(peer));
        let mut known = Committees::founding(genesis);
        for told in join_all(asked).await.into_iter().flatten() {
            known = match known.told(told) {
                Ok(told) if told.supersede(&known) => told,
                _ => known,
            };
        }
        known
    }

    async fn handovers(&self, peer: &Peer) -> Option<Handovers> {
        let request = self.client.get(format!("{peer}/api/v1/chain/validators"));
        let answer = request.timeout(self.timeout).send().await.ok()?;
        serde_json::from_slice(&limited(answer, HANDOVERS_BYTES_MAX).await?).ok()
    }

    /// What each peer that answers in time says of its chain at a height; whether it is believed is for the comparison.
    pub async fn heads(&self, height: Height) -> Vec<SignedHead> {
        let peers = self.list();
        let asked = peers.iter().map(|peer| self.head(peer, height));
        join_all(asked).await.into_iter().flatten().collect()
    }

    async fn head(&self, peer: &Peer, height: Height) -> Option<SignedHead> {
        self.json(&format!("{peer}/api/v1/heads/{height}")).await
    }

    /// How high each peer that answers in time says its chain is: where to ask for signed heads.
    pub async fn heights(&self) -> Vec<Height> {
        let head = async |peer| self.json::<Head>(&format!("{peer}/api/v1/chain/head")).await;
        let peers = self.list();
        let heads = join_all(peers.iter().map(head)).await;
        heads.into_iter().flatten().map(|head| head.height).collect()
    }

    async fn json<T: DeserializeOwned>(&self, url: &str) -> Option<T> {
        let answer = self.client.get(url).timeout(self.timeout).send().await;
        let answer = answer.ok().filter(|answer| answer.status() == StatusCode::OK)?;
        serde_json::from_slice(&limited(answer, HEAD_BYTES_MAX).await?).ok()
    }

    /// The block at a height with this digest, and who gave it. Peers are asked one after the other, beginning with a random
    /// one; a peer that gives another block is named in the log and the next one is asked.
    pub(super) async fn block(&self, height: Height, digest: &Digest) -> Option<(CarriedBlock, String)> {
        let mut peers = self.list();
        let start = rand::random_range(0..peers.len().max(1));
        peers.rotate_left(start);
        for peer in &peers {
            let answer = self.carried(peer, height).await.and_then(|given| {
                let is_it = given.carried.is(digest);
                is_it
                    .then_some(given.carried)
                    .ok_or(Miss::Lied("a block that is not the one that was agreed on"))
            });
            let outcome = answer.as_ref().err().map_or("delivered", |miss| miss.outcome());
            metrics::counter!("fog_recovery_blocks_total", "outcome" => outcome).increment(1);
            match answer {
                Ok(block) => return Some((block, peer.to_string())),
                Err(why @ Miss::Lied(_)) => tracing::warn!(%peer, %height, %why, "a peer is passed over"),
                Err(_) => {}
            }
        }
        None
    }

    /// What a peer gives for a height: a block of that height, and nothing else is known about it.
    ///
    /// # Errors
    /// [`Miss`].
    pub async fn carried(&self, peer: &Peer, height: Height) -> Result<Given, Miss> {
        let request = self
            .client
            .get(format!("{peer}/api/v1/chain/blocks/{height}"))
            .header(header::ACCEPT, MEDIA_TYPE)
            .timeout(self.timeout);
        let answer = match request.send().await {
            Ok(answer) if answer.status() == StatusCode::OK => answer,
            Ok(answer) if answer.status() == StatusCode::NOT_FOUND => return Err(Miss::Absent),
            _ => return Err(Miss::Failed),
        };
        let bytes = limited(answer, CARRIED_BYTES_MAX).await.ok_or(Miss::Failed)?;
        let carried = CarriedBlock::decode(&bytes).map_err(|_| Miss::Lied("bytes that are no block"))?;
        if carried.block.header.height != height {
            return Err(Miss::Lied("a block of another height"));
        }
        let bytes = bytes.len() as u64;
        Ok(Given { carried, bytes })
    }
}

/// The whole body, if it is not longer than it may be.
pub(crate) async fn limited(mut answer: Response, bytes_max: usize) -> Option<bytes::Bytes> {
    let mut body = BytesMut::new();
    while let Some(chunk) = answer.chunk().await.ok()? {
        if body.len() + chunk.len() > bytes_max {
            return None;
        }
        body.extend_from_slice(&chunk);
    }
    Some(body.freeze())
}

/// The peers, asked from a thread that may block.
pub(super) struct FromPeers {
    pub(super) peers: Peers,
    pub(super) runtime: Handle,
}

impl Source for FromPeers {
    fn fetch(&self, height: Height, digest: &Digest) -> Option<(CarriedBlock, String)> {
        self.runtime.block_on(self.peers.block(height, digest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consensus::codec::tests::{child, founded};
    use ledger::block::Block;
    use record::signature::SigningKey;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    /// A peer that answers every request with these bytes.
    async fn peer(body: Vec<u8>) -> Peer {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 4_096];
                let _ = stream.read(&mut request).await;
                let head = format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    body.len()
                );
                let _ = stream.write_all(&[head.as_bytes(), &body].concat()).await;
            }
        });
        Peer::try_from(url).expect("a URL")
    }

    fn peers(peers: &[Peer]) -> Peers {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        Peers::new(reqwest::Client::new(), peers, Duration::from_secs(5))
    }

    fn carried(block: &Block) -> Vec<u8> {
        let carried = CarriedBlock {
            block: block.clone(),
            finalization: None,
        };
        carried.encode()
    }

    #[tokio::test]
    async fn forged_history_is_refused_and_another_peer_is_used() {
        let genesis = founded(&[SigningKey::random()]);
        let good = child(&genesis, &Block::genesis(&genesis), vec![]);
        let mut forged = good.clone();
        forged.header.timestamp_ms += 1;
        forged.header = genesis.policy.mine(forged.header).0;
        let (liar, noise, honest) = (
            peer(carried(&forged)).await,
            peer(b"noise".to_vec()).await,
            peer(carried(&good)).await,
        );
        let asked = peers(&[liar.clone(), noise.clone(), honest.clone()]);
        let digest = good.header.digest();
        // Whoever is asked first.
        for _ in 0..8 {
            let (block, from) = asked.block(Height(1), &digest).await.expect("one is honest");
            assert_eq!((block.block, from), (good.clone(), honest.to_string()));
        }
        assert_eq!(peers(&[liar, noise]).block(Height(1), &digest).await, None);
    }

    #[tokio::test]
    async fn transactions_under_an_honest_header_are_refused() {
        let key = SigningKey::random();
        let genesis = founded(std::slice::from_ref(&key));
        let enrolments = crate::consensus::codec::tests::enrolments(&genesis, &key);
        let good = child(&genesis, &Block::genesis(&genesis), enrolments);
        let emptied = Block {
            header: good.header.clone(),
            transactions: vec![],
        };
        let liar = peer(carried(&emptied)).await;
        assert_eq!(peers(&[liar]).block(Height(1), &good.header.digest()).await, None);
    }
}
