//! What becomes of large records when somebody means harm, or the disk or the peers are bad.

use super::*;
use crate::vault::Peer;

pub(in crate::vault::suite) async fn an_altered_leaf_heals_when_the_object_is_put_again(world: World) {
    if matches!(world, World::Daemon { .. } | World::StandIn(_)) {
        // A daemon keeps what is pinned; the scrub mends it from a peer.
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let sent = payload(3 * LEAF);
    let object = put(&world.open(dir.path(), &[]).await, &sent).await;
    world.rot(dir.path(), &sent[LEAF..2 * LEAF]).await;
    let vault = world.open(dir.path(), &[]).await;
    let root = object.held.cid();
    assert!(vault.attend(&root).await.expect("reads").is_none());
    assert!(!vault.holds(&root).await.expect("knows"));
    assert_eq!(put(&vault, &sent).await, object);
    assert!(vault.holds(&root).await.expect("knows"));
    assert!(vault.attend(&root).await.expect("reads").is_some());
    drop(vault);
    let vault = world.open(dir.path(), &[]).await;
    assert_eq!(read(&vault, &root, 0..u64::MAX).await.expect("on the disk"), sent);
}

/// Who names the bytes of another record under another codec reaches nothing of it.
pub(in crate::vault::suite) async fn an_alias_of_a_record_neither_replaces_nor_removes_it(world: World) {
    let dir = tempfile::tempdir().expect("a folder");
    let vault = world.open(dir.path(), &[]).await;
    let (bundle, large) = (payload(5_000), payload(2 * LEAF));
    let held = vault.put(bundle.clone()).await.expect("kept");
    let object = put(&vault, &large).await;
    let root = object.held.cid();
    let node = vault.local(&root).await.expect("reads").expect("the root's block");
    let are_here = async |vault: &Vault| {
        assert!(vault.holds(&held.cid()).await.expect("knows") && vault.holds(&root).await.expect("knows"));
        assert_eq!(vault.attend(&held.cid()).await.expect("reads"), Some(bundle.clone()));
        assert!(vault.attend(&root).await.expect("reads").is_some());
        assert_eq!(read(vault, &root, 0..u64::MAX).await.expect("here"), large);
        assert_eq!(vault.roots().await.expect("knows"), [root]);
    };
    let bytes = vault.bytes().await.expect("reads");
    for victim in [&bundle, &node] {
        let alias = cid_under(RAW, victim);
        let refused = vault
            .put_object(pieces(victim, LEAF), LIMIT)
            .await
            .expect_err("an alias");
        assert!(
            matches!(refused, Error::Refused(Refusal::Alias(cid)) if cid == alias),
            "{refused}"
        );
        assert!(!vault.holds(&alias).await.expect("knows"));
        let absent = vault.hold(&alias, Duration::from_secs(1)).await.expect_err("not held");
        assert!(matches!(absent, Error::Absent(_)), "{absent}");
        are_here(&vault).await;
        vault.let_go(&alias).await.expect("nothing to let go of");
        are_here(&vault).await;
        vault.erase(&alias).await.expect("nothing to erase");
        assert!(vault.is_erased(&alias).await.expect("knows"));
        are_here(&vault).await;
    }
    for real in [held.cid(), root] {
        assert!(!vault.is_erased(&real).await.expect("knows"), "it alone was");
    }
    assert_eq!(vault.bytes().await.expect("reads"), bytes);
    drop(vault);
    let vault = world.open(dir.path(), &[]).await;
    are_here(&vault).await;
    // Nor does a payload with the bytes of a root.
    vault
        .let_go(&cid_under(record::canonical::DAG_CBOR, &node))
        .await
        .expect("nothing to let go of");
    are_here(&vault).await;
}

pub(in crate::vault::suite) async fn a_large_record_takes_the_place_of_an_alias_that_came_first(world: World) {
    let (dir, elsewhere) = (
        tempfile::tempdir().expect("a folder"),
        tempfile::tempdir().expect("a folder"),
    );
    let large = payload(2 * LEAF);
    let source = open(&Config::default(), elsewhere.path()).await;
    let root = put(&source, &large).await.held.cid();
    let node = source.local(&root).await.expect("reads").expect("the root's block");
    let vault = world.open(dir.path(), &[]).await;
    let alias = put(&vault, &node).await.held.cid();
    assert_eq!(alias, cid_under(RAW, &node));
    assert_eq!(put(&vault, &large).await.held.cid(), root);
    assert!(!vault.holds(&alias).await.expect("knows"));
    vault.let_go(&alias).await.expect("nothing to let go of");
    vault.erase(&alias).await.expect("nothing to erase");
    assert_eq!(vault.roots().await.expect("knows"), [root]);
    assert!(vault.attend(&root).await.expect("reads").is_some());
    assert_eq!(read(&vault, &root, 0..u64::MAX).await.expect("here"), large);
    vault.let_go(&root).await.expect("gone");
    assert_eq!(vault.bytes().await.expect("reads"), 0, "nothing of either counts");
}

pub(in crate::vault::suite) async fn a_fetch_that_lasts_too_long_leaves_its_turn_and_goes_on_later(world: World) {
    let (dir, elsewhere) = (
        tempfile::tempdir().expect("a folder"),
        tempfile::tempdir().expect("a folder"),
    );
    let sent = payload(3 * LEAF);
    let source = open(&Config::default(), elsewhere.path()).await;
    let root = put(&source, &sent).await.held.cid();
    let shelf = Shelf::of(&blocks_of(&source, &root).await).await;
    let mut config = world.config();
    // The root comes, and nothing else: one peer has no more, the other does not answer.
    shelf.patience.store(1, Ordering::Relaxed);
    config.exchange.object_timeout_ms = 1_000;
    let peers = [shelf.url.clone(), bad_peer(false).await];
    config.exchange.peers = peers.map(|url| Peer::try_from(url).expect("a URL")).into();
    let vault = open(&config, dir.path()).await;
    let since = std::time::Instant::now();
    assert!(!vault.objects.gather(root).await.expect("not yet"));
    assert!(since.elapsed() < Duration::from_secs(9), "it has left its turn");
    assert_eq!(vault.objects.parts_kept(), 1, "it goes on with this");
    // What was erased does not linger in what is left for the next time.
    vault.erase(&root).await.expect("gone");
    assert!(!vault.objects.gather(root).await.is_ok_and(|is_held| is_held));
    assert_eq!(vault.objects.parts_kept(), 0, "nothing of it is put back");
}
