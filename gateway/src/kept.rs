//! Small files that must outlive a power cut: written beside, synced, renamed over the old one, and the folder synced.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

use rustix::{
    fs::{CWD, RenameFlags, renameat_with},
    io::Errno,
};
use serde::{Serialize, de::DeserializeOwned};

/// Why a kept file cannot be used or made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk.
    #[error("{0}: {1}")]
    Disk(String, #[source] io::Error),
    /// Not what we wrote.
    #[error("{0} is not what this gateway writes: {1}")]
    Malformed(String, #[source] serde_json::Error),
    /// An entry of it, which nothing could be sealed by.
    #[error("{0}: {1} has no usable X25519 subject key; put the right key there, or take the entry out")]
    Unsealable(String, String),
}

/// Reads a file; `None` if there is none.
///
/// # Errors
/// [`Error`]: it is larger than it may be, cannot be read, or is something else.
pub fn read<T: DeserializeOwned>(path: &Path, bytes_max: u64) -> Result<Option<T>, Error> {
    let name = || path.display().to_string();
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(|error| Error::Disk(name(), error))?,
    };
    let mut text = String::new();
    let read = file.take(bytes_max + 1).read_to_string(&mut text);
    let read = read.map_err(|error| Error::Disk(name(), error))?;
    if read as u64 > bytes_max {
        let error = io::Error::other(format!("larger than {bytes_max} bytes"));
        return Err(Error::Disk(name(), error));
    }
    serde_json::from_str(&text)
        .map(Some)
        .map_err(|error| Error::Malformed(name(), error))
}

/// Replaces a file: after a crash there is the old one or the new one, whole. Only its owner can read it.
///
/// # Errors
/// [`Error::Disk`]; the old file is still there.
pub fn replace(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    write(path, value, |beside| fs::rename(beside, path).map(|()| true)).map(drop)
}

/// Makes a file, if there is none yet: whoever comes second changes nothing, and is told `false`. Only its owner can read it.
///
/// # Errors
/// [`Error::Disk`].
pub fn create(path: &Path, value: &impl Serialize) -> Result<bool, Error> {
    write(path, value, |beside| {
        let made = match name(beside, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            named => named.map(|()| true)?,
        };
        match fs::remove_file(beside) {
            // A renaming leaves none.
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(made),
        }
    })
}

/// Writes a file beside, synced, and puts it in its place.
fn write(path: &Path, value: &impl Serialize, place: impl FnOnce(&Path) -> io::Result<bool>) -> Result<bool, Error> {
    let disk = |error| Error::Disk(path.display().to_string(), error);
    let text = serde_json::to_vec_pretty(value).map_err(|error| disk(error.into()))?;
    // Of this process: two writers do not write into one another's.
    let beside = path.with_extension(format!("{}.new", std::process::id()));
    let written = || -> io::Result<bool> {
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&beside)?;
        file.write_all(&text)?;
        file.sync_all()?;
        let placed = place(&beside)?;
        sync_name(path)?;
        Ok(placed)
    };
    written().map_err(disk)
}

/// Makes a folder, and those above it, if they are not there: for this user alone, whoever comes first and whatever the umask.
///
/// # Errors
/// The disk.
pub fn make_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Opens a new file to write, for this user alone; one that is there stays as it is, and keeps its rights.
///
/// # Errors
/// There is one of this name, or the disk.
pub fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Makes a file's name durable: a folder forgets names that were not synced, whatever was synced in the file.
///
/// # Errors
/// The folder cannot be opened or synced.
pub fn sync_name(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

/// Gives a finished file its name, unless there is a file of that name. A link may leave it under its other name, too.
///
/// # Errors
/// There is one, or the file system knows no way.
pub fn name(unfinished: &Path, path: &Path) -> io::Result<()> {
    named(unfinished, path, &[rename, link])
}

/// A way to give a finished file its name that never replaces a file of that name.
type Way = fn(&Path, &Path) -> io::Result<()>;

/// Gives the file its name by the first way that its file system has: FAT knows no links, a network's may know links alone.
fn named(unfinished: &Path, path: &Path, ways: &[Way]) -> io::Result<()> {
    let mut failure = io::Error::from(io::ErrorKind::Unsupported);
    for way in ways {
        match way(unfinished, path) {
            Err(error) if is_unknown(&error) => failure = error,
            outcome => return outcome,
        }
    }
    Err(io::Error::new(io::ErrorKind::Unsupported, failure))
}

/// Whether a file system does not know what it was asked for. FAT calls a link `EPERM`, others an unknown flag `EINVAL`.
fn is_unknown(error: &io::Error) -> bool {
    [Errno::PERM, Errno::INVAL, Errno::NOSYS, Errno::OPNOTSUPP]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

fn rename(unfinished: &Path, path: &Path) -> io::Result<()> {
    Ok(renameat_with(CWD, unfinished, CWD, path, RenameFlags::NOREPLACE)?)
}

fn link(unfinished: &Path, path: &Path) -> io::Result<()> {
    fs::hard_link(unfinished, path)
}

/// What tells one state of a file from the next, without reading it.
pub type Stamp = (u64, u64, i64, i64);

/// The state of a file.
///
/// # Errors
/// It is not there, or cannot be looked at.
pub fn stamp(path: &Path) -> io::Result<Stamp> {
    let metadata = fs::metadata(path)?;
    Ok((metadata.ino(), metadata.size(), metadata.mtime(), metadata.mtime_nsec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole_and_strangers_are_refused() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("kept.json");
        assert!(read::<Vec<u8>>(&path, 100).expect("absent").is_none());
        replace(&path, &vec![1, 2]).expect("writes");
        replace(&path, &vec![3]).expect("writes");
        assert_eq!(read::<Vec<u8>>(&path, 100).expect("reads"), Some(vec![3]));
        let names = fs::read_dir(folder.path()).expect("reads").count();
        assert_eq!(names, 1, "nothing is left beside it");
        assert!(matches!(read::<Vec<u8>>(&path, 2), Err(Error::Disk(..))));
        fs::write(&path, "[3").expect("writes");
        assert!(matches!(read::<Vec<u8>>(&path, 100), Err(Error::Malformed(..))));
        let nowhere = folder.path().join("no").join("kept.json");
        assert!(matches!(replace(&nowhere, &1), Err(Error::Disk(..))));
    }

    #[test]
    fn a_file_is_made_once() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("made.json");
        assert!(create(&path, &1).expect("makes") && !create(&path, &2).expect("is there"));
        assert_eq!(read::<u8>(&path, 100).expect("reads"), Some(1));
        assert_eq!(fs::read_dir(folder.path()).expect("reads").count(), 1);
    }

    #[test]
    fn a_file_is_named_by_what_its_file_system_knows_and_never_replaces_another() {
        let lacking: [Way; 3] = [
            |_, _| Err(Errno::PERM.into()),
            |_, _| Err(Errno::INVAL.into()),
            |_, _| Err(Errno::OPNOTSUPP.into()),
        ];
        let all: [Way; 2] = [rename, link];
        for way in all {
            let folder = tempfile::tempdir().expect("temporary folder");
            let at = |name: &str| folder.path().join(name);
            for lack in lacking {
                fs::write(at("new"), b"new").expect("writes");
                named(&at("new"), &at("named"), &[lack, way]).expect("named");
                assert_eq!(fs::read(at("named")).expect("reads"), b"new");
                fs::write(at("other"), b"other").expect("writes");
                let taken = named(&at("other"), &at("named"), &[lack, way]).expect_err("taken");
                assert_eq!(taken.kind(), io::ErrorKind::AlreadyExists);
                assert_eq!(fs::read(at("named")).expect("reads"), b"new");
                fs::remove_file(at("named")).expect("is there");
            }
            let full: Way = |_, _| Err(Errno::NOSPC.into());
            fs::write(at("new"), b"new").expect("writes");
            let refused = named(&at("new"), &at("named"), &[full, way]).expect_err("full");
            assert_eq!(refused.kind(), io::ErrorKind::StorageFull, "said, not gone around");
            let refused = named(&at("new"), &at("named"), &lacking).expect_err("no way");
            assert_eq!(
                (refused.kind(), at("named").exists()),
                (io::ErrorKind::Unsupported, false)
            );
        }
    }
}
