//! Large records of the embedded store: each in a file of its own, a CAR archive of its blocks, beside the redb file that knows
//! where each block lies.
//!
//! redb keeps a large value in a page of the next power of two, and gives room back only when it is compacted; a file takes what it
//! has, and is gone when it is unlinked. A pack is written aside, synced, renamed, and then entered in redb: what a killed put
//! leaves behind is a file aside, which goes at the next start, or a whole pack that is not entered, which is entered then. So
//! are all packs when the redb file was lost. Any IPFS program reads a pack (`ipfs dag import`).

mod mending;

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use cid::Cid;
use record::canonical::{DAG_PB, RAW};
use redb::{Database, ReadableTable as _, TableDefinition, WriteTransaction};

use super::whole::whole;
use crate::vault::{
    car,
    file::{joined, table},
    store::{cid_of, digest, is_payload_of},
};

/// The folder in the data folder.
pub(super) const FOLDER: &str = "vault-objects";
/// Objects by the SHA-256 of their root: the root's codec, the length of the pack, and the SHA-256 of each block.
const OBJECTS: TableDefinition<'_, &[u8; 32], (u64, u64, &[u8])> = TableDefinition::new("objects");
/// Where blocks lie, by their SHA-256 and, behind it, that of the root in whose pack: the first byte, and how many.
const BLOCKS: TableDefinition<'_, &[u8; 64], (u64, u32)> = TableDefinition::new("object_blocks");
/// How files that are not finished begin.
const ASIDE: &str = "aside-";

/// The SHA-256 of an object's root, and where a block lies in its pack.
type InPack = ([u8; 32], (u64, u32));
/// Where blocks lie in a file, by their SHA-256: the first byte, and how many.
pub(in crate::vault) type Places = HashMap<[u8; 32], (u64, u32)>;

/// The folder of packs, and how much of it is being written.
#[derive(Debug)]
pub(super) struct Packs {
    folder: PathBuf,
    /// Bytes of packs that are not entered yet.
    open_bytes: Arc<AtomicU64>,
}

/// A pack that is being written; its file goes with it, unless it was kept.
#[derive(Debug)]
pub(super) struct Aside {
    file: Arc<fs::File>,
    path: PathBuf,
    places: Places,
    length: u64,
    open_bytes: Arc<AtomicU64>,
}

impl Packs {
    /// Opens the folder, and removes what killed puts have left aside.
    pub(super) fn open(data_dir: &Path) -> io::Result<Self> {
        let folder = data_dir.join(FOLDER);
        if !folder.exists() {
            fs::DirBuilder::new().mode(0o700).create(&folder)?;
            sync_folder(data_dir)?;
        }
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(ASIDE) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(Self {
            folder,
            open_bytes: Arc::default(),
        })
    }

    /// Bytes of packs that are being written.
    pub(super) fn open_bytes(&self) -> u64 {
        self.open_bytes.load(Ordering::Relaxed)
    }

    /// Begins a pack.
    pub(super) fn begin(&self) -> io::Result<Aside> {
        let path = self.folder.join(format!("{ASIDE}{:032x}", rand::random::<u128>()));
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        self.open_bytes.fetch_add(car::HEAD_BYTES as u64, Ordering::Relaxed);
        Ok(Aside {
            file: Arc::new(file),
            path,
            places: Places::new(),
            length: car::HEAD_BYTES as u64,
            open_bytes: self.open_bytes.clone(),
        })
    }

    fn path(&self, root: &[u8; 32]) -> PathBuf {
        let name = hex::encode(root);
        self.folder.join(&name[..2]).join(format!("{name}.car"))
    }

    /// Whether the pack of an entered object is there, in its length.
    fn is_there(&self, root: &[u8; 32], length: u64) -> bool {
        fs::metadata(self.path(root)).is_ok_and(|file| file.len() == length)
    }

    /// Gives a pack its name, durably.
    pub(super) fn name(&self, aside: &Aside, root: &Cid) -> io::Result<()> {
        aside.file.write_all_at(&car::head(root), 0)?;
        aside.file.sync_all()?;
        let path = self.path(&digest(root));
        let shard = path.parent().expect("a pack lies in a folder");
        if !shard.exists() {
            fs::DirBuilder::new().mode(0o700).recursive(true).create(shard)?;
            sync_folder(&self.folder)?;
        }
        fs::rename(&aside.path, &path)?;
        sync_folder(shard)
    }

    /// Removes a pack, durably; one that is not there is as it should be.
    pub(super) fn remove(&self, root: &[u8; 32]) -> io::Result<()> {
        let path = self.path(root);
        match fs::remove_file(&path) {
            Ok(()) => sync_folder(path.parent().expect("a pack lies in a folder")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Under which codec the root of a pack with these bytes lies here, intact or not.
    pub(super) fn codec(&self, database: &Database, root: &Cid) -> Result<Option<u64>, redb::Error> {
        let key = digest(root);
        let entered = match table(database, OBJECTS)? {
            Some(objects) => objects.get(&key)?.map(|entry| entry.value().0),
            None => None,
        };
        if entered.is_some() || !self.path(&key).try_exists()? {
            return Ok(entered);
        }
        // Nobody has entered it: its head says it. One that says nothing is anybody's.
        let mut head = [0; car::HEAD_BYTES];
        let read = fs::File::open(self.path(&key)).and_then(|file| file.read_exact_at(&mut head, 0));
        let other = if root.codec() == RAW { DAG_PB } else { RAW };
        let is_other = read.is_ok() && head[..] == car::head(&cid_of(other, &key));
        Ok(Some(if is_other { other } else { root.codec() }))
    }

    /// Bytes of all packs that are entered.
    pub(super) fn bytes(&self, database: &Database) -> Result<u64, redb::Error> {
        let mut bytes = 0;
        if let Some(objects) = table(database, OBJECTS)? {
            for entry in objects.iter()? {
                bytes += entry?.1.value().1;
            }
        }
        Ok(bytes)
    }

    /// Whether all of an object is here, as far as redb and the length of the pack tell.
    pub(super) fn holds(&self, database: &Database, root: &Cid) -> Result<bool, redb::Error> {
        let Some(objects) = table(database, OBJECTS)? else {
            return Ok(false);
        };
        let key = digest(root);
        let entered = objects.get(&key)?;
        Ok(entered.is_some_and(|entry| {
            let (codec, length, _) = entry.value();
            codec == root.codec() && self.is_there(&key, length)
        }))
    }

    /// The roots of the objects whose packs are here.
    pub(super) fn roots(&self, database: &Database) -> Result<Vec<Cid>, redb::Error> {
        let mut roots = Vec::new();
        let Some(objects) = table(database, OBJECTS)? else {
            return Ok(roots);
        };
        for entry in objects.iter()? {
            let (key, value) = entry?;
            let (codec, length, _) = value.value();
            if self.is_there(key.value(), length) {
                roots.push(cid_of(codec, key.value()));
            }
        }
        Ok(roots)
    }

    /// A block of any object, and whether there is one at all: `Some(None)` is one whose bytes are wrong.
    pub(super) fn read(&self, database: &Database, cid: &Cid) -> Result<Option<Option<Bytes>>, redb::Error> {
        let mut found = None;
        for (root, place) in places_of(database, cid)? {
            found.get_or_insert(None);
            match fs::File::open(self.path(&root)).and_then(|file| read_at(&file, place)) {
                Ok(block) if is_payload_of(cid, &block) => return Ok(Some(Some(block))),
                Ok(_) => {}
                Err(error) if is_absent(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(found)
    }

    /// Enters the packs that are whole and not entered, and takes out those that are gone; the bytes that are more, and less.
    pub(super) fn reconcile(&self, transaction: &WriteTransaction) -> Result<(u64, u64), redb::Error> {
        let (mut more, mut less) = (0, 0);
        let entered: Vec<_> = {
            let objects = transaction.open_table(OBJECTS)?;
            let entries = objects
                .iter()?
                .map(|entry| entry.map(|(key, value)| (*key.value(), value.value().1)));
            entries.collect::<Result<_, _>>()?
        };
        for (root, length) in &entered {
            if !self.is_there(root, *length) {
                tracing::warn!("the pack of a large record is gone or cut; it comes from peers again");
                less += forget(transaction, root)?.unwrap_or(0);
            }
        }
        for path in self.files()? {
            let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
            let mut key = [0; 32];
            if hex::decode_to_slice(name, &mut key).is_err() || transaction.open_table(OBJECTS)?.get(&key)?.is_some() {
                continue;
            }
            match whole(&path, &key)? {
                Some((root, places, length)) => {
                    enter(transaction, &root, &places, length)?;
                    more += length;
                }
                None => {
                    tracing::warn!("a pack that is not whole is removed; its record comes from peers again");
                    self.remove(&key)?;
                }
            }
        }
        Ok((more, less))
    }

    fn files(&self) -> io::Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for shard in fs::read_dir(&self.folder)? {
            let shard = shard?;
            if shard.file_type()?.is_dir() {
                for file in fs::read_dir(shard.path())? {
                    files.push(file?.path());
                }
            }
        }
        Ok(files)
    }
}

impl Aside {
    /// Whether a block is in it.
    pub(super) fn has(&self, cid: &Cid) -> bool {
        self.places.contains_key(&digest(cid))
    }

    /// Its bytes.
    pub(super) const fn length(&self) -> u64 {
        self.length
    }

    /// Its file, for work on another thread.
    pub(super) fn file(&self) -> Arc<fs::File> {
        self.file.clone()
    }

    /// Where its blocks lie.
    pub(super) fn places(&self) -> Places {
        self.places.clone()
    }

    /// Takes a place for a block at the end: where to write, and what stands before the block there.
    pub(super) fn place(&mut self, cid: &Cid, block_bytes: usize) -> (u64, Vec<u8>) {
        let before = car::before(cid, block_bytes);
        let at = self.length;
        let grown = (before.len() + block_bytes) as u64;
        let length = u32::try_from(block_bytes).expect("a block has less than 4 GiB");
        self.places.insert(digest(cid), (at + before.len() as u64, length));
        self.length += grown;
        self.open_bytes.fetch_add(grown, Ordering::Relaxed);
        (at, before)
    }

    /// Enters it under its root.
    pub(super) fn enter(&self, transaction: &WriteTransaction, root: &Cid) -> Result<(), redb::Error> {
        enter(transaction, root, &self.places, self.length)
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        self.open_bytes.fetch_sub(self.length, Ordering::Relaxed);
        // It has another name if it was kept.
        let _gone = fs::remove_file(&self.path);
    }
}

/// Makes the tables.
pub(super) fn make(transaction: &WriteTransaction) -> Result<(), redb::Error> {
    transaction.open_table(OBJECTS)?;
    transaction.open_table(BLOCKS)?;
    Ok(())
}

fn enter(transaction: &WriteTransaction, root: &Cid, places: &Places, length: u64) -> Result<(), redb::Error> {
    let key = digest(root);
    let mut blocks = transaction.open_table(BLOCKS)?;
    for (block, place) in places {
        blocks.insert(&joined(block, &key), *place)?;
    }
    let names: Vec<u8> = places.keys().flatten().copied().collect();
    transaction
        .open_table(OBJECTS)?
        .insert(&key, (root.codec(), length, &*names))?;
    Ok(())
}

/// Takes an object out; the length of its pack, if it was entered.
pub(super) fn forget(transaction: &WriteTransaction, root: &[u8; 32]) -> Result<Option<u64>, redb::Error> {
    let mut objects = transaction.open_table(OBJECTS)?;
    let Some(entry) = objects.remove(root)? else {
        return Ok(None);
    };
    let (_, length, names) = entry.value();
    let mut blocks = transaction.open_table(BLOCKS)?;
    let (names, _) = names.as_chunks::<32>();
    for block in names {
        blocks.remove(&joined(block, root))?;
    }
    Ok(Some(length))
}

/// In which packs a block lies, and where.
fn places_of(database: &Database, cid: &Cid) -> Result<Vec<InPack>, redb::Error> {
    let mut places = Vec::new();
    let Some(blocks) = table(database, BLOCKS)? else {
        return Ok(places);
    };
    let block = digest(cid);
    for entry in blocks.range::<&[u8; 64]>(&joined(&block, &[0; 32])..=&joined(&block, &[0xff; 32]))? {
        let (key, place) = entry?;
        let mut root = [0; 32];
        root.copy_from_slice(&key.value()[32..]);
        places.push((root, place.value()));
    }
    Ok(places)
}

pub(super) fn read_at(file: &fs::File, (at, length): (u64, u32)) -> io::Result<Bytes> {
    let mut block = vec![0; length as usize];
    file.read_exact_at(&mut block, at)?;
    Ok(block.into())
}

/// What a file says that is gone or cut, or lies on a bad part of the disk.
fn is_absent(error: &io::Error) -> bool {
    const EIO: i32 = 5;
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof) || error.raw_os_error() == Some(EIO)
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    fs::File::open(folder)?.sync_all()
}
