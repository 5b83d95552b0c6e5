//! The files that people and commands change while the gateway runs, looked at every second and taken when they are whole.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{Directory, Places};
use crate::{
    assignment::Assignments,
    claim::Claims,
    enrolment::{self, Enrolments},
    kept,
};

/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What tells one state of a file from the next, without reading it.
type Stamp = Option<(u64, u64, i64, i64)>;

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The home's list.
    #[error("enrolment.file {0}: {1}")]
    List(String, #[source] enrolment::Error),
    /// What this gateway keeps.
    #[error(transparent)]
    Kept(#[from] kept::Error),
}

/// Looks after the files.
#[derive(Debug)]
pub struct Files {
    shelf: Shelf,
    seen: Vec<Stamp>,
}

/// Where the files are, and what takes them.
#[derive(Clone, Debug)]
struct Shelf {
    directory: Directory,
    places: Places,
}

impl Files {
    /// Takes what the data folder holds into the directory; the home's list is there already.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn open(directory: Directory, places: Places) -> Result<Self, Error> {
        *directory.desk.lock().await = Some(places.clone());
        let shelf = Shelf { directory, places };
        let seen = shelf.stamps();
        shelf.take()?;
        Ok(Self { shelf, seen })
    }

    /// Looks until it is dropped. What cannot be used is said once, and what was taken before holds.
    pub async fn run(mut self) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let stamps = self.shelf.stamps();
            if stamps == self.seen {
                continue;
            }
            // Of before reading: a file that is changed meanwhile is read again.
            self.seen = stamps;
            let shelf = self.shelf.clone();
            // The runtime is going down if it does not end.
            let Ok(taken) = tokio::task::spawn_blocking(move || shelf.take_undisturbed()).await else {
                return;
            };
            match taken {
                Ok(()) => tracing::info!(
                    devices = self.shelf.directory.len(),
                    "the list of devices was read again"
                ),
                Err(error) => {
                    metrics::counter!("gateway_directory_faults_total").increment(1);
                    tracing::error!(%error, "a changed list of devices cannot be used; the old one holds");
                }
            }
        }
    }
}

impl Shelf {
    /// While no claim is burnt: what is read before and put in place after it would forget it.
    fn take_undisturbed(&self) -> Result<(), Error> {
        let _desk = self.directory.desk.blocking_lock();
        self.take()
    }

    fn take(&self) -> Result<(), Error> {
        let Places { enrolments, folder, .. } = &self.places;
        let list = enrolment::Config {
            file: enrolments.clone(),
        };
        let listed = Enrolments::load(&list).map_err(|error| Error::List(enrolments.display().to_string(), error))?;
        let (claims, assignments) = (Claims::load(folder)?, Assignments::load(folder)?);
        self.directory.change(|known| {
            known.listed = listed;
            known.claims = claims;
            known.assignments = assignments;
        });
        Ok(())
    }

    fn stamps(&self) -> Vec<Stamp> {
        let folder = &self.places.folder;
        let files: [PathBuf; 3] = [
            self.places.enrolments.clone(),
            Assignments::file(folder),
            Claims::folder(folder),
        ];
        files.iter().map(|path| stamp(path).ok()).collect()
    }
}

fn stamp(path: &Path) -> io::Result<(u64, u64, i64, i64)> {
    let metadata = fs::metadata(path)?;
    Ok((metadata.ino(), metadata.size(), metadata.mtime(), metadata.mtime_nsec()))
}
