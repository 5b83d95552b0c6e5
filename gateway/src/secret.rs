//! Files that hold secrets: read only if nobody but their owner can.

use std::{
    fs::File,
    io::{self, Read as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use rustls::pki_types::{PrivateKeyDer, pem::PemObject as _};

/// Longest secret: a PEM key has a few kilobytes.
const SECRET_BYTES_MAX: u64 = 64 << 10;

/// Reads a file that nobody else may read.
///
/// # Errors
/// A sentence that says what to change.
pub fn read(path: &Path) -> Result<String, String> {
    let sentence = |e: io::Error| e.to_string();
    let file = File::open(path).map_err(sentence)?;
    // Of the open file: the path may lead elsewhere in the next moment.
    if file.metadata().map_err(sentence)?.permissions().mode() & 0o077 != 0 {
        return Err("others can read it: make it 0600".to_owned());
    }
    let mut text = String::new();
    file.take(SECRET_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(sentence)?;
    Ok(text)
}

/// Reads a TLS key that nobody else may read.
///
/// # Errors
/// A sentence that says what to change.
pub fn read_tls_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let text = read(path)?;
    PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|e| e.to_string())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::fs::{self, Permissions};

    /// Writes a file that nobody else may read.
    pub(crate) fn write(path: &Path, text: impl AsRef<[u8]>) {
        fs::write(path, text).expect("writes");
        fs::set_permissions(path, Permissions::from_mode(0o600)).expect("sets");
    }

    #[test]
    fn a_secret_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("secret");
        write(&path, "word");
        assert_eq!(read(&path), Ok("word".to_owned()));
        for mode in [0o644, 0o640, 0o604] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).expect("sets");
            assert!(read(&path).expect_err("readable").contains("0600"));
        }
    }
}
