//! The settings of the spool: how it collects, how much it holds, and who gives way when room runs short.

use serde::{Deserialize, Serialize};

use super::space::Marks;

/// How the outbox collects and how much it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How long the first reading of a commit waits for others, in milliseconds.
    pub linger_ms: u64,
    /// Readings in one commit, at most.
    pub commit_readings_max: usize,
    /// Bytes of unsent bundles and of those set aside; above it single values are refused until some are final.
    pub bytes_max: u64,
    /// Waveforms are refused first: above this share of `bytes_max`, in percent. What is left is for single values.
    pub waves_percent: u16,
    /// Alarms are refused last: above this share of `bytes_max`, in percent, from 100 on.
    pub alarms_percent: u16,
    /// Bytes that stay free on the disk; below it single values are refused until there is space again, waveforms below
    /// twice as much, alarms below a half.
    pub disk_reserve_bytes: u64,
    /// Memory for the store's pages, in bytes.
    pub cache_bytes: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            linger_ms: 5,
            commit_readings_max: 1_024,
            bytes_max: 1 << 30,
            waves_percent: 75,
            alarms_percent: 106,
            disk_reserve_bytes: 64 << 20,
            cache_bytes: 8 << 20,
        }
    }
}

impl Config {
    /// What is wrong with it, a sentence each.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.commit_readings_max == 0 || self.bytes_max == 0 {
            faults.push("outbox: commit_readings_max and bytes_max must be above 0".to_owned());
        }
        if !(1..=100).contains(&self.waves_percent) {
            faults.push(format!(
                "outbox.waves_percent {} must be 1 to 100: waveforms give way to single values",
                self.waves_percent
            ));
        }
        if !(100..=200).contains(&self.alarms_percent) {
            faults.push(format!(
                "outbox.alarms_percent {} must be 100 to 200: alarms are refused last",
                self.alarms_percent
            ));
        }
        faults
    }

    pub(super) const fn marks(&self) -> Marks {
        Marks {
            bytes_max: self.bytes_max,
            reserve_bytes: self.disk_reserve_bytes,
            waves_percent: self.waves_percent,
            alarms_percent: self.alarms_percent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waveforms_never_outlast_single_values_nor_those_alarms() {
        assert_eq!(Config::default().faults(), Vec::<String>::new());
        let faults = |waves_percent, alarms_percent| {
            let config = Config {
                waves_percent,
                alarms_percent,
                ..Config::default()
            };
            config.faults().len()
        };
        assert_eq!((faults(100, 100), faults(1, 200)), (0, 0));
        assert_eq!(
            (faults(0, 106), faults(101, 106), faults(75, 99), faults(75, 201)),
            (1, 1, 1, 1)
        );
    }
}
