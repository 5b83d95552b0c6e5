//! The node's one configuration file: read, overridden from the environment, checked; all faults are told at once.

mod observer;

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use record::ids::OrganizationId;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

pub use observer::Observer;

use crate::{
    chain, consensus, documents, http, index, intake, keyring, mempool, possession, query, recovery, telemetry, vault,
};

/// An environment variable `FOG_HTTP__LISTEN` overrides `listen` in `[http]`.
const PREFIX: &str = "FOG_";
/// Stands between section and key.
const SEPARATOR: &str = "__";
/// A configuration file has at most this many bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Everything an operator may set; each section belongs to its room.
#[derive(Clone, Debug)]
pub struct Config {
    /// The name people read in the log.
    pub name: String,
    /// The organisation that runs the node.
    pub organization: OrganizationId,
    /// Where the node keeps what it must not lose.
    pub data_dir: PathBuf,
    /// The network's founding document.
    pub genesis: PathBuf,
    /// The validator's private key, PKCS#8 PEM, readable by the owner alone.
    pub key: PathBuf,
    /// `[http]`
    pub http: http::Config,
    /// `[consensus]`
    pub consensus: consensus::Config,
    /// `[vault]`
    pub vault: vault::Config,
    /// `[index]`
    pub index: index::Config,
    /// `[keyring]`
    pub keyring: keyring::Config,
    /// `[mempool]`
    pub mempool: mempool::Config,
    /// `[chain]`
    pub chain: chain::Config,
    /// `[intake]`
    pub intake: intake::Config,
    /// `[documents]`
    pub documents: documents::Config,
    /// `[query]`
    pub query: query::Config,
    /// `[recovery]`
    pub recovery: recovery::Config,
    /// `[possession]`
    pub possession: possession::Config,
    /// `[telemetry]`
    pub telemetry: telemetry::Config,
}

/// Everything that is wrong, each with what to change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults(Vec<String>);

impl Faults {
    /// Adds one.
    pub fn add(&mut self, fault: impl fmt::Display) {
        self.0.push(fault.to_string());
    }

    /// The value, if nothing is wrong.
    ///
    /// # Errors
    /// All of them.
    pub fn none_or<T>(self, value: T) -> Result<T, Self> {
        if self.0.is_empty() { Ok(value) } else { Err(self) }
    }

    /// What a result gives; a fault is noted.
    pub fn note<T, E: fmt::Display>(&mut self, what: impl fmt::Display, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.add(format_args!("{what}: {error}"))).ok()
    }
}

impl Extend<String> for Faults {
    fn extend<I: IntoIterator<Item = String>>(&mut self, faults: I) {
        self.0.extend(faults);
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|fault| writeln!(f, "- {fault}"))
    }
}

impl std::error::Error for Faults {}

impl Config {
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
            key: read.path("key", folder),
            http: read.section("http"),
            consensus: read.section("consensus"),
            vault: read.section("vault"),
            index: read.section("index"),
            keyring: read.section("keyring"),
            mempool: read.section("mempool"),
            chain: read.section("chain"),
            intake: read.section("intake"),
            documents: read.section("documents"),
            query: read.section("query"),
            recovery: read.section("recovery"),
            possession: read.section("possession"),
            telemetry: read.section("telemetry"),
        };
        let mut faults = read.finish();
        faults.extend(config.http.faults());
        faults.extend(config.consensus.faults());
        faults.extend(config.vault.faults());
        faults.extend(config.index.faults());
        faults.extend(config.documents.faults());
        faults.extend(config.recovery.faults());
        faults.extend(config.possession.faults());
        faults.extend(config.telemetry.faults());
        faults.extend(config.limits_that_let_nothing_through());
        place(&mut config.http, &mut config.keyring, &mut config.vault, folder);
        config.index.place(folder);
        if let Some(key) = &mut config.documents.desk.key {
            *key = folder.join(&*key);
        }
        faults.none_or(config)
    }

    fn limits_that_let_nothing_through(&self) -> impl Iterator<Item = String> {
        let limits = [
            ("mempool.transactions_max", self.mempool.transactions_max),
            (
                "mempool.transactions_per_author_max",
                self.mempool.transactions_per_author_max,
            ),
            (
                "intake.in_flight_per_gateway_max",
                self.intake.in_flight_per_gateway_max,
            ),
            (
                "query.in_flight_per_organization_max",
                self.query.in_flight_per_organization_max,
            ),
        ];
        limits
            .into_iter()
            .filter(|(_, value)| *value == 0)
            .map(|(key, _)| format!("{key} must be at least 1"))
    }
}

/// Paths are relative to the file that names them, wherever the process was started.
fn place(http: &mut http::Config, keyring: &mut keyring::Config, vault: &mut vault::Config, folder: &Path) {
    let paths = [&mut http.certificate, &mut http.private_key, &mut http.ca];
    let secrets = [keyring.passphrase_file.as_mut(), vault.kubo.authorization_file.as_mut()];
    for path in paths.into_iter().chain(secrets.into_iter().flatten()) {
        *path = folder.join(&*path);
    }
}

/// The file's text, and the variables of this process; one that is not UTF-8 is none of ours.
fn read_file(path: &Path) -> Result<(String, impl Iterator<Item = (String, String)>), Faults> {
    let mut faults = Faults::default();
    let text = faults.note(path.display(), read(path)).ok_or(faults)?;
    let variables =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    Ok((text, variables))
}

fn read(path: &Path) -> io::Result<String> {
    let length = fs::metadata(path)?.len();
    if length > FILE_BYTES_MAX {
        return Err(io::Error::other(format!(
            "{length} bytes are more than a configuration has"
        )));
    }
    fs::read_to_string(path)
}

/// Overrides one key. A text stays a text where the file has one; else `8`, `true`, `["a"]` are what TOML says they are.
fn set(table: &mut Table, path: &str, text: String) -> Result<(), String> {
    let mut words: Vec<_> = path.split(SEPARATOR).collect();
    let last = words.pop().filter(|word| !word.is_empty()).ok_or("names no key")?;
    let mut table = table;
    for word in words {
        let inner = table.entry(word).or_insert_with(|| Value::Table(Table::new()));
        table = inner.as_table_mut().ok_or_else(|| format!("{word} is no section"))?;
    }
    let parsed = || {
        toml::from_str::<Table>(&format!("v = {text}"))
            .ok()
            .and_then(|mut table| table.remove("v"))
    };
    let value = if table.get(last).is_some_and(Value::is_str) {
        None
    } else {
        parsed()
    };
    table.insert(last.to_owned(), value.unwrap_or(Value::String(text)));
    Ok(())
}

/// Takes a table apart, key by key, so that one fault does not hide the next.
struct Reader {
    table: Table,
    faults: Faults,
}

impl Reader {
    /// The table of a text, with variables that override it.
    fn of(text: &str, variables: impl Iterator<Item = (String, String)>) -> Result<Self, Faults> {
        let mut faults = Faults::default();
        let mut table: Table = faults.note("not TOML", toml::from_str(text)).unwrap_or_default();
        if !faults.0.is_empty() {
            return Err(faults);
        }
        for (name, value) in variables {
            if let Some(path) = name.strip_prefix(PREFIX) {
                set(&mut table, &path.to_ascii_lowercase(), value)
                    .unwrap_or_else(|why| faults.add(format_args!("{name}: {why}")));
            }
        }
        Ok(Self { table, faults })
    }

    /// A name that was refused is noted; another one lets the rest be checked.
    fn organization(&mut self) -> OrganizationId {
        self.required("organization")
            .unwrap_or_else(|| "unnamed".parse().expect("a good name"))
    }

    fn required<T: DeserializeOwned>(&mut self, key: &str) -> Option<T> {
        let Some(value) = self.table.remove(key) else {
            self.faults.add(format_args!("{key} is missing"));
            return None;
        };
        self.faults.note(key, value.try_into().map_err(one_line))
    }

    fn path(&mut self, key: &str, folder: &Path) -> PathBuf {
        folder.join(self.required::<PathBuf>(key).unwrap_or_default())
    }

    fn section<T: DeserializeOwned + Default>(&mut self, name: &str) -> T {
        let section = self.table.remove(name);
        section
            .and_then(|value| {
                self.faults
                    .note(format_args!("[{name}]"), value.try_into().map_err(one_line))
            })
            .unwrap_or_default()
    }

    fn finish(mut self) -> Faults {
        for key in self.table.keys() {
            self.faults
                .0
                .push(format!("{key} is no key or section of this program"));
        }
        self.faults
    }
}

fn one_line(error: toml::de::Error) -> String {
    error.message().replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = r#"
        name = "hospital-a"
        organization = "hospital-a"
        data_dir = "data"
        genesis = "genesis.json"
        key = "/keys/validator.pem"
    "#;

    fn parse(text: &str, variables: &[(&str, &str)]) -> Result<Config, Faults> {
        let variables = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::parse(text, Path::new("/etc/fog"), variables)
    }

    #[test]
    fn five_keys_are_enough_and_paths_are_relative_to_the_file() {
        let config = parse(MINIMAL, &[]).expect("good");
        assert_eq!(config.data_dir, Path::new("/etc/fog/data"));
        assert_eq!(config.key, Path::new("/keys/validator.pem"));
        assert_eq!(config.http.ca, Path::new("/etc/fog/ca.crt"));
        assert_eq!(config.http.listen.port(), 8401);
    }

    #[test]
    fn the_environment_goes_before_the_file() {
        let variables = [
            ("FOG_HTTP__LISTEN", "127.0.0.1:9000"),
            ("FOG_INTAKE__IN_FLIGHT_PER_GATEWAY_MAX", "7"),
            ("FOG_NAME", "42"),
            ("FOG_VAULT__EXCHANGE__PEERS", r#"["https://127.0.0.1:8402"]"#),
            ("HOME", "elsewhere"),
        ];
        let config = parse(MINIMAL, &variables).expect("good");
        assert_eq!(config.http.listen.port(), 9000);
        assert_eq!(config.intake.in_flight_per_gateway_max, 7);
        assert_eq!(config.name, "42");
        assert_eq!(config.vault.exchange.peers.len(), 1);
    }

    #[test]
    fn all_faults_are_told_at_once() {
        let text = "organization = \"No Name\"\ncolor = 1\n[http]\nlisten = \"here\"\n[intake]\nin_flight_per_gateway_max = 0\n[index]\ndrivr = \"sqlite\"";
        let told = parse(text, &[]).expect_err("bad").to_string();
        for word in [
            "name is missing",
            "organization",
            "data_dir is missing",
            "color",
            "[http]",
            "in_flight_per_gateway_max",
            "drivr",
        ] {
            assert!(told.contains(word), "{word} in {told}");
        }
        assert!(parse("= =", &[]).expect_err("bad").to_string().contains("not TOML"));
    }
}
