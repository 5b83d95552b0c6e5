//! What went wrong on this node and how it was mended: a file each, and the list of them that anybody may read.

use std::{
    fs, io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use serde::{Deserialize, Serialize};

/// Incidents that are kept, at most; the oldest go first.
const INCIDENTS_MAX: usize = 1_000;
/// Incidents that anybody is shown, at most: the newest.
const SHOWN_MAX: usize = 100;
/// The folder in the data folder.
const FOLDER: &str = "incidents";

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The chain's file does not hold what was agreed.
    ChainDamaged,
    /// A payload of a final bundle is missing, or its bytes are not what its identifier says.
    PayloadDamaged,
    /// Payloads that the chain names are not in the vault.
    PayloadMissing,
    /// A peer did not prove payloads that it should hold.
    PossessionUnproven,
    /// Rows of the index are not what the chain and the payloads say.
    IndexAltered,
    /// The consensus engine's own files kept it from starting.
    EngineDamaged,
    /// A majority of the validators has another chain or state than this node.
    Diverged,
    /// A node that confirmed an erasure still gives out what it erased.
    ErasedServed,
    /// Another organisation announced a key whose private half is here, and has erased it.
    ErasedByAnother,
    /// Two blocks of one height, each with two thirds of the votes.
    Forked,
}

/// Who noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FoundBy {
    /// The scrubber, reading everything again.
    Scrub,
    /// The sweep, comparing what the chain names with what the vault lists.
    Sweep,
    /// The challenge, asking peers for proof of what they hold.
    Challenge,
    /// The comparison of signed heads with the peers.
    Comparison,
    /// The start: a file did not open.
    Start,
    /// An observer, following other nodes.
    Following,
    /// A question, or what was taken in: rows were not as this node wrote them.
    Question,
    /// Asking the peers for what none of them should have.
    Probe,
    /// An erasure that was carried out here.
    Erasure,
}

/// An incident; nothing in it is personal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Incident {
    /// Counts up on this node.
    pub id: u64,
    /// What is wrong.
    pub kind: Kind,
    /// In words.
    pub what: String,
    /// Where: a height, a content identifier, a file.
    #[serde(rename = "where")]
    pub place: String,
    /// Who noticed.
    pub found_by: FoundBy,
    /// When, in milliseconds since 1970 by this node's clock.
    pub found_at_ms: i64,
    /// From whom good bytes came; `this node` if its own other copies sufficed. Empty until it is mended.
    pub repaired_from: Vec<String>,
    /// How long that took, in milliseconds; absent until it is mended.
    pub took_ms: Option<i64>,
}

/// Proof that an incident was recorded; it asks to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "an incident that was opened is closed when it is mended"]
pub struct Open(u64);

#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    // A lock, not a task: an incident is rare, and its file is small.
    all: Mutex<Vec<Incident>>,
}

/// The incidents of this node; clones share them.
#[derive(Clone, Debug)]
pub struct Incidents(Arc<Shared>);

impl Incidents {
    /// Reads the incidents of earlier runs.
    ///
    /// # Errors
    /// The folder cannot be made or read.
    pub fn open(data_dir: &Path) -> io::Result<Self> {
        let folder = data_dir.join(FOLDER);
        fs::create_dir_all(&folder)?;
        let mut all = Vec::new();
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.extension().is_none_or(|ending| ending != "json") {
                continue;
            }
            let text = fs::read_to_string(path);
            // A file that is no incident is in nobody's way.
            all.extend(text.ok().and_then(|text| serde_json::from_str::<Incident>(&text).ok()));
        }
        all.sort_by_key(|incident| incident.id);
        Ok(Self(Arc::new(Shared {
            folder,
            all: Mutex::new(all),
        })))
    }

    fn all(&self) -> MutexGuard<'_, Vec<Incident>> {
        self.0.all.lock().expect("nobody panics while it holds the incidents")
    }

    /// The newest ones, the newest first.
    #[must_use]
    pub fn list(&self) -> Vec<Incident> {
        self.all().iter().rev().take(SHOWN_MAX).cloned().collect()
    }

    /// Records what was found; what was found before and is not mended yet is not recorded again.
    pub fn found(&self, kind: Kind, found_by: FoundBy, place: String, what: String) -> Open {
        let mut all = self.all();
        let is_same = |known: &&Incident| known.took_ms.is_none() && known.kind == kind && known.place == place;
        if let Some(known) = all.iter().rev().find(is_same) {
            return Open(known.id);
        }
        let incident = Incident {
            id: all.last().map_or(1, |last| last.id + 1),
            kind,
            what,
            place,
            found_by,
            found_at_ms: jiff::Timestamp::now().as_millisecond(),
            repaired_from: Vec::new(),
            took_ms: None,
        };
        tracing::error!(id = incident.id, ?kind, ?found_by, place = %incident.place, what = %incident.what, "incident");
        metrics::counter!("fog_recovery_incidents_total", "kind" => name(kind)).increment(1);
        all.push(incident.clone());
        let oldest = (all.len() > INCIDENTS_MAX).then(|| all.remove(0));
        // Whoever reads the list does not wait for the disk.
        drop(all);
        self.write(&incident);
        if let Some(oldest) = oldest {
            let _removed = fs::remove_file(self.path(oldest.id));
        }
        Open(incident.id)
    }

    /// What was found of this kind at this place and is not mended yet, whoever has found it.
    #[must_use]
    pub fn unmended(&self, kind: Kind, place: &str) -> Option<Open> {
        let all = self.all();
        let is_it = |known: &&Incident| known.took_ms.is_none() && known.kind == kind && known.place == place;
        all.iter().rev().find(is_it).map(|known| Open(known.id))
    }

    /// Records that it is mended, and from whom.
    pub fn mended(&self, Open(id): Open, repaired_from: Vec<String>) {
        let mut all = self.all();
        let Some(incident) = all.iter_mut().find(|incident| incident.id == id) else {
            return;
        };
        let took_ms = jiff::Timestamp::now().as_millisecond() - incident.found_at_ms;
        incident.repaired_from = repaired_from;
        incident.took_ms = Some(took_ms);
        tracing::warn!(id, took_ms, from = ?incident.repaired_from, "mended");
        let incident = incident.clone();
        drop(all);
        self.write(&incident);
    }

    /// Whole or not at all. An incident that cannot be written stays in the list and in the log.
    fn write(&self, incident: &Incident) {
        let text = serde_json::to_string_pretty(incident).expect("an incident has string keys and whole numbers");
        let (path, new) = (self.path(incident.id), self.path(incident.id).with_extension("new"));
        let written = || -> io::Result<()> {
            let mut options = fs::OpenOptions::new();
            let file = options.create(true).truncate(true).write(true).mode(0o600).open(&new)?;
            io::Write::write_all(&mut &file, text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, &path)
        };
        if let Err(error) = written() {
            tracing::error!(%error, id = incident.id, "the incident's file cannot be written");
        }
    }

    fn path(&self, id: u64) -> PathBuf {
        self.0.folder.join(format!("{id:06}.json"))
    }
}

const fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::ChainDamaged => "chain-damaged",
        Kind::EngineDamaged => "engine-damaged",
        Kind::PayloadDamaged => "payload-damaged",
        Kind::PayloadMissing => "payload-missing",
        Kind::PossessionUnproven => "possession-unproven",
        Kind::IndexAltered => "index-altered",
        Kind::Diverged => "diverged",
        Kind::Forked => "forked",
        Kind::ErasedServed => "erased-served",
        Kind::ErasedByAnother => "erased-by-another",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_incident_is_a_file_and_survives_a_restart() {
        let dir = tempfile::tempdir().expect("a folder");
        let incidents = Incidents::open(dir.path()).expect("opens");
        let find = |place: &str| {
            incidents.found(
                Kind::PayloadDamaged,
                FoundBy::Scrub,
                place.to_owned(),
                "gone".to_owned(),
            )
        };
        let first = find("bafy1");
        let _still_open = find("bafy2");
        incidents.mended(first, vec!["https://peer".to_owned()]);
        let again = Incidents::open(dir.path()).expect("opens");
        assert_eq!(again.list(), incidents.list());
        let [second, first] = &again.list()[..] else {
            panic!("two incidents");
        };
        assert_eq!((first.id, first.took_ms.is_some()), (1, true));
        assert_eq!((second.place.as_str(), second.took_ms), ("bafy2", None));
        assert_eq!(fs::read_dir(dir.path().join(FOLDER)).expect("reads").count(), 2);
        assert_eq!(
            again.found(Kind::Diverged, FoundBy::Comparison, String::new(), String::new()),
            Open(3)
        );
    }

    #[test]
    fn the_oldest_go_when_there_are_too_many() {
        let dir = tempfile::tempdir().expect("a folder");
        let incidents = Incidents::open(dir.path()).expect("opens");
        for at in 0..INCIDENTS_MAX + 3 {
            let _open = incidents.found(Kind::PayloadDamaged, FoundBy::Scrub, at.to_string(), String::new());
        }
        assert_eq!(
            (incidents.list().len(), incidents.all().len()),
            (SHOWN_MAX, INCIDENTS_MAX)
        );
        assert_eq!(incidents.all().first().expect("many").id, 4);
    }

    #[test]
    fn what_is_not_mended_yet_is_recorded_once() {
        let dir = tempfile::tempdir().expect("a folder");
        let incidents = Incidents::open(dir.path()).expect("opens");
        let find = || {
            incidents.found(
                Kind::Diverged,
                FoundBy::Comparison,
                "the head".to_owned(),
                String::new(),
            )
        };
        let first = find();
        assert_eq!(find(), first);
        incidents.mended(first, vec![]);
        assert_ne!(find(), first, "it happened again");
    }
}
