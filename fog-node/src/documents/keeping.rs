//! Documents of other nodes: looked at before they are fetched, kept, and vouched for.

use std::{
    collections::HashSet,
    ops::Range,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use bytes::Bytes;
use cid::Cid;
use futures::TryStreamExt as _;
use ledger::{
    admission::{Admission, SubmissionError, matched_document},
    document::DocumentCommitment,
    transaction::SignedTransaction,
};
use record::{document::HEAD_BYTES_MAX, signature::PublicKey};

use super::{Documents, Error, KEEP_TIMEOUT, admitted, leftovers::is_final};
use crate::vault;

/// Roots that are being kept now. One at a time each: who lets go of what does not fit takes it from nobody who counts on it.
#[derive(Debug, Default)]
pub(super) struct Keeping(
    // Held for a look or an entry, never across an await.
    Mutex<HashSet<Cid>>,
);

/// Being the one who keeps a root; dropped when that is done.
struct Alone<'a>(&'a Keeping, Cid);

impl Keeping {
    fn begin(&self, root: &Cid) -> Option<Alone<'_>> {
        let mut roots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        roots.insert(*root).then(|| Alone(self, *root))
    }
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        let mut roots = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        roots.remove(&self.1);
    }
}

impl Documents {
    /// Keeps a document that another node wants to commit to, and vouches for holding it. Fetched is only what the state admits,
    /// is no larger than this node takes, and whose head and size are those of the commitment; of a peer one at a time. So who
    /// fills this node's disk is the desk of a member, with documents sealed to its own patients' keys, until
    /// [`GRACE`](super::GRACE) has passed; nobody else can.
    ///
    /// # Errors
    /// [`Error`] says whether to ask again.
    pub async fn keep(&self, from: &PublicKey, transaction: &SignedTransaction) -> Result<Admission, Error> {
        let (Some(document), Some(payload)) = (transaction.document(), transaction.payload()) else {
            return Err(SubmissionError::NoCommitment.into());
        };
        if !document.names_a_root() {
            return Err(SubmissionError::NoRoot.into());
        }
        admitted(self.rooms.chain.state().admit(transaction))?;
        let bytes_max = self.config.sealed_bytes_max();
        if document.bytes > bytes_max {
            return Err(Error::TooLarge { bytes_max });
        }
        let _of_this_peer = self.keepers.enter(from).ok_or(Error::Busy)?;
        let _inside = self.kept.try_acquire().map_err(|_| Error::Busy)?;
        let _alone = self.keeping.begin(&document.cid).ok_or(Error::Busy)?;
        let was_here = self.rooms.vault.holds(&document.cid).await?;
        if !was_here {
            self.fetch(transaction, document).await?;
        }
        match self.fits(transaction, document).await {
            Ok(()) => {
                let now_ms = jiff::Timestamp::now().as_millisecond();
                Ok(Admission::sign(payload.id, now_ms, &self.own.key))
            }
            Err(error) => {
                let is_unwanted = matches!(error, Error::Mismatch(_) | Error::Refused(_));
                if is_unwanted && !was_here {
                    self.let_go_of_unnamed(&document.cid).await;
                }
                Err(error)
            }
        }
    }

    /// Looks at where a document begins and ends, a few blocks of it, and fetches all of it if that is what was committed to.
    async fn fetch(&self, transaction: &SignedTransaction, document: &DocumentCommitment) -> Result<(), Error> {
        let began = Instant::now();
        let look = async {
            let start = self.part(&document.cid, 0..HEAD_BYTES_MAX as u64).await?;
            let last = document.bytes.saturating_sub(1);
            // One byte more than there should be: none or two of them say that the size is another.
            let end = self.part(&document.cid, last..document.bytes + 1).await?;
            matched_document(transaction, (&start, last + end.len() as u64))?;
            Ok::<_, Error>(())
        };
        let absent = |_| vault::Error::Absent(document.cid);
        tokio::time::timeout(KEEP_TIMEOUT, look).await.map_err(absent)??;
        let patience = KEEP_TIMEOUT.saturating_sub(began.elapsed());
        self.rooms.vault.hold(&document.cid, patience).await?;
        Ok(())
    }

    /// A part of a document from wherever it is; nothing is kept.
    async fn part(&self, root: &Cid, range: Range<u64>) -> Result<Vec<u8>, vault::Error> {
        let pieces = self.rooms.vault.object(root, range).await?;
        let pieces: Vec<Bytes> = pieces.try_collect().await?;
        Ok(pieces.concat())
    }

    /// Whether what is here is what was committed to, and may still be: its key may have been erased while it came.
    async fn fits(&self, transaction: &SignedTransaction, document: &DocumentCommitment) -> Result<(), Error> {
        let (start, bytes) = self.rooms.vault.beginning(&document.cid, HEAD_BYTES_MAX).await?;
        matched_document(transaction, (&start, bytes))?;
        admitted(self.rooms.chain.state().admit(transaction))
    }

    async fn let_go_of_unnamed(&self, root: &Cid) {
        let gone = async {
            // The mempool first: what leaves it is in the chain by then.
            let waits = self.rooms.mempool.bundle(&DocumentCommitment::id_of(root));
            if !waits && !is_final(&self.rooms.chain, root).await? {
                self.rooms.vault.let_go(root).await?;
            }
            Ok::<_, Error>(())
        };
        if let Err(error) = gone.await {
            tracing::warn!(cid = %root, %error, "a document that does not fit its commitment stays for now");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_kept_once_at_a_time() {
        let keeping = Keeping::default();
        let (one, other) = (record::canonical::cid_of(b"one"), record::canonical::cid_of(b"other"));
        let alone = keeping.begin(&one).expect("nobody else");
        assert!(keeping.begin(&one).is_none());
        assert!(keeping.begin(&other).is_some());
        drop(alone);
        assert!(keeping.begin(&one).is_some());
    }
}
