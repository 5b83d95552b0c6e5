//! The data folder while it is rebuilt: a marker file says that it is not whole, from before the first byte until after the last.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

/// The file that says that the folder is not whole.
const MARKER: &str = "replace.unfinished";
/// What is in it.
const WORDS: &[u8] =
    b"This data folder is being rebuilt and is not whole: run `fog-node replace` (again) until it ends.\n";
/// What an empty file system has in its root.
const LOST_AND_FOUND: &str = "lost+found";

/// Why a folder cannot be rebuilt in.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// There is something in it that `replace` did not write.
    #[error(
        "data_dir {path} is not empty, and no `replace` began in it. If the node is sound, run it; if its data is given up, \
         move the folder away, name its keyring.sealed with --keyring, and run `replace` again"
    )]
    InUse {
        /// Which folder.
        path: PathBuf,
    },
    /// It cannot be read or written.
    #[error("data_dir {path}: {source}")]
    Io {
        /// Which folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A data folder that is this process's to rebuild in; only [`Folder::claim`] makes one.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// Claims a folder that is absent or empty, or in which an earlier `replace` began.
    ///
    /// # Errors
    /// [`Refused`]; nothing was changed then.
    pub fn claim(path: &Path) -> Result<Self, Refused> {
        let io = |source| Refused::Io {
            path: path.to_owned(),
            source,
        };
        if is_unfinished(path) {
            return Ok(Self(path.to_owned()));
        }
        if !is_empty(path).map_err(io)? {
            return Err(Refused::InUse { path: path.to_owned() });
        }
        mark(path).map_err(io)?;
        Ok(Self(path.to_owned()))
    }

    /// The folder is whole: from now on the node may be run.
    ///
    /// # Errors
    /// The folder cannot be written; it is not whole then.
    pub fn finish(self) -> io::Result<()> {
        // What was written before is on the disk before the marker goes.
        sync(&self.0)?;
        fs::remove_file(self.0.join(MARKER))?;
        sync(&self.0)
    }
}

/// Whether a `replace` began in this folder and has not ended.
#[must_use]
pub fn is_unfinished(path: &Path) -> bool {
    path.join(MARKER).exists()
}

fn is_empty(path: &Path) -> io::Result<bool> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        entries => entries?,
    };
    for entry in entries {
        if entry?.file_name() != LOST_AND_FOUND {
            return Ok(false);
        }
    }
    Ok(true)
}

fn mark(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    let mut marker = File::create_new(path.join(MARKER))?;
    marker.write_all(WORDS)?;
    marker.sync_all()?;
    sync(path)?;
    // A folder that was just made is an entry of the one above.
    path.parent()
        .filter(|above| !above.as_os_str().is_empty())
        .map_or(Ok(()), sync)
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_or_empty_folder_is_claimed_until_it_is_finished() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("node");
        drop(Folder::claim(&path).expect("absent"));
        assert!(is_unfinished(&path));
        fs::write(path.join("chain.redb"), "half").expect("writes");
        Folder::claim(&path).expect("begun before").finish().expect("finished");
        assert!(!is_unfinished(&path));
        assert!(
            matches!(Folder::claim(&path), Err(Refused::InUse { .. })),
            "it is whole"
        );
        let disk = dir.path().join("disk");
        fs::create_dir_all(disk.join(LOST_AND_FOUND)).expect("creates");
        Folder::claim(&disk).expect("a new file system");
    }

    #[test]
    fn a_folder_with_a_nodes_data_is_refused_and_left_as_it_is() {
        let dir = tempfile::tempdir().expect("a folder");
        fs::write(dir.path().join("keyring.sealed"), "sealed").expect("writes");
        let refused = Folder::claim(dir.path()).expect_err("not empty").to_string();
        assert!(
            refused.contains("--keyring") && refused.contains("move the folder away"),
            "{refused}"
        );
        assert!(!is_unfinished(dir.path()));
    }
}
