//! The keyring's file on the disk: sealed under a passphrase, written all of it or none, and what was there before wiped.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
};

use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

use super::{Error, Passphrase};

/// First line of the file: format, version, and with them every parameter of the sealing.
pub(super) const FORMAT: &[u8] = b"vitalfog keyring v1: argon2id m=65536 t=3 p=1, aes-256-gcm\n";
pub(super) const SALT_BYTES: usize = 16;
pub(super) const HEADER_BYTES: usize = FORMAT.len() + SALT_BYTES + NONCE_LEN;

/// The key that a passphrase gives with a salt. It seals the same keyring again, under another nonce, without the passphrase.
pub(super) struct Seal {
    salt: [u8; SALT_BYTES],
    key: LessSafeKey,
}

impl Seal {
    /// With a fresh salt.
    pub(super) fn new(passphrase: &Passphrase) -> Self {
        Self::salted(passphrase, rand::random())
    }

    fn salted(passphrase: &Passphrase, salt: [u8; SALT_BYTES]) -> Self {
        let params = Params::new(64 << 10, 3, 1, Some(32)).expect("within argon2's limits");
        let mut key = Zeroizing::new([0; 32]);
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into(passphrase.0.as_bytes(), &salt, &mut *key)
            .expect("salt and passphrase are within argon2's limits");
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &*key).expect("the key has 32 bytes"));
        Self { salt, key }
    }

    /// Header and ciphertext, under a fresh nonce.
    pub(super) fn close(&self, plaintext: &[u8]) -> Vec<u8> {
        let nonce: [u8; NONCE_LEN] = rand::random();
        let header = [FORMAT, &self.salt, &nonce].concat();
        let mut body = Zeroizing::new(Vec::with_capacity(plaintext.len() + AES_256_GCM.tag_len()));
        body.extend_from_slice(plaintext);
        self.key
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(&header), &mut *body)
            .expect("a keyring is far below the limits of AES-GCM");
        [header.as_slice(), body.as_slice()].concat()
    }

    /// Opens a file's bytes where they are: what they held, and what seals it again.
    pub(super) fn open<'a>(
        path: &Path,
        passphrase: &Passphrase,
        file: &'a mut [u8],
    ) -> Result<(&'a mut [u8], Self), Error> {
        if !file.starts_with(FORMAT) || file.len() < HEADER_BYTES {
            return Err(Error::NotAKeyring { path: path.to_owned() });
        }
        let (header, ciphertext) = file.split_at_mut(HEADER_BYTES);
        let (salt, nonce) = header[FORMAT.len()..].split_at(SALT_BYTES);
        let nonce = Nonce::try_assume_unique_for_key(nonce).expect("the header ends with a nonce");
        let seal = Self::salted(passphrase, salt.try_into().expect("it was split there"));
        let plaintext = seal
            .key
            .open_in_place(nonce, Aad::from(&*header), ciphertext)
            .map_err(|_| Error::NotOpened { path: path.to_owned() })?;
        Ok((plaintext, seal))
    }
}

/// Reads a file that only its owner may read, if it is not too large.
pub(super) fn read_private(path: &Path, bytes_max: u64) -> Result<Zeroizing<Vec<u8>>, Error> {
    let file = File::open(path).map_err(|e| io_error(path, e))?;
    let about = file.metadata().map_err(|e| io_error(path, e))?;
    if about.permissions().mode() & 0o077 != 0 {
        return Err(Error::Exposed { path: path.to_owned() });
    }
    if about.len() > bytes_max {
        return Err(io_error(path, io::ErrorKind::FileTooLarge.into()));
    }
    let capacity = usize::try_from(about.len()).expect("a file below the limit fits in memory");
    let mut bytes = Zeroizing::new(Vec::with_capacity(capacity));
    file.take(bytes_max)
        .read_to_end(&mut bytes)
        .map_err(|e| io_error(path, e))?;
    Ok(bytes)
}

/// Writes a file that only its owner may read: all of it or none, and durable on return.
pub(super) fn write_private(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let draft = path.with_extension("draft");
    let write = || {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&draft)?;
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&draft, path)?;
        sync_folder(path)
    };
    write().map_err(|e| io_error(path, e))
}

/// As [`write_private`], and then writes zeros over what the file held before, as far as the file system has it in its place.
pub(super) fn replace_private(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let before = fs::OpenOptions::new()
        .write(true)
        .open(path)
        .map_err(|e| io_error(path, e))?;
    write_private(path, bytes)?;
    wipe(before).map_err(|e| io_error(path, e))
}

/// The file has no name any more; its blocks are free when it is closed.
fn wipe(mut file: File) -> io::Result<()> {
    const ZEROS: [u8; 4_096] = [0; 4_096];
    let mut left = file.metadata()?.len();
    while left > 0 {
        let bytes = left.min(ZEROS.len() as u64);
        file.write_all(&ZEROS[..usize::try_from(bytes).expect("at most a page")])?;
        left -= bytes;
    }
    file.sync_all()
}

/// Adds a line to a file that only its owner may read; durable on return.
pub(super) fn append_line(path: &Path, line: &str) -> Result<(), Error> {
    let append = || {
        let mut file = fs::OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)?;
        // A line that an interrupted writing left behind ends here.
        file.write_all(format!("\n{line}\n").as_bytes())?;
        file.sync_all()?;
        sync_folder(path)
    };
    append().map_err(|e| io_error(path, e))
}

fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

pub(super) fn io_error(path: &Path, source: io::Error) -> Error {
    Error::Io {
        path: path.to_owned(),
        source,
    }
}
