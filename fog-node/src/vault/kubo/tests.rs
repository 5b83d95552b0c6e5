//! What the driver does when the daemon is away, slow, full, another one, or lies: on a stand-in that does so on demand.

use std::{fs, path::Path, time::Duration};

use bytes::Bytes;
use futures::FutureExt as _;

use super::{
    Config, doctor, look_at_settings,
    stand_in::{Fault, StandIn},
};
use crate::vault::{
    Config as VaultConfig, Driver, Error, Held, Refusal, Trouble, Vault,
    suite::{open, payload},
};

/// Nothing takes so long, on whatever machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn config(stand_in: &StandIn) -> VaultConfig {
    VaultConfig {
        driver: Driver::Kubo,
        kubo: Config {
            api: stand_in.api().try_into().expect("on this host"),
            // A busy machine is late, too.
            read_timeout_ms: 2_000,
            write_timeout_ms: 2_000,
            probe_every_ms: 100,
            ..Config::default()
        },
        ..VaultConfig::default()
    }
}

async fn vault(stand_in: &StandIn, dir: &Path) -> Vault {
    open(&config(stand_in), dir).await
}

/// Waits until the vault says that its daemon is there, or is not.
async fn until(vault: &Vault, answers: bool) {
    let told = async {
        while vault.answers() != answers {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, told).await.expect("it notices");
}

/// Puts until it is kept: the vault has still to notice that its daemon is well again.
async fn kept(vault: &Vault, payload: &Bytes) -> Held {
    let kept = async {
        loop {
            match vault.put(payload.clone()).await {
                Ok(held) => return held,
                Err(error) => assert!(error.may_pass_later(), "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, kept)
        .await
        .expect("kept as soon as it can be")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_away_is_waited_for_and_nothing_is_lost() {
    let (dir, stand_in) = (tempfile::tempdir().expect("a folder"), StandIn::start().await);
    stand_in.has(Fault::Away);
    let vault = vault(&stand_in, dir.path()).await;
    assert!(!vault.answers(), "it opens all the same");
    let sent = payload(500);
    let refused = vault.put(sent.clone()).await.expect_err("away");
    assert!(
        matches!(refused, Error::Unavailable(Trouble::Daemon(_))) && refused.may_pass_later(),
        "{refused}"
    );

    let waits = tokio::spawn({
        let vault = vault.clone();
        async move { vault.until_it_keeps().await }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!waits.is_finished(), "nothing could be kept");
    stand_in.has(Fault::None);
    tokio::time::timeout(PATIENCE, waits)
        .await
        .expect("it notices")
        .expect("no panic");
    let held = vault.put(sent.clone()).await.expect("kept");
    vault.note_retained(3).await.expect("notes");
    for fault in [Fault::Away, Fault::Stalls] {
        stand_in.has(fault);
        until(&vault, false).await;
        for error in [
            vault.local(&held.cid()).await.expect_err("away"),
            vault
                .hold(&held.cid(), Duration::from_secs(5))
                .await
                .expect_err("what is not read back is not held"),
            vault.get(&held.cid()).await.expect_err("no peer has it"),
            vault.refresh().await.expect_err("away"),
        ] {
            assert!(
                error.may_pass_later() && matches!(error, Error::Unavailable(_)),
                "{error}"
            );
        }
        assert_eq!(vault.retained().await.expect("it is in our own book"), 3);
    }
    stand_in.has(Fault::None);
    until(&vault, true).await;
    assert_eq!(vault.local(&held.cid()).await.expect("reads"), Some(sent));
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_daemon_is_away_payloads_are_read_from_peers() {
    let (dir, stand_in) = (tempfile::tempdir().expect("a folder"), StandIn::start().await);
    let sent = payload(700);
    let held = vault(&stand_in, dir.path())
        .await
        .put(sent.clone())
        .await
        .expect("kept");
    stand_in.has(Fault::Away);
    let mut config = config(&stand_in);
    let url = crate::vault::suite::peer(sent.clone()).await;
    config.exchange.peers = vec![url.try_into().expect("a URL")];
    for dir in [dir, tempfile::tempdir().expect("a folder")] {
        // The second vault has never seen it.
        let vault = open(&config, dir.path()).await;
        assert_eq!(vault.get(&held.cid()).await.expect("a peer has it"), sent);
        for held in [
            vault.hold(&held.cid(), Duration::from_millis(300)).await,
            vault.fetch(&held.cid()).await,
        ] {
            assert!(held.is_err(), "read is not held");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_lies_stalls_or_floods_holds_nothing() {
    let (dir, stand_in) = (tempfile::tempdir().expect("a folder"), StandIn::start().await);
    let vault = vault(&stand_in, dir.path()).await;
    for fault in [
        Fault::Reencodes,
        Fault::Lies,
        Fault::Stalls,
        Fault::Drips,
        Fault::Floods,
        Fault::Redirects,
        Fault::Denies,
        Fault::IsFull,
        Fault::Searches,
    ] {
        let sent = payload(900);
        stand_in.has(fault);
        let put = tokio::time::timeout(PATIENCE, vault.put(sent.clone())).await;
        let error = put.expect("every wait ends").expect_err("not kept");
        assert!(error.may_pass_later(), "{fault:?}: {error}");
        if fault == Fault::IsFull {
            assert!(matches!(error, Error::Unavailable(Trouble::DiskFull)), "{error}");
        }
        stand_in.has(Fault::None);
        kept(&vault, &sent).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_late_keeps_what_it_has() {
    let (dir, stand_in) = (tempfile::tempdir().expect("a folder"), StandIn::start().await);
    let vault = vault(&stand_in, dir.path()).await;
    let sent = payload(900);
    let held = vault.put(sent.clone()).await.expect("kept");
    stand_in.has(Fault::Searches);
    let late = vault.put(sent.clone()).await.expect_err("it does not come back");
    assert!(matches!(late, Error::Unavailable(Trouble::Daemon(_))), "{late}");
    assert_eq!(vault.local(&held.cid()).await.expect("as good as absent"), None);
    assert_eq!(stand_in.counts(), (1, 1), "nothing was deleted for being late");
    stand_in.has(Fault::None);
    assert_eq!(vault.local(&held.cid()).await.expect("reads"), Some(sent));
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_nobody_looks_after_hold_up_no_other() {
    let (dir, stand_in) = (tempfile::tempdir().expect("a folder"), StandIn::start().await);
    let vault = vault(&stand_in, dir.path()).await;
    let sent = payload(400);
    let cid = vault.put(sent.clone()).await.expect("kept").cid();
    stand_in.has(Fault::Stalls);
    let mut left: Vec<_> = (0..64).map(|_| Box::pin(vault.local(&cid).fuse())).collect();
    let begun = stand_in.asked().len() + 16;
    let under_way = async {
        while stand_in.asked().len() < begun {
            for each in &mut left {
                let _ = futures::poll!(each.as_mut());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, under_way)
        .await
        .expect("as many as there may be at a time");
    // They are polled no more, as those of a task that waits for something else.
    stand_in.has(Fault::None);
    kept(&vault, &sent).await;
    drop(left);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_back_altered_is_never_served() {
    let (dir, stand_in) = (tempfile::tempdir().expect("a folder"), StandIn::start().await);
    let vault = vault(&stand_in, dir.path()).await;
    let sent = payload(900);
    let held = vault.put(sent.clone()).await.expect("kept");
    stand_in.has(Fault::Lies);
    assert_eq!(vault.local(&held.cid()).await.expect("damage is no failure"), None);
    stand_in.has(Fault::None);
    assert_eq!(vault.local(&held.cid()).await.expect("reads"), Some(sent));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_repository_begins_the_book_anew() {
    let (dir, stand_in) = (tempfile::tempdir().expect("a folder"), StandIn::start().await);
    let mut config = config(&stand_in);
    config.bytes_max = 1_500;
    let sent = payload(1_000);
    let first = open(&config, dir.path()).await;
    let held = first.put(sent.clone()).await.expect("kept");
    first.note_retained(9).await.expect("notes");
    drop(first);
    stand_in.is_replaced();
    let vault = open(&config, dir.path()).await;
    assert_eq!(
        vault.retained().await.expect("reads"),
        0,
        "everything is looked for again"
    );
    assert_eq!(vault.local(&held.cid()).await.expect("reads"), None);
    vault.put(sent).await.expect("the budget begins anew, too");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_erased_waits_for_the_daemon_and_is_erased_at_another_one_too() {
    let (dir, stand_in) = (tempfile::tempdir().expect("a folder"), StandIn::start().await);
    let first = vault(&stand_in, dir.path()).await;
    let sent = payload(800);
    let held = first.put(sent.clone()).await.expect("kept");
    stand_in.has(Fault::Away);
    until(&first, false).await;
    let error = first.erase(&held.cid()).await.expect_err("nobody removes it");
    assert!(error.may_pass_later() && stand_in.pins(&held.cid()), "{error}");
    stand_in.has(Fault::None);
    until(&first, true).await;
    first.erase(&held.cid()).await.expect("gone");
    assert_eq!(stand_in.counts(), (0, 0));
    drop(first);
    stand_in.is_replaced();
    let second = vault(&stand_in, dir.path()).await;
    until(&second, true).await;
    let refused = second.put(sent).await.expect_err("erased");
    assert!(matches!(refused, Error::Refused(Refusal::Erased(_))), "{refused}");
    assert_eq!(stand_in.counts(), (0, 0), "the daemon was not asked");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unpinned_payload_is_pinned_again() {
    let (dir, stand_in) = (tempfile::tempdir().expect("a folder"), StandIn::start().await);
    let vault = vault(&stand_in, dir.path()).await;
    let held = vault.put(payload(400)).await.expect("kept");
    assert!(stand_in.pins(&held.cid()), "pinned in the call that put it");
    assert!(stand_in.unpin(&held.cid()));
    vault.attend(&held.cid()).await.expect("reads").expect("is there");
    assert!(stand_in.pins(&held.cid()));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_is_a_post_with_a_limit_and_the_secret() {
    let dir = tempfile::tempdir().expect("a folder");
    let stand_in = StandIn::on_a_socket(&dir.path().join("api.sock"));
    let mut config = config(&stand_in);
    let secret = dir.path().join("secret");
    fs::write(&secret, "bearer:s3cret").expect("written");
    config.kubo.authorization_file = Some(secret);
    let vault = open(&config, dir.path()).await;
    let held = vault.put(payload(400)).await.expect("kept");
    vault.attend(&held.cid()).await.expect("reads").expect("is there");
    let asked = stand_in.asked();
    assert!(asked.len() >= 4, "{asked:?}");
    for asked in asked {
        assert!(asked.line.starts_with("POST /api/v0/"), "{asked:?}");
        assert!(asked.line.contains("timeout=2000ms"), "{asked:?}");
        assert_eq!(asked.authorization.as_deref(), Some("Bearer s3cret"), "{}", asked.line);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_finds_what_is_wrong_and_leaves_nothing_behind() {
    let (dir, stand_in) = (tempfile::tempdir().expect("a folder"), StandIn::start().await);
    let mut config = config(&stand_in).kubo;
    config.write_timeout_ms = 20_000;
    let kept = vault(&stand_in, dir.path())
        .await
        .put(payload(400))
        .await
        .expect("kept");
    for collects in [false, true] {
        let findings = doctor::examine(&config, collects).await;
        assert!(findings.iter().all(|finding| finding.result.is_ok()), "{findings:?}");
        assert_eq!(findings.len(), if collects { 10 } else { 9 });
        assert_eq!(stand_in.counts(), (1, 1), "only what was there before");
        assert!(stand_in.pins(&kept.cid()));
    }
    for (fault, words) in [
        (Fault::Lies, "other bytes came back"),
        (Fault::Reencodes, "it was kept as"),
        (Fault::IsFull, "disk is full"),
        (Fault::Denies, "authorization_file"),
        (Fault::Away, "does not answer (error sending request: "),
    ] {
        stand_in.has(fault);
        let findings = doctor::examine(&config, false).await;
        let told: Vec<_> = findings
            .iter()
            .filter_map(|finding| finding.result.clone().err())
            .collect();
        assert!(told.iter().any(|why| why.contains(words)), "{fault:?}: {findings:?}");
        stand_in.has(Fault::None);
        assert_eq!(stand_in.counts(), (1, 1), "{fault:?} leaves nothing behind");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_pin_keeps_a_large_record_and_comes_back_when_somebody_takes_it() {
    let (dir, stand_in) = (tempfile::tempdir().expect("a folder"), StandIn::start().await);
    let vault = vault(&stand_in, dir.path()).await;
    let sent = payload(600_000);
    let stream = futures::stream::iter([Ok(sent)]);
    let root = vault.put_object(stream, u64::MAX).await.expect("kept").held.cid();
    assert_eq!(stand_in.counts(), (4, 1), "three leaves and a root, and one pin");
    assert!(stand_in.pins(&root) && vault.holds(&root).await.expect("knows"));
    assert!(stand_in.unpin(&root));
    assert!(
        !vault.holds(&root).await.expect("knows"),
        "it may be collected any time"
    );
    assert!(vault.attend(&root).await.expect("reads").is_some());
    assert!(stand_in.pins(&root) && vault.holds(&root).await.expect("knows"));
    // What was refused leaves nothing at the daemon.
    stand_in.has(Fault::IsFull);
    let again = futures::stream::iter([Ok(payload(300_000))]);
    let full = vault.put_object(again, u64::MAX).await.expect_err("its disk is full");
    assert!(matches!(full, Error::Unavailable(Trouble::DiskFull)), "{full}");
    stand_in.has(Fault::None);
    vault.let_go(&root).await.expect("gone");
    assert_eq!(stand_in.counts(), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_cannot_be_asked_for_are_not_right() {
    let stand_in = StandIn::start().await;
    // It does not know the command.
    assert!(look_at_settings(&config(&stand_in).kubo).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_obeys_anybody_or_has_no_swarm_key_is_found() {
    let (dir, stand_in) = (tempfile::tempdir().expect("a folder"), StandIn::start().await);
    let clinic = serde_json::from_str(include_str!("../../../../config/clinic/kubo.json")).expect("JSON");
    stand_in.is_set(clinic, dir.path());
    let mut config = config(&stand_in).kubo;
    let found = look_at_settings(&config).await.expect("answers");
    assert!(found[0].starts_with("API.Authorizations:"), "{found:?}");
    assert!(found[1].starts_with("swarm.key: there is none at "), "{found:?}");
    assert_eq!(found.len(), 2, "{found:?}");

    let key = format!("/key/swarm/psk/1.0.0/\n/base16/\n{}\n", "0a".repeat(32));
    fs::write(dir.path().join("swarm.key"), key).expect("written");
    let secret = dir.path().join("secret");
    fs::write(&secret, "bearer:s3cret").expect("written");
    config.authorization_file = Some(secret);
    stand_in.demands("Bearer s3cret");
    let found = look_at_settings(&config).await.expect("answers");
    assert_eq!(found, Vec::<String>::new());
}
