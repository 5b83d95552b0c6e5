//! A document on its way to the other voters: each is told of the commitment, fetches the blocks, and vouches for holding them.

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use futures::{StreamExt as _, stream::FuturesUnordered};
use ledger::{admission::Admission, document::Payload, quorum::liars_max, transaction::SignedTransaction};
use record::{canonical::MEDIA_TYPE, ids::BundleId, signature::PublicKey};
use reqwest::{StatusCode, header};
use tokio::time::Instant;

use super::{Documents, Error, KEEP_TIMEOUT};
use crate::vault::Peer;

/// Where a node is told of a document.
pub const ADDRESS: &str = "/api/v1/documents";
/// A node may take this long to answer: it fetches the document meanwhile.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(KEEP_TIMEOUT.as_secs() + 10);
/// Pause before a node is asked once more.
const PAUSE: Duration = Duration::from_millis(500);
/// An answer has at most this many bytes.
const ANSWER_BYTES_MAX: usize = 4_096;

impl Documents {
    /// Returns when two thirds of the voters hold the document, this node included.
    pub(super) async fn spread(
        &self,
        transaction: &SignedTransaction,
        payload: Payload,
        patience: Duration,
    ) -> Result<(), Error> {
        let voters: BTreeSet<_> = self.voters().into_iter().collect();
        let needed = voters.len() - liars_max(voters.len());
        let mut holders: BTreeSet<_> = voters
            .intersection(&BTreeSet::from([self.own.key.public()]))
            .copied()
            .collect();
        let body = Bytes::from(transaction.encode());
        let peers = self.rooms.vault.delivered().into_iter().map(|(peer, ..)| peer);
        let mut asked: FuturesUnordered<_> = peers
            .map(|peer| self.ask_until_held(peer, body.clone(), payload.id))
            .collect();
        let deadline = Instant::now() + patience;
        while holders.len() < needed {
            match tokio::time::timeout_at(deadline, asked.next()).await {
                Ok(Some(holder)) => holders.extend(holder.filter(|holder| voters.contains(holder))),
                Ok(None) | Err(_) => {
                    let held = holders.len();
                    return Err(Error::TooFew { held, needed });
                }
            }
        }
        Ok(())
    }

    /// Asks one node until it holds the document; `None` if it never will.
    async fn ask_until_held(&self, peer: Peer, body: Bytes, id: BundleId) -> Option<PublicKey> {
        loop {
            let request = self.rooms.peers.post(format!("{peer}{ADDRESS}"));
            let request = request.header(header::CONTENT_TYPE, MEDIA_TYPE).body(body.clone());
            match request.timeout(ANSWER_TIMEOUT).send().await {
                Ok(answer) if answer.status() == StatusCode::OK => {
                    let admission = admission(answer).await;
                    let genuine = admission.filter(|word| word.bundle == id && word.is_genuine());
                    return genuine.map(|word| word.validator);
                }
                Ok(answer) if is_for_good(answer.status()) => {
                    tracing::warn!(%peer, status = %answer.status(), "a node does not take a document");
                    return None;
                }
                Ok(answer) => tracing::debug!(%peer, status = %answer.status(), "a node does not hold a document yet"),
                Err(error) => tracing::debug!(%peer, %error, "a node was not told of a document"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Whether a node that answers so would answer so again. One that does not know a name yet, or is busy, would not.
fn is_for_good(status: StatusCode) -> bool {
    let later = [
        StatusCode::REQUEST_TIMEOUT,
        StatusCode::CONFLICT,
        StatusCode::TOO_MANY_REQUESTS,
    ];
    status.is_client_error() && !later.contains(&status)
}

async fn admission(mut answer: reqwest::Response) -> Option<Admission> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.ok()? {
        if body.len() + chunk.len() > ANSWER_BYTES_MAX {
            return None;
        }
        body.extend_from_slice(&chunk);
    }
    serde_json::from_slice(&body).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_is_busy_or_behind_is_asked_again() {
        for later in [408, 409, 429, 500, 503, 504] {
            assert!(!is_for_good(StatusCode::from_u16(later).expect("a status")), "{later}");
        }
        for never in [400, 403, 404, 413, 415, 422] {
            assert!(is_for_good(StatusCode::from_u16(never).expect("a status")), "{never}");
        }
    }
}
