//! Observers that a visitor may start: complete configurations, one of the custodian and one of a stranger.

use std::{path::PathBuf, time::Duration};

use fog_node::keyring::{Holding, Keyring, Passphrase};
use record::ids::OrganizationId;
use serde_json::json;

use super::{Member, Network};
use crate::{
    fault::Fault,
    folder::Folder,
    identities::{Authority, Password, SEALED_SCOPE, TlsIdentity, access_token},
};

/// An observer of a member, which nobody has started.
#[derive(Debug)]
pub struct ObserverPlan {
    /// Whose it is.
    pub organization: OrganizationId,
    /// Where it answers.
    pub url: String,
    /// Its configuration.
    pub config_file: PathBuf,
    /// What it keeps.
    pub data_dir: PathBuf,
    tls: TlsIdentity,
}

impl ObserverPlan {
    pub(super) fn of(folder: &Folder, authority: &Authority, member: &Member, port: u16) -> Result<Self, Fault> {
        let id = member.id();
        Ok(Self {
            organization: id.clone(),
            url: format!("https://127.0.0.1:{port}"),
            config_file: folder.path(format!("observers/{id}/config.toml")),
            data_dir: folder.path(format!("observers/{id}/data")),
            tls: authority.issue(folder, &format!("observers/{id}/observer"), id.as_str(), None)?,
        })
    }
}

impl Network {
    /// Writes what each observer needs: a token that opens sealed bundles alone, a keyring with the key of the first
    /// patient, its configuration. The stranger has the key, too, as if it had leaked: without a grant it opens nothing.
    ///
    /// # Errors
    /// [`Fault::Identity`] or [`Fault::File`].
    pub fn write_observers(&self, lifetime: Duration) -> Result<(), Fault> {
        for (index, (observer, member)) in (0..).zip(self.observers.iter().zip(&self.members)) {
            let dir = format!("observers/{}", observer.organization);
            let member = (member.id(), &member.key);
            let token = access_token(member, ("observer", SEALED_SCOPE), self.id(), lifetime)?;
            let passphrase = Password::create(&self.folder, &format!("{dir}/keyring.pass"))?;
            let holdings = self.household.people.iter().take(1).map(|person| Holding {
                key: person.key.clone(),
                secret: person.secret.clone(),
                patient: person.patient.clone(),
            });
            std::fs::create_dir_all(&observer.data_dir).map_err(Fault::file(&observer.data_dir))?;
            Passphrase::read(&passphrase.file)
                .and_then(|phrase| {
                    Keyring::create(&observer.data_dir.join("keyring.sealed"), &phrase, holdings.collect())
                })
                .map_err(Fault::identity("a keyring"))?;
            let config = json!({
                "name": format!("observer of {}", observer.organization),
                "organization": observer.organization,
                "data_dir": observer.data_dir,
                "genesis": self.genesis_file,
                "token": self.folder.write(format!("{dir}/token"), token)?,
                "http": {
                    "listen": self.ports.observer_http(index),
                    "public_url": observer.url,
                    "certificate": observer.tls.certificate,
                    "private_key": observer.tls.private_key,
                    "ca": self.ca_file,
                },
                "follow": {"nodes": self.nodes.iter().map(|node| &node.url).collect::<Vec<_>>()},
                "keyring": {"passphrase_file": passphrase.file},
            });
            self.folder.write_toml(format!("{dir}/config.toml"), &config)?;
        }
        Ok(())
    }
}
