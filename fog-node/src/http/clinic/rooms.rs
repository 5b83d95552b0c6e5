//! The rooms behind a clinic's door, and who stands in for the engine: one validator whose vote makes each block final.

use std::{path::Path, sync::OnceLock};

use ledger::{
    block::{Block, FinalizedBlock},
    genesis::Genesis,
    proof::{Finalization, Vote, vote_message},
};
use record::signature::SigningKey;
use reqwest::Client;
use tokio::sync::watch;

use super::{super::Rooms, now_ms};
use crate::{
    chain::{self, Chain},
    disclosure::Disclosure,
    documents::{self, Desk, Documents},
    erasure::{self, Erasure},
    index::{self, Index},
    intake::{self, Intake},
    keyring::{Holding, Keyring, Passphrase},
    mempool::{self, Mempool},
    possession::{self, Possession},
    projection::Projection,
    query::{self, Query},
    recovery::{self, Incidents, Recovery},
    retention::Retention,
    telemetry::{self, Telemetry},
    vault::{self, Vault},
};

/// The name of the desk.
pub(super) const DESK: &str = "desk-1";
/// Bytes of a document, at most.
pub(in crate::http) const DOCUMENT_BYTES_MAX: u64 = 4 << 20;

fn telemetry() -> Telemetry {
    static ONCE: OnceLock<Telemetry> = OnceLock::new();
    ONCE.get_or_init(|| Telemetry::start(&telemetry::Config::default()).expect("once in this process"))
        .clone()
}

/// The engine's stand-in: whatever waits becomes the next block, with the one validator's vote.
async fn finalize(chain: Chain, mempool: Mempool, genesis: Genesis, key: SigningKey) {
    loop {
        mempool.wait_for_work().await;
        let (ids, transactions): (Vec<_>, Vec<_>) = mempool
            .pick(0, 100)
            .into_iter()
            .map(|queued| (queued.id, queued.transaction))
            .unzip();
        let head = chain.head();
        let mut block = Block {
            header: Block::genesis(&genesis).header,
            transactions,
        };
        block.header.height = head.height.next();
        block.header.parent = head.digest;
        block.header.timestamp_ms = head.timestamp_ms.max(u64::try_from(now_ms()).expect("after 1970")) + 1;
        block.header.transactions_root = block.transactions_root();
        let (header, digest) = genesis.policy.mine(block.header);
        block.header = header;
        let vote = Vote {
            validator: key.public(),
            signature: key.sign_raw(&vote_message(&block.header)),
        };
        let finalization = Some(Finalization { votes: vec![vote] });
        chain
            .append(FinalizedBlock {
                block,
                digest,
                finalization,
            })
            .await
            .expect("appends");
        mempool.remove(&ids);
    }
}

/// What keeps, and what everything else is opened with.
struct Stores<'a> {
    genesis: &'a Genesis,
    key: &'a SigningKey,
    peers: Client,
    chain: Chain,
    vault: Vault,
    index: Index,
    keyring: Keyring,
    mempool: Mempool,
    incidents: Incidents,
}

impl Stores<'_> {
    /// What compares, scrubs, proves and erases, with its tasks.
    fn care(&self) -> (Recovery, Possession) {
        let (chain, vault, index) = (&self.chain, &self.vault, &self.index);
        let projection = Projection::new(chain.clone(), vault.clone(), index.clone(), self.keyring.clone());
        tokio::spawn(projection.clone().run());
        let looked_after = recovery::Rooms {
            chain: chain.clone(),
            vault: vault.clone(),
            projection,
        };
        let recovery = Recovery::new(
            recovery::Config::default(),
            self.key.clone(),
            looked_after,
            (self.peers.clone(), &[]),
            self.incidents.clone(),
        );
        let (retention, repairs) = Retention::new(chain.clone(), vault.clone());
        tokio::spawn(retention.run());
        let held = possession::Rooms {
            chain: chain.clone(),
            mempool: self.mempool.clone(),
            vault: vault.clone(),
            repairs,
            recovery: recovery.clone(),
            incidents: self.incidents.clone(),
        };
        let possession = Possession::new(
            possession::Config::default(),
            self.key.clone(),
            held,
            (self.peers.clone(), |_| None),
        );
        let erased_from = erasure::Rooms {
            chain: chain.clone(),
            vault: vault.clone(),
            index: index.clone(),
            keyring: self.keyring.clone(),
            mempool: self.mempool.clone(),
            incidents: self.incidents.clone(),
        };
        let own = self.genesis.organizations[0].id.clone();
        tokio::spawn(Erasure::new(erased_from, own, self.key.clone()).run());
        (recovery, possession)
    }

    fn documents(&self, desk: SigningKey) -> Documents {
        let own = documents::Own {
            organization: self.genesis.organizations[0].id.clone(),
            key: self.key.clone(),
            desk: Some(Desk::new(DESK.parse().expect("good"), desk)),
        };
        let large = documents::Rooms {
            chain: self.chain.clone(),
            mempool: self.mempool.clone(),
            vault: self.vault.clone(),
            keyring: self.keyring.clone(),
            peers: self.peers.clone(),
        };
        let limits = documents::Config {
            bytes_max: DOCUMENT_BYTES_MAX,
            ..documents::Config::default()
        };
        Documents::new(&limits, own, large)
    }
}

/// The rooms behind the door, with the tasks that move readings through them.
pub(super) async fn open(
    dir: &Path,
    genesis: &Genesis,
    key: &SigningKey,
    (peers, holdings, desk): (Client, Vec<Holding>, SigningKey),
) -> Rooms {
    let passphrase = Passphrase::new("correct horse battery".to_owned().into()).expect("long enough");
    let stores = Stores {
        genesis,
        key,
        chain: Chain::open(&chain::Config::default(), dir, genesis).expect("opens"),
        vault: Vault::open(&vault::Config::default(), dir, peers.clone())
            .await
            .expect("opens"),
        index: Index::open(&index::Config::default(), dir).await.expect("opens"),
        keyring: Keyring::create(&dir.join("keyring.sealed"), &passphrase, holdings).expect("creates"),
        mempool: Mempool::new(&mempool::Config::default()),
        incidents: Incidents::open(dir).expect("opens"),
        peers,
    };
    stores.index.ready().await.expect("counts");
    let (recovery, possession) = stores.care();
    let documents = stores.documents(desk);
    let Stores {
        chain,
        vault,
        index,
        keyring,
        mempool,
        ..
    } = stores;
    tokio::spawn(finalize(chain.clone(), mempool.clone(), genesis.clone(), key.clone()));
    let intake = intake::Config::default();
    let intake = Intake::new(&intake, key.clone(), chain.clone(), mempool.clone(), vault.clone());
    let query = query::Config::default();
    let rooms = query::Rooms {
        states: chain.states(),
        vault: vault.clone(),
        index: index.clone(),
        keyring,
    };
    let query = Query::new(&query, genesis.organizations[0].id.clone(), rooms);
    let consensus_runs = watch::channel(true).1;
    let disclosure = Disclosure::new(chain.clone(), vault.clone());
    Rooms {
        chain,
        mempool,
        vault,
        index,
        intake,
        documents,
        query,
        disclosure,
        possession,
        recovery,
        telemetry: telemetry(),
        consensus_runs,
    }
}
