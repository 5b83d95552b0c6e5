//! The disks of the simulated validators, which outlive their crashes: real chains and real vaults.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use cid::Cid;
use fog_node::{
    chain::{self, Chain},
    consensus::{self, Payloads, fence::Fence},
    mempool::{Mempool, Pending},
    vault::{self, Held, Vault},
};
use ledger::{
    admission,
    policy::{EPOCH_BLOCKS_MIN, ValidityPolicy},
    transaction::SignedTransaction,
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::clinic::Clinic;

/// Memory as a disk, where there is such a thing: what a real disk does to a sync is not what is simulated here.
const MEMORY_DISK: &str = "/dev/shm";
const CHAIN_FILE: &str = "chain.redb";
/// Memory for pages of one file: a world has eight of them, and few blocks.
const CACHE_BYTES_MAX: usize = 1 << 20;

fn folder() -> TempDir {
    let in_memory = TempDir::new_in(MEMORY_DISK);
    in_memory.or_else(|_| TempDir::new()).expect("a folder")
}

/// Payloads in real vaults. What another vault holds is there at once: the exchange is not what is simulated.
#[derive(Clone)]
pub(crate) struct Vaults {
    all: Arc<[Vault]>,
    me: usize,
    runtime: tokio::runtime::Handle,
    cut_off: Arc<AtomicUsize>,
}

impl Payloads for Vaults {
    async fn hold(&self, cid: &Cid, timeout: Duration) -> Option<Held> {
        // Blocking: for the simulated clock a payload comes in no time.
        self.runtime.block_on(async {
            if self.all[self.me].local(cid).await.expect("reads").is_some() {
                return self.all[self.me].hold(cid, timeout).await.ok();
            }
            if self.cut_off.load(Ordering::Relaxed) == self.me {
                return None;
            }
            for other in self.all.iter() {
                if let Some(payload) = other.local(cid).await.expect("reads") {
                    return self.all[self.me].put(payload).await.ok();
                }
            }
            None
        })
    }

    async fn hold_committed(&self, transaction: &SignedTransaction, timeout: Duration) -> Option<Held> {
        let held = self.hold(&transaction.commitment()?.cid, timeout).await?;
        let payload = self
            .runtime
            .block_on(self.all[self.me].local(&held.cid()))
            .expect("reads")?;
        admission::matched(transaction, &payload).is_ok().then_some(held)
    }
}

/// The disks, which outlive a crash.
pub(crate) struct Disks {
    pub(crate) clinic: Clinic,
    pub(crate) runtime: Runtime,
    folders: Vec<TempDir>,
    vaults: Arc<[Vault]>,
    cut_off: Arc<AtomicUsize>,
}

/// No vault is cut off.
const NONE: usize = usize::MAX;

impl Disks {
    pub(crate) fn of(validators: u8) -> Self {
        Self::with_spares(validators, 0)
    }

    /// The disks of the validators, and behind them some for second selves.
    pub(crate) fn with_spares(validators: u8, spares: u8) -> Self {
        Self::for_clinic(Clinic::of(validators), validators + spares)
    }

    /// The disks of founders and newcomers of a network with short epochs.
    pub(crate) fn with_newcomers(founders: u8, newcomers: u8) -> Self {
        let policy = ValidityPolicy {
            epoch_blocks: EPOCH_BLOCKS_MIN,
            ..ValidityPolicy::default()
        };
        Self::for_clinic(Clinic::founded(founders, newcomers, policy), founders + newcomers)
    }

    fn for_clinic(clinic: Clinic, disks: u8) -> Self {
        // Set already when another test of this process was first.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("starts");
        let folders: Vec<_> = (0..disks).map(|_| folder()).collect();
        for founder in &folders[..clinic.genesis.validators.len()] {
            consensus::declare_unvoted(founder.path()).expect("writes");
        }
        let client = reqwest::Client::new();
        let vaults = folders.iter().map(|folder| {
            let config = vault::Config {
                cache_bytes_max: CACHE_BYTES_MAX,
                ..vault::Config::default()
            };
            let open = async { Vault::open(&config, folder.path(), client.clone()).await };
            runtime.block_on(open).expect("opens")
        });
        let vaults = vaults.collect();
        Self {
            clinic,
            runtime,
            folders,
            vaults,
            cut_off: Arc::new(AtomicUsize::new(NONE)),
        }
    }

    /// Behind what a validator starts: as on a real disk.
    pub(crate) fn fence(&self, disk: usize) -> Fence {
        consensus::fence_of(self.folders[disk].path()).expect("removes a mark")
    }

    /// Lets no payload reach this node's vault, until another or none is.
    pub(crate) fn cut_off(&self, node: Option<usize>) {
        self.cut_off.store(node.unwrap_or(NONE), Ordering::Relaxed);
    }

    pub(crate) fn chain(&self, disk: usize) -> Chain {
        let config = chain::Config {
            cache_bytes_max: CACHE_BYTES_MAX,
        };
        Chain::open(&config, self.folders[disk].path(), &self.clinic.genesis).expect("opens after a crash")
    }

    /// The chain's file as it is now; nobody may have it open.
    pub(crate) fn chain_file(&self, disk: usize) -> Vec<u8> {
        fs::read(self.folders[disk].path().join(CHAIN_FILE)).expect("reads")
    }

    /// Puts an older file in its place, or none; nobody may have it open.
    pub(crate) fn set_chain_file(&self, disk: usize, bytes: Option<&[u8]>) {
        let path = self.folders[disk].path().join(CHAIN_FILE);
        match bytes {
            Some(bytes) => fs::write(path, bytes).expect("writes"),
            None => fs::remove_file(path).expect("removes"),
        }
    }

    pub(crate) fn vaults(&self, me: usize) -> Vaults {
        Vaults {
            all: Arc::clone(&self.vaults),
            me,
            runtime: self.runtime.handle().clone(),
            cut_off: Arc::clone(&self.cut_off),
        }
    }

    /// Keeps the payload at a node and queues the commitment there, as intake does.
    pub(crate) fn submit(&self, disk: usize, mempool: &Mempool, number: u64) -> SignedTransaction {
        let (transaction, payload) = self.clinic.bundle(number);
        let held = self
            .runtime
            .block_on(self.vaults[disk].put(payload.into()))
            .expect("kept");
        mempool
            .insert(Pending::bundle(transaction.clone(), held).expect("its payload"))
            .expect("room");
        transaction
    }
}
