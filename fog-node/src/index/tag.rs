//! Tags of rows: only this node can make one, so a row with a good tag is one that it wrote, as it wrote it.

use std::{
    fmt, fs,
    io::{self, Read as _, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use aws_lc_rs::hmac;
use ledger::block::Height;
use record::canonical;
use zeroize::Zeroizing;

use super::{Error, Reported, Row};

/// The file in the data folder: beside the database, and never in it.
const FILE: &str = "index.key";
const KEY_BYTES: usize = 32;
/// Half of an HMAC-SHA256: whoever guesses has one try in 2^128.
const TAG_BYTES: usize = 16;

/// What tags are made with.
#[derive(Clone)]
pub(super) struct TagKey {
    key: hmac::Key,
    owner: Vec<u8>,
}

impl fmt::Debug for TagKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TagKey(..)")
    }
}

impl TagKey {
    /// The key of the data folder; a new one if there is none.
    pub(super) fn load(data_dir: &Path) -> Result<Self, Error> {
        let path = data_dir.join(FILE);
        let read = match read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => create(&path),
            read => read,
        };
        let bytes = read.map_err(|error| Error::Unusable(format!("{}: {error}", path.display())))?;
        let key = hmac::Key::new(hmac::HMAC_SHA256, &*bytes);
        let owner = tag(&key, &canonical::encode(&"vitalfog/index/owner"));
        Ok(Self { key, owner })
    }

    /// Names the key without giving it away: whose rows are in a database.
    pub(super) fn owner(&self) -> &[u8] {
        &self.owner
    }

    pub(super) fn of_row(&self, row: &Row, visible_from: Height) -> Vec<u8> {
        let reading = (
            row.reading.device.as_str(),
            row.reading.boot.to_string(),
            row.reading.seq,
        );
        let measured = (&row.id, row.key.0, row.subject.to_string(), &row.code, row.effective_ms);
        let place = (row.bundle.0, row.cid.to_string(), row.entry, row.ordinal, row.height.0);
        let fields = (
            "observation",
            measured,
            row.received_ms,
            (reading, place),
            visible_from.0,
        );
        tag(&self.key, &canonical::encode(&fields))
    }

    pub(super) fn of_report(&self, one: &Reported, visible_from: Height) -> Vec<u8> {
        let place = (one.bundle.0, one.entry, one.height.0, visible_from.0);
        tag(
            &self.key,
            &canonical::encode(&("gap_report", one.key.0, &one.report, place)),
        )
    }

    pub(super) fn of_progress(&self, numbers: [u64; 3]) -> Vec<u8> {
        tag(&self.key, &canonical::encode(&("progress", numbers)))
    }
}

fn tag(key: &hmac::Key, fields: &[u8]) -> Vec<u8> {
    hmac::sign(key, fields).as_ref()[..TAG_BYTES].to_vec()
}

fn read(path: &PathBuf) -> io::Result<Zeroizing<[u8; KEY_BYTES]>> {
    let mut file = fs::File::open(path)?;
    if file.metadata()?.permissions().mode() & 0o077 != 0 {
        return Err(io::Error::other("others can read it: chmod 600 it"));
    }
    let mut bytes = Zeroizing::new([0; KEY_BYTES]);
    file.read_exact(&mut *bytes)?;
    Ok(bytes)
}

/// Durable before the first tag is made.
fn create(path: &PathBuf) -> io::Result<Zeroizing<[u8; KEY_BYTES]>> {
    let bytes = Zeroizing::new(rand::random::<[u8; KEY_BYTES]>());
    let mut options = fs::OpenOptions::new();
    let mut file = options.create_new(true).write(true).mode(0o600).open(path)?;
    file.write_all(&*bytes)?;
    file.sync_all()?;
    if let Some(folder) = path.parent() {
        fs::File::open(folder)?.sync_all()?;
    }
    Ok(bytes)
}
