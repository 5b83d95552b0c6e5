//! Erasures over real stores: what is gone, what is confirmed, and what a kill, an old copy and a lying peer change about it.

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use futures::FutureExt as _;
use ledger::{
    block::{Block, FinalizedBlock},
    erasure::{Certificate, digest_of},
    genesis::Genesis,
    handover::Committees,
    proof::{Finalization, Vote, vote_message},
    state::{Outcome, Refused},
    transaction::{
        Action, Author, Commitment, Confirmation, Erasure as Tombstoning, GatewayEnrolment, PrivateHalf,
        SignedTransaction, Transaction,
    },
};
use record::{
    bundle::{Category, SealedBundle, SubjectSecret},
    canonical::{Digest, cid_of},
    fhir::Patient,
    ids::{BootId, ReadingId, SubjectId},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::*;
use crate::{
    consensus::codec::tests::{child, founded},
    index::Row,
    keyring::{Holding, Passphrase},
    vault::Peer,
};

/// A network of two validators, of which this node is the first, with real stores in a folder.
struct World {
    dir: tempfile::TempDir,
    keys: Vec<SigningKey>,
    gateway: SigningKey,
    genesis: Genesis,
    holdings: Vec<Holding>,
    blocks: Vec<Block>,
    peers: Vec<String>,
}

fn passphrase() -> Passphrase {
    Passphrase::new("correct horse battery".to_owned().into()).expect("long enough")
}

fn payload(of: usize, seed: usize) -> Bytes {
    Bytes::from(format!(
        "sealed payload {seed} of key {of}, long enough to be looked for on a disk"
    ))
}

impl World {
    /// Two keys of this node's own patients, announced; and a gateway.
    fn new() -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let mut keys: Vec<_> = (0..2).map(|_| SigningKey::random()).collect();
        keys.sort_by_key(SigningKey::public);
        let genesis = founded(&keys);
        let holding = |_| {
            let (secret, key) = SubjectSecret::generate(Category::Vitals, 1).expect("random numbers");
            let patient = Patient {
                id: SubjectId::random(),
                family: "F".to_owned(),
                given: "G".to_owned(),
                gender: "female".to_owned(),
                birth_date: "1957-11-14".to_owned(),
            };
            Holding { key, secret, patient }
        };
        let world = Self {
            dir: tempfile::tempdir().expect("a folder"),
            gateway: SigningKey::random(),
            blocks: vec![Block::genesis(&genesis)],
            holdings: (0..2).map(holding).collect(),
            peers: Vec::new(),
            genesis,
            keys,
        };
        let path = world.dir.path().join(keyring::FILE);
        Keyring::create(&path, &passphrase(), world.holdings.clone()).expect("creates");
        world
    }

    fn key(&self, of: usize) -> KeyId {
        self.holdings[of].key.id()
    }

    async fn rooms(&self) -> Rooms {
        self.rooms_in(self.dir.path()).await
    }

    async fn rooms_in(&self, dir: &Path) -> Rooms {
        let mut config = vault::Config::default();
        let peer = |url: &String| Peer::try_from(url.clone()).expect("a URL");
        config.exchange.peers = self.peers.iter().map(peer).collect();
        Rooms {
            chain: Chain::open(&chain::Config::default(), dir, &self.genesis).expect("opens"),
            vault: Vault::open(&config, dir, reqwest::Client::new()).await.expect("opens"),
            index: Index::open(&index::Config::default(), dir).await.expect("opens"),
            keyring: Keyring::open(&dir.join(keyring::FILE), &passphrase()).expect("opens"),
            mempool: Mempool::new(&crate::mempool::Config::default()),
            incidents: Incidents::open(dir).expect("opens"),
        }
    }

    fn erasure(&self, rooms: &Rooms) -> Erasure {
        self.erasure_of(0, rooms)
    }

    /// What the first node's stores would have done if it were this organisation's node.
    fn erasure_of(&self, organization: usize, rooms: &Rooms) -> Erasure {
        let organization = self.genesis.organizations[organization].id.clone();
        Erasure::new(rooms.clone(), organization, self.keys[0].clone())
    }

    fn signed(&self, author: Author, sequence: u64, action: Action, key: &SigningKey) -> SignedTransaction {
        Transaction {
            network: self.genesis.network(),
            author,
            sequence,
            action,
        }
        .sign(key)
    }

    fn decided(&self, sequence: u64, action: Action) -> SignedTransaction {
        let author = Author::Organization(self.genesis.organizations[0].id.clone());
        self.signed(author, sequence, action, &self.keys[0])
    }

    fn enrolments(&self) -> Vec<SignedTransaction> {
        let enrolment = GatewayEnrolment {
            gateway: "home-1".parse().expect("good"),
            key: self.gateway.public(),
            tls: Digest::ZERO,
        };
        let announced = self
            .holdings
            .iter()
            .map(|holding| Action::AnnounceKey(holding.key.clone()));
        let actions = std::iter::once(Action::EnrolGateway(enrolment)).chain(announced);
        (1..)
            .zip(actions)
            .map(|(at, action)| self.decided(at, action))
            .collect()
    }

    fn commitment(&self, of: usize, payload: &[u8]) -> SignedTransaction {
        let commitment = Commitment {
            bundle: SealedBundle::id_of(payload),
            cid: cid_of(payload),
            key: self.key(of),
            root: Digest::ZERO,
            count: 1,
            bucket: 0,
        };
        let author = Author::Gateway("home-1".parse().expect("good"));
        self.signed(author, 0, Action::Commit(commitment), &self.gateway)
    }

    fn tombstone(&self, of: usize) -> SignedTransaction {
        self.decided(99, Action::Erase(Tombstoning { key: self.key(of) }))
    }

    /// Appends a block with everybody's votes.
    fn append(&mut self, chain: &Chain, transactions: Vec<SignedTransaction>) -> Vec<Outcome> {
        let parent = self.blocks.last().expect("the genesis");
        let block = child(&self.genesis, parent, transactions);
        self.blocks.push(block);
        self.catch_up(chain).pop().expect("one block")
    }

    /// Appends what the chain does not have yet.
    fn catch_up(&self, chain: &Chain) -> Vec<Vec<Outcome>> {
        let known = usize::try_from(chain.head().height.0).expect("few");
        let finalized = self.blocks[known + 1..].iter().map(|block| {
            let message = vote_message(&block.header);
            let vote = |key: &SigningKey| Vote {
                validator: key.public(),
                signature: key.sign_raw(&message),
            };
            FinalizedBlock {
                block: block.clone(),
                digest: block.header.digest(),
                finalization: Some(Finalization {
                    votes: self.keys.iter().map(vote).collect(),
                }),
            }
        });
        chain.append_all(&finalized.collect::<Vec<_>>()).expect("appends")
    }

    /// Both keys with so many payloads each, and a row for each payload of the first.
    async fn filled(&mut self, rooms: &Rooms, payloads: usize) {
        let enrolments = self.enrolments();
        assert!(
            self.append(&rooms.chain, enrolments)
                .iter()
                .all(|o| *o == Outcome::Applied)
        );
        let mut commitments = Vec::new();
        for of in 0..2 {
            for seed in 0..payloads {
                let payload = payload(of, seed);
                commitments.push(self.commitment(of, &payload));
                rooms.vault.put(payload).await.expect("kept");
            }
        }
        assert!(
            self.append(&rooms.chain, commitments)
                .iter()
                .all(|o| *o == Outcome::Applied)
        );
        let rows: Vec<_> = (0..2)
            .flat_map(|of| (0..payloads).map(move |seed| (of, seed)))
            .collect();
        let rows: Vec<_> = rows.into_iter().map(|(of, seed)| self.row(of, seed)).collect();
        rooms
            .index
            .project((Height(0), Height(2)), (&rows, &[]), &[])
            .await
            .expect("projects");
    }

    fn row(&self, of: usize, seed: usize) -> Row {
        let payload = payload(of, seed);
        Row {
            id: format!("row-{of}-{seed}"),
            key: self.key(of),
            subject: self.holdings[of].patient.id,
            code: "8867-4".to_owned(),
            effective_ms: i64::try_from(seed).expect("few"),
            received_ms: 0,
            reading: ReadingId {
                device: "cuff-1".parse().expect("good"),
                boot: BootId {
                    counter: 1,
                    random: of as u64,
                },
                seq: seed as u64,
            },
            ordinal: 0,
            bundle: SealedBundle::id_of(&payload),
            cid: cid_of(&payload),
            entry: 0,
            height: Height(2),
        }
    }
}

/// What a node has confirmed, from its mempool.
fn confirmed(rooms: &Rooms) -> Vec<(SignedTransaction, Confirmation)> {
    let waiting = rooms.mempool.pick(0, 100).into_iter().map(|queued| queued.transaction);
    let words = waiting.filter_map(|signed| match signed.claims().action {
        Action::ConfirmErasure(confirmation) => Some((signed, confirmation)),
        _ => None,
    });
    words.collect()
}

async fn held(rooms: &Rooms, of: usize, payloads: usize) -> usize {
    let mut held = 0;
    for seed in 0..payloads {
        let payload = rooms.vault.local(&cid_of(&payload(of, seed))).await.expect("reads");
        held += usize::from(payload.is_some());
    }
    held
}

/// Rows of the first key, and of the second.
async fn rows(world: &World, rooms: &Rooms) -> (usize, usize) {
    let (rows, _) = rooms.index.rows_at(Height(2)).await.expect("reads");
    let of = |of: usize| rows.iter().filter(|row| row.key == world.key(of)).count();
    (of(0), of(1))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_erased_is_gone_and_then_confirmed_and_the_rest_stays() {
    let mut world = World::new();
    let rooms = world.rooms().await;
    world.filled(&rooms, 7).await;
    let mut erasure = world.erasure(&rooms);
    erasure.step(&rooms.chain.state()).await.expect("nothing to do");
    assert_eq!((held(&rooms, 0, 7).await, rows(&world, &rooms).await), (7, (7, 7)));
    let tombstone = world.tombstone(0);
    assert_eq!(world.append(&rooms.chain, vec![tombstone.clone()]), [Outcome::Applied]);
    erasure.step(&rooms.chain.state()).await.expect("erases");

    assert!(rooms.keyring.secret(&world.key(0)).is_none() && rooms.keyring.secret(&world.key(1)).is_some());
    assert_eq!((held(&rooms, 0, 7).await, held(&rooms, 1, 7).await), (0, 7));
    assert_eq!(rows(&world, &rooms).await, (0, 7));
    let words = confirmed(&rooms);
    let cids = (0..7).map(|seed| cid_of(&payload(0, seed))).collect();
    let expected = Confirmation {
        key: world.key(0),
        tombstone: tombstone.id(),
        payloads: 7,
        cids: digest_of(&cids),
        private_half: PrivateHalf::Destroyed,
    };
    assert_eq!(words.iter().map(|(_, word)| *word).collect::<Vec<_>>(), [expected]);
    erasure.step(&rooms.chain.state()).await.expect("waits");
    assert_eq!(confirmed(&rooms).len(), 1, "said once");

    let far = rooms
        .chain
        .erasure(&world.key(0))
        .await
        .expect("reads")
        .expect("erased");
    assert_eq!((far.confirmed.len(), far.missing.len()), (0, 2));
    let (own, _) = words[0].clone();
    assert_eq!(world.append(&rooms.chain, vec![own.clone()]), [Outcome::Applied]);
    rooms.mempool.remove(&[own.id()]);
    erasure.step(&rooms.chain.state()).await.expect("sees it");
    assert!(confirmed(&rooms).is_empty(), "it is on the chain");
    let far = rooms
        .chain
        .erasure(&world.key(0))
        .await
        .expect("reads")
        .expect("erased");
    assert_eq!((far.confirmed.len(), &*far.missing), (1, &[world.keys[1].public()][..]));
    assert_eq!(
        rooms.chain.erasure_certificate(&world.key(0)).await.expect("reads"),
        None
    );
    let other = Action::ConfirmErasure(Confirmation {
        private_half: PrivateHalf::NeverHeld,
        ..expected
    });
    let other = world.signed(Author::Validator(world.keys[1].public()), 0, other, &world.keys[1]);
    assert_eq!(world.append(&rooms.chain, vec![other]), [Outcome::Applied]);
    let text = rooms.chain.erasure_certificate(&world.key(0)).await.expect("reads");
    let text = text.expect("everybody has confirmed");
    let verified = Certificate::verify(&text, &Committees::founding(&world.genesis)).expect("holds");
    assert_eq!((verified.payloads, verified.confirmed.len()), (7, 2));
    assert!(rooms.chain.erasure(&world.key(1)).await.expect("reads").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn words_that_differ_give_no_certificate() {
    let mut world = World::new();
    let rooms = world.rooms().await;
    world.filled(&rooms, 2).await;
    let tombstone = world.tombstone(0);
    world.append(&rooms.chain, vec![tombstone.clone()]);
    world.erasure(&rooms).step(&rooms.chain.state()).await.expect("erases");
    let (own, word) = confirmed(&rooms).remove(0);
    let wrong = Action::ConfirmErasure(Confirmation { payloads: 1, ..word });
    let wrong = world.signed(Author::Validator(world.keys[1].public()), 0, wrong, &world.keys[1]);
    assert_eq!(world.append(&rooms.chain, vec![own, wrong]), [Outcome::Applied; 2]);
    let far = rooms
        .chain
        .erasure(&world.key(0))
        .await
        .expect("reads")
        .expect("erased");
    assert!(far.missing.is_empty() && !far.agree && !far.is_complete());
    assert_eq!(
        rooms.chain.erasure_certificate(&world.key(0)).await.expect("reads"),
        None
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_interrupted_anywhere_goes_on_and_is_confirmed_only_when_it_is_whole() {
    const PAYLOADS: usize = 150;
    let mut world = World::new();
    let first = world.rooms().await;
    world.filled(&first, PAYLOADS).await;
    let tombstone = world.tombstone(0);
    world.append(&first.chain, vec![tombstone]);
    let mut interrupted = 0;
    for attempt in 0_u64.. {
        let state = first.chain.state();
        let mut erasure = world.erasure(&first);
        let erasing = tokio::spawn(async move { erasure.step(&state).await });
        tokio::time::sleep(Duration::from_millis(2 * attempt)).await;
        if erasing.is_finished() {
            erasing.await.expect("no panic").expect("erases");
            break;
        }
        erasing.abort();
        if erasing.await.is_err() {
            interrupted += 1;
            assert!(confirmed(&first).is_empty(), "nothing is said of what is half done");
        } else {
            break;
        }
    }
    assert!(interrupted > 0, "it takes longer than nothing");
    assert_eq!(
        (held(&first, 0, PAYLOADS).await, held(&first, 1, PAYLOADS).await),
        (0, PAYLOADS)
    );
    let (_, word) = confirmed(&first).remove(0);
    assert_eq!(
        (word.payloads, word.private_half),
        (PAYLOADS as u64, PrivateHalf::Destroyed)
    );
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("reads") {
        let entry = entry.expect("reads");
        if entry.file_type().expect("known").is_file() {
            fs::copy(entry.path(), to.join(entry.file_name())).expect("copies");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_copy_of_the_folder_is_erased_again_by_itself_and_nothing_is_said_twice() {
    let mut world = World::new();
    let rooms = world.rooms().await;
    world.filled(&rooms, 5).await;
    let backup = tempfile::tempdir().expect("a folder");
    copy(world.dir.path(), backup.path());
    let tombstone = world.tombstone(0);
    world.append(&rooms.chain, vec![tombstone]);
    world.erasure(&rooms).step(&rooms.chain.state()).await.expect("erases");
    let (own, _) = confirmed(&rooms).remove(0);
    world.append(&rooms.chain, vec![own]);

    let restored = world.rooms_in(backup.path()).await;
    assert!(restored.keyring.secret(&world.key(0)).is_some(), "the copy has it all");
    assert_eq!(
        (held(&restored, 0, 5).await, rows(&world, &restored).await),
        (5, (5, 5))
    );
    world.catch_up(&restored.chain);
    let task = tokio::spawn(world.erasure(&restored).run());
    let gone = async {
        while restored.keyring.secret(&world.key(0)).is_some() || held(&restored, 0, 5).await > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), gone)
        .await
        .expect("erased again");
    let gone = async {
        while rows(&world, &restored).await != (0, 5) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), gone)
        .await
        .expect("erased again");
    assert_eq!(held(&restored, 1, 5).await, 5);
    assert!(confirmed(&restored).is_empty(), "its word is on the chain");
    task.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_that_come_back_alone_are_erased_at_the_next_start() {
    let mut world = World::new();
    let rooms = world.rooms().await;
    world.filled(&rooms, 4).await;
    let backup = tempfile::tempdir().expect("a folder");
    copy(world.dir.path(), backup.path());
    let tombstone = world.tombstone(0);
    world.append(&rooms.chain, vec![tombstone]);
    world.erasure(&rooms).step(&rooms.chain.state()).await.expect("erases");
    drop(rooms);
    // The chain and the notes of today, and each of the other stores as it was.
    for part in [
        &["vault.redb"][..],
        &["keyring.sealed"],
        &["index.sqlite", "index.sqlite-wal", "index.sqlite-shm"],
    ] {
        let mixed = tempfile::tempdir().expect("a folder");
        copy(world.dir.path(), mixed.path());
        for file in part {
            let old = backup.path().join(file);
            if old.exists() {
                fs::copy(old, mixed.path().join(file)).expect("copies");
            } else if mixed.path().join(file).exists() {
                fs::remove_file(mixed.path().join(file)).expect("removes");
            }
        }
        let rooms = world.rooms_in(mixed.path()).await;
        let is_back = held(&rooms, 0, 4).await > 0
            || rooms.keyring.secret(&world.key(0)).is_some()
            || rows(&world, &rooms).await.0 > 0;
        assert!(is_back, "{part:?} brought something back");
        world.erasure(&rooms).step(&rooms.chain.state()).await.expect("erases");
        assert_eq!(
            (held(&rooms, 0, 4).await, rows(&world, &rooms).await),
            (0, (0, 4)),
            "{part:?}"
        );
        assert!(rooms.keyring.secret(&world.key(0)).is_none());
        let (_, word) = confirmed(&rooms).remove(0);
        assert_eq!(
            (word.payloads, word.private_half),
            (4, PrivateHalf::Destroyed),
            "{part:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_late_is_refused_erased_and_not_counted() {
    let mut world = World::new();
    let rooms = world.rooms().await;
    world.filled(&rooms, 3).await;
    let late: Vec<_> = (10..13).map(|seed| payload(0, seed)).collect();
    let mut waiting = Vec::new();
    for payload in &late {
        let held = rooms.vault.put(payload.clone()).await.expect("kept");
        waiting.push((world.commitment(0, payload), held));
    }
    let (queued, held_here) = waiting.remove(0);
    let queued = Pending::bundle(queued, held_here).expect("its payload");
    rooms.mempool.insert(queued).expect("room");
    let tombstone = world.tombstone(0);
    let in_the_same_block = vec![tombstone, waiting.remove(0).0];
    assert_eq!(
        world.append(&rooms.chain, in_the_same_block),
        [Outcome::Applied, Outcome::Refused(Refused::Erased)]
    );
    let mut erasure = world.erasure(&rooms);
    erasure.step(&rooms.chain.state()).await.expect("erases");
    assert_eq!(
        confirmed(&rooms)[0].1.payloads,
        3,
        "what was refused was never committed"
    );
    assert_eq!(rooms.mempool.pick(0, 100).len(), 1, "its own word alone waits");
    let (after, _) = waiting.remove(0);
    assert_eq!(
        world.append(&rooms.chain, vec![after]),
        [Outcome::Refused(Refused::Erased)]
    );
    erasure.step(&rooms.chain.state()).await.expect("erases");
    for payload in &late {
        assert_eq!(rooms.vault.local(&cid_of(payload)).await.expect("reads"), None);
        assert!(rooms.vault.put(payload.clone()).await.is_err(), "for good");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_member_has_announced_and_erased_costs_nobody_a_private_half() {
    let mut world = World::new();
    let rooms = world.rooms().await;
    world.filled(&rooms, 3).await;
    let tombstone = world.tombstone(0);
    world.append(&rooms.chain, vec![tombstone]);
    // The chain's custodian is the first organisation; these stores are a node of the second.
    for _ in 0..2 {
        let mut erasure = world.erasure_of(1, &rooms);
        for _ in 0..2 {
            erasure.step(&rooms.chain.state()).await.expect("erases the rest");
        }
        assert!(confirmed(&rooms).is_empty(), "there is no word for what stays");
    }
    assert!(rooms.keyring.secret(&world.key(0)).is_some());
    assert!(rooms.keyring.patient(world.holdings[0].patient.id).is_some());
    assert_eq!(
        (
            held(&rooms, 0, 3).await,
            held(&rooms, 1, 3).await,
            rows(&world, &rooms).await
        ),
        (0, 3, (0, 3))
    );
    let incidents = rooms.incidents.list();
    assert_eq!(incidents.len(), 1, "said once: {incidents:?}");
    assert_eq!(incidents[0].kind, Kind::ErasedByAnother);
    let file = Keyring::open(&world.dir.path().join(keyring::FILE), &passphrase()).expect("opens");
    assert!(file.secret(&world.key(0)).is_some(), "in the file, too");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_that_only_the_mempool_named_is_erased_even_if_the_step_that_let_go_of_it_fails() {
    let mut world = World::new();
    let rooms = world.rooms().await;
    world.filled(&rooms, 1).await;
    let tombstone = world.tombstone(0);
    world.append(&rooms.chain, vec![tombstone]);
    let mut erasure = world.erasure(&rooms);
    erasure.step(&rooms.chain.state()).await.expect("erases");
    let late = payload(0, 10);
    let held = rooms.vault.put(late.clone()).await.expect("kept");
    let queued = Pending::bundle(world.commitment(0, &late), held).expect("its payload");
    rooms.mempool.insert(queued).expect("room");
    world.append(&rooms.chain, vec![]);
    let state = rooms.chain.state();
    // As if the stores were away in that second: the step ends before it has asked them.
    assert!(erasure.late.erase(&rooms, &state).now_or_never().is_none());
    assert_eq!(rooms.mempool.pick(0, 100).len(), 1, "its own word alone waits");
    erasure.step(&state).await.expect("erases");
    assert_eq!(rooms.vault.local(&cid_of(&late)).await.expect("reads"), None);
    assert!(rooms.vault.is_erased(&cid_of(&late)).await.expect("knows"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_is_not_there_is_no_block_without_commitments() {
    let mut world = World::new();
    let rooms = world.rooms().await;
    world.filled(&rooms, 1).await;
    let keys = Arc::new(BTreeSet::from([world.key(0)]));
    let there = rooms.chain.committed_to(keys.clone(), (Height(1), Height(2))).await;
    assert_eq!(there.expect("reads").len(), 1);
    let missing = rooms.chain.committed_to(keys, (Height(1), Height(3))).await;
    assert!(matches!(missing, Err(chain::Error::Damaged(_))), "{missing:?}");
}

#[test]
fn what_fails_is_tried_again_ever_more_seldom() {
    let mut patience = Patience::default();
    let failed = Err(Failure::Keyring(keyring::Error::InUse));
    let pauses: Vec<_> = (0..8).map(|_| patience.after(&failed).as_secs()).collect();
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
    assert_eq!(patience.after(&Ok(())), LOOK_EVERY);
    assert_eq!(patience.after(&failed), FAILURE_PAUSE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_a_seat_erases_and_says_nothing() {
    let mut world = World::new();
    let rooms = world.rooms().await;
    world.filled(&rooms, 2).await;
    let tombstone = world.tombstone(0);
    world.append(&rooms.chain, vec![tombstone]);
    let own = world.genesis.organizations[0].id.clone();
    let mut erasure = Erasure::new(rooms.clone(), own, SigningKey::random());
    erasure.step(&rooms.chain.state()).await.expect("erases");
    assert_eq!(held(&rooms, 0, 2).await, 0);
    assert!(confirmed(&rooms).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_has_confirmed_and_still_gives_out_a_payload_is_an_incident_until_it_stops() {
    static LIES: AtomicBool = AtomicBool::new(true);
    let mut world = World::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    world.peers = vec![format!("http://{}", listener.local_addr().expect("bound"))];
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4_096];
            let _ = stream.read(&mut request).await;
            let answer = if LIES.load(Ordering::Relaxed) {
                let payload = payload(0, 0);
                let head = format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    payload.len()
                );
                [head.as_bytes(), &payload].concat()
            } else {
                b"HTTP/1.1 410 Gone\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_vec()
            };
            let _ = stream.write_all(&answer).await;
        }
    });
    let rooms = world.rooms().await;
    world.filled(&rooms, 1).await;
    let tombstone = world.tombstone(0);
    world.append(&rooms.chain, vec![tombstone]);
    let mut erasure = world.erasure(&rooms);
    erasure.probe.always();
    erasure.step(&rooms.chain.state()).await.expect("erases");
    assert!(
        rooms.incidents.list().is_empty(),
        "it has not confirmed yet, and may have it still"
    );
    let (own, word) = confirmed(&rooms).remove(0);
    let others = Action::ConfirmErasure(word);
    let others = world.signed(Author::Validator(world.keys[1].public()), 0, others, &world.keys[1]);
    assert_eq!(world.append(&rooms.chain, vec![own, others]), [Outcome::Applied; 2]);
    for _ in 0..2 {
        erasure.step(&rooms.chain.state()).await.expect("asks");
    }
    let incidents = rooms.incidents.list();
    assert_eq!(incidents.len(), 1, "{incidents:?}");
    assert_eq!(incidents[0].kind, crate::recovery::Kind::ErasedServed);
    assert!(incidents[0].place.starts_with(&world.peers[0]) && incidents[0].took_ms.is_none());
    assert_eq!(
        rooms.vault.local(&cid_of(&payload(0, 0))).await.expect("reads"),
        None,
        "it is not kept here"
    );
    LIES.store(false, Ordering::Relaxed);
    erasure.step(&rooms.chain.state()).await.expect("asks");
    assert!(rooms.incidents.list()[0].took_ms.is_some(), "it has stopped");
}
