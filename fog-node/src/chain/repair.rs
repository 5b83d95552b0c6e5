//! The whole file looked at, and made anew from good blocks when it is damaged.
//!
//! What is good is decided from the head down: the head's digest was agreed on, and each block names its parent's. A block of
//! our own that hashes to what is named stays; another one is fetched from peers, and only the named digest is taken. Then
//! everything that follows from the blocks (outcomes, places, the register) is made again by applying them. The damaged
//! file is kept beside the new one as evidence.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use ledger::{
    block::{Block, Height},
    proof::CarriedBlock,
    state::{Finals, Register, State, identifiers},
};
use record::canonical::Digest;

use super::{Chain, Error, FILE, Head, Placed, store::Store};
use crate::containment::contained;

/// Damaged files that are kept as evidence; the oldest go first.
const EVIDENCE_MAX: usize = 3;
/// Blocks that are written to a new file in one commit.
const BATCH: u64 = 256;

/// What does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Where: a block, a table, the file.
    pub place: String,
    /// What is wrong with it.
    pub what: String,
}

/// What a rebuilding did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rebuilt {
    /// Heights whose blocks were fetched.
    pub fetched: Vec<Height>,
    /// Where they came from.
    pub sources: BTreeSet<String>,
    /// The damaged file.
    pub evidence: PathBuf,
}

/// Where good blocks come from: the peers, or their like in a test.
pub trait Source {
    /// The block at a height that hashes to the digest, and who gave it; `None` if nobody has it now. Its votes are not checked.
    fn fetch(&self, height: Height, digest: &Digest) -> Option<(CarriedBlock, String)>;
}

/// A copy of what the blocks make, kept up while the file is read.
struct Replay {
    state: State,
    parent: Digest,
}

/// What became final, as the places of the file have it: only what lies below the block that asks.
struct Below<'a> {
    store: &'a Store,
    height: Height,
}

impl Finals for Below<'_> {
    fn contains(&self, digest: &Digest) -> bool {
        // A place that cannot be read shows as another outcome than the one that was kept.
        let at = self.store.took_effect_at(digest).ok().flatten();
        at.is_some_and(|at| at < self.height)
    }
}

impl Chain {
    /// How long the file is; 0 if it cannot be asked now.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        std::fs::metadata(&self.0.path).map_or(0, |file| file.len())
    }

    /// Looks at all of the file as it is on the disk, past everything in memory: each block's digest and parent, each vote,
    /// each outcome, place and state digest by applying the blocks again, and the register. The first damage that is found;
    /// `None` if everything holds. Blocks; readers wait only while the file is opened anew, the writer also while the
    /// register is read, twice. After each block
    /// that was there when it began, `looked_at` is told its size, and may rest; what comes while it rests is looked at
    /// at once, so that it has an end however fast the chain grows.
    ///
    /// # Panics
    /// Never, unless a reader panicked.
    #[must_use]
    pub fn scrub(&self, mut looked_at: impl FnMut(usize)) -> Option<Damage> {
        let damage = |place: &str, error: &Error| Damage {
            place: place.to_owned(),
            what: error.to_string(),
        };
        let opened = {
            let _turn = self.0.writer.lock().expect("a writer does not panic");
            let mut store = self.0.store.write().expect("nobody panics while it holds the file");
            guarded(|| store.reopen(&self.0.path, self.0.cache_bytes_max))
        };
        if let Err(error) = opened {
            return Some(damage("chain.redb", &error));
        }
        // Of the register one look tells, whatever the blocks' turn takes: who may read what hangs on it.
        let (state, snapshot) = self.now();
        if let Some(damage) = altered(snapshot, |register| register == state.register()) {
            return Some(damage);
        }
        let mut replay = Replay {
            state: State::genesis(&self.0.genesis),
            parent: Block::genesis(&self.0.genesis).header.digest(),
        };
        let mut look = |height| {
            let looked = guarded(|| self.look(&self.store(), height, &mut replay));
            looked.map_err(|error| damage(&format!("block {height} of chain.redb"), &error))
        };
        let there = self.head().height.0;
        for height in (1..=there).map(Height) {
            match look(height) {
                Ok(bytes) => looked_at(bytes),
                Err(damage) => return Some(damage),
            }
        }
        let (state, snapshot) = self.now();
        for height in (there + 1..=state.height().0).map(Height) {
            if let Err(damage) = look(height) {
                return Some(damage);
            }
        }
        altered(snapshot, |register| {
            register == replay.state.register() && *state == replay.state
        })
    }

    /// The state after the last block, and the snapshot on the disk that belongs to it: no block comes in between, so that a
    /// snapshot that was altered is found however fast blocks come.
    fn now(&self) -> (Arc<State>, Result<Register, Error>) {
        let _turn = self.0.writer.lock().expect("a writer does not panic");
        (self.state(), guarded(|| self.store().snapshot()))
    }

    /// One block: itself, its votes, and what was kept about it. Gives its size in bytes.
    fn look(&self, store: &Store, height: Height, replay: &mut Replay) -> Result<usize, Error> {
        let wrong = |what: &str| Err(Error::Damaged(format!("block {height}: {what}")));
        let Some(finalized) = store.block(height)? else {
            return wrong("it is missing");
        };
        let header = &finalized.block.header;
        if header.parent != replay.parent || header.height != height {
            return wrong("it is not the child of the one below it");
        }
        if let Some(votes) = &finalized.finalization
            && votes.check(header, replay.state.committees().at(header.epoch)).is_err()
        {
            return wrong("its votes do not hold");
        }
        let outcomes = replay.state.apply(&finalized.block, &Below { store, height });
        let kept = store.position_at(height)?;
        if kept.is_none_or(|kept| kept.state_digest != replay.state.digest()) {
            return wrong("its outcomes are not what the blocks make");
        }
        for (index, (transaction, outcome)) in (0_u32..).zip(finalized.block.transactions.iter().zip(&outcomes)) {
            let here = Placed {
                height,
                index,
                outcome: *outcome,
            };
            for identifier in identifiers(transaction) {
                let placed = store.placed(&identifier)?;
                // A refused one may have taken effect in another block.
                let is_right = placed == Some(here) || *outcome != ledger::state::Outcome::Applied;
                if !is_right {
                    return wrong("the place of a transaction is wrong");
                }
            }
        }
        replay.parent = finalized.digest;
        Ok(finalized.block.encode().len())
    }

    /// Makes the file anew, up to the block with the digest of `head`, and puts the damaged one aside. The writer waits
    /// meanwhile, readers do so only while the files are exchanged. Blocks.
    ///
    /// # Errors
    /// A block that neither this node nor the source has now, or a disk that cannot be written: nothing was changed then.
    ///
    /// # Panics
    /// Never, unless another writer panicked.
    pub fn rebuild(&self, source: &impl Source) -> Result<Rebuilt, Error> {
        let _turn = self.0.writer.lock().expect("a writer does not panic");
        let head = self.head();
        let digests = self.good_digests(&head, source)?;
        let new = self.0.path.with_extension("redb.new");
        remove(&new)?;
        let mut rebuilt = Rebuilt::default();
        let written = self.write(&new, &digests, source, &mut rebuilt);
        // Half a file would only fill the disk.
        let (state, head) = written.inspect_err(|_| drop(remove(&new)))?;
        let mut store = self.0.store.write().expect("nobody panics while it holds the file");
        rebuilt.evidence = exchange(&self.0.path, &new)?;
        let opened = Store::open(&self.0.path, self.0.cache_bytes_max)?;
        // Closing the damaged file may make redb panic once more; what it would write is of no use.
        let damaged = std::mem::replace(&mut *store, opened);
        let _closed = guarded(move || {
            drop(damaged);
            Ok(())
        });
        drop(store);
        self.0.state.send_replace(Arc::new(state));
        self.0.head.send_replace(head);
        Ok(rebuilt)
    }

    /// The digest that the block of each height must have, from the head down; index 0 is height 0.
    fn good_digests(&self, head: &Head, source: &impl Source) -> Result<Vec<Digest>, Error> {
        let mut digests = vec![head.digest];
        let mut expected = head.digest;
        for height in (1..=head.height.0).rev().map(Height) {
            // Votes do not matter here; what is written is checked for them.
            let own = self.kept(height).filter(|carried| carried.is(&expected));
            let block = match own {
                Some(carried) => carried.block,
                None => fetched(source, height, &expected)?.0.block,
            };
            expected = block.header.parent;
            digests.push(expected);
        }
        if expected != Block::genesis(&self.0.genesis).header.digest() && head.height > Height(0) {
            return Err(Error::OtherNetwork);
        }
        digests.reverse();
        Ok(digests)
    }

    /// Our own block as it stands in the file, if that can be read.
    fn kept(&self, height: Height) -> Option<CarriedBlock> {
        guarded(|| self.store().raw(height)).ok().flatten()
    }

    fn write(
        &self,
        path: &Path,
        digests: &[Digest],
        source: &impl Source,
        rebuilt: &mut Rebuilt,
    ) -> Result<(State, Head), Error> {
        let store = Store::open(path, self.0.cache_bytes_max)?;
        let (mut state, mut head) = store.found(&self.0.genesis)?;
        let top = digests.len() as u64 - 1;
        while head.height.0 < top {
            let from = head.height.0 + 1;
            // Within one epoch, so that the state says whose votes count.
            let last = self.0.genesis.policy.last_of(state.seats().epoch()).0;
            let committee = state.committees().at(state.seats().epoch()).clone();
            let mut batch = Vec::new();
            for height in (from..=top.min(last).min(from + BATCH - 1)).map(Height) {
                let at = usize::try_from(height.0).expect("as many digests as heights");
                let expected = &digests[at];
                let carried = match self.kept(height).filter(|carried| carried.is(expected)) {
                    Some(carried) => carried,
                    None => {
                        let (carried, from) = fetched(source, height, expected)?;
                        rebuilt.fetched.push(height);
                        rebuilt.sources.insert(from);
                        carried
                    }
                };
                batch.push(carried.finalized(&committee));
            }
            (head, _) = store.append(&mut state, head, &batch)?;
        }
        Ok((state, head))
    }
}

/// What is wrong with the register as it is on the disk.
fn altered(snapshot: Result<Register, Error>, is_right: impl FnOnce(&Register) -> bool) -> Option<Damage> {
    let (place, what) = match snapshot {
        Ok(register) if is_right(&register) => return None,
        Ok(_) => ("the register", "it is not what the blocks make".to_owned()),
        Err(error) => ("the register in chain.redb", error.to_string()),
    };
    Some(Damage {
        place: place.to_owned(),
        what,
    })
}

fn fetched(source: &impl Source, height: Height, digest: &Digest) -> Result<(CarriedBlock, String), Error> {
    source
        .fetch(height, digest)
        .ok_or_else(|| Error::Damaged(format!("block {height}: no peer that answers has it")))
}

/// Puts a file that does not open aside, so that a new one begins; the engine then delivers the blocks again.
///
/// # Errors
/// The folder cannot be written.
pub fn set_aside(data_dir: &Path) -> io::Result<PathBuf> {
    let path = data_dir.join(FILE);
    let evidence = evidence_name(&path);
    fs::rename(&path, &evidence)?;
    keep_few(&path);
    Ok(evidence)
}

fn exchange(path: &Path, new: &Path) -> Result<PathBuf, Error> {
    let evidence = evidence_name(path);
    fs::rename(path, &evidence).map_err(Error::Folder)?;
    fs::rename(new, path).map_err(Error::Folder)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(Error::Folder)?;
    keep_few(path);
    Ok(evidence)
}

fn evidence_name(path: &Path) -> PathBuf {
    let now_ms = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis());
    path.with_extension(format!("redb.damaged-{now_ms}"))
}

/// Removes the oldest evidence beyond [`EVIDENCE_MAX`]; what cannot be removed is in nobody's way.
fn keep_few(path: &Path) {
    let beside = path.parent().and_then(|folder| fs::read_dir(folder).ok());
    let prefix = format!("{FILE}.damaged-");
    let is_evidence = |name: &str| name.starts_with(&prefix);
    let mut kept: Vec<_> = beside
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(is_evidence))
        .map(|entry| entry.path())
        .collect();
    kept.sort();
    for old in kept.iter().rev().skip(EVIDENCE_MAX) {
        let _removed = fs::remove_file(old);
    }
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::Folder(error)),
        _ => Ok(()),
    }
}

/// A call into redb over a file that may be damaged: it may panic, and that is damage too.
pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    contained(work).unwrap_or_else(|| Err(Error::Damaged("redb panicked over the file".to_owned())))
}
