//! The composition for `replace`: the stores and the peers, without doors and without the engine.

use std::path::{Path, PathBuf};

use ::http::HeaderMap;

use super::{Error, Node, open, peers_client};
use crate::{
    chain::Chain,
    config::Faults,
    index::Index,
    keyring::{self, Keyring, Passphrase},
    projection::Projection,
    recovery::Peers,
    replace::{self, BLOCK_TIMEOUT, Donors, Folder, Progress, Summary},
    vault::Vault,
};

/// A data folder that may be rebuilt in, and a copy of the keyring that opens.
#[derive(Debug)]
pub struct Claim {
    folder: Folder,
    copy: Option<PathBuf>,
}

/// What became of the keys: peers cannot give them back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    /// The node is configured to hold none.
    NotConfigured,
    /// So many, from the copy.
    Restored(usize),
    /// None are left.
    Lost,
}

impl Node {
    /// Whether a `replace` began in the data folder and has not ended.
    #[must_use]
    pub fn is_half_rebuilt(&self) -> bool {
        replace::is_unfinished(&self.config.data_dir)
    }

    /// Whether the data folder lacks the keyring that is configured: the disk was lost, or another one is mounted.
    #[must_use]
    pub fn lacks_its_keyring(&self) -> bool {
        self.config.keyring.passphrase_file.is_some() && !self.keyring_path().exists()
    }

    /// Claims the data folder, after everything that `replace` needs was looked at.
    ///
    /// # Errors
    /// Everything that speaks against it; nothing was written then.
    pub fn claim(&self, copy: Option<&Path>) -> Result<Claim, Faults> {
        let mut faults = Faults::default();
        if self.config.vault.exchange.peers.is_empty() {
            faults.add("vault.exchange.peers names nobody from whom the node could be rebuilt");
        }
        if let Some(copy) = copy {
            match &self.config.keyring.passphrase_file {
                None => faults.add("--keyring: keyring.passphrase_file must say what opens it"),
                Some(file) => {
                    let opened = Passphrase::read(file).and_then(|passphrase| Keyring::open(copy, &passphrase));
                    faults.note("--keyring", opened);
                }
            }
        }
        // Last, since it writes the marker.
        let mut faults = match faults.none_or(()) {
            Ok(()) => Faults::default(),
            Err(faults) => return Err(faults),
        };
        let Some(folder) = faults.note("replace", Folder::claim(&self.config.data_dir)) else {
            return Err(faults);
        };
        let copy = copy.map(Path::to_owned);
        Ok(Claim { folder, copy })
    }

    /// Rebuilds the data folder from the peers; afterwards the node may be run.
    ///
    /// # Errors
    /// [`Error`]; what was rebuilt stays and is gone on from.
    pub async fn replace(self, claim: Claim, mut progress: Progress) -> Result<(Summary, Keys), Error> {
        let (config, data_dir) = (&self.config, &self.config.data_dir);
        let client = peers_client(&self.identity, HeaderMap::new())?;
        let (keyring, keys) = self.keys(claim.copy.as_deref())?;
        let chain = Chain::open(&config.chain, data_dir, &self.genesis).map_err(open("chain"))?;
        let vault = Vault::open(&config.vault, data_dir, client.clone()).await;
        let vault = vault.map_err(open("vault"))?;
        let index = Index::open(&config.index, data_dir).await.map_err(open("index"))?;
        let projects = !keyring.is_empty();
        if projects {
            index.adopt().await.map_err(open("index"))?;
        }
        let projection = Projection::new(chain.clone(), vault.clone(), index, keyring);
        let rooms = replace::Rooms {
            // Without keys there is nothing to project; should they come later, no block counts as projected.
            projection: projects.then_some(projection),
            chain,
            vault,
        };
        let peers = Peers::new(client, &config.vault.exchange.peers, BLOCK_TIMEOUT);
        let committees = peers.committees(&self.genesis).await;
        let (donors, me) = (Donors::new(peers, committees, &self.genesis.policy), self.key.public());
        let summary = replace::rebuild(&rooms, &donors, &me, &mut progress).await;
        let summary = summary?;
        if keys == Keys::Lost {
            self.hold_no_keys()?;
        }
        claim.folder.finish().map_err(open("data_dir"))?;
        Ok((summary, keys))
    }

    /// The keys of the copy, or of an earlier attempt that had one.
    fn keys(&self, copy: Option<&Path>) -> Result<(Keyring, Keys), Error> {
        let Some(file) = &self.config.keyring.passphrase_file else {
            return Ok((Keyring::default(), Keys::NotConfigured));
        };
        let (data_dir, path) = (&self.config.data_dir, self.keyring_path());
        let passphrase = Passphrase::read(file).map_err(open("keyring"))?;
        let keyring = match copy {
            Some(copy) => Keyring::restore(copy, data_dir, &passphrase),
            None if path.exists() => Keyring::open(&path, &passphrase),
            None => return Ok((Keyring::default(), Keys::Lost)),
        };
        let keyring = keyring.map_err(open("keyring"))?;
        let keys = Keys::Restored(keyring.len());
        Ok((keyring, keys))
    }

    /// An empty keyring, so that the node runs: a configured one that is absent keeps it from starting. Made last, so that another
    /// attempt may still bring a copy.
    fn hold_no_keys(&self) -> Result<(), Error> {
        if let Some(file) = &self.config.keyring.passphrase_file {
            let passphrase = Passphrase::read(file).map_err(open("keyring"))?;
            Keyring::create(&self.keyring_path(), &passphrase, Vec::new()).map_err(open("keyring"))?;
        }
        Ok(())
    }

    fn keyring_path(&self) -> PathBuf {
        self.config.data_dir.join(keyring::FILE)
    }
}
