//! The tables of what an observer has proven, and what is read from and written to them; every call blocks.

use std::{collections::BTreeMap, path::Path};

use ledger::{
    block::Height,
    genesis::Genesis,
    light::{CarriedHeader, CarriedState, Fork, IncludedInBlock},
    register::Register,
    state::State,
};
use record::{
    canonical::{self, Digest},
    ids::{BundleId, KeyId},
};
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition, WriteTransaction};
use serde::{Serialize, de::DeserializeOwned};

use super::{Error, Learned, Remembered};
use crate::chain::Head;

/// Single records, by the names below.
const RECORDS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("records");
/// The newest final header with the votes on it.
const ANCHOR: &str = "anchor";
/// The state's digest and what it was made of, without the register.
const STATE: &str = "state";
/// Who may do what.
const REGISTER: &str = "register";
/// The height of which everything is known.
const HEAD: &str = "head";
/// The height up to which commitments were learned.
const THROUGH: &str = "through";
/// Evidence against more validators than may lie.
const FORK: &str = "fork";
/// Digest and time of the newest headers, by height; the older ones are forgotten.
const HEADERS: TableDefinition<'_, u64, (&[u8; 32], u64)> = TableDefinition::new("headers");
/// Commitments we may read and what proves them, by height.
const INCLUDED: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("included");
/// Bundle -> height.
const PLACES: TableDefinition<'_, &[u8; 32], u64> = TableDefinition::new("places");
/// Subject key -> the height up to which its commitments were learned.
const KEYS: TableDefinition<'_, &[u8; 32], u64> = TableDefinition::new("keys");
/// Bundles that were learned after their height was handed on, until the index has noted them.
const LATE: TableDefinition<'_, &[u8; 32], u64> = TableDefinition::new("late");
/// Headers whose digest is kept: what is said of them later is compared with what was followed.
const HEADERS_KEPT: u64 = 4_096;
/// Memory for pages of the file, in bytes.
const CACHE_BYTES_MAX: usize = 4 << 20;
/// More than any record of ours has; the canonical decoder wants a limit.
const RECORD_BYTES_MAX: usize = 1 << 30;

/// What was followed last: the anchor, the head and its state.
pub(super) type Last = (CarriedHeader, Head, State);

#[derive(Debug)]
pub(super) struct Store(Database);

impl Store {
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let database = Database::builder().set_cache_size(CACHE_BYTES_MAX).create(path)?;
        let transaction = database.begin_write()?;
        transaction.open_table(RECORDS)?;
        transaction.open_table(HEADERS)?;
        transaction.open_table(INCLUDED)?;
        transaction.open_table(PLACES)?;
        transaction.open_table(KEYS)?;
        transaction.open_table(LATE)?;
        transaction.commit()?;
        Ok(Self(database))
    }

    pub(super) fn found(&self, genesis: &Genesis, (anchor, head): (&CarriedHeader, &Head)) -> Result<State, Error> {
        let transaction = self.0.begin_write()?;
        put(&transaction, ANCHOR, anchor)?;
        put(&transaction, HEAD, head)?;
        put(&transaction, THROUGH, &Height(0))?;
        put_header(&transaction, anchor)?;
        transaction.commit()?;
        Ok(State::genesis(genesis))
    }

    /// What was followed last; `None` if nothing was.
    pub(super) fn last(&self, genesis: &Genesis) -> Result<Option<Last>, Error> {
        let Some(anchor) = self.record::<CarriedHeader>(ANCHOR)? else {
            return Ok(None);
        };
        if anchor.header.network != genesis.network() {
            return Err(Error::OtherNetwork);
        }
        let head = self.record::<Head>(HEAD)?.ok_or(Error::Damaged("head"))?;
        let Some(carried) = self.record::<CarriedState>(STATE)? else {
            return Ok(Some((anchor, head, State::genesis(genesis))));
        };
        let register = self.record::<Register>(REGISTER)?.ok_or(Error::Damaged("register"))?;
        let state = carried.state(Some(&register)).map_err(|_| Error::Damaged("state"))?;
        if (state.height(), state.digest()) != (head.height, head.state_digest) {
            return Err(Error::Damaged("state"));
        }
        Ok(Some((anchor, head, state)))
    }

    fn record<T: Serialize + DeserializeOwned>(&self, name: &'static str) -> Result<Option<T>, Error> {
        let table = self.0.begin_read()?.open_table(RECORDS)?;
        let bytes = table.get(name)?;
        bytes.map(|bytes| decode(bytes.value(), name)).transpose()
    }

    pub(super) fn fork(&self) -> Result<Option<Fork>, Error> {
        self.record(FORK)
    }

    pub(super) fn keep_fork(&self, fork: &Fork) -> Result<(), Error> {
        let transaction = self.0.begin_write()?;
        put(&transaction, FORK, fork)?;
        Ok(transaction.commit()?)
    }

    pub(super) fn through(&self) -> Result<Height, Error> {
        Ok(self.record(THROUGH)?.unwrap_or_default())
    }

    pub(super) fn header_at(&self, height: Height) -> Result<Option<Remembered>, Error> {
        let table = self.0.begin_read()?.open_table(HEADERS)?;
        let header = table.get(height.0)?;
        Ok(header.map(|header| {
            let (digest, timestamp_ms) = header.value();
            Remembered {
                digest: Digest::from_bytes(*digest),
                timestamp_ms,
            }
        }))
    }

    /// Appends final headers; the last of them is the new anchor.
    pub(super) fn extend(&self, headers: &[CarriedHeader]) -> Result<(), Error> {
        let Some(anchor) = headers.last() else { return Ok(()) };
        let transaction = self.0.begin_write()?;
        for header in headers {
            put_header(&transaction, header)?;
        }
        let oldest = anchor.header.height.0.saturating_sub(HEADERS_KEPT);
        transaction.open_table(HEADERS)?.retain_in(..oldest, |_, _| false)?;
        put(&transaction, ANCHOR, anchor)?;
        Ok(transaction.commit()?)
    }

    /// Takes in what was learned, in one commit; gives how many bundles are new.
    pub(super) fn learn(&self, learned: &Learned, head: Height) -> Result<u64, Error> {
        let transaction = self.0.begin_write()?;
        let mut new = 0;
        for block in &learned.blocks {
            new += add(&transaction, block, head)?;
        }
        {
            let mut keys = transaction.open_table(KEYS)?;
            for (key, height) in &learned.keys {
                keys.insert(key.0.as_bytes(), height.0)?;
            }
        }
        if let Some(through) = &learned.through {
            put(&transaction, THROUGH, through)?;
        }
        transaction.commit()?;
        Ok(new)
    }

    pub(super) fn keys(&self) -> Result<BTreeMap<KeyId, Height>, Error> {
        let table = self.0.begin_read()?.open_table(KEYS)?;
        let mut keys = BTreeMap::new();
        for row in table.iter()? {
            let (key, height) = row?;
            keys.insert(KeyId(Digest::from_bytes(*key.value())), Height(height.value()));
        }
        Ok(keys)
    }

    pub(super) fn adopt(&self, carried: &CarriedState, register: Option<&Register>, head: &Head) -> Result<(), Error> {
        let transaction = self.0.begin_write()?;
        put(&transaction, STATE, carried)?;
        if let Some(register) = register {
            put(&transaction, REGISTER, register)?;
        }
        put(&transaction, HEAD, head)?;
        Ok(transaction.commit()?)
    }

    pub(super) fn included(&self, height: Height) -> Result<Option<IncludedInBlock>, Error> {
        let table = self.0.begin_read()?.open_table(INCLUDED)?;
        let bytes = table.get(height.0)?;
        bytes.map(|bytes| decode(bytes.value(), "included")).transpose()
    }

    pub(super) fn place(&self, bundle: &BundleId) -> Result<Option<Height>, Error> {
        let table = self.0.begin_read()?.open_table(PLACES)?;
        Ok(table.get(bundle.0.as_bytes())?.map(|height| Height(height.value())))
    }

    /// The first height above one with something in it.
    pub(super) fn next(&self, above: Height) -> Result<Option<Height>, Error> {
        let table = self.0.begin_read()?.open_table(INCLUDED)?;
        let first = table.range(above.0 + 1..)?.next().transpose()?;
        Ok(first.map(|(height, _)| Height(height.value())))
    }

    pub(super) fn late(&self) -> Result<Vec<(BundleId, Height)>, Error> {
        let table = self.0.begin_read()?.open_table(LATE)?;
        let mut late = Vec::new();
        for row in table.iter()? {
            let (bundle, height) = row?;
            late.push((BundleId(Digest::from_bytes(*bundle.value())), Height(height.value())));
        }
        Ok(late)
    }

    pub(super) fn forget_late(&self, bundles: &[(BundleId, Height)]) -> Result<(), Error> {
        let transaction = self.0.begin_write()?;
        {
            let mut late = transaction.open_table(LATE)?;
            for (bundle, _) in bundles {
                late.remove(bundle.0.as_bytes())?;
            }
        }
        Ok(transaction.commit()?)
    }
}

fn put<T: Serialize>(transaction: &WriteTransaction, name: &str, record: &T) -> Result<(), Error> {
    let mut records = transaction.open_table(RECORDS)?;
    records.insert(name, canonical::encode(record).as_slice())?;
    Ok(())
}

fn put_header(transaction: &WriteTransaction, carried: &CarriedHeader) -> Result<(), Error> {
    let mut headers = transaction.open_table(HEADERS)?;
    let (digest, header) = (carried.header.digest(), &carried.header);
    headers.insert(header.height.0, (digest.as_bytes(), header.timestamp_ms))?;
    Ok(())
}

/// Adds the commitments of a block that are not there yet, and gives how many.
fn add(transaction: &WriteTransaction, block: &IncludedInBlock, head: Height) -> Result<u64, Error> {
    let Some(height) = block.height() else { return Ok(0) };
    let (mut included, mut places, mut late) = (
        transaction.open_table(INCLUDED)?,
        transaction.open_table(PLACES)?,
        transaction.open_table(LATE)?,
    );
    let known = included
        .get(height.0)?
        .map(|bytes| decode(bytes.value(), "included"))
        .transpose()?;
    let mut kept = known.unwrap_or_else(|| IncludedInBlock {
        block: block.block.clone(),
        included: Vec::new(),
    });
    let mut new = 0;
    for one in &block.included {
        let Some(payload) = one.transaction.payload() else {
            continue;
        };
        let bundle = payload.id.0;
        if places.get(bundle.as_bytes())?.is_some() {
            continue;
        }
        places.insert(bundle.as_bytes(), height.0)?;
        // A document is not projected, so it is never too late for that.
        if height <= head && one.transaction.commitment().is_some() {
            late.insert(bundle.as_bytes(), height.0)?;
        }
        kept.included.push(one.clone());
        new += 1;
    }
    if new > 0 {
        included.insert(height.0, canonical::encode(&kept).as_slice())?;
    }
    Ok(new)
}

fn decode<T: Serialize + DeserializeOwned>(bytes: &[u8], what: &'static str) -> Result<T, Error> {
    canonical::decode(bytes, RECORD_BYTES_MAX).map_err(|_| Error::Damaged(what))
}

#[cfg(test)]
impl Store {
    pub(super) fn bytes_kept(&self) -> Result<u64, Error> {
        let transaction = self.0.begin_write()?;
        let stats = transaction.stats()?;
        transaction.abort()?;
        Ok(stats.stored_bytes() + stats.metadata_bytes())
    }
}
