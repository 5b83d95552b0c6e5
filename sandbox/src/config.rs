//! What can be chosen in the sandbox's configuration file; flags on the command line win over it.

use std::{ops::RangeInclusive, time::Duration};

use fog_node::index;
use serde::{Deserialize, Serialize};

use fog_node::vault::kubo::Api;
use ledger::policy::EPOCH_BLOCKS_MIN;

use crate::ports::{self, Host};

/// The sandbox's configuration; `config/sandbox.toml` lists every key with its default.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Fog nodes; 3f + 1 of them tolerate f liars.
    pub nodes: u16,
    /// Home devices.
    pub devices: u32,
    /// All ports derive from it: nodes answer from `port_base + 1` on, devices publish to `port_base + 10430`.
    pub port_base: u16,
    /// How much faster than it was recorded a recording is replayed.
    pub speed: f64,
    /// How long the access tokens in the report are valid, in hours.
    pub token_hours: u64,
    /// How often each fog node reads everything on its disk again, in seconds.
    pub scrub_s: u64,
    /// Blocks of an epoch: what the members decide about the committee takes effect with the epoch after the next.
    pub epoch_blocks: u64,
    /// Devices besides that are enrolled and never switched on: for whoever plays a device by hand.
    pub spare_devices: u32,
    /// Between devices and gateway.
    pub mqtt: Mqtt,
    /// A host for each fog node; none: all are on loopback.
    pub hosts: Vec<Host>,
    /// IPFS daemons of this machine that keep payloads: the RPC of the first is for the first fog node, and so on. Nodes without
    /// one keep payloads themselves.
    pub daemons: Vec<Api>,
    /// The first node's index in a MySQL or MariaDB server, in the place of SQLite.
    pub mysql: Option<index::Mysql>,
    /// How long what is waited for may take.
    pub limits: Limits,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            nodes: 4,
            devices: 50,
            port_base: ports::BASE,
            speed: 1.0,
            token_hours: 24,
            scrub_s: 300,
            epoch_blocks: 1_000,
            spare_devices: 0,
            mqtt: Mqtt::default(),
            hosts: Vec::new(),
            daemons: Vec::new(),
            mysql: None,
            limits: Limits::default(),
        }
    }
}

/// Which broker takes what the devices publish.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Broker {
    /// The one in the gateway's process.
    #[default]
    Embedded,
    /// Mosquitto, as a process of its own, with the configuration in `config/clinic`.
    Mosquitto,
}

/// Between devices and gateway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mqtt {
    /// Which broker.
    pub broker: Broker,
}

/// Every wait has an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// From starting a process until it answers.
    pub start_s: u64,
    /// From submitting the founding transactions until all are final on all nodes.
    pub enrol_s: u64,
    /// From the last measurement until the gateway has forgotten every bundle.
    pub drain_s: u64,
    /// Until all nodes show the same head, and the hospital sees what is final.
    pub agree_s: u64,
    /// From SIGTERM to SIGKILL; for the fleet, after its farewell.
    pub stop_s: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            start_s: 60,
            enrol_s: 120,
            drain_s: 60,
            agree_s: 60,
            stop_s: 15,
        }
    }
}

impl Limits {
    /// From starting a process until it answers.
    #[must_use]
    pub const fn start(&self) -> Duration {
        Duration::from_secs(self.start_s)
    }

    /// From submitting the founding transactions until all are final on all nodes.
    #[must_use]
    pub const fn enrol(&self) -> Duration {
        Duration::from_secs(self.enrol_s)
    }

    /// From the last measurement until the gateway has forgotten every bundle.
    #[must_use]
    pub const fn drain(&self) -> Duration {
        Duration::from_secs(self.drain_s)
    }

    /// Until all nodes show the same head, and the hospital sees what is final.
    #[must_use]
    pub const fn agree(&self) -> Duration {
        Duration::from_secs(self.agree_s)
    }

    /// From SIGTERM to SIGKILL; for the fleet, after its farewell.
    #[must_use]
    pub const fn stop(&self) -> Duration {
        Duration::from_secs(self.stop_s)
    }
}

impl Config {
    /// Reads the text of a configuration file.
    ///
    /// # Errors
    /// What to change, and where.
    pub fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|e| e.to_string())
    }

    /// What no run can be started with.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let bases = u64::from(ports::BASE_MIN)..=u64::from(ports::BASE_MAX);
        let limits = &self.limits;
        let numbers = [
            ("nodes", u64::from(self.nodes), 1..=u64::from(ports::NODES_MAX)),
            ("devices", u64::from(self.devices), 1..=u64::from(DEVICES_MAX)),
            (
                "spare_devices",
                u64::from(self.spare_devices),
                0..=u64::from(DEVICES_MAX),
            ),
            ("port base", u64::from(self.port_base), bases),
            ("token_hours", self.token_hours, 1..=TOKEN_HOURS_MAX),
            ("scrub_s", self.scrub_s, 1..=LIMIT_MAX_S),
            (
                "epoch_blocks",
                self.epoch_blocks,
                EPOCH_BLOCKS_MIN..=u64::from(u32::MAX),
            ),
            ("limits.start_s", limits.start_s, 1..=LIMIT_MAX_S),
            ("limits.enrol_s", limits.enrol_s, 1..=LIMIT_MAX_S),
            ("limits.drain_s", limits.drain_s, 1..=LIMIT_MAX_S),
            ("limits.agree_s", limits.agree_s, 1..=LIMIT_MAX_S),
            ("limits.stop_s", limits.stop_s, 1..=LIMIT_MAX_S),
        ];
        let mut faults: Vec<_> = numbers.into_iter().filter_map(outside).collect();
        if !self.speed.is_finite() || self.speed <= 0.0 {
            faults.push(format!("speed: {} is not a number above 0", self.speed));
        }
        if let Some(mysql) = self.mysql.clone() {
            let driver = index::Driver::Mysql;
            faults.extend(
                index::Config {
                    driver,
                    mysql,
                    ..index::Config::default()
                }
                .faults(),
            );
        }
        let (hosts, nodes) = (self.hosts.len(), self.nodes);
        if hosts != 0 && hosts != usize::from(nodes) {
            faults.push(format!(
                "hosts: there are {hosts} for {nodes} fog nodes; name one for each, or none"
            ));
        }
        let daemons = self.daemons.len();
        if daemons > usize::from(nodes) {
            faults.push(format!("daemons: there are {daemons} for {nodes} fog nodes"));
        }
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let nameless = self.hosts.iter().map(|host| host.namespace.as_str());
        let nameless = nameless.filter(|name| name.is_empty() || name.starts_with('-') || !name.chars().all(is_name));
        faults.extend(nameless.map(|name| format!("hosts.namespace: {name:?} is no name of a network namespace")));
        faults
    }
}

fn outside((what, number, range): (&str, u64, RangeInclusive<u64>)) -> Option<String> {
    let (from, to) = (range.start(), range.end());
    (!range.contains(&number)).then(|| format!("{what}: {number} is not between {from} and {to}"))
}

/// Devices in one sandbox, at most: each is an MQTT connection.
pub const DEVICES_MAX: u32 = 5_000;
/// Hours that a token may be valid: a year.
const TOKEN_HOURS_MAX: u64 = 24 * 365;
/// Seconds that anything is waited for, at most: a day.
const LIMIT_MAX_S: u64 = 24 * 3_600;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_file_says_what_the_program_does() {
        let text = include_str!("../../config/sandbox.toml");
        assert_eq!(Config::parse(text).expect("parses"), Config::default());
        assert_eq!(Config::parse("").expect("parses"), Config::default());
    }

    #[test]
    fn all_faults_are_named_at_once() {
        let config = Config::parse("nodes = 0\ndevices = 0\nspeed = -1.0\nport_base = 80").expect("parses");
        assert_eq!(config.faults().len(), 4);
        assert!(Config::parse("noddes = 4").expect_err("unknown").contains("noddes"));
        assert!(Config::default().faults().is_empty());
    }

    #[test]
    fn every_node_has_a_host_or_none_has() {
        let host = |name: &str| format!("[[hosts]]\naddress = \"192.0.2.1\"\nnamespace = \"{name}\"\n");
        let faults = |text: String| Config::parse(&text).expect("parses").faults();
        assert!(faults(["nodes = 2\n", &host("a"), &host("b")].concat()).is_empty());
        assert!(faults(host("a"))[0].contains("1 for 4"));
        for bad in ["", "../a", "-a", "a b"] {
            assert!(
                faults("nodes = 1\n".to_owned() + &host(bad))[0].contains("namespace"),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_daemon_is_on_this_machine_and_has_a_node() {
        let of = |text: &str| Config::parse(text);
        let one = of("daemons = [\"/ip4/127.0.0.1/tcp/5001\"]").expect("parses");
        assert_eq!((one.daemons.len(), one.faults().len()), (1, 0));
        assert!(
            of("daemons = [\"/ip4/10.0.0.1/tcp/5001\"]")
                .expect_err("elsewhere")
                .contains("loopback")
        );
        let two = of("nodes = 1\ndaemons = [\"/ip4/127.0.0.1/tcp/1\", \"/ip4/127.0.0.1/tcp/2\"]").expect("parses");
        assert!(two.faults()[0].contains("2 for 1"));
    }

    #[test]
    fn a_database_is_looked_at_before_anything_starts() {
        let config = Config::parse("[mysql]\nhosts = [\"db.example\"]\npassword_file = \"secret\"").expect("parses");
        assert!(config.faults()[0].contains("ca_file"));
    }

    #[test]
    fn what_could_overflow_is_refused() {
        let text = format!(
            "token_hours = {max}\n[limits]\nstart_s = {max}\nenrol_s = {max}\ndrain_s = 0\nagree_s = {max}\nstop_s = {max}",
            max = i64::MAX
        );
        let faults = Config::parse(&text).expect("parses").faults();
        for key in [
            "token_hours",
            "limits.start_s",
            "limits.enrol_s",
            "limits.drain_s",
            "limits.agree_s",
            "limits.stop_s",
        ] {
            let named = faults.iter().filter(|fault| fault.starts_with(key));
            assert_eq!(named.count(), 1, "{key}: {faults:?}");
        }
        let longest =
            format!("token_hours = {TOKEN_HOURS_MAX}\n[limits]\nstart_s = {LIMIT_MAX_S}\nstop_s = {LIMIT_MAX_S}");
        let longest = Config::parse(&longest).expect("parses");
        assert_eq!(longest.faults(), Vec::<String>::new());
        // What is done with them does not overflow either.
        let _ = (
            std::time::Instant::now() + longest.limits.start(),
            longest.token_hours * 3_600,
        );
    }
}
