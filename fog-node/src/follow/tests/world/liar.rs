//! One of the nodes that an observer asks, over plain HTTP: what it answers, and how it deceives.

use std::sync::{Arc, Mutex};

use ledger::{
    agreement::SignedHead,
    block::Height,
    genesis::Genesis,
    light::{CarriedHeader, CarriedHeaders, Included, IncludedInBlock, ProvenHeader},
};
use record::{ids::OrganizationId, signature::SigningKey};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::{chain::Chain, disclosure::Disclosure, http::parameters::Parameters, vault::Peer};

/// How a node deceives.
#[derive(Clone, Debug, Default)]
pub(in crate::follow) enum Lie {
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
pub(super) struct Node {
    pub(super) chain: Chain,
    pub(super) disclosure: Disclosure,
    pub(super) genesis: Genesis,
    pub(super) key: SigningKey,
    pub(super) lie: Arc<Mutex<Lie>>,
}

impl Node {
    /// Answers from now on; gives its address.
    pub(super) async fn listen(self) -> Peer {
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
