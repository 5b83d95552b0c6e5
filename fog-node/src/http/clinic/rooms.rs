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

/// The rooms behind the door, with the tasks that move readings through them.
pub(super) async fn open(
    dir: &Path,
    genesis: &Genesis,
    key: &SigningKey,
    (peers, holdings, desk): (Client, Vec<Holding>, SigningKey),
) -> Rooms {
    let passphrase = Passphrase::new("correct horse battery".to_owned().into()).expect("long enough");
    let keyring = Keyring::create(&dir.join("keyring.sealed"), &passphrase, holdings).expect("creates");
    let chain = Chain::open(&chain::Config::default(), dir, genesis).expect("opens");
    let peers_client = peers.clone();
    let vault = Vault::open(&vault::Config::default(), dir, peers).await.expect("opens");
    let index = Index::open(&index::Config::default(), dir).await.expect("opens");
    index.ready().await.expect("counts");
    let mempool = Mempool::new(&mempool::Config::default());
    let projection = Projection::new(chain.clone(), vault.clone(), index.clone(), keyring.clone());
    tokio::spawn(projection.clone().run());
    let looked_after = recovery::Rooms {
        chain: chain.clone(),
        vault: vault.clone(),
        projection,
    };
    let incidents = Incidents::open(dir).expect("opens");
    let recovery = Recovery::new(
        recovery::Config::default(),
        key.clone(),
        looked_after,
        (peers_client.clone(), &[]),
        incidents.clone(),
    );
    let (retention, repairs) = Retention::new(chain.clone(), vault.clone());
    tokio::spawn(retention.run());
    let held = possession::Rooms {
        chain: chain.clone(),
        mempool: mempool.clone(),
        vault: vault.clone(),
        repairs,
        recovery: recovery.clone(),
        incidents,
    };
    let possession = Possession::new(
        possession::Config::default(),
        key.clone(),
        held,
        (peers_client.clone(), |_| None),
    );
    let erased_from = erasure::Rooms {
        chain: chain.clone(),
        vault: vault.clone(),
        index: index.clone(),
        keyring: keyring.clone(),
        mempool: mempool.clone(),
        incidents: Incidents::open(dir).expect("opens"),
    };
    tokio::spawn(Erasure::new(erased_from, key.clone()).run());
    tokio::spawn(finalize(chain.clone(), mempool.clone(), genesis.clone(), key.clone()));
    let intake = intake::Config::default();
    let intake = Intake::new(&intake, key.clone(), chain.clone(), mempool.clone(), vault.clone());
    let own = documents::Own {
        organization: genesis.organizations[0].id.clone(),
        key: key.clone(),
        desk: Some(Desk::new(DESK.parse().expect("good"), desk)),
    };
    let large = documents::Rooms {
        chain: chain.clone(),
        mempool: mempool.clone(),
        vault: vault.clone(),
        keyring: keyring.clone(),
        peers: peers_client,
    };
    let limits = documents::Config {
        bytes_max: DOCUMENT_BYTES_MAX,
        ..documents::Config::default()
    };
    let documents = Documents::new(&limits, own, large);
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
