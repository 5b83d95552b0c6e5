//! The files that a node's configuration names: read and judged, before anything is opened or bound.

use std::{fs, path::Path};

use ledger::genesis::Genesis;
use record::signature::SigningKey;

use crate::{
    config::Faults,
    documents::{self, Desk},
    http::{
        self,
        tls::{Identity, is_private},
    },
    vault,
};

pub(crate) fn genesis(path: &Path, faults: &mut Faults) -> Option<Genesis> {
    let text = faults.note(format_args!("genesis {}", path.display()), fs::read_to_string(path))?;
    faults.note(format_args!("genesis {}", path.display()), Genesis::from_json(&text))
}

pub(super) fn key(name: &str, path: &Path, faults: &mut Faults) -> Option<SigningKey> {
    keep_private(name, path, faults);
    let named = || format!("{name} {}", path.display());
    let pem = faults.note(named(), fs::read_to_string(path))?;
    faults.note(named(), SigningKey::from_pem(&zeroize::Zeroizing::new(pem)))
}

/// Who commits to documents here, if anybody does.
pub(super) fn desk(config: &documents::desk::Config, faults: &mut Faults) -> Option<Desk> {
    let (author, path) = (config.author.clone()?, config.key.as_ref()?);
    let key = key("documents.desk.key", path, faults)?;
    Some(Desk::new(author, key))
}

pub(crate) fn identity(config: &http::Config, faults: &mut Faults) -> Option<Identity> {
    keep_private("http.private_key", &config.private_key, faults);
    let identity = faults.note(
        "http",
        Identity::read(&config.certificate, &config.private_key, &config.ca),
    )?;
    faults.note("http", identity.server())?;
    Some(identity)
}

/// What the vault's daemon asks for, if there is one.
pub(crate) fn daemon_secret(config: &vault::Config, faults: &mut Faults) {
    if let Some(path) = &config.kubo.authorization_file {
        keep_private("vault.kubo.authorization_file", path, faults);
        faults.note("vault.kubo.authorization_file", config.kubo.authorization());
    }
}

/// A missing file is noted by whoever reads it.
pub(crate) fn keep_private(what: &str, path: &Path, faults: &mut Faults) {
    if is_private(path).is_ok_and(|is_private| !is_private) {
        let path = path.display();
        faults.add(format_args!(
            "{what} {path} can be read by others: chmod 600 it, and replace the key if others had access"
        ));
    }
}
