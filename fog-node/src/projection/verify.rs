//! The index compared with what chain and payloads give, and made so: for the scrub.

use ledger::block::Height;
use tokio::time::Instant;

use super::{Failure, PAYLOAD_MISSING, PAYLOADS_WAIT_AGAIN, Projection};

impl Projection {
    /// Compares the rows of a block with what the block and its payloads give, and makes them so. How many were altered,
    /// missing or invented.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn verify(&self, height: Height) -> Result<u64, Failure> {
        if height > self.index.projected().await? {
            return Ok(0);
        }
        let deadline = Instant::now() + PAYLOADS_WAIT_AGAIN;
        let mut expected = Vec::new();
        for commitment in self.ours(height).await? {
            let opened = self.open(commitment, height, deadline).await?;
            // What could not be projected yet is settled later; its rows are not expected here.
            if opened
                .rejections
                .iter()
                .any(|rejection| rejection.reason == PAYLOAD_MISSING)
            {
                return Ok(0);
            }
            expected.extend(opened.rows);
        }
        let there = self.index.rows_at(height).await?;
        let invented = there.iter().filter(|row| !expected.contains(row)).count();
        let (mut rows, mut missing) = (Vec::new(), 0);
        for row in expected {
            let is_there = there.contains(&row);
            // An observation that is final in two bundles stands in the index once, where it came first.
            let is_repetition = !is_there && invented == 0 && self.index.has_elsewhere(&row).await?;
            missing += u64::from(!is_there && !is_repetition);
            if !is_repetition {
                rows.push(row);
            }
        }
        let altered = missing.max(invented as u64);
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
