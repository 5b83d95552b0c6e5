//! A private half destroyed: noted, gone from the file, from memory, and from every hand.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError},
    thread,
    time::{Duration, Instant},
};

use ledger::transaction::PrivateHalf;
use record::ids::KeyId;

use super::{
    Error, KEYRING_BYTES_MAX, Keyring,
    file::{append_line, read_private, replace_private},
};

/// How long is waited for who has a private half in hand.
const IN_HAND: Duration = Duration::from_secs(30);
/// Between two looks at that.
const LOOK_EVERY: Duration = Duration::from_millis(10);

impl Keyring {
    /// Destroys a private half, and who its subject is if this node has no other key of theirs. Says whether there ever was
    /// one here. It blocks, and does nothing more when it is called again.
    ///
    /// Copies of the file elsewhere are for their owner to destroy: it opens them with the same passphrase.
    ///
    /// # Errors
    /// [`Error::Io`] (the key may be gone from the file by then), or [`Error::InUse`]: call it again.
    pub fn destroy(&self, key: &KeyId) -> Result<PrivateHalf, Error> {
        let _alone = self.0.destroying.lock().unwrap_or_else(PoisonError::into_inner);
        let is_here = self.contents().keys.contains_key(key);
        if let Some(place) = self.0.place.as_ref().filter(|_| is_here) {
            if !self.contents().destroyed.contains(key) {
                append_line(&notes(&place.path), &key.to_string())?;
            }
            let remaining = place.seal.close(&self.contents().encode(Some(key)));
            replace_private(&place.path, &remaining)?;
            self.forget(key);
        }
        self.until_in_no_hand(key)?;
        Ok(if self.contents().destroyed.contains(key) {
            PrivateHalf::Destroyed
        } else {
            PrivateHalf::NeverHeld
        })
    }

    fn forget(&self, key: &KeyId) {
        let mut contents = self.0.contents.write().unwrap_or_else(PoisonError::into_inner);
        contents.destroyed.insert(*key);
        let Some(held) = contents.keys.remove(key) else { return };
        contents.leaving.insert(*key, Arc::downgrade(&held.secret));
        let of = contents.of.entry(held.subject).or_default();
        of.retain(|other| other != key);
        if of.is_empty() {
            contents.of.remove(&held.subject);
            contents.patients.remove(&held.subject);
        }
    }

    /// The last one who drops it wipes it.
    fn until_in_no_hand(&self, key: &KeyId) -> Result<(), Error> {
        let since = Instant::now();
        let is_in_hand = || {
            let contents = self.contents();
            contents
                .leaving
                .get(key)
                .is_some_and(|secret| secret.strong_count() > 0)
        };
        while is_in_hand() {
            if since.elapsed() > IN_HAND {
                return Err(Error::InUse);
            }
            thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }
}

/// The keys whose private halves were destroyed here, as noted beside the file.
pub(super) fn noted(path: &Path) -> Result<BTreeSet<KeyId>, Error> {
    let path = notes(path);
    if !path.exists() {
        return Ok(BTreeSet::new());
    }
    let bytes = read_private(&path, KEYRING_BYTES_MAX as u64)?;
    let text = String::from_utf8_lossy(&bytes);
    // What an interrupted writing left behind is no key: it is destroyed again, and noted then.
    Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
}

fn notes(path: &Path) -> PathBuf {
    path.with_extension("destroyed")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use record::{
        bundle::{Category, SubjectSecret},
        fhir::Patient,
        ids::SubjectId,
    };
    use zeroize::Zeroizing;

    use super::*;
    use crate::keyring::{FILE, Holding, Passphrase};

    fn passphrase() -> Passphrase {
        Passphrase::new(Zeroizing::new("correct horse battery".to_owned())).expect("long enough")
    }

    fn patient(family: &str) -> Patient {
        Patient {
            id: SubjectId::random(),
            family: family.to_owned(),
            given: "Astrid".to_owned(),
            gender: "female".to_owned(),
            birth_date: "1957-11-14".to_owned(),
        }
    }

    fn holding(patient: &Patient, epoch: u32) -> Holding {
        let (secret, key) = SubjectSecret::generate(Category::Vitals, epoch).expect("random numbers");
        Holding {
            key,
            secret,
            patient: patient.clone(),
        }
    }

    /// Two keys of one patient and one of another, in a keyring in a folder.
    fn created() -> (tempfile::TempDir, PathBuf, Vec<Holding>) {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join(FILE);
        let (first, second) = (patient("First"), patient("Second"));
        let holdings = vec![holding(&first, 1), holding(&first, 2), holding(&second, 1)];
        Keyring::create(&path, &passphrase(), holdings.clone()).expect("creates");
        (dir, path, holdings)
    }

    #[test]
    fn a_destroyed_key_is_gone_from_memory_and_file_and_the_others_stay() {
        let (_dir, path, holdings) = created();
        let keyring = Keyring::open(&path, &passphrase()).expect("opens");
        let ids: Vec<_> = holdings.iter().map(|holding| holding.key.id()).collect();
        assert_eq!(keyring.destroy(&ids[0]).expect("destroyed"), PrivateHalf::Destroyed);
        for keyring in [keyring.clone(), Keyring::open(&path, &passphrase()).expect("opens")] {
            assert!(keyring.secret(&ids[0]).is_none() && keyring.subject_of(&ids[0]).is_none());
            assert_eq!(keyring.keys_of(holdings[0].patient.id), [ids[1]]);
            assert_eq!(
                keyring.secret(&ids[1]).expect("held").secret_bytes(),
                holdings[1].secret.secret_bytes()
            );
            assert_eq!(keyring.patients().len(), 2);
            assert_eq!(keyring.destroy(&ids[0]).expect("again"), PrivateHalf::Destroyed);
        }
    }

    #[test]
    fn who_has_no_key_left_is_not_named_any_more() {
        let (_dir, path, holdings) = created();
        let keyring = Keyring::open(&path, &passphrase()).expect("opens");
        let subject = holdings[2].patient.id;
        keyring.destroy(&holdings[2].key.id()).expect("destroyed");
        for keyring in [keyring, Keyring::open(&path, &passphrase()).expect("opens")] {
            assert!(keyring.patient(subject).is_none() && keyring.keys_of(subject).is_empty());
            assert_eq!(keyring.patients().len(), 1);
        }
    }

    #[test]
    fn what_was_never_here_is_said_to_have_never_been() {
        let (_dir, path, _) = created();
        let stranger = holding(&patient("Third"), 1).key.id();
        let before = fs::read(&path).expect("reads");
        let keyring = Keyring::open(&path, &passphrase()).expect("opens");
        assert_eq!(
            keyring.destroy(&stranger).expect("nothing to do"),
            PrivateHalf::NeverHeld
        );
        assert_eq!(fs::read(&path).expect("reads"), before, "the file is left alone");
        let none = Keyring::default();
        assert_eq!(none.destroy(&stranger).expect("nothing to do"), PrivateHalf::NeverHeld);
    }

    #[test]
    fn a_copy_that_is_put_back_is_destroyed_again() {
        let (_dir, path, holdings) = created();
        let copy = fs::read(&path).expect("reads");
        let id = holdings[0].key.id();
        let first = Keyring::open(&path, &passphrase()).expect("opens");
        first.destroy(&id).expect("destroyed");
        fs::write(&path, copy).expect("an old copy comes back");
        let second = Keyring::open(&path, &passphrase()).expect("opens");
        assert!(second.secret(&id).is_some(), "the copy has it");
        assert_eq!(second.destroy(&id).expect("destroyed"), PrivateHalf::Destroyed);
        assert!(
            Keyring::open(&path, &passphrase())
                .expect("opens")
                .secret(&id)
                .is_none()
        );
    }

    #[test]
    fn the_bytes_of_the_old_file_are_overwritten() {
        let (dir, path, holdings) = created();
        // A second name keeps the old file within reach: what a thief would find on the disk.
        let old = dir.path().join("old");
        fs::hard_link(&path, &old).expect("links");
        let keyring = Keyring::open(&path, &passphrase()).expect("opens");
        keyring.destroy(&holdings[0].key.id()).expect("destroyed");
        let left = fs::read(&old).expect("reads");
        assert!(!left.is_empty() && left.iter().all(|byte| *byte == 0));
        assert_ne!(fs::read(&path).expect("reads"), left);
    }

    #[test]
    fn who_has_it_in_hand_is_waited_for() {
        let (_dir, path, holdings) = created();
        let keyring = Keyring::open(&path, &passphrase()).expect("opens");
        let id = holdings[0].key.id();
        let in_hand = keyring.secret(&id).expect("held");
        let destroying = thread::spawn({
            let keyring = keyring.clone();
            move || keyring.destroy(&id)
        });
        while keyring.secret(&id).is_some() {
            thread::sleep(Duration::from_millis(1));
        }
        assert!(!destroying.is_finished(), "somebody still opens with it");
        drop(in_hand);
        assert_eq!(
            destroying.join().expect("no panic").expect("destroyed"),
            PrivateHalf::Destroyed
        );
    }

    #[test]
    fn an_interrupted_note_loses_nothing_but_itself() {
        let (_dir, path, holdings) = created();
        let ids: Vec<_> = holdings.iter().map(|holding| holding.key.id()).collect();
        fs::write(notes(&path), "1220ab").expect("writes");
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(notes(&path), fs::Permissions::from_mode(0o600)).expect("chmod");
        let keyring = Keyring::open(&path, &passphrase()).expect("opens");
        keyring.destroy(&ids[0]).expect("destroyed");
        keyring.destroy(&ids[1]).expect("destroyed");
        let again = Keyring::open(&path, &passphrase()).expect("opens");
        for id in &ids[..2] {
            assert_eq!(again.destroy(id).expect("knows"), PrivateHalf::Destroyed);
        }
    }
}
