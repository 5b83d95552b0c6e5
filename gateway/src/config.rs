//! One file describes a gateway: read, overridden from the environment, and checked as a whole before anything starts.

use std::{
    fs,
    path::{Path, PathBuf},
};

use ledger::genesis::Genesis;
use record::{ids::GatewayId, signature::SigningKey};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::{
    enrolment::{self, Enrolments},
    homeassistant, http,
    login::Access,
    mqtt,
    outbox::{self, QuarantineConfig, Sealer, can_seal_to},
    secret, telemetry, transit, uplink,
};

/// Variables that begin with this override the file: `GATEWAY_OUTBOX__LINGER_MS=20`. Others that begin with it and name no key
/// are not ours: Kubernetes sets `GATEWAY_PORT` and its like beside any service that is called gateway.
const PREFIX: &str = "GATEWAY_";

/// A gateway. Every key has a default; the file names those that differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Its name, as enrolled on the chain.
    pub gateway: GatewayId,
    /// The folder for its spool.
    pub data_dir: PathBuf,
    /// The network's founding document, JSON.
    pub genesis: PathBuf,
    /// The key it signs commitments with: ed25519, PKCS#8 PEM, readable by nobody else.
    pub key: PathBuf,
    /// How devices reach it.
    pub mqtt: mqtt::Config,
    /// Which device measures whom.
    pub enrolment: enrolment::Config,
    /// The spool.
    pub outbox: outbox::Config,
    /// Messages that are not believed.
    pub quarantine: QuarantineConfig,
    /// The fog nodes.
    pub uplink: uplink::Config,
    /// Home Assistant in the home; absent: nothing is shown anywhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub homeassistant: Option<homeassistant::Config>,
    /// Health, metrics and status.
    pub http: http::Config,
    /// Logs.
    pub telemetry: telemetry::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            gateway: "home-1".parse().expect("a good name"),
            data_dir: "vitalfog-data/gateway".into(),
            genesis: "genesis.json".into(),
            key: "gateway.pem".into(),
            mqtt: mqtt::Config::default(),
            enrolment: enrolment::Config::default(),
            outbox: outbox::Config::default(),
            quarantine: QuarantineConfig::default(),
            uplink: uplink::Config::default(),
            homeassistant: None,
            http: http::Config::default(),
            telemetry: telemetry::Config::default(),
        }
    }
}

/// A configuration whose files were all read and fit together; only [`Config::prepare`] makes one.
#[derive(Debug)]
pub struct Prepared {
    /// As written.
    pub config: Config,
    /// Who seals and signs.
    pub sealer: Sealer,
    /// Which device measures whom.
    pub enrolments: Enrolments,
    /// How devices reach the gateway.
    pub mqtt: mqtt::Prepared,
    /// The nodes and their validators.
    pub network: uplink::Network,
    /// How values are shown in the home, if they are.
    pub homeassistant: Option<Access>,
}

/// All that is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct Faults(pub Vec<String>);

impl Config {
    /// Reads a file and the environment.
    ///
    /// # Errors
    /// [`Faults`]: what cannot be read or understood.
    pub fn load(path: &Path) -> Result<Self, Faults> {
        let text = fs::read_to_string(path).map_err(|e| Faults(vec![format!("{}: {e}", path.display())]))?;
        Self::parse(&text, environment()).map_err(|fault| Faults(vec![format!("{}: {fault}", path.display())]))
    }

    fn parse(text: &str, overrides: impl IntoIterator<Item = (String, String)>) -> Result<Self, String> {
        let mut table: Table = toml::from_str(text).map_err(|e| e.to_string())?;
        let keys = Table::try_from(Self::default()).map_err(|e| e.to_string())?;
        let is_ours = |name: &str| name.contains("__") || keys.contains_key(&name.to_ascii_lowercase());
        for (name, value) in overrides.into_iter().filter(|(name, _)| is_ours(name)) {
            set(&mut table, &name, value)?;
        }
        table.try_into().map_err(|e: toml::de::Error| e.to_string())
    }

    /// Reads every file that is named and checks that all of it fits together.
    ///
    /// # Errors
    /// [`Faults`]: all of them.
    pub fn prepare(self) -> Result<Prepared, Faults> {
        let mut faults = Vec::new();
        if !self.http.listen.ip().is_loopback() {
            faults.push(format!(
                "http.listen {} must be a loopback address: it has neither TLS nor login",
                self.http.listen
            ));
        }
        faults.extend(self.outbox.faults());
        noted(
            &mut faults,
            self.telemetry
                .parsed_filter()
                .map_err(|e| vec![format!("telemetry.filter: {e}")]),
        );
        let genesis = noted(&mut faults, self.read_genesis());
        let key = noted(
            &mut faults,
            read_key(&self.key).map_err(|e| vec![format!("key {}: {e}", self.key.display())]),
        );
        let quarantine = self.quarantine.sealing_key().and_then(|key| {
            if can_seal_to(&key) {
                Ok(key)
            } else {
                Err("is not a usable X25519 key".to_owned())
            }
        });
        let quarantine = noted(&mut faults, quarantine.map_err(|e| vec![format!("quarantine.key {e}")]));
        let file = self.enrolment.file.display();
        let enrolments = Enrolments::load(&self.enrolment).map_err(|e| vec![format!("enrolment.file {file}: {e}")]);
        let enrolments = noted(&mut faults, enrolments);
        let mqtt = noted(&mut faults, self.mqtt.prepare());
        let shown = self.homeassistant.as_ref().map(homeassistant::Config::prepare);
        let homeassistant = noted(&mut faults, shown.transpose()).flatten();
        if let Some(genesis) = &genesis {
            let keys = transit::load(&self.data_dir, (genesis.network(), &self.gateway));
            noted(&mut faults, keys.map_err(|e| vec![e.to_string()]));
        }
        let network = genesis
            .as_ref()
            .and_then(|genesis| noted(&mut faults, self.uplink.prepare(genesis)));
        match (genesis, key, quarantine, enrolments, mqtt, network) {
            (Some(genesis), Some(key), Some(quarantine), Some(enrolments), Some(mqtt), Some(network))
                if faults.is_empty() =>
            {
                let sealer = Sealer {
                    network: genesis.network(),
                    gateway: self.gateway.clone(),
                    key,
                    quarantine,
                };
                Ok(Prepared {
                    config: self,
                    sealer,
                    enrolments,
                    mqtt,
                    network,
                    homeassistant,
                })
            }
            _ => Err(Faults(faults)),
        }
    }

    fn read_genesis(&self) -> Result<Genesis, Vec<String>> {
        fs::read_to_string(&self.genesis)
            .map_err(|e| e.to_string())
            .and_then(|text| Genesis::from_json(&text).map_err(|e| e.to_string()))
            .map_err(|e| vec![format!("genesis {}: {e}", self.genesis.display())])
    }
}

/// Keeps the value or notes what is wrong.
fn noted<T>(faults: &mut Vec<String>, result: Result<T, Vec<String>>) -> Option<T> {
    result.map_err(|found| faults.extend(found)).ok()
}

/// Reads a private key that nobody else may read.
fn read_key(path: &Path) -> Result<SigningKey, String> {
    SigningKey::from_pem(&secret::read(path)?).map_err(|e| e.to_string())
}

/// The variables that override the file.
fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| {
        let name = name.into_string().ok()?.strip_prefix(PREFIX)?.to_owned();
        Some((name, value.into_string().ok()?))
    })
}

/// Sets `SECTION__KEY` in the table; a value that is no TOML is text.
fn set(table: &mut Table, name: &str, value: String) -> Result<(), String> {
    let path: Vec<String> = name.split("__").map(str::to_ascii_lowercase).collect();
    let (key, sections) = path.split_last().expect("a split has at least one part");
    let mut at = table;
    for section in sections {
        let entry = at.entry(section.clone()).or_insert_with(|| Value::Table(Table::new()));
        at = entry
            .as_table_mut()
            .ok_or_else(|| format!("{PREFIX}{name}: {section} is no section"))?;
    }
    let parsed = toml::from_str::<Table>(&format!("value = {value}"))
        .ok()
        .and_then(|mut t| t.remove("value"));
    at.insert(key.clone(), parsed.unwrap_or(Value::String(value)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn an_empty_file_is_the_default_and_the_default_reads_back() {
        assert_eq!(Config::parse("", []), Ok(Config::default()));
        let text = toml::to_string(&Config::default()).expect("encodes");
        assert_eq!(Config::parse(&text, []), Ok(Config::default()));
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let text = "gateway = \"home-7\"\n[outbox]\nlinger_ms = 9\n";
        let overrides = [
            over("OUTBOX__LINGER_MS", "20"),
            over("MQTT__BROKER__LISTEN", "127.0.0.1:0"),
        ];
        let config = Config::parse(text, overrides).expect("good");
        assert_eq!((config.gateway.as_str(), config.outbox.linger_ms), ("home-7", 20));
        assert_eq!(config.mqtt.broker.listen.port(), 0);
        assert!(
            Config::parse(text, [over("GATEWAY__X", "1")]).is_err(),
            "a key is no section"
        );
        assert!(
            Config::parse("[outbox]\nlinger = 9\n", []).is_err(),
            "an unknown key is refused"
        );
    }

    #[test]
    fn variables_of_somebody_else_are_ignored_and_mistakes_are_not() {
        let foreign = [
            over("PORT", "tcp://10.0.0.1:80"),
            over("SERVICE_HOST", "10.0.0.1"),
            over("PORT_8480_TCP_ADDR", "10.0.0.1"),
        ];
        assert_eq!(Config::parse("", foreign), Ok(Config::default()));
        assert!(
            Config::parse("", [over("OUTBOX__LINGER", "20")]).is_err(),
            "no such key"
        );
        assert!(
            Config::parse("", [over("OUTBOXES__LINGER_MS", "20")]).is_err(),
            "no such section"
        );
        assert!(
            Config::parse("", [over("OUTBOX", "20")]).is_err(),
            "a section is no key"
        );
        let data_dir = Config::parse("", [over("DATA_DIR", "elsewhere")])
            .expect("a key")
            .data_dir;
        assert_eq!(data_dir, PathBuf::from("elsewhere"));
    }

    #[test]
    fn all_faults_are_listed_at_once() {
        let mut config = Config::default();
        config.http.listen = "0.0.0.0:8480".parse().expect("address");
        config.uplink.nodes.clear();
        let faults = config.prepare().expect_err("nothing is there").0.join("\n");
        for part in [
            "http.listen",
            "genesis",
            "key ",
            "quarantine.key",
            "enrolment.file",
            "mqtt.broker",
        ] {
            assert!(faults.contains(part), "{part} is missing in:\n{faults}");
        }
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("gateway.pem");
        fs::write(&path, SigningKey::random().to_pem().expect("encodes").as_bytes()).expect("writes");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("sets");
        assert!(read_key(&path).expect_err("readable").contains("0600"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("sets");
        assert!(read_key(&path).is_ok());
    }
}
