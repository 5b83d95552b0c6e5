//! What an operator may set: where payloads are kept, how much of them, and how they travel.

use record::bundle::PAYLOAD_BYTES_MAX;
use serde::{Deserialize, Serialize};

use super::{ExchangeConfig, kubo, unixfs::FILE_BYTES_MAX};

/// Where payloads are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// In one file of this process (`vault.redb` in the data folder).
    #[default]
    Embedded,
    /// In a Kubo daemon of this host, through its RPC.
    Kubo,
}

/// How payloads are kept and exchanged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where payloads are kept.
    pub driver: Driver,
    /// All payloads together may have this many bytes; a new one above it is refused.
    pub bytes_max: u64,
    /// One large record may have this many bytes; they come and go as streams, and are in memory a few blocks at a time.
    pub object_bytes_max: u64,
    /// Bytes that stay free on the disk of the data folder. Below it nothing new is kept; below a half of it the node stops, and
    /// waits for room when it is started again.
    pub disk_reserve_bytes: u64,
    /// Memory for pages of the embedded store, in bytes.
    pub cache_bytes_max: usize,
    /// How the daemon is reached; for `driver = "kubo"` alone.
    pub kubo: kubo::Config,
    /// How payloads travel between fog nodes.
    pub exchange: ExchangeConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            driver: Driver::Embedded,
            bytes_max: 64 << 30,
            object_bytes_max: 256 << 20,
            disk_reserve_bytes: 256 << 20,
            cache_bytes_max: 32 << 20,
            kubo: kubo::Config::default(),
            exchange: ExchangeConfig::default(),
        }
    }
}

impl Config {
    /// What is wrong with it, each with the key to change.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let mut faults = self.exchange.faults();
        faults.extend(self.kubo.faults());
        if self.bytes_max < PAYLOAD_BYTES_MAX as u64 {
            faults.push(format!(
                "vault.bytes_max must be at least {PAYLOAD_BYTES_MAX}: one payload"
            ));
        }
        if self.object_bytes_max > FILE_BYTES_MAX {
            let most = FILE_BYTES_MAX;
            faults.push(format!(
                "vault.object_bytes_max must be at most {most}: two levels of blocks"
            ));
        }
        faults
    }
}
