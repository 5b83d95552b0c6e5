//! What people do with the keys that devices seal to: see them, make another one, forget one that no device uses any more.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use record::ids::ReadingKeyId;

use super::{
    home::{alone, at},
    identifier,
};
use crate::{
    config::Prepared,
    outbox::now_ms,
    transit::{self, Error, Shown},
};

/// The gateway's reading keys; it may run meanwhile, and uses what is changed within a second or two.
#[derive(Debug, Subcommand)]
pub(super) enum ReadingKey {
    /// One line each, the one that new devices are given first: identifier, public half, since when. The first time, it makes one.
    List {
        /// The gateway's configuration, TOML.
        #[arg(long)]
        config: PathBuf,
    },
    /// Makes another one for new devices. What is sealed to the older ones is opened as before.
    Renew {
        /// The gateway's configuration, TOML.
        #[arg(long)]
        config: PathBuf,
    },
    /// Forgets an older one. What is sealed to it can be opened by nobody any more, and is refused.
    Drop {
        /// The gateway's configuration, TOML.
        #[arg(long)]
        config: PathBuf,
        /// Its identifier.
        #[arg(long, value_parser = identifier::<ReadingKeyId>)]
        id: ReadingKeyId,
    },
}

impl ReadingKey {
    /// The configuration that is named.
    pub(super) fn config(&self) -> &Path {
        match self {
            Self::List { config } | Self::Renew { config } | Self::Drop { config, .. } => config,
        }
    }

    /// Does it, and lists those that there are then.
    ///
    /// # Errors
    /// A sentence.
    pub(super) fn run(self, prepared: &Prepared) -> Result<String, String> {
        let folder = &prepared.config.data_dir;
        let _alone = alone(folder, "reading-keys.lock")?;
        let place = (prepared.sealer.network, &prepared.config.gateway);
        let changed = transit::open(folder, place, now_ms()).and_then(|keys| {
            let changed = match self {
                Self::List { .. } => return Ok(keys),
                Self::Renew { .. } => keys.renewed(now_ms())?,
                Self::Drop { id, .. } => keys.without(id)?,
            };
            transit::replace(folder, &changed)?;
            Ok(changed)
        });
        let keys = changed.map_err(|error: Error| error.to_string())?;
        let line = |key: &Shown| format!("{}\t{}\t{}\n", key.id, key.public, at(key.made_ms));
        Ok(transit::shown(&keys).iter().map(line).collect())
    }
}
