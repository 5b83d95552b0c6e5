//! The rooms of a node, opened from the innermost outwards: what keeps, then what works on it.

use std::path::Path;

use http::HeaderMap;
use ledger::genesis::Genesis;
use record::{canonical::Digest, ids::OrganizationId, signature::SigningKey};
use reqwest::tls::TlsInfo;
use rustls::pki_types::CertificateDer;

use super::{Error, Node, open, peers_client};
use crate::{
    chain::{self, Chain},
    config::Config,
    consensus,
    containment::contained,
    disclosure::Disclosure,
    documents::{self, Desk, Documents, Leftovers},
    erasure::{self, Erasure},
    http::caller::Peer,
    index::Index,
    intake::Intake,
    keyring::Keyring,
    mempool::Mempool,
    possession::{self, Possession},
    projection::Projection,
    query::{self, Query},
    recovery::{self, FoundBy, Incidents, Kind, Recovery},
    retention::{Repairs, Retention},
    vault::Vault,
};

/// What keeps: on the disk, or in memory until it is on the disk.
pub(super) struct Stores {
    pub(super) incidents: Incidents,
    pub(super) keyring: Keyring,
    pub(super) chain: Chain,
    pub(super) vault: Vault,
    pub(super) index: Index,
    pub(super) mempool: Mempool,
    /// The client for other nodes.
    pub(super) peers: reqwest::Client,
}

impl Stores {
    pub(super) async fn open(node: &Node) -> Result<Self, Error> {
        let (config, data_dir) = (&node.config, &node.config.data_dir);
        let incidents = Incidents::open(data_dir).map_err(open("incidents"))?;
        let peers = peers_client(&node.identity, HeaderMap::new())?;
        let vault = Vault::open(&config.vault, data_dir, peers.clone()).await;
        let index = Index::open(&config.index, data_dir).await;
        set_engine_aside(data_dir, &incidents)?;
        Ok(Self {
            keyring: Keyring::load(&config.keyring, data_dir).map_err(open("keyring"))?,
            chain: open_chain(config, &node.genesis, &incidents)?,
            vault: vault.map_err(open("vault"))?,
            index: index.map_err(open("index"))?,
            mempool: Mempool::new(&config.mempool),
            incidents,
            peers,
        })
    }
}

/// What works on the stores.
pub(super) struct Work {
    pub(super) intake: Intake,
    pub(super) documents: Documents,
    pub(super) leftovers: Leftovers,
    pub(super) query: Query,
    pub(super) projection: Projection,
    pub(super) retention: Retention,
    pub(super) disclosure: Disclosure,
    pub(super) recovery: Recovery,
    pub(super) possession: Possession,
    pub(super) erasure: Erasure,
}

impl Work {
    pub(super) fn on(stores: &Stores, config: &Config, (key, desk): (SigningKey, Option<Desk>)) -> Self {
        let (chain, vault, index) = (&stores.chain, &stores.vault, &stores.index);
        let readable = query::Rooms {
            states: chain.states(),
            vault: vault.clone(),
            index: index.clone(),
            keyring: stores.keyring.clone(),
        };
        let projection = Projection::new(chain.clone(), vault.clone(), index.clone(), stores.keyring.clone());
        let looked_after = recovery::Rooms {
            chain: chain.clone(),
            vault: vault.clone(),
            projection: projection.clone(),
        };
        let recovery = Recovery::new(
            config.recovery.clone(),
            key.clone(),
            looked_after,
            (stores.peers.clone(), &config.vault.exchange.peers),
            stores.incidents.clone(),
        );
        let (retention, repairs) = Retention::new(chain.clone(), vault.clone());
        Self {
            documents: stores.documents(config, (key.clone(), desk)),
            leftovers: Leftovers::new(chain.clone(), stores.mempool.clone(), vault.clone()),
            erasure: stores.erasure(config.organization.clone(), key.clone()),
            intake: Intake::new(
                &config.intake,
                key.clone(),
                chain.clone(),
                stores.mempool.clone(),
                vault.clone(),
            ),
            query: Query::new(&config.query, config.organization.clone(), readable),
            possession: stores.possession(config, key, (repairs, recovery.clone())),
            retention,
            disclosure: Disclosure::new(chain.clone(), vault.clone()),
            recovery,
            projection,
        }
    }
}

impl Stores {
    fn documents(&self, config: &Config, (key, desk): (SigningKey, Option<Desk>)) -> Documents {
        let own = documents::Own {
            organization: config.organization.clone(),
            key,
            desk,
        };
        let large = documents::Rooms {
            chain: self.chain.clone(),
            mempool: self.mempool.clone(),
            vault: self.vault.clone(),
            keyring: self.keyring.clone(),
            peers: self.peers.clone(),
        };
        Documents::new(&config.documents, own, large)
    }

    fn erasure(&self, organization: OrganizationId, key: SigningKey) -> Erasure {
        let erased_from = erasure::Rooms {
            chain: self.chain.clone(),
            vault: self.vault.clone(),
            index: self.index.clone(),
            keyring: self.keyring.clone(),
            mempool: self.mempool.clone(),
            incidents: self.incidents.clone(),
        };
        Erasure::new(erased_from, organization, key)
    }

    fn possession(&self, config: &Config, key: SigningKey, (repairs, recovery): (Repairs, Recovery)) -> Possession {
        let held = possession::Rooms {
            chain: self.chain.clone(),
            mempool: self.mempool.clone(),
            vault: self.vault.clone(),
            repairs,
            recovery,
            incidents: self.incidents.clone(),
        };
        Possession::new(config.possession.clone(), key, held, (self.peers.clone(), shown))
    }
}

/// Who answered: the key of the certificate that the connection showed, as the chain pins it.
fn shown(response: &reqwest::Response) -> Option<Digest> {
    let info = response.extensions().get::<TlsInfo>()?;
    Peer::identity(&CertificateDer::from(info.peer_certificate()?))
}

/// Opens the chain. A file that is damaged is set aside, once, and begun anew: the engine delivers the blocks again from its
/// own store or from the peers, and each is checked on its way in.
fn open_chain(config: &Config, genesis: &Genesis, incidents: &Incidents) -> Result<Chain, Error> {
    let open_it = || {
        let opened = contained(|| Chain::open(&config.chain, &config.data_dir, genesis));
        opened.unwrap_or_else(|| Err(chain::Error::Damaged("its library panicked over it".to_owned())))
    };
    let error = match open_it() {
        Ok(chain) => return Ok(chain),
        Err(error) if error.is_damage() => error,
        Err(error) => return Err(open("chain")(error)),
    };
    let incident = incidents.found(
        Kind::ChainDamaged,
        FoundBy::Start,
        "chain.redb".to_owned(),
        error.to_string(),
    );
    let evidence = chain::set_aside(&config.data_dir).map_err(open("chain"))?;
    let chain = open_it().map_err(open("chain"))?;
    tracing::warn!(evidence = %evidence.display(), "the damaged chain was set aside; its blocks are applied again");
    incidents.mended(
        incident,
        vec!["begun anew; the engine delivers its blocks again".to_owned()],
    );
    Ok(chain)
}

/// Puts the engine's stores aside if they have kept it from starting; it fills new ones from the chain and the peers.
fn set_engine_aside(data_dir: &Path, incidents: &Incidents) -> Result<(), Error> {
    let aside = consensus::set_aside_what_does_not_open(data_dir).map_err(open("consensus"))?;
    if let Some(evidence) = aside {
        let what = "the engine ended each time while it opened its files".to_owned();
        let incident = incidents.found(Kind::EngineDamaged, FoundBy::Start, "consensus".to_owned(), what);
        let kept = format!(
            "begun anew from the chain and the peers; the old files are in {}",
            evidence.display()
        );
        incidents.mended(incident, vec![kept]);
    }
    Ok(())
}
