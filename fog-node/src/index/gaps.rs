//! What gateways say is missing, as the index knows it: asked for permits only, like everything else in it.

use ledger::{block::Height, consent::Permit};
use record::{
    gaps::{GapReport, Start},
    ids::{BundleId, DeviceId, KeyId},
};

use super::{CRITERIA_MAX, Error, Index, Store};

/// What a gateway says is missing of a device, and where it says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reported {
    /// The key that opens it.
    pub key: KeyId,
    /// The bundle that holds the report.
    pub bundle: BundleId,
    /// Which of the bundle's contents it is: its readings come first, from 0.
    pub entry: u32,
    /// Block of the commitment.
    pub height: Height,
    /// The report, whose signature was checked.
    pub report: GapReport,
}

impl Index {
    /// The gap reports of a block that queries see, whatever they say now, and how many cannot be read or are hidden.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn gaps_at(&self, height: Height) -> Result<(Vec<Reported>, u64), Error> {
        let Store::Sqlite(store) = &self.0;
        store.gaps_at(height).await
    }

    /// What is missing of the devices whose records the permits open, as of a height: of each device the newest report,
    /// if something is missing, at most `count`, in the order of their names.
    ///
    /// # Errors
    /// [`Error::TooBroad`], [`Error::Database`] or [`Error::Damaged`].
    pub async fn gaps(&self, permits: &[Permit], height: Height, count: u32) -> Result<Vec<Reported>, Error> {
        let Store::Sqlite(store) = &self.0;
        store.gaps(&keys(permits)?, height, count).await
    }

    /// Which of the numbers that a report names as missing from a start are here all the same, as of a height: their readings
    /// came through another gateway, or before this one lost what it knew.
    ///
    /// # Errors
    /// [`Error::TooBroad`] or [`Error::Database`].
    pub async fn held(
        &self,
        permits: &[Permit],
        height: Height,
        missing: (&DeviceId, &Start),
    ) -> Result<Vec<u64>, Error> {
        let Store::Sqlite(store) = &self.0;
        store.held(&keys(permits)?, height, missing).await
    }
}

/// The keys of the permits, if they are not too many for one question.
fn keys(permits: &[Permit]) -> Result<Vec<KeyId>, Error> {
    if permits.len() > CRITERIA_MAX {
        return Err(Error::TooBroad(permits.len()));
    }
    Ok(permits.iter().map(Permit::key).collect())
}
