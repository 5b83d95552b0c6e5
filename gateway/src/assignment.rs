//! Whom a shared device measures: from a time on, until the next line says otherwise; it may be nobody.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
};

use record::{bundle::SubjectKey, ids::DeviceId};
use serde::{Deserialize, Serialize};

use crate::{kept, outbox::can_seal_to};

/// The file in the data folder.
const FILE: &str = "assignments.json";
/// More bytes than it has.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// Assignments that are kept, at most.
pub const ASSIGNMENTS_MAX: usize = 20_000;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Assignment {
    /// The device.
    pub device: DeviceId,
    /// What its readings are sealed to; absent: nobody, its readings go to quarantine.
    pub subject: Option<SubjectKey>,
    /// From when on, in milliseconds since 1970.
    pub from_ms: i64,
}

/// All of them, in the order in which they were made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Assignments(Vec<Assignment>);

impl Assignments {
    /// Where they are kept.
    #[must_use]
    pub fn file(folder: &Path) -> PathBuf {
        folder.join(FILE)
    }

    /// What is kept in the data folder. Each key is tried: sealing to it later has no way to fail.
    ///
    /// # Errors
    /// [`kept::Error`].
    pub fn load(folder: &Path) -> Result<Self, kept::Error> {
        let file = Self::file(folder);
        let kept: Self = kept::read(&file, FILE_BYTES_MAX)?.unwrap_or_default();
        // Once each: a shared device goes to and fro between few people.
        let mut good = HashSet::new();
        for (line, number) in kept.0.iter().zip(1..) {
            let Some(subject) = line.subject.as_ref().filter(|subject| !good.contains(&subject.public)) else {
                continue;
            };
            if !can_seal_to(subject) {
                let entry = format!("line {number}, of device {},", line.device);
                return Err(kept::Error::Unsealable(file.display().to_string(), entry));
            }
            good.insert(&subject.public);
        }
        Ok(kept)
    }

    /// Adds a line and keeps all of them; the oldest line of all is dropped when there are too many.
    ///
    /// # Errors
    /// [`kept::Error`].
    pub fn add(&mut self, folder: &Path, line: Assignment) -> Result<(), kept::Error> {
        self.0.push(line);
        let surplus = self.0.len().saturating_sub(ASSIGNMENTS_MAX);
        self.0.drain(..surplus);
        kept::replace(&Self::file(folder), self)
    }

    /// The lines.
    #[must_use]
    pub fn lines(&self) -> &[Assignment] {
        &self.0
    }

    /// The lines of each device.
    #[must_use]
    pub fn by_device(&self) -> HashMap<DeviceId, Self> {
        let mut all: HashMap<DeviceId, Self> = HashMap::new();
        for line in &self.0 {
            all.entry(line.device.clone()).or_default().0.push(line.clone());
        }
        all
    }

    /// Of one device's lines the one that holds at a time: the latest beginning, and of those the last that was made.
    #[must_use]
    pub fn at(&self, at_ms: i64) -> Option<&Assignment> {
        let holds = |line: &&Assignment| line.from_ms <= at_ms;
        self.0.iter().filter(holds).max_by_key(|line| line.from_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use record::bundle::{Category, SubjectSecret};

    fn line(device: &str, from_ms: i64, somebody: bool) -> Assignment {
        let subject = || SubjectSecret::generate(Category::Vitals, 1).expect("random numbers").1;
        Assignment {
            device: device.parse().expect("good"),
            subject: somebody.then(subject),
            from_ms,
        }
    }

    #[test]
    fn a_line_holds_from_its_time_until_the_next_and_is_there_after_a_restart() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let mut all = Assignments::load(folder.path()).expect("none");
        let lines = [
            line("cuff-1", 100, true),
            line("cuff-1", 300, false),
            line("cuff-1", 200, true),
            line("scale-1", 50, true),
            line("cuff-1", 200, true),
        ];
        for line in &lines {
            all.add(folder.path(), line.clone()).expect("keeps");
        }
        let all = Assignments::load(folder.path()).expect("reads");
        assert_eq!(all.lines(), lines);
        let cuff: DeviceId = "cuff-1".parse().expect("good");
        let all = all.by_device();
        let at = |at_ms| all[&cuff].at(at_ms);
        assert_eq!(at(99), None);
        assert_eq!(at(100), Some(&lines[0]));
        assert_eq!(at(299), Some(&lines[4]), "a correction of the same time");
        assert_eq!(at(300).expect("a line").subject, None);
    }

    #[test]
    fn a_line_that_nothing_can_be_sealed_by_is_refused_by_its_number_and_device() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let mut all = Assignments::default();
        all.add(folder.path(), line("cuff-1", 100, true)).expect("keeps");
        let bad = Assignment {
            subject: Some(crate::outbox::tests::unsealable()),
            ..line("scale-1", 200, false)
        };
        all.add(folder.path(), bad).expect("keeps");
        let said = Assignments::load(folder.path()).expect_err("small order").to_string();
        assert!(said.contains("line 2, of device scale-1,"), "{said}");
    }
}
