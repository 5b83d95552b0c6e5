//! How the index is kept: which database, where it is, how long it is waited for.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// Servers that are tried one after the other, at most.
const HOSTS_MAX: usize = 8;
/// Where MySQL listens if nothing else is said.
const PORT: u16 = 3306;

/// Which database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// `index.sqlite` in the data folder.
    #[default]
    Sqlite,
    /// A MySQL or MariaDB server, as `[index.mysql]` says.
    Mysql,
}

/// How the index is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Which database.
    pub driver: Driver,
    /// Connections at a time, at most.
    pub connections_max: u32,
    /// How long a query waits for a connection or a lock.
    pub busy_timeout_ms: u64,
    /// The server, with the driver `mysql`.
    pub mysql: Mysql,
}

/// A MySQL or MariaDB server and the user that a node is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mysql {
    /// Servers, `host` or `host:port`: the first that answers and takes writes is used until it fails.
    pub hosts: Vec<String>,
    /// A socket of this machine, in the place of `hosts`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// The database; it is this node's alone.
    pub database: String,
    /// The user; it needs SELECT, INSERT, UPDATE and DELETE on that database, and nothing else.
    pub user: String,
    /// Its password, in a file that the owner alone can read; read again for each connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// Certificates of the authority that signs the servers'. Required but on loopback and for a socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// How long a connection may take to be made.
    pub connect_timeout_ms: u64,
    /// How long one statement may take.
    pub statement_timeout_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            driver: Driver::Sqlite,
            connections_max: 4,
            busy_timeout_ms: 5_000,
            mysql: Mysql::default(),
        }
    }
}

impl Default for Mysql {
    fn default() -> Self {
        Self {
            hosts: Vec::new(),
            socket: None,
            database: "vitalfog".to_owned(),
            user: "vitalfog".to_owned(),
            password_file: None,
            ca_file: None,
            connect_timeout_ms: 3_000,
            statement_timeout_ms: 10_000,
        }
    }
}

impl Config {
    /// What is wrong with it, each with the key to change.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let zero = [
            ("connections_max", self.connections_max == 0),
            ("busy_timeout_ms", self.busy_timeout_ms == 0),
            ("mysql.connect_timeout_ms", self.mysql.connect_timeout_ms == 0),
            ("mysql.statement_timeout_ms", self.mysql.statement_timeout_ms == 0),
        ];
        let mut faults: Vec<_> = zero
            .iter()
            .filter(|(_, is_zero)| *is_zero)
            .map(|(key, _)| format!("index.{key} must be at least 1"))
            .collect();
        if self.driver == Driver::Mysql {
            faults.extend(self.mysql.faults());
        }
        faults
    }

    /// Makes its paths relative to a folder.
    pub fn place(&mut self, folder: &Path) {
        let mysql = &mut self.mysql;
        let paths = [&mut mysql.socket, &mut mysql.password_file, &mut mysql.ca_file];
        for path in paths.into_iter().flatten() {
            *path = folder.join(&*path);
        }
    }

    /// The password's file, if this configuration uses it.
    #[must_use]
    pub fn password_file(&self) -> Option<&Path> {
        let used = self.driver == Driver::Mysql;
        self.mysql.password_file.as_deref().filter(|_| used)
    }
}

/// One server of `hosts`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Host {
    pub(super) name: String,
    pub(super) port: u16,
}

impl Host {
    /// `host`, `host:port`, `[v6]:port`.
    fn parse(text: &str) -> Option<Self> {
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) if !name.contains(':') || name.ends_with(']') => (name, port.parse().ok()?),
            _ => (text, PORT),
        };
        let name = name.trim_start_matches('[').trim_end_matches(']').to_owned();
        (!name.is_empty() && port != 0).then_some(Self { name, port })
    }

    /// Whether what is said to it leaves this machine.
    pub(super) fn is_loopback(&self) -> bool {
        self.name == "localhost" || self.name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

impl Mysql {
    /// The servers; those that do not parse are faults.
    pub(super) fn servers(&self) -> Vec<Host> {
        self.hosts.iter().filter_map(|text| Host::parse(text)).collect()
    }

    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for host in &self.hosts {
            match Host::parse(host) {
                None => faults.push(format!("index.mysql.hosts: {host:?} is not host or host:port")),
                Some(server) if !server.is_loopback() && self.ca_file.is_none() => faults.push(format!(
                    "index.mysql.ca_file: {host} is not this machine, so TLS is needed: name the authority of its certificate"
                )),
                Some(_) => {}
            }
        }
        if self.hosts.is_empty() == self.socket.is_none() {
            faults.push("index.mysql: name either hosts or a socket".to_owned());
        }
        if self.hosts.len() > HOSTS_MAX {
            faults.push(format!("index.mysql.hosts: at most {HOSTS_MAX} are tried"));
        }
        for (key, value) in [("database", &self.database), ("user", &self.user)] {
            let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
            if value.is_empty() || value.len() > 64 || !value.chars().all(is_name) {
                faults.push(format!("index.mysql.{key}: {value:?} is not letters, digits, - and _"));
            }
        }
        if self.user == "root" {
            faults.push("index.mysql.user: root may do everything; a user of its own needs four rights".to_owned());
        }
        if self.password_file.is_none() && self.socket.is_none() {
            faults.push("index.mysql.password_file is missing".to_owned());
        }
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mysql(hosts: &[&str]) -> Config {
        Config {
            driver: Driver::Mysql,
            mysql: Mysql {
                hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
                password_file: Some("secret".into()),
                ..Mysql::default()
            },
            ..Config::default()
        }
    }

    #[test]
    fn off_loopback_a_server_needs_tls() {
        for local in ["127.0.0.1", "localhost:33060", "[::1]:3306", "::1"] {
            assert_eq!(mysql(&[local]).faults(), Vec::<String>::new(), "{local}");
        }
        for away in ["db.example", "10.0.0.1:3306", "localhost.example", "[2001:db8::1]:3306"] {
            let mut config = mysql(&[away]);
            assert!(config.faults()[0].contains("ca_file"), "{away}");
            config.mysql.ca_file = Some("ca.crt".into());
            assert_eq!(config.faults(), Vec::<String>::new(), "{away}");
        }
    }

    #[test]
    fn what_no_server_can_be_reached_with_is_told_at_once() {
        let mut config = mysql(&["a:b", ""]);
        config.mysql.user = "root".to_owned();
        config.mysql.database = "a`; DROP".to_owned();
        config.mysql.password_file = None;
        assert_eq!(config.faults().len(), 5, "{:?}", config.faults());
        assert!(mysql(&[]).faults()[0].contains("hosts or a socket"));
        // A section that is not used is in nobody's way.
        config.driver = Driver::Sqlite;
        assert_eq!(config.faults(), Vec::<String>::new());
    }

    #[test]
    fn a_host_has_a_port_or_the_usual_one() {
        let host = |name: &str, port| {
            Some(Host {
                name: name.to_owned(),
                port,
            })
        };
        assert_eq!(Host::parse("db"), host("db", PORT));
        assert_eq!(Host::parse("db:1"), host("db", 1));
        assert_eq!(Host::parse("[::1]:2"), host("::1", 2));
        assert_eq!(Host::parse("::1"), host("::1", PORT));
        assert_eq!(Host::parse("db:0"), None);
    }
}
