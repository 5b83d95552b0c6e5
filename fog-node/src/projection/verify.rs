//! The index compared with what chain and payloads give, and made so: for the scrub.

use std::collections::HashSet;

use ledger::block::Height;
use tokio::time::Instant;

use super::{Failure, Followed, PAYLOADS_WAIT_AGAIN, Projection, RETRYABLE};

impl<F: Followed> Projection<F> {
    /// Compares the rows of a block with what the block and its payloads give, and makes them so. How many were altered,
    /// missing or invented.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn verify(&self, height: Height) -> Result<u64, Failure> {
        if height > self.index.projected().await? {
            return Ok(0);
        }
        // What may yet be settled is not expected here.
        if self.index.is_pending(height, &RETRYABLE).await? {
            return Ok(0);
        }
        let deadline = Instant::now() + PAYLOADS_WAIT_AGAIN;
        let (mut expected, mut ids) = (Vec::new(), HashSet::new());
        for commitment in self.ours(height).await? {
            let opened = self.open(commitment, height, deadline).await?;
            if opened
                .rejections
                .iter()
                .any(|rejection| RETRYABLE.contains(&rejection.reason))
            {
                return Ok(0);
            }
            // An observation that stands twice in a block is in the index once, where it came first.
            expected.extend(opened.rows.into_iter().filter(|row| ids.insert(row.id.clone())));
        }
        let (there, unread) = self.index.rows_at(height).await?;
        let invented = unread + there.iter().filter(|row| !expected.contains(row)).count() as u64;
        let (mut rows, mut missing) = (Vec::new(), 0);
        for row in expected {
            // Nor does one that was final before stand here again.
            if !there.contains(&row) {
                if self.index.has_elsewhere(&row).await? {
                    continue;
                }
                missing += 1;
            }
            rows.push(row);
        }
        let altered = invented.max(missing);
        if altered > 0 {
            self.index.replace(height, &rows).await?;
        }
        Ok(altered)
    }

    /// Removes rows that belong to no block up to the head.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn remove_strays(&self, head: Height) -> Result<u64, Failure> {
        Ok(self.index.remove_strays(head).await?)
    }
}
