//! A founder's first start: its key has never voted, so it may vote without asking the others what it has voted.
//!
//! Nobody can tell that of an empty disk, which may as well be one that was lost. So who makes a founder's data folder puts a
//! mark into it, which is gone, durably, before the first vote. Without it a network with one liar might never begin: the
//! liar's vote makes a quorum with those who began first, and who comes later would wait for the liar's answer.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
};

use super::fence::Fence;

/// The file that says so.
const MARK: &str = "consensus.unvoted";
/// What is in it.
const WORDS: &[u8] = b"The key of this node has never voted. The node removes this file when it starts.\n";

/// Marks the data folder, which exists, of a founder whose key was made just now.
///
/// # Errors
/// The folder cannot be written.
pub fn declare_unvoted(data_dir: &Path) -> io::Result<()> {
    let mut file = File::create(data_dir.join(MARK))?;
    file.write_all(WORDS)?;
    file.sync_all()?;
    File::open(data_dir)?.sync_all()
}

/// The fence of a node that starts: open if its key has never voted, for this once.
///
/// # Errors
/// The mark cannot be removed: the node must not vote.
pub fn fence_of(data_dir: &Path) -> io::Result<Fence> {
    match fs::remove_file(data_dir.join(MARK)) {
        Ok(()) => {
            File::open(data_dir)?.sync_all()?;
            Ok(Fence::open())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Fence::shut()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_opens_the_fence_once() {
        let folder = tempfile::TempDir::new().expect("a folder");
        declare_unvoted(folder.path()).expect("written");
        assert!(!fence_of(folder.path()).expect("removed").is_shut());
        assert!(fence_of(folder.path()).expect("absent").is_shut(), "the second start");
    }
}
