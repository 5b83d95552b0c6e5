//! The vault as the engine sees it: proof that a payload is held, and is the one that its commitment names.

use std::time::Duration;

use cid::Cid;
use ledger::{admission, transaction::SignedTransaction};
use record::document::HEAD_BYTES_MAX;

use super::Payloads;
use crate::vault::{Held, Vault};

impl Payloads for Vault {
    async fn hold(&self, cid: &Cid, timeout: Duration) -> Option<Held> {
        let held = Self::hold(self, cid, timeout).await;
        held.inspect_err(|error| tracing::debug!(%cid, %error, "payload not held"))
            .ok()
    }

    async fn hold_committed(&self, transaction: &SignedTransaction, timeout: Duration) -> Option<Held> {
        let cid = transaction.payload()?.cid;
        let held = Payloads::hold(self, &cid, timeout).await?;
        let matched = if transaction.document().is_some() {
            let (start, bytes) = self.beginning(&cid, HEAD_BYTES_MAX).await.ok()?;
            admission::matched_document(transaction, (&start, bytes)).map(drop)
        } else {
            let payload = self.local(&cid).await.ok()??;
            admission::matched(transaction, &payload).map(drop)
        };
        match matched {
            Ok(()) => Some(held),
            Err(error) => {
                tracing::warn!(transaction = %transaction.id(), %error, "a commitment does not fit its payload");
                None
            }
        }
    }
}
