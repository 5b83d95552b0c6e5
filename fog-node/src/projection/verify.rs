//! The index compared with what chain and payloads give, and made so: for the scrub, for whoever asks, and when a question has
//! found that something is wrong.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use ledger::block::Height;
use record::{bundle::SubjectSecret, ids::BundleId};
use tokio::{sync::watch, time::Instant};

use super::{Failure, Followed, PASSING, PAYLOADS_WAIT_AGAIN, Projection, UNSIGNED};
use crate::index::{self, Contents, Reported, Row, Suspects};

/// How the rows of a block differ from what the chain gives, by number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Rows that must be there and are not, or say something else.
    pub missing: u64,
    /// Rows that say something else, or that nothing has given.
    pub strange: u64,
}

impl Difference {
    /// How many were altered, missing or invented: one that says something else counts once.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.missing.max(self.strange)
    }

    fn add(&mut self, other: Self) {
        self.missing += other.missing;
        self.strange += other.strange;
    }
}

/// What a block has to have in the index.
#[derive(Default)]
pub(super) struct Expected {
    rows: Vec<Row>,
    gaps: Vec<Reported>,
    /// Until the rows are in the index: what is erased meanwhile waits for them.
    pub(super) in_hand: Vec<Arc<SubjectSecret>>,
}

/// What was mended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mended {
    /// Blocks that were looked at.
    pub blocks: u64,
    /// Rows that were altered, missing or invented.
    pub rows: u64,
    /// Whether all of it was thrown away, and is projected anew.
    pub anew: bool,
}

impl<F: Followed> Projection<F> {
    /// Compares the rows of a block with what the block and its payloads give, and makes them so. How many were altered,
    /// missing or invented.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn verify(&self, height: Height) -> Result<u64, Failure> {
        let (difference, expected) = self.compare(height).await?;
        if difference.rows() > 0 {
            let contents: Contents<'_> = (&expected.rows, &expected.gaps);
            self.index.replace(height, contents).await?;
        }
        Ok(difference.rows())
    }

    /// The same, and nothing is changed.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn difference(&self, height: Height) -> Result<Difference, Failure> {
        Ok(self.compare(height).await?.0)
    }

    pub(super) async fn compare(&self, height: Height) -> Result<(Difference, Expected), Failure> {
        if height > self.index.projected().await? {
            return Ok(Default::default());
        }
        let deadline = Instant::now() + PAYLOADS_WAIT_AGAIN;
        // What may yet be settled is not expected here; what there is of it already stays.
        let pending: HashSet<BundleId> = self.index.pending_at(height, &PASSING).await?.into_iter().collect();
        let mut unsettled = HashSet::new();
        let unsigned = self.index.pending_at(height, &[UNSIGNED]).await?;
        let (mut expected, mut ids) = (Expected::default(), HashSet::new());
        for commitment in self.ours(height).await? {
            let (key, bundle) = (commitment.key, commitment.bundle);
            let Some(secret) = self.keyring.secret(&key) else {
                // It was destroyed just now: what stands in the index of it goes, and is not put back.
                continue;
            };
            // Before anything is kept: rows that are only copied would come back, too, when they are erased in between.
            expected.in_hand.push(secret);
            if pending.contains(&bundle) || self.chain.state().tombstone(&key).is_some() {
                unsettled.insert(bundle);
                continue;
            }
            let opened = self.open(commitment, height, deadline).await?;
            let has = |reasons: &[&str]| opened.rejections.iter().any(|one| reasons.contains(&one.reason));
            // The key came meanwhile, and the rows come with the next try. What nobody ever signs keeps no bundle from being
            // compared.
            let is_signed_since = unsigned.contains(&bundle) && !has(&[UNSIGNED]);
            if has(&PASSING) || is_signed_since {
                unsettled.insert(bundle);
                continue;
            }
            // An observation that stands twice in a block is in the index once, where it came first.
            let first = opened.rows.into_iter().filter(|row| ids.insert(row.id.clone()));
            expected.rows.extend(first);
            expected.gaps.extend(opened.gaps);
        }
        let mut difference = self.rows_of(height, &unsettled, &mut expected).await?;
        difference.add(self.gaps_of(height, &unsettled, &mut expected).await?);
        Ok((difference, expected))
    }

    async fn rows_of(
        &self,
        height: Height,
        unsettled: &HashSet<BundleId>,
        expected: &mut Expected,
    ) -> Result<Difference, Failure> {
        let (there, strange) = self.index.rows_at(height).await?;
        let kept = there.iter().filter(|row| unsettled.contains(&row.bundle)).cloned();
        expected.rows.extend(kept);
        // By id: a full block has tens of thousands of rows, too many to look for each among all others.
        let by_id: HashMap<_, _> = there.iter().map(|row| (row.id.as_str(), row)).collect();
        let wanted: HashMap<_, _> = expected.rows.iter().map(|row| (row.id.as_str(), row)).collect();
        let invented = there
            .iter()
            .filter(|row| wanted.get(row.id.as_str()) != Some(row))
            .count() as u64;
        let missing = expected
            .rows
            .iter()
            .filter(|row| by_id.get(row.id.as_str()) != Some(row));
        let missing: Vec<_> = missing.cloned().collect();
        // Nor does one that was final before stand here again.
        let elsewhere = self.index.elsewhere(&missing).await?;
        expected.rows.retain(|row| !elsewhere.contains(&row.id));
        let missing = missing.iter().filter(|row| !elsewhere.contains(&row.id)).count() as u64;
        Ok(Difference {
            missing,
            strange: strange + invented,
        })
    }

    async fn gaps_of(
        &self,
        height: Height,
        unsettled: &HashSet<BundleId>,
        expected: &mut Expected,
    ) -> Result<Difference, Failure> {
        let (there, strange) = self.index.gaps_at(height).await?;
        let kept = there.iter().filter(|one| unsettled.contains(&one.bundle)).cloned();
        expected.gaps.extend(kept);
        let by_place: HashMap<_, _> = there.iter().map(|one| ((one.bundle, one.entry), one)).collect();
        let wanted: HashMap<_, _> = expected.gaps.iter().map(|one| ((one.bundle, one.entry), one)).collect();
        let invented = there
            .iter()
            .filter(|one| wanted.get(&(one.bundle, one.entry)) != Some(one));
        let missing = expected
            .gaps
            .iter()
            .filter(|one| by_place.get(&(one.bundle, one.entry)) != Some(one));
        Ok(Difference {
            missing: missing.count() as u64,
            strange: strange + invented.count() as u64,
        })
    }

    /// Removes rows that belong to no block up to the head.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn remove_strays(&self, head: Height) -> Result<u64, Failure> {
        Ok(self.index.remove_strays(head).await?)
    }

    /// Changes when a question has found that something in the index is wrong.
    #[must_use]
    pub fn alarms(&self) -> watch::Receiver<u64> {
        self.index.alarms()
    }

    /// Looks at all rows, and compares those blocks with the chain whose rows are not as this node wrote them.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn mend(&self) -> Result<Mended, Failure> {
        let mut mended = Mended::default();
        let blocks: BTreeSet<Height> = match self.index.suspects().await? {
            Suspects::Blocks(blocks) => blocks,
            Suspects::All => (1..=self.index.projected().await?.0).map(Height).collect(),
            Suspects::Anew => {
                mended.anew = true;
                return Ok(mended);
            }
        };
        for height in blocks {
            mended.blocks += 1;
            mended.rows += self.verify(height).await?;
        }
        let head = self.chain.watch().borrow().height;
        mended.rows += self.index.remove_strays(head).await?;
        match self.index.accept().await {
            // Somebody writes there now: it is looked at again.
            Err(index::Error::Altered(_)) => self.index.suspicious(),
            accepted => accepted?,
        }
        Ok(mended)
    }

    /// Forgets the index: it is projected from the first block on.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn forget(&self) -> Result<(), Failure> {
        Ok(self.index.clear().await?)
    }
}
