//! `/api/v1/documents`: a node tells another one of a document that it wants to commit to; and how documents fail.

use std::sync::Arc;

use http::StatusCode;
use ledger::transaction::{SignedTransaction, TRANSACTION_BYTES_MAX};
use record::{canonical::MEDIA_TYPE, document::SealError};

use super::{
    Context, answer,
    fault::Fault,
    route::{Answered, Request, Route},
};
use crate::documents::{ADDRESS, Error};

/// What is served here.
#[must_use]
pub fn routes() -> Vec<Route<Context>> {
    const BYTES_MAX: u32 = TRANSACTION_BYTES_MAX as u32;
    vec![
        Route::post(ADDRESS, BYTES_MAX, |context, request| Box::pin(keep(context, request)))
            .from(|context, peer, headers| context.caller_of(peer, headers)?.validator().map(|_| ())),
    ]
}

/// 200 and this node's signed word only when all of the document is durable here: the sender counts on it.
async fn keep(context: Arc<Context>, request: Request) -> Answered {
    let peer = context.caller(&request)?.validator()?;
    request.expect_media_type(MEDIA_TYPE)?;
    let transaction =
        SignedTransaction::decode(&request.body).map_err(|error| Fault::unprocessable(error.to_string()))?;
    let admission = context.documents.keep(&peer, &transaction).await?;
    Ok(answer::json(StatusCode::OK, &admission))
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let sentence = error.to_string();
        match error {
            Error::NoDesk => Self::not_implemented(sentence),
            Error::NoPatient => Self::not_found(sentence),
            Error::NoKey => Self::conflict(sentence),
            Error::TooLarge { .. } => Self::too_large(sentence),
            Error::Busy => Self::too_many(format!("{sentence}; send yours again")),
            Error::Refused(refused) if refused.may_pass_later() => Self::conflict(sentence),
            Error::Refused(_) | Error::Mismatch(_) => Self::unprocessable(sentence),
            Error::TooFew { .. } => Self::of_ours(&error, Self::unavailable(sentence)),
            Error::Contradiction(_) => {
                let told = "this node's keys and store contradict the chain; ask another node and tell its operator";
                Self::of_ours(&error, Self::internal(told))
            }
            Error::Seal(SealError::TooLarge { .. }) => Self::too_large(sentence),
            Error::Seal(SealError::OtherLength { .. }) => Self::invalid(sentence),
            Error::Seal(SealError::Crypto) => Self::of_ours(&error, Self::internal("the document could not be sealed")),
            Error::Vault(vault) => vault.into(),
            Error::Chain(chain) => chain.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::clinic::Clinic, *};
    use crate::vault::{self, Peer, Vault};
    use bytes::Bytes;
    use cid::Cid;
    use futures::{TryStreamExt as _, stream};
    use ledger::{
        document::DocumentCommitment,
        state::Refused,
        transaction::{Action, Author, Transaction},
    };
    use record::document::{Metadata, Sealer};
    use std::{
        collections::HashMap,
        sync::atomic::{AtomicUsize, Ordering},
    };
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    /// A peer that gives out the blocks of these contents, and counts them; and the roots.
    async fn shelf(contents: Vec<Vec<u8>>) -> (Peer, Vec<Cid>, Arc<AtomicUsize>) {
        let dir = tempfile::tempdir().expect("a folder");
        let vault = Vault::open(&vault::Config::default(), dir.path(), reqwest::Client::new())
            .await
            .expect("opens");
        let (mut roots, mut blocks) = (Vec::new(), HashMap::new());
        for content in contents {
            let content = stream::iter([Ok::<_, std::io::Error>(Bytes::from(content))]);
            let root = vault.put_object(content, u64::MAX).await.expect("kept").held.cid();
            let all = vault.blocks(&root, 0..u64::MAX).await.expect("the root is here");
            let all: Vec<_> = all.try_collect().await.expect("whole");
            blocks.extend(all.into_iter().map(|(cid, block)| (cid.to_string(), block)));
            roots.push(root);
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let (blocks, served) = (Arc::new(blocks), Arc::new(AtomicUsize::new(0)));
        let count = served.clone();
        tokio::spawn(async move {
            while let Ok((mut connection, _)) = listener.accept().await {
                let (blocks, count) = (blocks.clone(), count.clone());
                tokio::spawn(async move {
                    let mut request = vec![0; 4_096];
                    let read = connection.read(&mut request).await.unwrap_or(0);
                    let line = String::from_utf8_lossy(&request[..read]).into_owned();
                    let name = line.split('/').nth(2).and_then(|rest| rest.split(['?', ' ']).next());
                    let block = name.and_then(|name| blocks.get(name));
                    count.fetch_add(usize::from(block.is_some()), Ordering::Relaxed);
                    let (status, body) = block.map_or(("404 Not Found", &b""[..]), |block| ("200 OK", &block[..]));
                    let length = body.len();
                    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
                    let _ = connection.write_all(&[head.as_bytes(), body].concat()).await;
                });
            }
        });
        (Peer::try_from(url).expect("a URL"), roots, served)
    }

    fn sealed(clinic: &Clinic, bytes: usize) -> Vec<u8> {
        let metadata = Metadata {
            media_type: "application/pdf".parse().expect("good"),
            bytes: bytes as u64,
        };
        let (author, network) = ("desk-1".parse().expect("good"), clinic.genesis.network());
        let (mut sealer, mut sealed) = Sealer::begin(&network, (&author, &clinic.clinical), &metadata).expect("begins");
        sealed.extend(sealer.push(&vec![7; bytes]).expect("fits"));
        for padding in sealer.finish().expect("all is there") {
            sealed.extend(padding.expect("sealed"));
        }
        sealed
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_does_not_fit_its_commitment_is_not_fetched() {
        let clinic = Clinic::open().await;
        clinic.open_desk().await;
        let genuine = sealed(&clinic, 1_500_000);
        let bytes = genuine.len() as u64;
        let junk = (0..genuine.len()).map(|at| (at / 7 % 251) as u8).collect();
        let mut longer = sealed(&clinic, 1_500_000);
        longer.extend((0..600_000).map(|at| (at / 5 % 241) as u8));
        let shorter = sealed(&clinic, 1_000_000);
        let (peer, roots, served) = shelf(vec![junk, longer, shorter, genuine]).await;
        clinic.vault.keep(&[peer]);
        let told = |cid: Cid| {
            let document = DocumentCommitment {
                cid,
                key: clinic.clinical.id(),
                bytes,
                bucket: 0,
            };
            let transaction = Transaction {
                network: clinic.genesis.network(),
                author: Author::Gateway("desk-1".parse().expect("good")),
                sequence: 0,
                action: Action::CommitDocument(document),
            };
            let request = clinic.node.post(clinic.url(ADDRESS)).header("content-type", MEDIA_TYPE);
            let request = request.body(transaction.sign(&clinic.desk).encode());
            async move { request.send().await.expect("answers").status().as_u16() }
        };
        for other in &roots[..3] {
            let before = served.load(Ordering::Relaxed);
            assert_eq!(told(*other).await, 422);
            assert!(!clinic.vault.holds(other).await.expect("asks"));
            let served = served.load(Ordering::Relaxed) - before;
            assert!(served <= 4, "twice its root, its first block and its last: {served}");
        }
        assert_eq!(told(roots[3]).await, 200);
        assert!(clinic.vault.holds(&roots[3]).await.expect("asks"));
        assert_eq!(told(roots[3]).await, 200, "and again");
    }

    #[test]
    fn who_hands_in_a_document_can_tell_later_from_never() {
        let status = |error: Error| Fault::from(error).status().as_u16();
        assert_eq!(status(Error::Busy), 429);
        assert_eq!(status(Error::TooFew { held: 1, needed: 3 }), 503);
        assert_eq!(status(Error::Refused(Refused::UnknownName)), 409);
        assert_eq!(status(Error::NoKey), 409);
        assert_eq!(status(Error::Refused(Refused::Revoked)), 422);
        assert_eq!(status(Error::TooLarge { bytes_max: 1 }), 413);
        assert_eq!(status(Error::Seal(SealError::OtherLength { bytes: 1 })), 400);
        assert_eq!(status(Error::NoPatient), 404);
    }
}
