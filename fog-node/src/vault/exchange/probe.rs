//! Asking every peer whether it still has a payload that none should have.

use std::time::Duration;

use cid::Cid;
use record::bundle::PAYLOAD_BYTES_MAX;

use super::{Exchange, Miss, Neighbour};
use crate::vault::Peer;

impl Exchange {
    /// The peers that deliver a payload now, and those that say that they do not have it; who does not answer is neither.
    pub(in crate::vault) async fn holders(&self, cid: &Cid) -> (Vec<Peer>, Vec<Peer>) {
        let limit = Duration::from_millis(self.config.fetch_timeout_ms);
        let neighbours: Vec<_> = self.peers().iter().cloned().collect();
        let asked = neighbours.into_iter().map(|Neighbour { peer, .. }| async move {
            let answer = tokio::time::timeout(limit, self.download(&peer, cid, PAYLOAD_BYTES_MAX)).await;
            (peer, answer.unwrap_or(Err(Miss::Failed)))
        });
        let (mut with, mut without) = (Vec::new(), Vec::new());
        for (peer, answer) in futures::future::join_all(asked).await {
            match answer {
                Ok(_) => with.push(peer),
                Err(Miss::Absent) => without.push(peer),
                Err(Miss::Failed | Miss::Lied) => {}
            }
        }
        (with, without)
    }
}
