//! The same application on the real network, clock and disk: four validators on loopback.

use std::{
    net::TcpListener,
    path::Path,
    time::{Duration, Instant},
};

use fog_node::{
    chain::{self, Chain},
    consensus::{Config, Consensus, Parts, Peer, start},
    mempool::{self, Mempool, Pending},
    vault::{self, Vault},
};
use ledger::{proof::Receipt, transaction::SignedTransaction};
use record::canonical::Digest;
use tempfile::TempDir;

use crate::clinic::Clinic;

struct Node {
    mempool: Mempool,
    chain: Chain,
    vault: Vault,
    consensus: Option<Consensus>,
}

struct Loopback {
    clinic: Clinic,
    folders: Vec<TempDir>,
    configs: Vec<Config>,
    nodes: Vec<Node>,
}

impl Loopback {
    async fn start(validators: u8) -> Self {
        // Set already when another test of this process was first.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let clinic = Clinic::of(validators);
        let listeners: Vec<_> = clinic
            .validators
            .iter()
            .map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port"))
            .collect();
        let addresses: Vec<_> = listeners.iter().map(|l| l.local_addr().expect("bound")).collect();
        drop(listeners);
        let keys = clinic.validators.iter().map(|key| key.public());
        let peers: Vec<_> = keys
            .zip(&addresses)
            .map(|(key, address)| Peer { key, address: *address })
            .collect();
        let config = |listen: &std::net::SocketAddr| Config {
            listen: *listen,
            peers: peers.clone(),
            ..Config::default()
        };
        let configs: Vec<_> = addresses.iter().map(config).collect();
        let folders: Vec<_> = addresses.iter().map(|_| TempDir::new().expect("a folder")).collect();
        let mut nodes = Vec::new();
        for folder in &folders {
            nodes.push(Node::open(&clinic, folder.path()).await);
        }
        let mut all = Self {
            clinic,
            folders,
            configs,
            nodes,
        };
        for node in 0..all.nodes.len() {
            all.run(node);
        }
        all
    }

    fn run(&mut self, node: usize) {
        let parts = Parts {
            data_dir: self.folders[node].path().to_owned(),
            genesis: self.clinic.genesis.clone(),
            key: self.clinic.validators[node].clone(),
            mempool: self.nodes[node].mempool.clone(),
            chain: self.nodes[node].chain.clone(),
            vault: self.nodes[node].vault.clone(),
        };
        self.nodes[node].consensus = Some(start(self.configs[node].clone(), parts).expect("starts"));
    }

    /// Keeps the payload at some nodes, as a push does, and submits the commitment at the first of them.
    async fn submit(&self, number: u64, at: &[usize]) -> SignedTransaction {
        let (transaction, payload) = self.clinic.bundle(number);
        for node in at.iter().rev().map(|node| &self.nodes[*node]) {
            let held = node.vault.put(payload.clone().into()).await.expect("kept");
            if std::ptr::eq(node, &self.nodes[at[0]]) {
                let pending = Pending::bundle(transaction.clone(), held).expect("its own payload");
                assert_eq!(node.mempool.insert(pending), Ok(true));
            }
        }
        transaction
    }
}

impl Node {
    async fn open(clinic: &Clinic, folder: &Path) -> Self {
        let chain = Chain::open(&chain::Config::default(), folder, &clinic.genesis).expect("opens");
        let vault = Vault::open(&vault::Config::default(), folder, reqwest::Client::new())
            .await
            .expect("opens");
        Self {
            mempool: Mempool::new(&mempool::Config::default()),
            chain,
            vault,
            consensus: None,
        }
    }

    async fn stop(&mut self) {
        self.consensus.take().expect("runs").stop().await;
    }

    /// Waits for the receipt of a bundle and checks it.
    async fn proves(&self, clinic: &Clinic, transaction: &SignedTransaction) {
        let bundle = transaction.commitment().expect("a commitment").bundle;
        let mut heads = self.chain.watch();
        let receipt = async {
            loop {
                if let Some(receipt) = self.chain.receipt(&bundle).await.expect("reads") {
                    return receipt;
                }
                heads.changed().await.expect("the chain is open");
            }
        };
        let receipt = tokio::time::timeout(Duration::from_secs(30), receipt)
            .await
            .expect("final in time");
        assert_eq!(
            Receipt::verify(&receipt, &clinic.founders()).expect("holds").bundle(),
            bundle
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_nodes_finalize_bundles_and_one_that_was_away_catches_up() {
    let mut all = Loopback::start(4).await;
    for enrolment in all.clinic.enrolments() {
        let pending = Pending::plain(enrolment).expect("no commitment");
        assert_eq!(all.nodes[0].mempool.insert(pending), Ok(true));
    }
    let mut heads = all.nodes[0].chain.watch();
    let [gateway, key] = all.clinic.enrolments().map(|enrolment| enrolment.id().0);
    let known = |chain: &Chain, id: Digest| chain.took_effect_at(&id).expect("reads").is_some();
    while !(known(&all.nodes[0].chain, gateway) && known(&all.nodes[0].chain, key)) {
        tokio::time::timeout(Duration::from_secs(30), heads.changed())
            .await
            .expect("blocks come")
            .expect("open");
    }

    let mut slowest = Duration::ZERO;
    let mut last: Option<SignedTransaction> = None;
    for number in 0..40 {
        let submitted = Instant::now();
        let transaction = all
            .submit(number, &[0, 1, 2, 3].map(|node| (number as usize + node) % 4))
            .await;
        for node in &all.nodes {
            node.proves(&all.clinic, &transaction).await;
        }
        slowest = slowest.max(submitted.elapsed());
        // The head is announced a moment before its transactions leave the mempool, and they have left it before the next
        // block is appended: this one's receipt says so of the one before.
        if let Some(last) = last.replace(transaction) {
            assert!(
                !all.nodes[0].mempool.contains(&last.id()),
                "what is final waits no longer"
            );
        }
    }
    println!("slowest of 40 bundles from vault to receipt on all nodes: {slowest:?}");

    all.nodes[3].stop().await;
    let missed = [all.submit(100, &[0, 1, 2]).await, all.submit(101, &[1, 2, 0]).await];
    for transaction in &missed {
        all.nodes[0].proves(&all.clinic, transaction).await;
        assert!(!known(&all.nodes[3].chain, transaction.id().0));
    }
    all.run(3);
    for transaction in &missed {
        all.nodes[3].proves(&all.clinic, transaction).await;
    }
    for node in &mut all.nodes {
        node.stop().await;
    }
    let (lowest, digest) = all
        .nodes
        .iter()
        .map(|node| (node.chain.head().height, node.chain.head().digest))
        .min()
        .expect("four");
    for node in &all.nodes {
        assert_eq!(node.chain.digest_at(lowest).expect("reads"), Some(digest));
    }
}
