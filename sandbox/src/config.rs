//! What can be chosen in the sandbox's configuration file; flags on the command line win over it.

use std::time::Duration;

use serde::Deserialize;

use crate::ports;

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
            limits: Limits::default(),
        }
    }
}

/// Every wait has an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
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
        let mut faults = Vec::new();
        if !(1..=ports::NODES_MAX).contains(&self.nodes) {
            faults.push(format!(
                "nodes: {} is not between 1 and {}",
                self.nodes,
                ports::NODES_MAX
            ));
        }
        if !(1..=DEVICES_MAX).contains(&self.devices) {
            faults.push(format!("devices: {} is not between 1 and {DEVICES_MAX}", self.devices));
        }
        if !(ports::BASE_MIN..=ports::BASE_MAX).contains(&self.port_base) {
            faults.push(format!(
                "port base: {} is not between {} and {}",
                self.port_base,
                ports::BASE_MIN,
                ports::BASE_MAX
            ));
        }
        if !self.speed.is_finite() || self.speed <= 0.0 {
            faults.push(format!("speed: {} is not a number above 0", self.speed));
        }
        faults
    }
}

/// Devices in one sandbox, at most: each is an MQTT connection.
pub const DEVICES_MAX: u32 = 5_000;

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
}
