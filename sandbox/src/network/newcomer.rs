//! A fog node that a visitor may start once the members have given it a seat: keys, certificate and configuration are there.

use std::path::PathBuf;

use record::{ids::OrganizationId, signature::SigningKey};
use serde_json::json;

use super::{Member, Network};
use crate::{
    fault::Fault,
    folder::Folder,
    identities::{Authority, Password, TlsIdentity, signing_key},
    ports::Ports,
};

/// The node of a member that is none of the founders, which nobody has started.
#[derive(Debug)]
pub struct NewcomerPlan {
    /// Whose it is.
    pub organization: OrganizationId,
    /// Where it answers.
    pub url: String,
    /// Its configuration.
    pub config_file: PathBuf,
    /// What it keeps.
    pub data_dir: PathBuf,
    key: SigningKey,
    key_file: PathBuf,
    tls: TlsIdentity,
}

impl NewcomerPlan {
    pub(super) fn of(folder: &Folder, authority: &Authority, member: &Member, ports: &Ports) -> Result<Self, Fault> {
        let (key, key_file) = signing_key(folder, "newcomer/validator.pem")?;
        Ok(Self {
            organization: member.id().clone(),
            url: format!("https://{}", ports.newcomer_http()),
            config_file: folder.path("newcomer/config.toml"),
            data_dir: folder.path("newcomer/data"),
            key,
            key_file,
            tls: authority.issue(folder, "newcomer/node", "newcomer", None)?,
        })
    }
}

impl Network {
    /// Writes the newcomer's configuration. It holds no key of a patient.
    ///
    /// # Errors
    /// [`Fault::Identity`] or [`Fault::File`].
    pub fn write_newcomer(&self) -> Result<(), Fault> {
        let newcomer = &self.newcomer;
        let founders = self.consensus_peers();
        let own = json!({"key": newcomer.key.public(), "address": self.ports.newcomer_consensus()});
        let passphrase = Password::create(&self.folder, "newcomer/keyring.pass")?;
        self.seal_keyring(&newcomer.data_dir, &passphrase, &[])?;
        let config = json!({
            "name": "newcomer",
            "organization": newcomer.organization,
            "data_dir": newcomer.data_dir,
            "genesis": self.genesis_file,
            "key": newcomer.key_file,
            "http": {
                "listen": self.ports.newcomer_http(),
                "public_url": newcomer.url,
                "certificate": newcomer.tls.certificate,
                "private_key": newcomer.tls.private_key,
                "ca": self.ca_file,
            },
            "consensus": {
                "listen": self.ports.newcomer_consensus(),
                "peers": founders.into_iter().chain([own]).collect::<Vec<_>>(),
                "newcomer": true,
            },
            "vault": {
                "driver": "embedded",
                "exchange": {"peers": self.nodes.iter().map(|node| &node.url).collect::<Vec<_>>()},
            },
            "index": {"driver": "sqlite"},
            "keyring": {"passphrase_file": passphrase.file},
        });
        self.folder.write_toml("newcomer/config.toml", &config)?;
        Ok(())
    }
}
