//! The private halves of subject keys and who the subjects are, sealed at rest under a passphrase.
//!
//! The file: a line that names the format, salt, nonce, and AES-256-GCM over the canonical holdings, under a key that
//! argon2id (64 MiB, 3 passes) makes of the passphrase. Everything before the ciphertext is authenticated with it, and
//! the costs are fixed by the format's name: a flipped byte anywhere gives an error, never another keyring.
//!
//! A private half that is destroyed is gone from the file first, then from memory, when nobody has it in hand any more; that
//! it was here is noted in a file beside it before.

mod destroy;
mod file;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, Weak},
};

use record::{
    bundle::{SubjectKey, SubjectSecret},
    canonical,
    fhir::Patient,
    ids::{KeyId, SubjectId},
};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use zeroize::Zeroizing;

use file::{Seal, io_error, read_private, write_private};

/// The file in the data folder.
pub const FILE: &str = "keyring.sealed";
/// A sealed keyring has at most this many bytes: some hundred thousand keys.
pub const KEYRING_BYTES_MAX: usize = 64 << 20;
/// A passphrase has at least this many bytes.
pub const PASSPHRASE_BYTES_MIN: usize = 12;
/// A passphrase file has at most this many bytes.
const PASSPHRASE_BYTES_MAX: u64 = 4_096;

/// Where the passphrase is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// File that holds the passphrase, readable by its owner alone. Without it the node holds no keys: it stores sealed
    /// payloads and can read none of them.
    pub passphrase_file: Option<PathBuf>,
}

/// Why a keyring cannot be opened or made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others than the owner may read it.
    #[error("{path} may be read by others than its owner: chmod 600 {path}")]
    Exposed {
        /// Which file.
        path: PathBuf,
    },
    /// A passphrase that a thief would guess.
    #[error("the passphrase has fewer than {PASSPHRASE_BYTES_MIN} bytes, or is not one line of UTF-8")]
    WeakPassphrase,
    /// Not what [`Keyring::create`] writes.
    #[error("{path} is not a keyring of this version")]
    NotAKeyring {
        /// Which file.
        path: PathBuf,
    },
    /// Another passphrase, or altered bytes; the two cannot be told apart.
    #[error("{path} does not open: wrong passphrase, or the file was altered; restore it from the backup")]
    NotOpened {
        /// Which file.
        path: PathBuf,
    },
    /// Somebody is still opening something with the key; it is soon done with.
    #[error("a private half is destroyed when nobody has it in hand any more; ask again")]
    InUse,
    /// The holdings contradict each other.
    #[error("the holdings contradict each other: one key, or one patient, is given twice and differently")]
    Contradiction,
}

/// What opens a keyring; wiped when dropped, never printed.
pub struct Passphrase(Zeroizing<String>);

impl Passphrase {
    /// A passphrase of one line.
    ///
    /// # Errors
    /// [`Error::WeakPassphrase`].
    pub fn new(text: Zeroizing<String>) -> Result<Self, Error> {
        if text.len() < PASSPHRASE_BYTES_MIN || text.contains('\n') {
            return Err(Error::WeakPassphrase);
        }
        Ok(Self(text))
    }

    /// Reads the first line of a file that only its owner may read.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Exposed`] or [`Error::WeakPassphrase`].
    pub fn read(path: &Path) -> Result<Self, Error> {
        let bytes = read_private(path, PASSPHRASE_BYTES_MAX)?;
        let text = std::str::from_utf8(&bytes).map_err(|_| Error::WeakPassphrase)?;
        Self::new(Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned()))
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(..)")
    }
}

/// A subject key whose private half this node holds, and whose it is.
#[derive(Clone)]
pub struct Holding {
    /// The public half, as announced.
    pub key: SubjectKey,
    /// The private half.
    pub secret: SubjectSecret,
    /// The subject.
    pub patient: Patient,
}

impl fmt::Debug for Holding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Holding(of {})", self.key.id())
    }
}

/// A holding as it is encoded before it is sealed.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    key: SubjectKey,
    secret: ByteBuf,
    patient: Patient,
}

/// The keys this node holds. Clones share it.
#[derive(Clone, Default)]
pub struct Keyring(Arc<Shared>);

#[derive(Default)]
struct Shared {
    // Read for a moment by every question; written when a key is destroyed.
    contents: RwLock<Contents>,
    /// Where it lies; none for a keyring that has no file and no keys.
    place: Option<Place>,
    // One key is destroyed at a time; held while the file is written.
    destroying: Mutex<()>,
}

/// Where a keyring lies, and what seals it again.
struct Place {
    path: PathBuf,
    seal: Seal,
}

#[derive(Default)]
struct Contents {
    keys: BTreeMap<KeyId, Held>,
    patients: BTreeMap<SubjectId, Patient>,
    of: BTreeMap<SubjectId, Vec<KeyId>>,
    /// Destroyed in this run, and perhaps still in somebody's hand.
    leaving: BTreeMap<KeyId, Weak<SubjectSecret>>,
    /// Destroyed in this run or an earlier one.
    destroyed: BTreeSet<KeyId>,
}

/// A key in the keyring.
#[derive(Clone)]
struct Held {
    key: SubjectKey,
    secret: Arc<SubjectSecret>,
    subject: SubjectId,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keyring({} keys)", self.len())
    }
}

impl Keyring {
    /// The keyring of the data folder; an empty one if no passphrase file is configured.
    ///
    /// # Errors
    /// As [`Passphrase::read`] and [`Keyring::open`].
    pub fn load(config: &Config, data_dir: &Path) -> Result<Self, Error> {
        let Some(passphrase_file) = &config.passphrase_file else {
            return Ok(Self::default());
        };
        Self::open(&data_dir.join(FILE), &Passphrase::read(passphrase_file)?)
    }

    /// Seals the holdings into a new file; an existing keyring is never overwritten, its keys would be lost.
    ///
    /// # Errors
    /// [`Error::Contradiction`], or [`Error::Io`] (also if the file exists).
    pub fn create(path: &Path, passphrase: &Passphrase, holdings: Vec<Holding>) -> Result<Self, Error> {
        if path.exists() {
            return Err(io_error(path, io::ErrorKind::AlreadyExists.into()));
        }
        let contents = Contents::of(holdings.into_iter())?;
        let seal = Seal::new(passphrase);
        write_private(path, &seal.close(&contents.encode(None)))?;
        Ok(Self::at(path, seal, contents))
    }

    /// Puts a copy of a sealed keyring into the data folder, after it has opened; one that is there already must be the same.
    ///
    /// # Errors
    /// As [`Keyring::open`], or [`Error::Io`] (also if another keyring is there).
    pub fn restore(copy: &Path, data_dir: &Path, passphrase: &Passphrase) -> Result<Self, Error> {
        Self::open(copy, passphrase)?;
        let bytes = read_private(copy, KEYRING_BYTES_MAX as u64)?;
        let path = data_dir.join(FILE);
        if !path.exists() {
            write_private(&path, &bytes)?;
        } else if read_private(&path, KEYRING_BYTES_MAX as u64)? != bytes {
            return Err(io_error(&path, io::ErrorKind::AlreadyExists.into()));
        }
        Self::open(&path, passphrase)
    }

    /// Opens a sealed keyring.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Exposed`], [`Error::NotAKeyring`] or [`Error::NotOpened`].
    pub fn open(path: &Path, passphrase: &Passphrase) -> Result<Self, Error> {
        let mut file = read_private(path, KEYRING_BYTES_MAX as u64)?;
        let (plaintext, seal) = Seal::open(path, passphrase, &mut file)?;
        // Not `canonical::decode`: its re-encoding would leave a copy of the secrets in memory.
        let entries: Vec<Entry> = canonical::decode_foreign(plaintext, KEYRING_BYTES_MAX)
            .map_err(|_| Error::NotAKeyring { path: path.to_owned() })?;
        let mut contents = Contents::of(entries.into_iter().map(|entry| Holding {
            key: entry.key,
            secret: SubjectSecret::from_bytes(Zeroizing::new(entry.secret.into_vec())),
            patient: entry.patient,
        }))?;
        contents.destroyed = destroy::noted(path)?;
        Ok(Self::at(path, seal, contents))
    }

    fn at(path: &Path, seal: Seal, contents: Contents) -> Self {
        Self(Arc::new(Shared {
            contents: RwLock::new(contents),
            place: Some(Place {
                path: path.to_owned(),
                seal,
            }),
            destroying: Mutex::default(),
        }))
    }

    fn contents(&self) -> RwLockReadGuard<'_, Contents> {
        // Nothing is half done when a panic leaves it.
        self.0.contents.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The private half of a key, if this node holds it. It is destroyed when nobody has it in hand any more.
    #[must_use]
    pub fn secret(&self, key: &KeyId) -> Option<Arc<SubjectSecret>> {
        self.contents().keys.get(key).map(|held| held.secret.clone())
    }

    /// The keys of a subject that this node holds.
    #[must_use]
    pub fn keys_of(&self, subject: SubjectId) -> Vec<KeyId> {
        self.contents().of.get(&subject).cloned().unwrap_or_default()
    }

    /// Every key that this node holds.
    #[must_use]
    pub fn keys(&self) -> Vec<KeyId> {
        self.contents().keys.keys().copied().collect()
    }

    /// Whose key it is.
    #[must_use]
    pub fn subject_of(&self, key: &KeyId) -> Option<SubjectId> {
        self.contents().keys.get(key).map(|held| held.subject)
    }

    /// Who a subject is.
    #[must_use]
    pub fn patient(&self, subject: SubjectId) -> Option<Patient> {
        self.contents().patients.get(&subject).cloned()
    }

    /// How many keys these are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.contents().keys.len()
    }

    /// Whether there is no key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All subjects, by id.
    #[must_use]
    pub fn patients(&self) -> Vec<Patient> {
        self.contents().patients.values().cloned().collect()
    }
}

impl Contents {
    fn of(holdings: impl Iterator<Item = Holding>) -> Result<Self, Error> {
        let mut contents = Self::default();
        for holding in holdings {
            let subject = holding.patient.id;
            let known = contents
                .patients
                .entry(subject)
                .or_insert_with(|| holding.patient.clone());
            let key = holding.key.id();
            let held = Held {
                key: holding.key,
                secret: Arc::new(holding.secret),
                subject,
            };
            let is_new = contents.keys.insert(key, held).is_none();
            contents.of.entry(subject).or_default().push(key);
            if *known != holding.patient || !is_new {
                return Err(Error::Contradiction);
            }
        }
        Ok(contents)
    }

    /// The bytes that are sealed: all holdings, but for this key.
    fn encode(&self, without: Option<&KeyId>) -> Zeroizing<Vec<u8>> {
        let kept = self.keys.iter().filter(|(key, _)| Some(*key) != without);
        let entries: Vec<_> = kept
            .map(|(_, held)| Entry {
                key: held.key.clone(),
                secret: ByteBuf::from(held.secret.secret_bytes()),
                patient: self.patients[&held.subject].clone(),
            })
            .collect();
        let plaintext = Zeroizing::new(canonical::encode(&entries));
        for entry in entries {
            // ByteBuf does not wipe itself.
            drop(Zeroizing::new(entry.secret.into_vec()));
        }
        plaintext
    }
}

#[cfg(test)]
mod tests {
    use super::{
        file::{FORMAT, HEADER_BYTES, SALT_BYTES},
        *,
    };
    use record::bundle::Category;
    use std::{fs, os::unix::fs::PermissionsExt as _};

    fn passphrase() -> Passphrase {
        Passphrase::new(Zeroizing::new("correct horse battery".to_owned())).expect("long enough")
    }

    fn holding(patient: &Patient, epoch: u32) -> Holding {
        let (secret, key) = SubjectSecret::generate(Category::Vitals, epoch).expect("random numbers");
        Holding {
            key,
            secret,
            patient: patient.clone(),
        }
    }

    fn patient() -> Patient {
        Patient {
            id: SubjectId::random(),
            family: "Lindgren-Canary".to_owned(),
            given: "Astrid".to_owned(),
            gender: "female".to_owned(),
            birth_date: "1957-11-14".to_owned(),
        }
    }

    fn created() -> (tempfile::TempDir, PathBuf, Vec<Holding>) {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join(FILE);
        let patient = patient();
        let holdings = vec![holding(&patient, 1), holding(&patient, 2), holding(&self::patient(), 1)];
        Keyring::create(&path, &passphrase(), holdings.clone()).expect("creates");
        (dir, path, holdings)
    }

    #[test]
    fn what_was_sealed_is_there_after_opening() {
        let (_dir, path, holdings) = created();
        let keyring = Keyring::open(&path, &passphrase()).expect("opens");
        for holding in &holdings {
            let key = holding.key.id();
            assert_eq!(
                keyring.secret(&key).expect("held").secret_bytes(),
                holding.secret.secret_bytes()
            );
            assert_eq!(keyring.subject_of(&key), Some(holding.patient.id));
            assert_eq!(keyring.patient(holding.patient.id), Some(holding.patient.clone()));
        }
        assert_eq!(keyring.keys_of(holdings[0].patient.id).len(), 2);
        assert_eq!(keyring.patients().len(), 2);
    }

    #[test]
    fn a_flipped_byte_or_another_passphrase_never_opens() {
        let (_dir, path, _) = created();
        let file = fs::read(&path).expect("reads");
        // Every byte of the header would do the expensive derivation; each field and the body's ends suffice.
        let places = [
            0,
            FORMAT.len() - 1,
            FORMAT.len(),
            FORMAT.len() + SALT_BYTES,
            HEADER_BYTES,
            file.len() - 1,
        ];
        for at in places.into_iter().chain((HEADER_BYTES..file.len()).step_by(97)) {
            let mut altered = file.clone();
            altered[at] ^= 1;
            fs::write(&path, &altered).expect("writes");
            let error = Keyring::open(&path, &passphrase()).expect_err("altered");
            assert!(
                matches!(error, Error::NotAKeyring { .. } | Error::NotOpened { .. }),
                "byte {at}: {error}"
            );
        }
        fs::write(&path, &file[..file.len() - 1]).expect("writes");
        assert!(Keyring::open(&path, &passphrase()).is_err());
        fs::write(&path, &file).expect("writes");
        let other = Passphrase::new(Zeroizing::new("incorrect horse battery".to_owned())).expect("long enough");
        assert!(matches!(Keyring::open(&path, &other), Err(Error::NotOpened { .. })));
    }

    #[test]
    fn nothing_of_it_can_be_read_without_the_passphrase() {
        let (_dir, path, holdings) = created();
        let file = fs::read(&path).expect("reads");
        for canary in [b"Lindgren-Canary".as_slice(), holdings[0].secret.secret_bytes()] {
            assert!(!file.windows(canary.len()).any(|window| window == canary));
        }
        let printed = format!(
            "{:?} {:?} {:?}",
            Keyring::open(&path, &passphrase()),
            holdings,
            passphrase()
        );
        // What is printed are ids of keys, which are random: one in four hundred runs has the digits of the year in one.
        let ids = holdings.iter().map(|holding| holding.key.id().to_string());
        let printed = ids.fold(printed, |printed, id| printed.replace(&id, ""));
        for canary in [
            "Lindgren",
            "1957",
            "horse",
            &hex::encode(holdings[0].secret.secret_bytes()),
        ] {
            assert!(!printed.contains(canary), "{canary}");
        }
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let (_dir, path, _) = created();
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("chmod");
        assert!(matches!(
            Keyring::open(&path, &passphrase()),
            Err(Error::Exposed { .. })
        ));
    }

    #[test]
    fn a_copy_is_put_into_a_new_folder_and_over_no_other_keyring() {
        let (_dir, copy, holdings) = created();
        let folder = tempfile::tempdir().expect("a folder");
        let restored = Keyring::restore(&copy, folder.path(), &passphrase()).expect("restored");
        assert_eq!(restored.len(), holdings.len());
        let path = folder.path().join(FILE);
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read(&path).expect("reads"), fs::read(&copy).expect("reads"));
        Keyring::restore(&copy, folder.path(), &passphrase()).expect("the same again");
        let (_other_dir, other, _) = created();
        assert!(matches!(
            Keyring::restore(&other, folder.path(), &passphrase()),
            Err(Error::Io { .. })
        ));
        assert_eq!(fs::read(&path).expect("reads"), fs::read(&copy).expect("reads"));
    }

    #[test]
    fn a_keyring_is_never_overwritten_and_never_contradicts_itself() {
        let (dir, path, holdings) = created();
        assert!(matches!(
            Keyring::create(&path, &passphrase(), vec![]),
            Err(Error::Io { .. })
        ));
        let mut twice = holdings[0].clone();
        twice.key.epoch = 9;
        twice.patient.family = "Other".to_owned();
        let error = Keyring::create(
            &dir.path().join("other"),
            &passphrase(),
            vec![holdings[0].clone(), twice],
        );
        assert!(matches!(error, Err(Error::Contradiction)));
        assert!(matches!(
            Passphrase::new(Zeroizing::new("short".to_owned())),
            Err(Error::WeakPassphrase)
        ));
    }
}
