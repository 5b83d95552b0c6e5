//! What a store promises of large records, on every driver: whole or not at all, in parts, streamed, healed, fetched, gone.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use cid::Cid;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use record::canonical::{RAW, cid_under};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

mod trouble;

use super::{World, open, payload};
use crate::vault::{Config, Error, Object, Refusal, Vault, unixfs::tests::content};
pub(super) use trouble::*;

/// Nothing takes so long, on whatever machine.
const PATIENCE: Duration = Duration::from_secs(120);
const LEAF: usize = 262_144;
const LIMIT: u64 = 64 << 20;

/// The bytes as a stream of pieces of this length.
fn pieces(bytes: &[u8], length: usize) -> impl stream::Stream<Item = io::Result<Bytes>> + Send + use<> {
    let pieces: Vec<_> = bytes
        .chunks(length)
        .map(|piece| Ok(Bytes::copy_from_slice(piece)))
        .collect();
    stream::iter(pieces)
}

async fn put(vault: &Vault, bytes: &[u8]) -> Object {
    vault.put_object(pieces(bytes, 100_003), LIMIT).await.expect("kept")
}

/// Everything of an object, or of a part of it; in pieces of no more than a leaf.
async fn read(vault: &Vault, root: &Cid, range: std::ops::Range<u64>) -> Result<Vec<u8>, Error> {
    let mut whole = Vec::new();
    let mut parts = std::pin::pin!(vault.object(root, range).await?);
    while let Some(piece) = parts.next().await {
        let piece = piece?;
        assert!((1..=LEAF).contains(&piece.len()));
        whole.extend_from_slice(&piece);
    }
    Ok(whole)
}

/// The blocks of an object, the root first.
async fn blocks_of(vault: &Vault, root: &Cid) -> Vec<(Cid, Bytes)> {
    let blocks = vault.blocks(root, 0..u64::MAX).await.expect("the root is here");
    blocks.try_collect().await.expect("all are here")
}

/// A peer with these blocks; how often each was asked for.
struct Shelf {
    url: String,
    blocks: Arc<HashMap<String, Bytes>>,
    asked: Arc<AtomicUsize>,
    served: Arc<AtomicUsize>,
    /// It has nothing after so many answers.
    patience: Arc<AtomicUsize>,
}

impl Shelf {
    async fn of(blocks: &[(Cid, Bytes)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let named = blocks.iter().map(|(cid, block)| (cid.to_string(), block.clone()));
        let shelf = Self {
            url: format!("http://{}", listener.local_addr().expect("bound")),
            blocks: Arc::new(named.collect()),
            asked: Arc::default(),
            served: Arc::default(),
            patience: Arc::new(AtomicUsize::new(usize::MAX)),
        };
        let (blocks, asked, patience) = (shelf.blocks.clone(), shelf.asked.clone(), shelf.patience.clone());
        let served = shelf.served.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (blocks, asked, patience) = (blocks.clone(), asked.clone(), patience.clone());
                let served = served.clone();
                tokio::spawn(async move {
                    let mut request = vec![0; 4_096];
                    let read = stream.read(&mut request).await.unwrap_or(0);
                    let line = String::from_utf8_lossy(&request[..read]).into_owned();
                    let name = line.split('/').nth(2).and_then(|rest| rest.split('?').next());
                    let is_patient = asked.fetch_add(1, Ordering::Relaxed) < patience.load(Ordering::Relaxed);
                    let block = name.and_then(|name| blocks.get(name)).filter(|_| is_patient);
                    served.fetch_add(usize::from(block.is_some()), Ordering::Relaxed);
                    let (status, body) = match block {
                        Some(block) => ("200 OK", &block[..]),
                        None => ("404 Not Found", &b""[..]),
                    };
                    let length = body.len();
                    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
                    let _ = stream.write_all(&[head.as_bytes(), body].concat()).await;
                });
            }
        });
        shelf
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

/// A peer that answers every request with bytes without end, or not at all.
async fn bad_peer(floods: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = stream.read(&mut [0; 4_096]).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n").await;
                while floods && stream.write_all(&[b'x'; 65_536]).await.is_ok() {}
                tokio::time::sleep(Duration::from_secs(600)).await;
            });
        }
    });
    url
}

pub(super) async fn an_object_comes_back_whole_and_in_parts(world: World) {
    let dir = tempfile::tempdir().expect("a folder");
    let vault = world.open(dir.path(), &[]).await;
    let mut kept = Vec::new();
    for bytes in [0, 1, LEAF, LEAF + 1, 4 * LEAF + 77] {
        let sent = content(bytes);
        let object = put(&vault, &sent).await;
        assert_eq!(object.bytes, bytes as u64);
        assert_eq!(put(&vault, &sent).await, object, "the same bytes have one identifier");
        kept.push((object, sent));
    }
    // As js-ipfs and Kubo name it.
    let name = kept[3].0.held.cid().to_string();
    assert_eq!(name, "bafybeicamqnf4dfq6ggj63ljgj5j5ide2e3e3nkh4ef7etrsns2a37a4rm");
    drop(vault);
    let vault = world.open(dir.path(), &[]).await;
    let mut roots = vault.roots().await.expect("knows");
    let mut expected: Vec<_> = kept.iter().map(|(object, _)| object.held.cid()).collect();
    roots.sort_unstable();
    expected.sort_unstable();
    assert_eq!(roots, expected);
    for (object, sent) in &kept {
        let (root, length) = (object.held.cid(), sent.len());
        assert!(vault.holds(&root).await.expect("knows"));
        assert_eq!(vault.object_bytes(&root).await.expect("reads"), Some(length as u64));
        assert_eq!(read(&vault, &root, 0..u64::MAX).await.expect("here"), *sent);
        assert!(vault.attend(&root).await.expect("reads").is_some());
        assert_eq!(vault.hold(&root, PATIENCE).await.expect("held"), object.held);
    }
    let (object, sent) = kept.last().expect("one");
    for (from, to) in [
        (0, 1),
        (LEAF - 1, LEAF + 1),
        (5, 3 * LEAF),
        (4 * LEAF, sent.len()),
        (sent.len(), sent.len() + 9),
    ] {
        let part = read(&vault, &object.held.cid(), from as u64..to as u64)
            .await
            .expect("here");
        assert_eq!(part, sent[from.min(sent.len())..to.min(sent.len())], "{from}..{to}");
    }
}

pub(super) async fn an_object_that_breaks_off_or_is_too_long_is_not_held(world: World) {
    let dir = tempfile::tempdir().expect("a folder");
    let vault = world.open(dir.path(), &[]).await;
    let sent = payload(3 * LEAF);
    let broken = pieces(&sent, LEAF).chain(stream::iter([Err(io::ErrorKind::ConnectionReset.into())]));
    let error = vault.put_object(broken, LIMIT).await.expect_err("it broke off");
    assert!(matches!(error, Error::Refused(Refusal::CutOff)), "{error}");
    let error = vault
        .put_object(pieces(&sent, LEAF), 2 * LEAF as u64)
        .await
        .expect_err("too long");
    assert!(matches!(error, Error::Refused(Refusal::ObjectTooLarge { bytes_max }) if bytes_max == 2 * LEAF as u64));
    let first = cid_under(RAW, &sent[..LEAF]);
    assert_eq!(vault.local(&first).await.expect("reads"), None, "nothing of it is here");
    drop(vault);
    let config = Config {
        bytes_max: 3 * LEAF as u64,
        ..world.config()
    };
    let vault = open(&config, dir.path()).await;
    let full = vault.put_object(pieces(&sent, LEAF), LIMIT).await;
    let full = full.err().unwrap_or_else(|| panic!("with its nodes it is too large"));
    assert!(matches!(full, Error::Full { .. }), "{full}");
    assert_eq!(vault.local(&first).await.expect("reads"), None);
    let fits = put(&vault, &sent[..2 * LEAF]).await;
    assert_eq!(
        read(&vault, &fits.held.cid(), 0..u64::MAX).await.expect("here"),
        &sent[..2 * LEAF]
    );
}

pub(super) async fn an_altered_leaf_never_leaves_and_heals_from_a_peer(world: World) {
    let dir = tempfile::tempdir().expect("a folder");
    let sent = payload(4 * LEAF + 5);
    let vault = world.open(dir.path(), &[]).await;
    let object = put(&vault, &sent).await;
    let root = object.held.cid();
    let blocks = blocks_of(&vault, &root).await;
    drop(vault);
    world.rot(dir.path(), &sent[2 * LEAF..3 * LEAF]).await;

    let alone = world.open(dir.path(), &[]).await;
    let mut parts = Box::pin(alone.object(&root, 0..u64::MAX).await.expect("the root is whole"));
    let (mut came, mut error) = (Vec::new(), None);
    while let Some(piece) = parts.next().await {
        match piece {
            Ok(piece) => came.extend_from_slice(&piece),
            Err(why) => error = Some(why),
        }
    }
    assert_eq!(came, &sent[..2 * LEAF], "what is before it, and nothing wrong");
    assert!(matches!(error, Some(Error::Absent(_))), "{error:?}");
    assert!(alone.attend(&root).await.expect("damage is no failure").is_none());
    assert!(!alone.holds(&root).await.expect("knows"), "it knows now");
    let absent = alone
        .hold(&root, Duration::from_millis(100))
        .await
        .expect_err("damaged");
    assert!(matches!(absent, Error::Absent(_)));
    drop((parts, alone));

    let shelf = Shelf::of(&blocks).await;
    let vault = world.open(dir.path(), &[&shelf.url]).await;
    assert_eq!(read(&vault, &root, 0..u64::MAX).await.expect("a peer has it"), sent);
    assert_eq!(shelf.asked(), 1, "the one block that is damaged");
    drop(vault);
    let vault = world.open(dir.path(), &[]).await;
    assert!(
        vault.attend(&root).await.expect("reads").is_some(),
        "it is whole on the disk again"
    );
    drop(vault);
    // So it is when somebody looks after it.
    world.rot(dir.path(), &sent[..LEAF]).await;
    let vault = world.open(dir.path(), &[&shelf.url]).await;
    assert!(vault.attend(&root).await.expect("reads").is_none());
    let fetched = tokio::time::timeout(PATIENCE, vault.fetch(&root))
        .await
        .expect("in time");
    assert_eq!(fetched.expect("mended"), object.held);
    assert!(vault.attend(&root).await.expect("reads").is_some());
}

pub(super) async fn an_object_is_fetched_past_peers_that_lie_stall_and_flood(world: World) {
    let (dir, elsewhere) = (
        tempfile::tempdir().expect("a folder"),
        tempfile::tempdir().expect("a folder"),
    );
    let sent = payload(6 * LEAF + 300);
    let source = open(&Config::default(), elsewhere.path()).await;
    let object = put(&source, &sent).await;
    let blocks = blocks_of(&source, &object.held.cid()).await;
    // Right names, wrong bytes; and the nodes of another file.
    let wrong: Vec<_> = blocks
        .iter()
        .map(|(cid, block)| (*cid, Bytes::from(vec![7; block.len()])))
        .collect();
    let (honest, liar) = (Shelf::of(&blocks).await, Shelf::of(&wrong).await);
    let peers = [
        liar.url.clone(),
        bad_peer(false).await,
        bad_peer(true).await,
        honest.url.clone(),
    ];
    let peers: Vec<_> = peers.iter().map(String::as_str).collect();
    let vault = world.open(dir.path(), &peers).await;
    let held = vault.hold(&object.held.cid(), PATIENCE).await.expect("one is honest");
    assert_eq!(held, object.held);
    assert_eq!(read(&vault, &held.cid(), 0..u64::MAX).await.expect("here"), sent);
    drop(vault);
    let vault = world.open(dir.path(), &[]).await;
    assert!(
        vault.attend(&held.cid()).await.expect("reads").is_some(),
        "all of it is on the disk"
    );
}

pub(super) async fn what_has_come_of_an_object_stays_for_the_next_time(world: World) {
    let (dir, elsewhere) = (
        tempfile::tempdir().expect("a folder"),
        tempfile::tempdir().expect("a folder"),
    );
    let sent = payload(12 * LEAF);
    let source = open(&Config::default(), elsewhere.path()).await;
    let root = put(&source, &sent).await.held.cid();
    let blocks = blocks_of(&source, &root).await;
    let shelf = Shelf::of(&blocks).await;
    shelf.patience.store(6, Ordering::Relaxed);
    let vault = world.open(dir.path(), &[&shelf.url]).await;
    let hold = tokio::spawn({
        let vault = vault.clone();
        async move { vault.hold(&root, PATIENCE).await }
    });
    // It was refused a block several times, so that a whole attempt has failed.
    let failed = async {
        while shelf.asked() < 40 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, failed).await.expect("it goes on asking");
    assert!(!vault.holds(&root).await.expect("knows"), "a part is not the whole");
    let unheld = blocks.iter().filter(|(cid, _)| *cid != root);
    for (cid, _) in unheld {
        assert_eq!(vault.local(cid).await.expect("reads"), None, "nothing of it is served");
    }
    shelf.patience.store(usize::MAX, Ordering::Relaxed);
    hold.await.expect("no panic").expect("it came");
    // Of the six that came at first at least the root was not asked for again.
    let served = shelf.served.load(Ordering::Relaxed);
    assert!(
        served < blocks.len() + 6,
        "{served} blocks were served for {}",
        blocks.len()
    );
    assert_eq!(read(&vault, &root, 0..u64::MAX).await.expect("here"), sent);
}

pub(super) async fn a_root_that_is_no_file_is_refused(world: World) {
    let dir = tempfile::tempdir().expect("a folder");
    // Two links to one leaf that is not full: somebody else's way to cut a file.
    let leaf = Bytes::from_static(b"short");
    let cid = cid_under(RAW, &leaf);
    let entry = [&[0x0a, 0x24][..], &cid.to_bytes(), &[0x12, 0, 0x18, 5]].concat();
    let link = [&[0x12, u8::try_from(entry.len()).expect("short")][..], &entry].concat();
    let node = [&link[..], &link, &[0x0a, 8, 0x08, 2, 0x18, 10, 0x20, 5, 0x20, 5]].concat();
    let root = cid_under(record::canonical::DAG_PB, &node);
    let shelf = Shelf::of(&[(root, node.into()), (cid, leaf)]).await;
    let vault = world.open(dir.path(), &[&shelf.url]).await;
    let absent = vault.hold(&root, Duration::from_secs(2)).await.expect_err("no file");
    assert!(matches!(absent, Error::Absent(_)), "{absent}");
    let refused = vault.object(&root, 0..1).await.map(drop).expect_err("no file");
    assert!(matches!(refused, Error::Refused(Refusal::NoFile(_))), "{refused}");
}

pub(super) async fn an_object_that_goes_gives_its_room_back_at_once(world: World) {
    let dir = tempfile::tempdir().expect("a folder");
    let config = Config {
        bytes_max: 4 * LEAF as u64,
        ..world.config()
    };
    let vault = open(&config, dir.path()).await;
    let (first, second) = (payload(3 * LEAF), payload(3 * LEAF));
    let held = put(&vault, &first).await.held;
    assert_eq!(vault.roots().await.expect("knows"), [held.cid()]);
    let full = vault.put_object(pieces(&second, LEAF), LIMIT).await;
    assert!(matches!(full, Err(Error::Full { .. })));
    vault.let_go(&held.cid()).await.expect("gone");
    assert!(!vault.holds(&held.cid()).await.expect("knows"));
    assert!(vault.roots().await.expect("knows").is_empty());
    for leaf in first.chunks(LEAF) {
        assert_eq!(vault.local(&cid_under(RAW, leaf)).await.expect("reads"), None);
    }
    let held = put(&vault, &second).await.held;
    vault.erase(&held.cid()).await.expect("gone for good");
    let again = vault
        .put_object(pieces(&second, LEAF), LIMIT)
        .await
        .expect_err("erased");
    assert!(matches!(again, Error::Refused(Refusal::Erased(_))), "{again}");
    put(&vault, &first).await;
}

pub(super) async fn objects_that_share_a_leaf_go_one_without_the_other(world: World) {
    let dir = tempfile::tempdir().expect("a folder");
    let vault = world.open(dir.path(), &[]).await;
    let shared = payload(2 * LEAF);
    let (one, other) = ([&shared[..], b"one"].concat(), [&shared[..], b"other"].concat());
    let (gone, stays) = (put(&vault, &one).await.held, put(&vault, &other).await.held);
    vault.let_go(&gone.cid()).await.expect("gone");
    assert!(vault.attend(&stays.cid()).await.expect("reads").is_some());
    assert_eq!(read(&vault, &stays.cid(), 0..u64::MAX).await.expect("here"), other);
}
