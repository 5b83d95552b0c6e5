//! Four fog nodes over loopback that answer from one real chain, each with its own way to lie, and an observer of them.

#[cfg(test)]
mod liar;

use std::{
    ops::Range,
    sync::{Arc, Mutex},
    time::Duration,
};

use ledger::{
    admission::MatchedSubmission,
    block::{Block, FinalizedBlock},
    genesis::Genesis,
    handover::Committees,
    proof::{Finalization, Vote, vote_message},
    transaction::{Action, Author, DeviceEnrolment, GatewayEnrolment, Grant, SignedTransaction, Transaction},
};
use record::{
    bundle::{Bundle, Category, Entry, SubjectKey, SubjectSecret},
    canonical::Digest,
    fhir::Patient,
    ids::{BootId, BundleId, OrganizationId, SubjectId},
    reading::{Measured, MeasurementState, Reading, TimeQuality, VERSION},
    signature::SigningKey,
};
use tempfile::TempDir;

pub(super) use liar::Lie;
use liar::Node;

use super::super::{Config, Follower, Rooms};
use crate::{
    chain::{self, Chain},
    consensus::codec::tests::{child, founded},
    disclosure::Disclosure,
    index::{self, Index},
    keyring::{Holding, Keyring, Passphrase},
    projection::Projection,
    proofs::Proofs,
    recovery::Incidents,
    vault::{self, Peer, Vault},
};

pub(super) struct World {
    pub(super) dir: TempDir,
    pub(super) genesis: Genesis,
    pub(super) keys: Vec<SigningKey>,
    pub(super) lies: Vec<Arc<Mutex<Lie>>>,
    peers: Vec<Peer>,
    chain: Chain,
    vault: Vault,
    device: SigningKey,
    pub(super) holding: Holding,
}

pub(super) struct Observed {
    pub(super) follower: Follower,
    pub(super) proofs: Proofs,
    pub(super) projection: Projection<Proofs>,
    pub(super) index: Index,
    pub(super) incidents: Incidents,
    pub(super) vault: Vault,
    pub(super) keyring: Keyring,
}

fn holding() -> Holding {
    let (secret, key) = SubjectSecret::generate(Category::Vitals, 1).expect("random numbers");
    let patient = Patient {
        id: SubjectId::random(),
        family: "F".to_owned(),
        given: "G".to_owned(),
        gender: "female".to_owned(),
        birth_date: "1957-11-14".to_owned(),
    };
    Holding { key, secret, patient }
}

impl World {
    pub(super) async fn new() -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let dir = tempfile::tempdir().expect("a folder");
        let mut keys: Vec<_> = (0..4).map(|_| SigningKey::random()).collect();
        keys.sort_by_key(SigningKey::public);
        let genesis = founded(&keys);
        let chain = Chain::open(&chain::Config::default(), dir.path(), &genesis).expect("opens");
        let config = vault::Config::default();
        let vault = Vault::open(&config, dir.path(), reqwest::Client::new())
            .await
            .expect("opens");
        let lies: Vec<Arc<Mutex<Lie>>> = keys.iter().map(|_| Arc::default()).collect();
        let mut peers = Vec::new();
        for (key, lie) in keys.iter().zip(&lies) {
            let node = Node {
                chain: chain.clone(),
                disclosure: Disclosure::new(chain.clone(), vault.clone()),
                genesis: genesis.clone(),
                key: key.clone(),
                lie: lie.clone(),
            };
            peers.push(node.listen().await);
        }
        Self {
            dir,
            genesis,
            keys,
            lies,
            peers,
            chain,
            vault,
            device: SigningKey::random(),
            holding: holding(),
        }
    }

    pub(super) fn set(&self, node: usize, lie: Lie) {
        *self.lies[node].lock().expect("nobody panics") = lie;
    }

    pub(super) fn sign(&self, organization: usize, sequence: u64, action: Action) -> SignedTransaction {
        let author = Author::Organization(self.genesis.organizations[organization].id.clone());
        let network = self.genesis.network();
        let transaction = Transaction {
            network,
            author,
            sequence,
            action,
        };
        transaction.sign(&self.keys[organization])
    }

    pub(super) fn enrolments(&self) -> Vec<SignedTransaction> {
        let gateway = GatewayEnrolment {
            gateway: "home-1".parse().expect("good"),
            key: self.keys[0].public(),
            tls: Digest::ZERO,
        };
        let place = (gateway.gateway.clone(), "oximeter-1".parse().expect("good"));
        let device = DeviceEnrolment::of(&self.genesis.network(), place, &self.device);
        let actions = [
            Action::EnrolGateway(gateway),
            Action::EnrolDevice(device),
            Action::AnnounceKey(self.holding.key.clone()),
        ];
        actions.into_iter().map(|action| self.sign(0, 0, action)).collect()
    }

    pub(super) fn grant_to(&self, organization: usize) -> SignedTransaction {
        let grant = Grant {
            key: self.holding.key.id(),
            grantee: self.genesis.organizations[organization].id.clone(),
        };
        self.sign(0, 1, Action::Grant(grant))
    }

    /// A bundle of one reading that the nodes hold, and the commitment to it.
    pub(super) async fn commit(&self, seq: u64) -> (BundleId, SignedTransaction) {
        self.commit_to(&self.holding.key, &self.readings(seq..seq + 1)).await
    }

    /// Readings of the one device.
    pub(super) fn readings(&self, sequence: Range<u64>) -> Bundle {
        let entry = |seq| {
            let reading = Reading {
                v: VERSION,
                device: "oximeter-1".parse().expect("good"),
                boot: BootId { counter: 1, random: 2 },
                seq,
                up_ms: 1,
                wall: Some(1_000),
                time_quality: TimeQuality::Synced,
                observations: vec![Measured {
                    code: "59408-5".to_owned(),
                    value: Some("97".parse().expect("decimal")),
                    samples: None,
                    unit: "%".to_owned(),
                    state: MeasurementState::Valid,
                }],
            };
            Entry::new(1_000, reading.sign(&self.device))
        };
        Bundle::new(sequence.map(entry).collect())
    }

    /// A bundle sealed to a key, which the nodes hold, and the commitment to it.
    pub(super) async fn commit_to(&self, key: &SubjectKey, bundle: &Bundle) -> (BundleId, SignedTransaction) {
        let home = "home-1".parse().expect("good");
        let author = (&self.genesis.network(), &home, &self.keys[0]);
        let sealed = MatchedSubmission::seal(author, (key, bundle), 0).expect("seals");
        let id = sealed.commitment().bundle;
        let (transaction, payload) = sealed.into_parts();
        self.vault.put(payload.into()).await.expect("kept");
        (id, transaction)
    }

    pub(super) fn votes(&self, block: &Block) -> Finalization {
        let message = vote_message(&block.header);
        let vote = |key: &SigningKey| Vote {
            validator: key.public(),
            signature: key.sign_raw(&message),
        };
        Finalization {
            votes: self.keys.iter().map(vote).collect(),
        }
    }

    /// The next block on every node; without votes of its own, if so wanted.
    pub(super) async fn append(&self, transactions: Vec<SignedTransaction>, is_voted: bool) -> Block {
        let head = self.chain.head().height;
        let parent = self.chain.block(head).await.expect("reads").expect("the head").block;
        let block = child(&self.genesis, &parent, transactions);
        let finalized = FinalizedBlock {
            digest: block.header.digest(),
            block: block.clone(),
            finalization: is_voted.then(|| self.votes(&block)),
        };
        self.chain.append(finalized).await.expect("appends");
        block
    }

    /// An observer of an organisation in a folder, with the key of the one patient.
    pub(super) async fn observe(&self, organization: usize, name: &str) -> Observed {
        let dir = self.dir.path().join(name);
        std::fs::create_dir_all(&dir).expect("a folder");
        let passphrase = Passphrase::new("correct horse battery".to_owned().into()).expect("long enough");
        let file = dir.join("keyring.sealed");
        let keyring = if file.exists() {
            Keyring::open(&file, &passphrase).expect("opens")
        } else {
            Keyring::create(&file, &passphrase, vec![self.holding.clone()]).expect("creates")
        };
        let organization = self.genesis.organizations[organization].id.clone();
        let client = self.client(&organization);
        let proofs = Proofs::open(&dir, &self.genesis).expect("opens");
        let mut config = vault::Config::default();
        config.exchange.peers.clone_from(&self.peers);
        let vault = Vault::open(&config, &dir, client.clone()).await.expect("opens");
        let index = Index::open(&index::Config::default(), &dir).await.expect("opens");
        let projection = Projection::new(proofs.clone(), vault.clone(), index.clone(), keyring.clone());
        let incidents = Incidents::open(&dir).expect("opens");
        let rooms = Rooms {
            proofs: proofs.clone(),
            projection: projection.clone(),
            keyring: keyring.clone(),
            incidents: incidents.clone(),
        };
        let config = Config {
            nodes: self.peers.clone(),
            answer_timeout_ms: 1_000,
            ..Config::default()
        };
        let member = (organization, Committees::founding(&self.genesis));
        Observed {
            follower: Follower::new(&config, member, &client, dir, rooms),
            proofs,
            projection,
            index,
            incidents,
            vault,
            keyring,
        }
    }

    /// The door and its tokens are tested elsewhere: here the organisation's name stands for its token.
    fn client(&self, organization: &OrganizationId) -> reqwest::Client {
        let name = organization.to_string().parse().expect("a header");
        let headers = http::HeaderMap::from_iter([(http::header::AUTHORIZATION, name)]);
        reqwest::Client::builder()
            .default_headers(headers)
            .build()
            .expect("a client")
    }
}

impl Observed {
    /// Rounds, until one came to nothing.
    pub(super) async fn rounds(&mut self, count: usize) {
        for _ in 0..count {
            // A round that fails is told by what it did not reach.
            let _tried = self.follower.round().await;
        }
    }

    pub(super) fn height(&self) -> u64 {
        self.proofs.head().height.0
    }

    /// Waits until so many observations are in the index.
    pub(super) async fn indexed(&self, count: u64) {
        let task = tokio::spawn(self.projection.clone().run());
        let all = async {
            while self.index.counts().await.expect("counts").observations < count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), all)
            .await
            .expect("in time");
        task.abort();
    }
}
