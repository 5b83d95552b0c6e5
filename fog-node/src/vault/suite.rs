//! One suite for every driver: what a store promises, the same tests on the embedded one, on a stand-in for a daemon, and on a
//! daemon that is really there (`tests/vault/run` starts one and runs the tests that are ignored otherwise).

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use bytes::Bytes;
use rand::RngExt as _;
use record::canonical;
use serde_bytes::ByteBuf;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

mod objects;

use super::{Config, Driver, Error, PAYLOAD_BYTES_MAX, Peer, Refusal, Vault, kubo, kubo::stand_in::StandIn};

use objects::*;

/// Where the payloads of one test lie.
pub(super) enum World {
    /// In a file of the data folder.
    Embedded,
    /// At a stand-in.
    StandIn(StandIn),
    /// At a daemon, whose repository is there.
    Daemon { api: String, repository: PathBuf },
}

impl World {
    pub(super) async fn stand_in() -> Self {
        Self::StandIn(StandIn::start().await)
    }

    /// The daemon that `tests/vault/run` has started: `VAULT_DAEMON=/ip4/127.0.0.1/tcp/PORT,REPOSITORY`.
    async fn daemon() -> Self {
        let text = std::env::var_os("VAULT_DAEMON").expect("tests/vault/run says where the daemon is");
        let text = text.into_string().expect("an address and a folder");
        let (api, repository) = text.split_once(',').expect("an address and a folder");
        Self::Daemon {
            api: api.to_owned(),
            repository: repository.into(),
        }
    }

    async fn embedded() -> Self {
        Self::Embedded
    }

    pub(super) fn config(&self) -> Config {
        let mut config = Config::default();
        let api = match self {
            Self::Embedded => return config,
            Self::StandIn(stand_in) => stand_in.api(),
            Self::Daemon { api, .. } => api.clone(),
        };
        config.driver = Driver::Kubo;
        config.kubo = kubo::Config {
            api: api.try_into().expect("on loopback"),
            // js-ipfs has one thread, on a machine that does something else as well.
            read_timeout_ms: 60_000,
            write_timeout_ms: 60_000,
            probe_every_ms: 100,
            ..kubo::Config::default()
        };
        config.exchange.get_timeout_ms = 60_000;
        config
    }

    async fn open(&self, dir: &Path, peers: &[&str]) -> Vault {
        let mut config = self.config();
        config.exchange.peers = peers
            .iter()
            .map(|p| Peer::try_from((*p).to_owned()).expect("a URL"))
            .collect();
        open(&config, dir).await
    }

    /// Alters a byte of a payload where it lies. The embedded store is closed for it.
    async fn rot(&self, dir: &Path, payload: &[u8]) {
        match self {
            Self::Embedded => {
                let packs = walk(&dir.join("vault-objects"));
                let files = [closed(dir).await].into_iter().chain(packs);
                assert!(
                    files.into_iter().any(|file| flip(&file, payload)),
                    "it is in one of the files"
                );
            }
            Self::StandIn(stand_in) => stand_in.rot(&canonical::cid_of(payload)),
            Self::Daemon { repository, .. } => {
                let blocks = walk(&repository.join("blocks"));
                assert!(
                    blocks.iter().any(|block| flip(block, payload)),
                    "the payload is a file of the daemon"
                );
            }
        }
    }
}

/// The file's lock is free when the last vault's writer has ended: shortly after it was dropped.
pub(super) async fn open(config: &Config, dir: &Path) -> Vault {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match Vault::open(config, dir, reqwest::Client::new()).await {
            Ok(vault) => return vault,
            Err(_) if Instant::now() < deadline => tokio::time::sleep(Duration::from_millis(5)).await,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Waits until the embedded store's file is closed.
pub(super) async fn closed(dir: &Path) -> PathBuf {
    let path = dir.join("vault.redb");
    let deadline = Instant::now() + Duration::from_secs(10);
    while redb::Database::open(&path).is_err() {
        assert!(Instant::now() < deadline, "the writer ends with the last vault");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    path
}

pub(super) fn walk(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path());
    entries
        .flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] })
        .collect()
}

/// Changes a byte in the middle of a payload in a file, if it is there.
fn flip(path: &Path, payload: &[u8]) -> bool {
    let mut file = fs::read(path).expect("reads");
    let Some(at) = file.windows(payload.len()).position(|window| window == payload) else {
        return false;
    };
    file[at + payload.len() / 2] ^= 1;
    fs::write(path, file).expect("writes");
    true
}

/// A payload of this length that nobody else has; DAG-CBOR, as every sealed bundle is.
pub(super) fn payload(length: usize) -> Bytes {
    let head = match length {
        0..=24 => 1,
        25..=257 => 2,
        258..=65_538 => 3,
        _ => 5,
    };
    let mut random = vec![0; length - head];
    rand::rng().fill(&mut random[..]);
    let payload = canonical::encode(&ByteBuf::from(random));
    assert_eq!(payload.len(), length);
    payload.into()
}

/// A peer that has one payload.
pub(super) async fn peer(payload: Bytes) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4_096];
            let _ = stream.read(&mut request).await;
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                payload.len()
            );
            let _ = stream.write_all(&[head.as_bytes(), &payload].concat()).await;
        }
    });
    url
}

async fn what_was_put_is_there_after_a_restart(world: World) {
    let dir = tempfile::tempdir().expect("a folder");
    let sent = payload(3_000);
    let held = world.open(dir.path(), &[]).await.put(sent.clone()).await.expect("kept");
    let vault = world.open(dir.path(), &[]).await;
    assert_eq!(vault.local(&held.cid()).await.expect("reads"), Some(sent.clone()));
    assert_eq!(vault.attend(&held.cid()).await.expect("reads"), Some(sent));
    vault.refresh().await.expect("answers");
    assert_eq!(
        vault.hold(&held.cid(), Duration::from_secs(5)).await.expect("held"),
        held
    );
    assert_eq!(
        vault.local(&canonical::cid_of(&payload(100))).await.expect("reads"),
        None
    );
}

async fn every_size_comes_back_under_its_own_identifier(world: World) {
    let dir = tempfile::tempdir().expect("a folder");
    let vault = world.open(dir.path(), &[]).await;
    for length in [9, 256, 4_096, 70_000, 262_145, PAYLOAD_BYTES_MAX] {
        let sent = payload(length);
        let held = vault.put(sent.clone()).await.expect("kept");
        assert_eq!(held.cid(), canonical::cid_of(&sent));
        assert_eq!(
            vault.local(&held.cid()).await.expect("reads"),
            Some(sent),
            "{length} bytes"
        );
    }
}

async fn many_puts_at_once_are_all_kept(world: World) {
    let dir = tempfile::tempdir().expect("a folder");
    let vault = world.open(dir.path(), &[]).await;
    let sent: Vec<_> = (0..100).map(|at| payload(1_000 + at)).collect();
    // Each twice: who repeats himself gets the same answer.
    let puts = sent.iter().chain(&sent).map(|payload| vault.put(payload.clone()));
    let held = futures::future::try_join_all(puts).await.expect("kept");
    for (held, payload) in held.iter().zip(sent.iter().chain(&sent)) {
        assert_eq!(vault.get(&held.cid()).await.expect("kept"), payload);
    }
}

async fn an_altered_byte_is_never_served_and_heals_from_a_peer(world: World) {
    let dir = tempfile::tempdir().expect("a folder");
    let sent = payload(5_000);
    let held = world.open(dir.path(), &[]).await.put(sent.clone()).await.expect("kept");
    world.rot(dir.path(), &sent).await;
    let alone = world.open(dir.path(), &[]).await;
    assert_eq!(alone.local(&held.cid()).await.expect("damage is no failure"), None);
    let absent = alone
        .hold(&held.cid(), Duration::from_millis(100))
        .await
        .expect_err("damaged");
    assert!(matches!(absent, Error::Absent(_)) && absent.may_pass_later());
    drop(alone);

    let peer = peer(sent.clone()).await;
    let vault = world.open(dir.path(), &[&peer]).await;
    assert_eq!(vault.get(&held.cid()).await.expect("fetched"), sent);
    assert_eq!(
        vault.local(&held.cid()).await.expect("reads"),
        Some(sent),
        "it is whole again here"
    );
}

async fn an_altered_byte_heals_when_the_payload_is_put_again(world: World) {
    let dir = tempfile::tempdir().expect("a folder");
    let sent = payload(2_000);
    let held = world.open(dir.path(), &[]).await.put(sent.clone()).await.expect("kept");
    world.rot(dir.path(), &sent).await;
    let vault = world.open(dir.path(), &[]).await;
    assert_eq!(vault.put(sent.clone()).await.expect("kept"), held);
    assert_eq!(vault.attend(&held.cid()).await.expect("reads"), Some(sent));
}

async fn who_waits_is_told_when_a_payload_arrives(world: World) {
    let dir = tempfile::tempdir().expect("a folder");
    let vault = world.open(dir.path(), &[]).await;
    let pushed = payload(100);
    let waits = (0..10).map(|_| {
        let (vault, cid) = (vault.clone(), canonical::cid_of(&pushed));
        tokio::spawn(async move { vault.hold(&cid, Duration::from_secs(60)).await })
    });
    let waits: Vec<_> = waits.collect();
    let held = vault.put(pushed.clone()).await.expect("kept");
    for wait in waits {
        assert_eq!(wait.await.expect("no panic").expect("arrived"), held);
    }
}

async fn the_budget_and_the_size_are_kept(world: World) {
    let dir = tempfile::tempdir().expect("a folder");
    let config = Config {
        bytes_max: 2_500,
        ..world.config()
    };
    let vault = open(&config, dir.path()).await;
    let first = payload(1_500);
    let held = vault.put(first.clone()).await.expect("fits");
    let full = vault.put(payload(1_500)).await.expect_err("does not fit");
    assert!(matches!(full, Error::Full { bytes_max: 2_500 }) && full.may_pass_later());
    drop(vault);
    let vault = open(&config, dir.path()).await;
    assert_eq!(vault.put(first).await.expect("is there, and is counted once"), held);
    vault.put(payload(1_000)).await.expect("fits");
    assert!(matches!(vault.put(payload(1_000)).await, Err(Error::Full { .. })));
    let large = vault.put(payload(PAYLOAD_BYTES_MAX + 1)).await.expect_err("too large");
    assert!(matches!(large, Error::Refused(Refusal::TooLarge { .. })) && !large.may_pass_later());
}

async fn what_was_removed_is_gone_frees_its_room_and_may_come_again(world: World) {
    let dir = tempfile::tempdir().expect("a folder");
    let config = Config {
        bytes_max: 2_000,
        ..world.config()
    };
    let vault = open(&config, dir.path()).await;
    let (first, second) = (payload(1_500), payload(1_400));
    let held = vault.put(first.clone()).await.expect("fits");
    assert!(vault.put(second.clone()).await.is_err(), "no room yet");
    let store = &vault.store;
    store.remove(&held.cid()).await.expect("removed");
    assert!(!store.has(&held.cid()).await.expect("looks"));
    assert_eq!(vault.local(&held.cid()).await.expect("reads"), None);
    store.remove(&held.cid()).await.expect("as it should be");
    vault.put(second.clone()).await.expect("there is room now");
    store.remove(&canonical::cid_of(&second)).await.expect("removed");
    drop(vault);
    let vault = open(&config, dir.path()).await;
    assert_eq!(vault.local(&held.cid()).await.expect("reads"), None);
    vault.put(first.clone()).await.expect("it may come again");
    assert_eq!(vault.local(&held.cid()).await.expect("reads"), Some(first));
}

async fn what_was_erased_is_gone_and_never_kept_again(world: World) {
    let dir = tempfile::tempdir().expect("a folder");
    let (erased, other) = (payload(3_000), payload(3_000));
    let peer = peer(erased.clone()).await;
    let vault = world.open(dir.path(), &[&peer]).await;
    let held = vault.put(erased.clone()).await.expect("kept");
    let kept = vault.put(other.clone()).await.expect("kept");
    let never = canonical::cid_of(&payload(10));
    for cid in [held.cid(), held.cid(), never] {
        assert!(!vault.is_erased(&cid).await.expect("knows") || cid == held.cid());
        assert_eq!(vault.erase(&cid).await.expect("gone").cid(), cid);
        assert!(vault.is_erased(&cid).await.expect("knows"));
    }
    drop(vault);
    let vault = world.open(dir.path(), &[&peer]).await;
    let refused = |error: Error| matches!(error, Error::Refused(Refusal::Erased(cid)) if cid == held.cid());
    assert!(refused(vault.put(erased).await.expect_err("erased")));
    let wait = Duration::from_secs(60);
    assert!(
        refused(vault.hold(&held.cid(), wait).await.expect_err("erased")),
        "a peer has it"
    );
    assert!(refused(vault.fetch(&held.cid()).await.expect_err("erased")));
    assert!(refused(vault.get(&held.cid()).await.expect_err("erased")));
    assert_eq!(vault.local(&held.cid()).await.expect("reads"), None);
    assert_eq!(vault.local(&kept.cid()).await.expect("reads"), Some(other), "it alone");
}

async fn a_payload_that_is_put_and_erased_at_once_is_gone(world: World) {
    let dir = tempfile::tempdir().expect("a folder");
    let vault = world.open(dir.path(), &[]).await;
    for _ in 0..10 {
        let sent = payload(2_000);
        let cid = canonical::cid_of(&sent);
        let puts = (0..8).map(|_| vault.put(sent.clone()));
        let (puts, erased) = tokio::join!(futures::future::join_all(puts), vault.erase(&cid));
        // A put that came after the removal was refused; one that came before it holds no longer.
        assert!(
            puts.iter()
                .all(|put| put.is_ok() || matches!(put, Err(Error::Refused(Refusal::Erased(_)))))
        );
        erased.expect("gone");
        assert!(!vault.store.has(&cid).await.expect("looks"));
    }
}

async fn what_is_listed_is_what_is_here(world: World) {
    let dir = tempfile::tempdir().expect("a folder");
    let vault = world.open(dir.path(), &[]).await;
    let sent: Vec<_> = (0..20).map(|at| payload(300 + at)).collect();
    let held = futures::future::try_join_all(sent.iter().map(|payload| vault.put(payload.clone()))).await;
    let held = held.expect("kept");
    let (gone, left) = held.split_at(6);
    for held in gone {
        vault.store.remove(&held.cid()).await.expect("removed");
    }
    let mut vault = vault;
    for _ in 0..2 {
        let mut inventory = vault.inventory(Duration::ZERO).await.expect("lists");
        assert_eq!((inventory.len(), inventory.unnamed()), (14, 14));
        assert!(gone.iter().all(|held| !inventory.name(&held.cid())));
        assert!(left.iter().all(|held| inventory.name(&held.cid())));
        assert_eq!(inventory.unnamed(), 0);
        drop(vault);
        vault = world.open(dir.path(), &[]).await;
    }
}

async fn garbage_goes_and_what_is_named_or_held_meanwhile_stays(world: World) {
    let dir = tempfile::tempdir().expect("a folder");
    let vault = world.open(dir.path(), &[]).await;
    for _ in 0..3 {
        let sent: Vec<_> = (0..16).map(|at| payload(1_000 + at)).collect();
        let puts = sent.iter().map(|payload| vault.put(payload.clone()));
        let all = futures::future::try_join_all(puts).await.expect("kept");
        let [named, again, wanted, garbage] = [&all[..4], &all[4..8], &all[8..12], &all[12..]];
        let mut inventory = vault.inventory(Duration::ZERO).await.expect("lists");
        assert!(named.iter().all(|held| inventory.name(&held.cid())));
        // While it is collected, some come once more, and somebody counts on others.
        let puts = sent[4..8].iter().map(|payload| vault.put(payload.clone()));
        let holds = wanted
            .iter()
            .map(|held| async { vault.hold(&held.cid(), Duration::from_millis(1)).await.ok() });
        let (gone, puts, holds) = tokio::join!(
            vault.collect(&inventory),
            futures::future::try_join_all(puts),
            futures::future::join_all(holds),
        );
        assert!(gone.expect("collects") >= 4);
        let is_here = async |held: &super::Held| vault.local(&held.cid()).await.expect("reads").is_some();
        for held in named.iter().chain(&puts.expect("kept")).chain(holds.iter().flatten()) {
            assert!(is_here(held).await, "somebody counts on it");
        }
        assert_eq!(again.len(), 4);
        for held in garbage {
            assert!(!is_here(held).await, "nobody counts on it");
        }
        // For the next round nothing is left that nobody names.
        let rest = vault.inventory(Duration::ZERO).await.expect("lists");
        vault.collect(&rest).await.expect("collects");
    }
}

async fn the_height_that_was_looked_through_is_remembered(world: World) {
    let dir = tempfile::tempdir().expect("a folder");
    let vault = world.open(dir.path(), &[]).await;
    assert_eq!(vault.retained().await.expect("reads"), 0);
    vault.note_retained(7).await.expect("notes");
    drop(vault);
    assert_eq!(world.open(dir.path(), &[]).await.retained().await.expect("reads"), 7);
}

async fn a_caller_needs_no_tokio_of_its_own(world: World) {
    let dir = tempfile::tempdir().expect("a folder");
    let vault = world.open(dir.path(), &[]).await;
    let held = vault.put(payload(300)).await.expect("kept");
    let (tell, told) = tokio::sync::oneshot::channel();
    // As the consensus engine does, on a thread of its own.
    std::thread::spawn(move || {
        let cid = held.cid();
        let told = futures::executor::block_on(vault.hold(&cid, Duration::from_secs(60)));
        tell.send(told).expect("somebody waits");
    });
    assert_eq!(told.await.expect("no panic").expect("held"), held);
}

/// The suite on one driver.
macro_rules! suite {
    ($driver:ident, $world:expr $(, #[$ignored:meta])?) => {
        mod $driver {
            use super::World;
            suite!(@ $world, [$(#[$ignored])?],
                what_was_put_is_there_after_a_restart
                every_size_comes_back_under_its_own_identifier
                many_puts_at_once_are_all_kept
                an_altered_byte_is_never_served_and_heals_from_a_peer
                an_altered_byte_heals_when_the_payload_is_put_again
                who_waits_is_told_when_a_payload_arrives
                the_budget_and_the_size_are_kept
                what_was_removed_is_gone_frees_its_room_and_may_come_again
                what_was_erased_is_gone_and_never_kept_again
                a_payload_that_is_put_and_erased_at_once_is_gone
                what_is_listed_is_what_is_here
                garbage_goes_and_what_is_named_or_held_meanwhile_stays
                the_height_that_was_looked_through_is_remembered
                a_caller_needs_no_tokio_of_its_own
                an_object_comes_back_whole_and_in_parts
                an_object_that_breaks_off_or_is_too_long_is_not_held
                an_altered_leaf_never_leaves_and_heals_from_a_peer
                an_object_is_fetched_past_peers_that_lie_stall_and_flood
                what_has_come_of_an_object_stays_for_the_next_time
                a_root_that_is_no_file_is_refused
                an_object_that_goes_gives_its_room_back_at_once
                objects_that_share_a_leaf_go_one_without_the_other
                an_altered_leaf_heals_when_the_object_is_put_again
                an_alias_of_a_record_neither_replaces_nor_removes_it
                a_large_record_takes_the_place_of_an_alias_that_came_first
                a_fetch_that_lasts_too_long_leaves_its_turn_and_goes_on_later
            );
        }
    };
    (@ $world:expr, $ignored:tt, $($test:ident)*) => { $(suite!(@@ $world, $ignored, $test);)* };
    (@@ $world:expr, [$(#[$ignored:meta])?], $test:ident) => {
        #[tokio::test(flavor = "multi_thread")]
        $(#[$ignored])?
        async fn $test() {
            super::$test($world.await).await;
        }
    };
}

suite!(embedded, World::embedded());
suite!(stand_in, World::stand_in());
suite!(daemon, World::daemon(), #[ignore = "needs a daemon: tests/vault/run starts one"]);
