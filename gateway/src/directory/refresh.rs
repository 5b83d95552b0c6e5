//! The files that people and commands change while the gateway runs, looked at every second and taken when they are whole.

use std::time::Duration;

use super::{Directory, Places};
use crate::{
    assignment::Assignments,
    claim::Claims,
    enrolment::{self, Enrolments},
    kept::{self, Stamp},
};

/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_secs(1);

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

/// What is looked at, each by itself: one that is broken keeps the others from nothing.
#[derive(Clone, Copy, Debug)]
enum Source {
    List,
    Claims,
    Assignments,
}

impl Source {
    const ALL: [Self; 3] = [Self::List, Self::Claims, Self::Assignments];

    const fn name(self) -> &'static str {
        match self {
            Self::List => "list",
            Self::Claims => "claims",
            Self::Assignments => "assignments",
        }
    }
}

/// Looks after the files.
#[derive(Debug)]
pub struct Files {
    shelf: Shelf,
    seen: [Option<Stamp>; Source::ALL.len()],
}

/// Where the files are, and what takes them.
#[derive(Clone, Debug)]
struct Shelf {
    directory: Directory,
    places: Places,
}

impl Files {
    /// Takes all of it into the directory.
    ///
    /// # Errors
    /// [`Error`], of the first that cannot be used.
    pub async fn open(directory: Directory, places: Places) -> Result<Self, Error> {
        *directory.desk.lock().await = Some(places.clone());
        let shelf = Shelf { directory, places };
        let seen = Source::ALL.map(|source| shelf.stamp(source));
        for source in Source::ALL {
            shelf.take(source)?;
        }
        Ok(Self { shelf, seen })
    }

    /// Looks until it is dropped. What cannot be used is said once, and what was taken of it before holds.
    pub async fn run(mut self) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            for (source, seen) in Source::ALL.into_iter().zip(&mut self.seen) {
                let stamp = self.shelf.stamp(source);
                if stamp == *seen {
                    continue;
                }
                // Of before reading: a file that is changed meanwhile is read again.
                *seen = stamp;
                let shelf = self.shelf.clone();
                // The runtime is going down if it does not end.
                let Ok(taken) = tokio::task::spawn_blocking(move || shelf.take_undisturbed(source)).await else {
                    return;
                };
                let (devices, source) = (self.shelf.directory.len(), source.name());
                match taken {
                    Ok(()) => tracing::info!(source, devices, "what says which device measures whom was read again"),
                    Err(error) => {
                        metrics::counter!("gateway_directory_faults_total").increment(1);
                        tracing::error!(source, %error, "what has changed cannot be used; what it said before holds");
                    }
                }
            }
        }
    }
}

impl Shelf {
    /// While no claim is burnt: what is read before and put in place after it would forget it.
    fn take_undisturbed(&self, source: Source) -> Result<(), Error> {
        let _desk = self.directory.desk.blocking_lock();
        self.take(source)
    }

    fn take(&self, source: Source) -> Result<(), Error> {
        let Places { enrolments, folder, .. } = &self.places;
        match source {
            Source::List => {
                let file = enrolments.clone();
                let listed = Enrolments::load(&enrolment::Config { file });
                let listed = listed.map_err(|error| Error::List(enrolments.display().to_string(), error))?;
                self.directory.change(|known| known.listed = listed);
            }
            Source::Claims => {
                let claims = Claims::load(folder)?;
                self.directory.change(|known| known.claims = claims);
            }
            Source::Assignments => {
                let assignments = Assignments::load(folder)?;
                self.directory.change(|known| known.assignments = assignments);
            }
        }
        Ok(())
    }

    fn stamp(&self, source: Source) -> Option<Stamp> {
        let Places { enrolments, folder, .. } = &self.places;
        let path = match source {
            Source::List => enrolments.clone(),
            Source::Claims => Claims::folder(folder),
            Source::Assignments => Assignments::file(folder),
        };
        kept::stamp(&path).ok()
    }
}
