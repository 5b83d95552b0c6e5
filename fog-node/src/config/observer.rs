//! The one configuration file of an observer.

use std::path::{Path, PathBuf};

use record::ids::OrganizationId;

use super::{Faults, Reader, read_file};
use crate::{follow, http, index, keyring, query, telemetry, vault};

/// Everything that the operator of an observer may set; each section belongs to its room.
#[derive(Clone, Debug)]
pub struct Observer {
    /// The name people read in the log.
    pub name: String,
    /// The organisation that runs the observer.
    pub organization: OrganizationId,
    /// Where it keeps what it has proven.
    pub data_dir: PathBuf,
    /// The network's founding document.
    pub genesis: PathBuf,
    /// An access token of the organisation with the scope `system/Bundle.rs`, readable by the owner alone.
    pub token: PathBuf,
    /// `[http]`
    pub http: http::Config,
    /// `[follow]`
    pub follow: follow::Config,
    /// `[vault]`: payloads are fetched from the nodes of `[follow]`.
    pub vault: vault::Config,
    /// `[index]`
    pub index: index::Config,
    /// `[keyring]`
    pub keyring: keyring::Config,
    /// `[query]`
    pub query: query::Config,
    /// `[telemetry]`
    pub telemetry: telemetry::Config,
}

impl Observer {
    /// Reads the file and this process's environment.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn load(path: &Path) -> Result<Self, Faults> {
        let (text, variables) = read_file(path)?;
        Self::parse(&text, path.parent().unwrap_or(Path::new(".")), variables)
    }

    /// Reads the text of a file in a folder, and variables that override it.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(text: &str, folder: &Path, variables: impl Iterator<Item = (String, String)>) -> Result<Self, Faults> {
        let mut read = Reader::of(text, variables)?;
        let mut config = Self {
            name: read.required("name").unwrap_or_default(),
            organization: read.organization(),
            data_dir: read.path("data_dir", folder),
            genesis: read.path("genesis", folder),
            token: read.path("token", folder),
            http: read.section("http"),
            follow: read.section("follow"),
            vault: read.section("vault"),
            index: read.section("index"),
            keyring: read.section("keyring"),
            query: read.section("query"),
            telemetry: read.section("telemetry"),
        };
        let mut faults = read.finish();
        if !config.vault.exchange.peers.is_empty() {
            faults.add("vault.exchange.peers: an observer fetches payloads from follow.nodes");
        }
        config.vault.exchange.peers.clone_from(&config.follow.nodes);
        faults.extend(config.http.faults());
        faults.extend(config.follow.faults());
        faults.extend(config.vault.faults());
        faults.extend(config.index.faults());
        faults.extend(config.telemetry.faults());
        if config.query.in_flight_per_organization_max == 0 {
            faults.add("query.in_flight_per_organization_max must be at least 1");
        }
        super::place(&mut config.http, &mut config.keyring, &mut config.vault, folder);
        config.index.place(folder);
        faults.none_or(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = r#"
        name = "observer"
        organization = "hospital-a"
        data_dir = "data"
        genesis = "genesis.json"
        token = "token"
        [follow]
        nodes = ["https://127.0.0.1:8401", "https://127.0.0.1:8402"]
    "#;

    #[test]
    fn payloads_come_from_the_nodes_that_are_followed() {
        let config = Observer::parse(MINIMAL, Path::new("/etc/fog"), std::iter::empty()).expect("good");
        assert_eq!(config.vault.exchange.peers, config.follow.nodes);
        assert_eq!(
            (config.token.as_path(), config.http.ca.as_path()),
            (Path::new("/etc/fog/token"), Path::new("/etc/fog/ca.crt"))
        );
    }

    #[test]
    fn what_a_validator_has_is_no_key_of_an_observer() {
        let text = format!("key = \"validator.pem\"\n{MINIMAL}\npoll_every_ms = 0\n[consensus]\nidle_ms = 1");
        let told = Observer::parse(&text, Path::new("/"), std::iter::empty())
            .expect_err("bad")
            .to_string();
        for word in ["key is no key", "consensus is no key", "poll_every_ms"] {
            assert!(told.contains(word), "{word} in {told}");
        }
    }
}
