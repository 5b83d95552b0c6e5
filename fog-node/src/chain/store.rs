//! The chain's tables and what is read from and written to them; every call blocks.

use std::{cell::RefCell, path::Path};

use ledger::{
    agreement::Position,
    block::{Block, FinalizedBlock, Height},
    document::Payload,
    genesis::Genesis,
    proof::{CarriedBlock, Finalization},
    state::{self, Finals, Outcome, Register, State},
    transaction::{Commitment, SignedTransaction},
};
use record::canonical::{self, Digest};
use redb::{
    Database, ReadableDatabase as _, ReadableTable, ReadableTableMetadata as _, Table, TableDefinition,
    WriteTransaction,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Error, Head, Placed};

/// Canonical bytes of each block by height.
const BLOCKS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("blocks");
/// Votes on a block by height; absent while it is final through a descendant only.
const FINALIZATIONS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("finalizations");
/// [`Applied`] by height.
const APPLIED: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("applied");
/// Transaction and bundle ids -> height, index, whether it took effect. What took effect is never replaced.
const PLACES: TableDefinition<'_, &[u8; 32], (u64, u32, bool)> = TableDefinition::new("places");
/// The newest snapshot of the state, under [`NEWEST`].
const SNAPSHOTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("snapshots");
const NEWEST: &str = "newest";
/// More than any record of ours has; the canonical decoder wants a limit.
const RECORD_BYTES_MAX: usize = 1 << 30;

/// What applying a block gave.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Applied {
    pub(super) digest: Digest,
    pub(super) state_digest: Digest,
    pub(super) outcomes: Vec<Outcome>,
}

/// The open file; closed only while it is opened anew, or when that has failed.
#[derive(Debug)]
pub(super) struct Store(Option<Database>);

impl Store {
    pub(super) fn open(path: &Path, cache_bytes_max: usize) -> Result<Self, Error> {
        Ok(Self(Some(
            Database::builder().set_cache_size(cache_bytes_max).create(path)?,
        )))
    }

    /// Lets go of everything in memory: what is read next comes from the disk.
    pub(super) fn reopen(&mut self, path: &Path, cache_bytes_max: usize) -> Result<(), Error> {
        self.0 = None;
        *self = Self::open(path, cache_bytes_max)?;
        Ok(())
    }

    fn database(&self) -> Result<&Database, Error> {
        let closed = || Error::Damaged("it could not be opened again".to_owned());
        self.0.as_ref().ok_or_else(closed)
    }

    /// Writes the genesis block and the state before the first block.
    pub(super) fn found(&self, genesis: &Genesis) -> Result<(State, Head), Error> {
        let (block, state) = (Block::genesis(genesis), State::genesis(genesis));
        let head = head_after(&block, &state);
        let transaction = self.database()?.begin_write()?;
        let finalized = FinalizedBlock {
            digest: head.digest,
            block,
            finalization: None,
        };
        write_block(&transaction, &finalized, &state, &[])?;
        write_snapshot(&transaction, &state)?;
        // Tables that are read before they are first written.
        transaction.open_table(PLACES)?;
        transaction.open_table(FINALIZATIONS)?;
        transaction.commit()?;
        Ok((state, head))
    }

    /// The state and the head as they were written last; `None` if nothing was.
    pub(super) fn last(&self, genesis: &Genesis) -> Result<Option<(State, Head)>, Error> {
        let transaction = self.database()?.begin_read()?;
        let snapshots = match transaction.open_table(SNAPSHOTS) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            table => table?,
        };
        drop(snapshots);
        let register = self.snapshot()?;
        let first = self.block(Height(0))?.map(|block| block.digest);
        if first != Some(Block::genesis(genesis).header.digest()) {
            return Err(Error::OtherNetwork);
        }
        if register.network != genesis.network() {
            return Err(Error::Damaged("the register names another network".to_owned()));
        }
        let height = transaction
            .open_table(BLOCKS)?
            .last()?
            .map_or(Height(0), |(height, _)| Height(height.value()));
        let missing = || Error::Damaged(format!("block {height} is missing"));
        let block = self.block(height)?.ok_or_else(missing)?.block;
        let applied = self.applied(height)?.ok_or_else(missing)?;
        if transaction.open_table(BLOCKS)?.len()? != height.0 + 1 {
            return Err(Error::Damaged("a height below the last one has no block".to_owned()));
        }
        // A block that changes the register comes with a snapshot; the others move height and digest alone.
        let state = State::resumed(register, height, applied.state_digest);
        let is_right = match height.0.checked_sub(1) {
            None => state == State::genesis(genesis),
            Some(before) => {
                let before = self.applied(Height(before))?.ok_or_else(missing)?;
                state.follows(&before.state_digest, &block.header.digest(), &applied.outcomes)
            }
        };
        if !is_right {
            return Err(Error::Damaged(
                "the state's snapshot is not what the blocks made".to_owned(),
            ));
        }
        let head = head_after(&block, &state);
        Ok(Some((state, head)))
    }

    /// Who may do what, as it was written last.
    pub(super) fn snapshot(&self) -> Result<Register, Error> {
        let table = self.database()?.begin_read()?.open_table(SNAPSHOTS)?;
        let snapshot = table
            .get(NEWEST)?
            .ok_or_else(|| Error::Damaged("no snapshot of the state".to_owned()))?;
        decode(snapshot.value(), "the state's snapshot")
    }

    pub(super) fn block(&self, height: Height) -> Result<Option<FinalizedBlock>, Error> {
        let transaction = self.database()?.begin_read()?;
        let Some(bytes) = transaction.open_table(BLOCKS)?.get(height.0)? else {
            return Ok(None);
        };
        let damaged = |what: &str| Error::Damaged(format!("block {height}: {what}"));
        let block = Block::decode(bytes.value()).map_err(|e| damaged(&e.to_string()))?;
        let digest = block.header.digest();
        let agreed = self
            .digest_at(height)?
            .ok_or_else(|| damaged("no record of its digest"))?;
        if digest != agreed || !block.is_whole() {
            return Err(damaged("it does not hash to the digest that was agreed on"));
        }
        let votes = transaction.open_table(FINALIZATIONS)?.get(height.0)?;
        let finalization = votes.map(|votes| decode(votes.value(), "votes")).transpose()?;
        Ok(Some(FinalizedBlock {
            block,
            digest,
            finalization,
        }))
    }

    pub(super) fn commitments(&self, height: Height) -> Result<Option<Vec<Commitment>>, Error> {
        self.effective(height, |transaction| transaction.commitment().cloned())
    }

    pub(super) fn payloads(&self, height: Height) -> Result<Option<Vec<Payload>>, Error> {
        self.effective(height, SignedTransaction::payload)
    }

    /// Something of the transactions of a block that took effect.
    fn effective<T>(
        &self,
        height: Height,
        of: impl Fn(&SignedTransaction) -> Option<T>,
    ) -> Result<Option<Vec<T>>, Error> {
        let (Some(finalized), Some(applied)) = (self.block(height)?, self.applied(height)?) else {
            return Ok(None);
        };
        let ordered = finalized.block.transactions.iter().zip(applied.outcomes);
        let effective = ordered.filter(|(_, outcome)| *outcome == Outcome::Applied);
        Ok(Some(effective.filter_map(|(transaction, _)| of(transaction)).collect()))
    }

    pub(super) fn applied(&self, height: Height) -> Result<Option<Applied>, Error> {
        let table = self.database()?.begin_read()?.open_table(APPLIED)?;
        let bytes = table.get(height.0)?;
        bytes
            .map(|bytes| decode(bytes.value(), "the record of an applied block"))
            .transpose()
    }

    pub(super) fn digest_at(&self, height: Height) -> Result<Option<Digest>, Error> {
        Ok(self.applied(height)?.map(|applied| applied.digest))
    }

    pub(super) fn position_at(&self, height: Height) -> Result<Option<Position>, Error> {
        Ok(self.applied(height)?.map(|applied| Position {
            height,
            digest: applied.digest,
            state_digest: applied.state_digest,
        }))
    }

    /// The bytes of a block and of its votes, believed by nobody yet.
    pub(super) fn raw(&self, height: Height) -> Result<Option<CarriedBlock>, Error> {
        let transaction = self.database()?.begin_read()?;
        let Some(bytes) = transaction.open_table(BLOCKS)?.get(height.0)? else {
            return Ok(None);
        };
        let block = Block::decode(bytes.value()).map_err(|e| Error::Damaged(format!("block {height}: {e}")))?;
        let votes = transaction.open_table(FINALIZATIONS)?.get(height.0)?;
        // Votes that do not decode are as good as none.
        let finalization = votes.and_then(|votes| decode(votes.value(), "votes").ok());
        Ok(Some(CarriedBlock { block, finalization }))
    }

    pub(super) fn placed(&self, identifier: &Digest) -> Result<Option<Placed>, Error> {
        let table = self.database()?.begin_read()?.open_table(PLACES)?;
        let Some(place) = table.get(identifier.as_bytes())? else {
            return Ok(None);
        };
        let (height, index, _) = place.value();
        let outcome = self
            .applied(Height(height))?
            .and_then(|applied| applied.outcomes.get(index as usize).copied());
        let outcome = outcome.ok_or_else(|| Error::Damaged(format!("block {height}: no outcome {index}")))?;
        Ok(Some(Placed {
            height: Height(height),
            index,
            outcome,
        }))
    }

    pub(super) fn took_effect_at(&self, identifier: &Digest) -> Result<Option<Height>, Error> {
        let table = self.database()?.begin_read()?.open_table(PLACES)?;
        let place = table.get(identifier.as_bytes())?.map(|place| place.value());
        Ok(place.and_then(|(height, _, effect)| effect.then_some(Height(height))))
    }

    pub(super) fn append(
        &self,
        state: &mut State,
        mut head: Head,
        blocks: &[FinalizedBlock],
    ) -> Result<(Head, Vec<Vec<Outcome>>), Error> {
        let transaction = self.database()?.begin_write()?;
        let mut all = Vec::with_capacity(blocks.len());
        let before = state.register_digest();
        for finalized in blocks {
            let header = &finalized.block.header;
            if header.height != head.height.next()
                || header.parent != head.digest
                || header.digest() != finalized.digest
            {
                return Err(Error::NotNext {
                    head: head.height,
                    found: header.height,
                });
            }
            let outcomes = apply(&transaction, state, &finalized.block)?;
            write_block(&transaction, finalized, state, &outcomes)?;
            head = head_after(&finalized.block, state);
            all.push(outcomes);
        }
        // Commitments move only height and digest.
        if state.register_digest() != before {
            write_snapshot(&transaction, state)?;
        }
        transaction.commit()?;
        Ok((head, all))
    }

    pub(super) fn attach(&self, height: Height, finalization: &Finalization) -> Result<(), Error> {
        let transaction = self.database()?.begin_write()?;
        transaction
            .open_table(FINALIZATIONS)?
            .insert(height.0, canonical::encode(finalization).as_slice())?;
        Ok(transaction.commit()?)
    }
}

/// Applies a block to the state and notes where each of its transactions stands.
fn apply(transaction: &WriteTransaction, state: &mut State, block: &Block) -> Result<Vec<Outcome>, Error> {
    let mut places = transaction.open_table(PLACES)?;
    let finals = Places {
        table: &places,
        failure: RefCell::new(None),
    };
    let outcomes = state.apply(block, &finals);
    if let Some(failure) = finals.failure.into_inner() {
        return Err(failure.into());
    }
    for (index, (signed, outcome)) in (0_u32..).zip(block.transactions.iter().zip(&outcomes)) {
        let effect = *outcome == Outcome::Applied;
        for identifier in state::identifiers(signed) {
            let replaces = !took_effect(&places, &identifier)?;
            if replaces {
                places.insert(identifier.as_bytes(), (block.header.height.0, index, effect))?;
            }
        }
    }
    Ok(outcomes)
}

/// The identifiers that are final, as the state asks for them; a failed read is kept, since the question has no error.
struct Places<'t, 'txn> {
    table: &'t Table<'txn, &'static [u8; 32], (u64, u32, bool)>,
    failure: RefCell<Option<redb::StorageError>>,
}

impl Finals for Places<'_, '_> {
    fn contains(&self, digest: &Digest) -> bool {
        took_effect(self.table, digest).unwrap_or_else(|failure| {
            self.failure.replace(Some(failure));
            false
        })
    }
}

fn took_effect(
    table: &impl ReadableTable<&'static [u8; 32], (u64, u32, bool)>,
    identifier: &Digest,
) -> Result<bool, redb::StorageError> {
    Ok(table.get(identifier.as_bytes())?.is_some_and(|place| place.value().2))
}

fn write_block(
    transaction: &WriteTransaction,
    finalized: &FinalizedBlock,
    state: &State,
    outcomes: &[Outcome],
) -> Result<(), Error> {
    let height = finalized.block.header.height.0;
    let applied = Applied {
        digest: finalized.digest,
        state_digest: state.digest(),
        outcomes: outcomes.to_vec(),
    };
    transaction
        .open_table(BLOCKS)?
        .insert(height, finalized.block.encode().as_slice())?;
    transaction
        .open_table(APPLIED)?
        .insert(height, canonical::encode(&applied).as_slice())?;
    if let Some(finalization) = &finalized.finalization {
        transaction
            .open_table(FINALIZATIONS)?
            .insert(height, canonical::encode(finalization).as_slice())?;
    }
    Ok(())
}

fn write_snapshot(transaction: &WriteTransaction, state: &State) -> Result<(), Error> {
    transaction
        .open_table(SNAPSHOTS)?
        .insert(NEWEST, canonical::encode(state.register()).as_slice())?;
    Ok(())
}

fn head_after(block: &Block, state: &State) -> Head {
    Head {
        height: block.header.height,
        digest: block.header.digest(),
        state_digest: state.digest(),
        timestamp_ms: block.header.timestamp_ms,
    }
}

fn decode<T: Serialize + DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, Error> {
    canonical::decode(bytes, RECORD_BYTES_MAX).map_err(|e| Error::Damaged(format!("{what}: {e}")))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Changes a block behind the chain's back, as a failing disk or an intruder does.
    pub(in crate::chain) fn overwrite(path: &Path, height: Height, bytes: &[u8]) {
        let database = Database::create(path).expect("opens");
        let transaction = database.begin_write().expect("begins");
        transaction
            .open_table(BLOCKS)
            .expect("opens")
            .insert(height.0, bytes)
            .expect("inserts");
        transaction.commit().expect("commits");
    }

    impl Store {
        /// Changes the open file behind the chain's back.
        pub(in crate::chain) fn change(&self, change: impl Fn(&WriteTransaction)) {
            let transaction = self.database().expect("open").begin_write().expect("begins");
            change(&transaction);
            transaction.commit().expect("commits");
        }
    }

    type Change = fn(&WriteTransaction);

    /// A change to a row of every table, each well-formed as far as it can be.
    pub(in crate::chain) const CHANGES: [(&str, Change); 7] = [
        ("a block", |t| flip(t, BLOCKS, 2, 40)),
        ("a missing block", |t| {
            t.open_table(BLOCKS).expect("opens").remove(3).expect("removes");
        }),
        ("an outcome", |t| {
            let mut table = t.open_table(APPLIED).expect("opens");
            let mut applied: Applied =
                decode(table.get(2).expect("reads").expect("there").value(), "").expect("decodes");
            applied.outcomes = vec![Outcome::Refused(state::Refused::NotAllowed)];
            let bytes = canonical::encode(&applied);
            table.insert(2, bytes.as_slice()).expect("inserts");
        }),
        ("a state digest", |t| flip(t, APPLIED, 5, 60)),
        ("a missing place", |t| {
            let mut table = t.open_table(PLACES).expect("opens");
            let key: [u8; 32] = *table.last().expect("reads").expect("some").0.value();
            table.remove(&key).expect("removes");
        }),
        ("forged votes", |t| {
            let votes = Finalization { votes: Vec::new() };
            let bytes = canonical::encode(&votes);
            t.open_table(FINALIZATIONS)
                .expect("opens")
                .insert(4, bytes.as_slice())
                .expect("inserts");
        }),
        ("the register", |t| {
            let mut table = t.open_table(SNAPSHOTS).expect("opens");
            let mut bytes = table.get(NEWEST).expect("reads").expect("there").value().to_vec();
            let at = bytes.windows(5).rposition(|w| w == b"org-0").expect("a custodian");
            bytes[at + 4] = b'1';
            table.insert(NEWEST, bytes.as_slice()).expect("inserts");
        }),
    ];

    fn flip(transaction: &WriteTransaction, table: TableDefinition<'_, u64, &[u8]>, height: u64, at: usize) {
        let mut table = transaction.open_table(table).expect("opens");
        let mut bytes = table.get(height).expect("reads").expect("there").value().to_vec();
        let at = at % bytes.len();
        bytes[at] ^= 1;
        table.insert(height, bytes.as_slice()).expect("inserts");
    }

    /// The bytes of the snapshot, changed as asked for.
    pub(in crate::chain) fn change_snapshot(path: &Path, change: impl Fn(&mut Vec<u8>)) {
        let database = Database::create(path).expect("opens");
        let transaction = database.begin_write().expect("begins");
        {
            let mut table = transaction.open_table(SNAPSHOTS).expect("opens");
            let mut bytes = table.get(NEWEST).expect("reads").expect("there").value().to_vec();
            change(&mut bytes);
            table.insert(NEWEST, bytes.as_slice()).expect("inserts");
        }
        transaction.commit().expect("commits");
    }
}
