//! The index compared with what chain and payloads give, and made so: for the scrub.

use std::collections::{HashMap, HashSet};

use ledger::block::Height;
use tokio::time::Instant;

use super::{Failure, Followed, PASSING, PAYLOADS_WAIT_AGAIN, Projection, UNSIGNED};
use crate::index::{Reported, Row};

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
        if self.index.is_pending(height, &PASSING).await? {
            return Ok(0);
        }
        let was_unsigned = self.index.is_pending(height, &[UNSIGNED]).await?;
        let mut is_unsigned = false;
        let deadline = Instant::now() + PAYLOADS_WAIT_AGAIN;
        let (mut expected, mut ids, mut gaps) = (Vec::new(), HashSet::new(), Vec::new());
        for commitment in self.ours(height).await? {
            let opened = self.open(commitment, height, deadline).await?;
            if opened
                .rejections
                .iter()
                .any(|rejection| PASSING.contains(&rejection.reason))
            {
                return Ok(0);
            }
            is_unsigned |= opened.rejections.iter().any(|rejection| rejection.reason == UNSIGNED);
            // An observation that stands twice in a block is in the index once, where it came first.
            expected.extend(opened.rows.into_iter().filter(|row| ids.insert(row.id.clone())));
            gaps.extend(opened.gaps);
        }
        // The key came meanwhile, and the rows come with the next try. What nobody ever signs keeps no block from being compared.
        if was_unsigned && !is_unsigned {
            return Ok(0);
        }
        let (there, unread) = self.index.rows_at(height).await?;
        // By id: a full block has tens of thousands of rows, too many to look for each among all others.
        let is_among = |rows: &HashMap<&str, &Row>, row: &Row| rows.get(row.id.as_str()) == Some(&row);
        let invented = {
            let expected = by_id(&expected);
            unread + there.iter().filter(|row| !is_among(&expected, row)).count() as u64
        };
        let there = by_id(&there);
        let (mut rows, mut missing) = (Vec::new(), 0);
        for row in expected {
            // Nor does one that was final before stand here again.
            if !is_among(&there, &row) {
                if self.index.has_elsewhere(&row).await? {
                    continue;
                }
                missing += 1;
            }
            rows.push(row);
        }
        let altered = invented.max(missing) + self.gaps_altered(height, &gaps).await?;
        if altered > 0 {
            self.index.replace(height, (&rows, &gaps)).await?;
        }
        Ok(altered)
    }

    /// How many gap reports of a block were altered, are missing or were invented.
    async fn gaps_altered(&self, height: Height, expected: &[Reported]) -> Result<u64, Failure> {
        let (there, unread) = self.index.gaps_at(height).await?;
        let invented = unread + there.iter().filter(|one| !expected.contains(one)).count() as u64;
        let missing = expected.iter().filter(|one| !there.contains(one)).count() as u64;
        Ok(invented.max(missing))
    }

    /// Removes rows that belong to no block up to the head.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn remove_strays(&self, head: Height) -> Result<u64, Failure> {
        Ok(self.index.remove_strays(head).await?)
    }
}

/// No two rows have one id: neither in the index nor among those that a block gives.
fn by_id(rows: &[Row]) -> HashMap<&str, &Row> {
    rows.iter().map(|row| (row.id.as_str(), row)).collect()
}
