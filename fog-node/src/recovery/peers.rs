//! What the other nodes are asked when something is to be compared or mended: their signed heads, and blocks by digest.

use std::{sync::Arc, time::Duration};

use bytes::BytesMut;
use futures::future::join_all;
use ledger::{
    agreement::SignedHead,
    block::{FinalizedBlock, Height},
    proof::{CARRIED_BYTES_MAX, CarriedBlock, ValidatorSet},
};
use record::canonical::{Digest, MEDIA_TYPE};
use reqwest::{Response, StatusCode, header};
use tokio::runtime::Handle;

use crate::{chain::Source, vault::Peer};

/// A signed head has at most this many bytes of JSON.
const HEAD_BYTES_MAX: usize = 4_096;

/// The other nodes. Clones share the client.
#[derive(Clone, Debug)]
pub(super) struct Peers {
    client: reqwest::Client,
    peers: Arc<[Peer]>,
    timeout: Duration,
    validators: Arc<ValidatorSet>,
}

/// What a peer answered to a question for a block.
enum Answer {
    Block(Box<FinalizedBlock>),
    Absent,
    Failed,
    Lied,
}

impl Peers {
    pub(super) fn new(client: reqwest::Client, peers: &[Peer], timeout: Duration, validators: ValidatorSet) -> Self {
        Self {
            client,
            peers: peers.into(),
            timeout,
            validators: Arc::new(validators),
        }
    }

    pub(super) fn validators(&self) -> &ValidatorSet {
        &self.validators
    }

    /// What each peer that answers in time says of its chain at a height; whether it is believed is for the comparison.
    pub(super) async fn heads(&self, height: Height) -> Vec<SignedHead> {
        let asked = self.peers.iter().map(|peer| self.head(peer, height));
        join_all(asked).await.into_iter().flatten().collect()
    }

    async fn head(&self, peer: &Peer, height: Height) -> Option<SignedHead> {
        let url = format!("{peer}/api/v1/heads/{height}");
        let request = self.client.get(url).timeout(self.timeout);
        let answer = request
            .send()
            .await
            .ok()
            .filter(|answer| answer.status() == StatusCode::OK)?;
        serde_json::from_slice(&limited(answer, HEAD_BYTES_MAX).await?).ok()
    }

    /// The block at a height with this digest, and who gave it. Peers are asked one after the other, beginning with a random
    /// one; a peer that gives another block is named in the log and the next one is asked.
    pub(super) async fn block(&self, height: Height, digest: &Digest) -> Option<(FinalizedBlock, String)> {
        let start = rand::random_range(0..self.peers.len().max(1));
        for at in 0..self.peers.len() {
            let peer = &self.peers[(start + at) % self.peers.len()];
            let answer = self.ask(peer, height, digest).await;
            let outcome = match &answer {
                Answer::Block(_) => "delivered",
                Answer::Absent => "absent",
                Answer::Failed => "failed",
                Answer::Lied => "lied",
            };
            metrics::counter!("fog_recovery_blocks_total", "outcome" => outcome).increment(1);
            match answer {
                Answer::Block(block) => return Some((*block, peer.to_string())),
                Answer::Lied => {
                    tracing::warn!(%peer, %height, "a peer gave a block that is not the one that was agreed on")
                }
                Answer::Absent | Answer::Failed => {}
            }
        }
        None
    }

    async fn ask(&self, peer: &Peer, height: Height, digest: &Digest) -> Answer {
        let request = self
            .client
            .get(format!("{peer}/api/v1/chain/blocks/{height}"))
            .header(header::ACCEPT, MEDIA_TYPE)
            .timeout(self.timeout);
        let answer = match request.send().await {
            Ok(answer) if answer.status() == StatusCode::OK => answer,
            Ok(answer) if answer.status() == StatusCode::NOT_FOUND => return Answer::Absent,
            _ => return Answer::Failed,
        };
        let Some(bytes) = limited(answer, CARRIED_BYTES_MAX).await else {
            return Answer::Failed;
        };
        let carried = CarriedBlock::decode(&bytes).ok();
        match carried.and_then(|carried| carried.expected(digest, &self.validators)) {
            Some(block) if block.block.header.height == height => Answer::Block(Box::new(block)),
            _ => Answer::Lied,
        }
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
    fn fetch(&self, height: Height, digest: &Digest) -> Option<(FinalizedBlock, String)> {
        self.runtime.block_on(self.peers.block(height, digest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consensus::codec::tests::{child, founded};
    use ledger::{block::Block, genesis::Genesis};
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

    fn peers(genesis: &Genesis, peers: &[Peer]) -> Peers {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let validators = ValidatorSet::of(genesis);
        Peers::new(reqwest::Client::new(), peers, Duration::from_secs(5), validators)
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
        let asked = peers(&genesis, &[liar.clone(), noise.clone(), honest.clone()]);
        let digest = good.header.digest();
        // Whoever is asked first.
        for _ in 0..8 {
            let (block, from) = asked.block(Height(1), &digest).await.expect("one is honest");
            assert_eq!((block.block, from), (good.clone(), honest.to_string()));
        }
        assert_eq!(peers(&genesis, &[liar, noise]).block(Height(1), &digest).await, None);
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
        assert_eq!(
            peers(&genesis, &[liar]).block(Height(1), &good.header.digest()).await,
            None
        );
    }
}
