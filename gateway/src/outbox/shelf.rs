//! The spool of a gateway that is stopped, as its operator sees it: listed, inspected, carried away by hand. Never a content:
//! bundles are sealed, and no key that opens them is here.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use ledger::{
    admission::Submission,
    transaction::{Action, Commitment},
};
use record::{
    bundle::{Category, SealedBundle},
    canonical,
    ids::BundleId,
    signature::PublicKey,
};

mod quarantined;

pub use self::quarantined::{NotOpened, Quarantined};
use super::{Error, Refused, SPOOL, Stored, Ticket, damage::reading_back, seal::Sealer, store::Store};
use crate::kept::new_file;

/// Memory for the store's pages while somebody looks at the spool, in bytes.
const CACHE_BYTES: usize = 8 << 20;
/// Tickets read at a time.
const PAGE_MAX: usize = 1_024;
/// A submission of ours has fewer bytes than this, also one that the disk has altered.
const SUBMISSION_BYTES_MAX: usize = 2 * ledger::admission::SUBMISSION_BYTES_MAX;

/// Why bundles could not be written to a folder.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// There is something in it: what was exported before would be mixed with what is exported now.
    #[error("the folder {0} is not empty: name a new one, or an empty one")]
    NotEmpty(String),
    /// A file or the folder cannot be written.
    #[error("{0} cannot be written: {1}")]
    File(String, io::Error),
    /// The spool cannot be read.
    #[error(transparent)]
    Spool(#[from] redb::Error),
}

/// What an export wrote, and what it could not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exported {
    /// Bundles written.
    pub bundles: u64,
    /// Bundles whose bytes are not those that were sealed: they are not written.
    pub damaged: u64,
}

/// What can be said of one bundle without opening it.
#[derive(Debug)]
pub struct Inspected {
    /// Its place in the queue.
    pub ticket: Ticket,
    /// Whether payload, commitment and identifier belong together.
    pub is_intact: bool,
    /// Whether this gateway has signed the commitment.
    pub is_signed: bool,
    /// The commitment, if it can be read: key id, count, bucket, CID.
    pub commitment: Option<Commitment>,
    /// Category and epoch of the key that it is sealed to, if they can be read.
    pub sealed_to: Option<(Category, u32)>,
}

/// The spool of a gateway that is stopped.
#[derive(Debug)]
pub struct Shelf {
    store: Store,
    author: PublicKey,
}

impl Shelf {
    /// Opens the spool in a folder.
    ///
    /// # Errors
    /// [`Error`]: there is none, or the gateway runs.
    pub fn open(folder: &Path, sealer: &Sealer) -> Result<Self, Error> {
        let file = folder.join(SPOOL);
        if !file.exists() {
            return Err(Error::Missing(file.display().to_string()));
        }
        let author = sealer.key.public();
        reading_back(|| Store::open(&file, CACHE_BYTES, sealer)).map(|store| Self { store, author })
    }

    /// What is set aside, the oldest first.
    ///
    /// # Errors
    /// The store's failure.
    pub fn refused(&self) -> Result<Vec<Refused>, redb::Error> {
        reading_back(|| self.store.refused())
    }

    /// Gives one bundle that is set aside, or all, back to the queue; returns how many.
    ///
    /// # Errors
    /// The store's failure.
    pub fn requeue(&self, only: Option<BundleId>) -> Result<u64, redb::Error> {
        reading_back(|| self.store.requeue(only))
    }

    /// Hands over each bundle that is not final, the oldest first, until it is told to stop.
    ///
    /// # Errors
    /// The store's failure, or that of who is told.
    pub fn each<E: From<redb::Error>>(&self, mut tell: impl FnMut(Ticket) -> Result<(), E>) -> Result<(), E> {
        let mut from = 0;
        loop {
            let page = reading_back(|| self.store.tickets(from, PAGE_MAX))?;
            let Some(last) = page.last() else {
                return Ok(());
            };
            from = last.order + 1;
            page.into_iter().try_for_each(&mut tell)?;
        }
    }

    /// What can be said of one bundle; `None` if it is not in the queue.
    ///
    /// # Errors
    /// The store's failure.
    pub fn inspect(&self, bundle: BundleId) -> Result<Option<Inspected>, redb::Error> {
        let mut found = None;
        self.each(|ticket| {
            if ticket.bundle == bundle {
                found = Some(ticket);
            }
            Ok::<_, redb::Error>(())
        })?;
        let Some(ticket) = found else {
            return Ok(None);
        };
        let bytes = reading_back(|| self.store.submission(ticket.order))?.unwrap_or_default();
        Ok(Some(self.inspected(ticket, &bytes)))
    }

    fn inspected(&self, ticket: Ticket, bytes: &[u8]) -> Inspected {
        // Also what does not fit together is shown, as far as it can be read.
        let read = canonical::decode::<Submission>(bytes, SUBMISSION_BYTES_MAX).ok();
        let sealed = read.as_ref().and_then(|read| SealedBundle::decode(&read.payload).ok());
        let commitment = read.as_ref().and_then(|read| match &read.transaction.claims().action {
            Action::Commit(commitment) => Some(commitment.clone()),
            _ => None,
        });
        Inspected {
            ticket,
            is_intact: Submission::decode(bytes).is_ok_and(|matched| matched.commitment().bundle == ticket.bundle),
            is_signed: read.is_some_and(|read| read.transaction.is_signed_by(&self.author)),
            commitment,
            sealed_to: sealed.map(|sealed| (sealed.category, sealed.epoch)),
        }
    }

    /// Writes each bundle that is not final to a file of its own, as it would be submitted, for nobody else to read; durable on
    /// return. The spool stays as it is.
    ///
    /// # Errors
    /// [`ExportError`].
    pub fn export(&self, folder: &Path) -> Result<Exported, ExportError> {
        let failed = |path: &Path| {
            let path = path.display().to_string();
            move |error| ExportError::File(path, error)
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(failed(folder))?;
        if fs::read_dir(folder).map_err(failed(folder))?.next().is_some() {
            return Err(ExportError::NotEmpty(folder.display().to_string()));
        }
        let mut exported = Exported::default();
        self.each(|ticket| {
            let bytes = reading_back(|| self.store.submission(ticket.order))?.unwrap_or_default();
            match Stored::checked(bytes, &ticket, &self.author) {
                Stored::Intact(bytes) => {
                    let file = folder.join(name(&ticket));
                    write_new(&file, &bytes).map_err(failed(&file))?;
                    exported.bundles += 1;
                }
                Stored::Damaged | Stored::Gone => exported.damaged += 1,
            }
            Ok::<_, ExportError>(())
        })?;
        sync_folder(folder).map_err(failed(folder))?;
        Ok(exported)
    }
}

/// Names that sort in the order of the queue.
fn name(ticket: &Ticket) -> PathBuf {
    format!("{:020}-{}.cbor", ticket.order, ticket.bundle).into()
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = new_file(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Makes the names in a folder durable, and its own name in the folder above it.
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()?;
    match folder.parent() {
        Some(above) if above.as_os_str().is_empty() => File::open(".")?.sync_all(),
        Some(above) => File::open(above)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::{Urgency, tests::Home};
    use std::os::unix::fs::PermissionsExt as _;

    async fn three_bundles() -> (Home, Vec<Ticket>) {
        let home = Home::open();
        for seq in 1..=3 {
            home.spool(&home.oximeter, seq).await;
        }
        let tickets = home.outbox.tickets(0, 10).expect("reads");
        (home, tickets)
    }

    #[tokio::test]
    async fn the_list_is_the_queue_and_a_running_gateway_is_said() {
        let (home, tickets) = three_bundles().await;
        let running = Shelf::open(home.folder.path(), &home.sealer);
        assert!(matches!(running, Err(Error::InUse)), "{running:?}");
        home.outbox.stop().await;
        let mut listed = Vec::new();
        let shelf = Shelf::open(home.folder.path(), &home.sealer).expect("opens");
        let told = shelf.each(|ticket| {
            listed.push(ticket);
            Ok::<_, redb::Error>(())
        });
        assert!(told.is_ok());
        assert_eq!(listed, tickets);
        assert!(
            tickets
                .iter()
                .all(|t| t.sealed_ms.is_some() && t.urgency == Urgency::Live)
        );
    }

    #[tokio::test]
    async fn an_inspection_says_what_is_sealed_and_whether_the_disk_has_changed_it() {
        let (mut home, tickets) = three_bundles().await;
        home.rot(&tickets[1]).await;
        home.outbox.stop().await;
        let shelf = Shelf::open(home.folder.path(), &home.sealer).expect("opens");
        let good = shelf.inspect(tickets[0].bundle).expect("reads").expect("is there");
        let commitment = good.commitment.expect("reads");
        assert_eq!((good.is_intact, good.is_signed), (true, true));
        assert_eq!((commitment.key, commitment.count), (home.oximeter.subject.id(), 1));
        assert_eq!(good.sealed_to, Some((Category::Vitals, 1)));
        let bad = shelf.inspect(tickets[1].bundle).expect("reads").expect("is there");
        assert!(!bad.is_intact, "one byte is another");
        let unknown = BundleId(canonical::Digest::ZERO);
        assert!(shelf.inspect(unknown).expect("reads").is_none());
    }

    #[tokio::test]
    async fn what_is_exported_is_what_would_be_submitted() {
        let (mut home, tickets) = three_bundles().await;
        let submitted: Vec<_> = tickets
            .iter()
            .map(|t| home.outbox.submission(t).expect("reads"))
            .collect();
        home.rot(&tickets[2]).await;
        home.outbox.stop().await;
        let shelf = Shelf::open(home.folder.path(), &home.sealer).expect("opens");
        let folder = home.folder.path().join("carried/away");
        let exported = shelf.export(&folder).expect("writes");
        assert_eq!((exported.bundles, exported.damaged), (2, 1));
        let mut files: Vec<_> = fs::read_dir(&folder)
            .expect("lists")
            .map(|f| f.expect("lists").path())
            .collect();
        files.sort();
        for (file, bytes) in files.iter().zip(submitted) {
            assert_eq!(Stored::Intact(fs::read(file).expect("reads")), bytes);
            let mode = fs::metadata(file).expect("is there").permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        assert_eq!(files.len(), 2);
        assert!(matches!(shelf.export(&folder), Err(ExportError::NotEmpty(_))));
    }
}
