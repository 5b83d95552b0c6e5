//! The spool's file: it comes into being whole or not at all, and one that cannot be opened says what to change.

use std::{fs, io, ops::Deref, path::Path, sync::Arc};

use redb::Database;

use super::{Error, damage::reading_back, seal::Sealer, store::Store};
use crate::kept::{self, sync_name};

impl Store {
    /// Opens the file for one gateway on one network, or makes it.
    pub(super) fn open(path: &Path, cache_bytes: usize, sealer: &Sealer) -> Result<Self, Error> {
        let database = |path: &Path| {
            let opened = Database::builder().set_cache_size(cache_bytes).create(path);
            opened.map_err(|error| Error::Store(error.into()))
        };
        let opened = || {
            if !path.try_exists().map_err(failed)? {
                make(path, |unfinished| Self::of(database(unfinished)?, sealer))?;
            }
            Self::of(database(path)?, sealer)
        };
        opened().map_err(|error| explained(error, path))
    }
}

/// Makes the file under another name first: if the power fails before it is whole, it is not there, and the next start makes
/// it anew. Its name is durable on return.
fn make(path: &Path, create: impl FnOnce(&Path) -> Result<Store, Error>) -> Result<(), Error> {
    let unfinished = path.with_extension("redb.unfinished");
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    drop(create(&unfinished)?);
    match kept::name(&unfinished, path) {
        // What another process has made meanwhile is not replaced.
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
        _ => {}
    }
    match fs::remove_file(&unfinished) {
        // A renaming leaves none.
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    sync_name(path).map_err(failed)
}

const fn failed(error: io::Error) -> Error {
    Error::Store(redb::Error::Io(error))
}

/// The error as the operator can act on it.
fn explained(error: Error, path: &Path) -> Error {
    let kind = match &error {
        Error::Store(redb::Error::DatabaseAlreadyOpen) => return Error::InUse,
        Error::Store(redb::Error::Io(io)) => io.kind(),
        _ => return error,
    };
    let advice = match kind {
        io::ErrorKind::ReadOnlyFilesystem => {
            "its disk is mounted read-only. Look into the kernel's log for why, mount it writable and start again, or copy \
             the file to another disk and name its folder as data_dir"
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "its disk is full. Make room and start again",
        io::ErrorKind::PermissionDenied => "this user may not. Make data_dir and what is in it this user's own",
        io::ErrorKind::Unsupported => {
            "its file system cannot name a file without replacing another. Put data_dir on a disk of this machine"
        }
        _ => return error,
    };
    let file = path.display().to_string();
    Error::Unwritable { file, advice }
}

/// The open database. What closes it reads it back, too.
#[derive(Debug)]
pub(super) struct Handle(Option<Arc<Database>>);

impl Handle {
    pub(super) const fn of(db: Arc<Database>) -> Self {
        Self(Some(db))
    }
}

impl Deref for Handle {
    type Target = Arc<Database>;

    fn deref(&self) -> &Arc<Database> {
        self.0.as_ref().expect("it is taken by the drop alone")
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        reading_back(|| drop(self.0.take()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::{SPOOL, tests::Home};

    const CACHE_BYTES: usize = 1 << 20;

    #[tokio::test]
    async fn a_start_that_was_cut_off_while_it_made_the_file_keeps_no_other_from_making_it() {
        let home = Home::open();
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join(SPOOL);
        let unfinished = folder.path().join("outbox.redb.unfinished");
        fs::write(&unfinished, vec![7; 5_000]).expect("writes");
        drop(Store::open(&path, CACHE_BYTES, &home.sealer).expect("makes it"));
        assert!(path.exists() && !unfinished.exists());
        drop(Store::open(&path, CACHE_BYTES, &home.sealer).expect("opens it"));
    }

    #[tokio::test]
    async fn a_file_that_another_process_has_made_meanwhile_is_not_replaced() {
        let home = Home::open();
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join(SPOOL);
        let made = make(&path, |unfinished| {
            fs::write(&path, b"of somebody else").expect("writes");
            let db = Database::create(unfinished).map_err(|error| Error::Store(error.into()))?;
            Store::of(db, &home.sealer)
        });
        assert!(made.is_ok(), "{made:?}");
        assert_eq!(fs::read(&path).expect("reads"), b"of somebody else");
    }

    #[test]
    fn what_the_disk_refuses_is_said_with_what_to_do() {
        for (kind, part) in [
            (io::ErrorKind::ReadOnlyFilesystem, "read-only"),
            (io::ErrorKind::StorageFull, "full"),
            (io::ErrorKind::PermissionDenied, "may not"),
            (io::ErrorKind::Unsupported, "file system"),
        ] {
            let said = explained(failed(kind.into()), Path::new("outbox.redb")).to_string();
            assert!(said.contains(part) && said.contains("nothing was changed"), "{said}");
        }
        let other = explained(failed(io::ErrorKind::NotFound.into()), Path::new("outbox.redb"));
        assert!(matches!(other, Error::Store(_)));
    }
}
