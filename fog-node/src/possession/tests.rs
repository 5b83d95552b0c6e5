//! Nodes that hold, lose, lie and stall, asked for proof by a node that has everything.

#[cfg(test)]
mod world;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use ledger::{block::Height, holding::Challenge};
use record::canonical::cid_of;
use tokio::sync::mpsc;

use super::{Config, account::Finding, challenge::Inquiry, sweep::Cause};
use crate::recovery::{FoundBy, Kind};
use world::{Manner, Member, Network, eventually};

fn config() -> Config {
    Config {
        // Whoever is honest has answered by then, on whatever machine.
        answer_timeout_ms: 10_000,
        garbage_grace_ms: 0,
        ..Config::default()
    }
}

/// One sweep, whatever it finds is ordered.
async fn sweep(member: &Member, cause: Cause) -> super::Swept {
    let (tell, _told) = mpsc::channel(1);
    member.possession.sweep(cause, &tell).await.expect("everything is read")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_lost_payloads_is_found_out_and_repairs_all_of_them() {
    let network = Network::of(100);
    let loser = Member::open(&network, 1, &[], config()).await;
    let door = loser.serve(Manner::Honest).await;
    let asker = Member::open(&network, 0, &[&door], config()).await;
    loser.knows(&asker.serve(Manner::Honest).await);
    // It challenges nobody: to judge an answer it would look for its own bytes, and be the first to notice.
    loser.looks_after_itself();
    asker.runs();
    eventually("both have looked at everything", || {
        asker.possession.report().sweep.is_some() && loser.possession.report().sweep.is_some()
    })
    .await;
    assert!(loser.incidents.list().is_empty() && asker.incidents.list().is_empty());

    let lost = loser.loses(30).await;
    // What nobody asks for nobody misses: the asker's challenge is the first to notice, sooner or later.
    eventually("the challenge has found it out", || {
        asker
            .incidents
            .list()
            .iter()
            .any(|i| i.kind == Kind::PossessionUnproven)
    })
    .await;
    eventually("the loser has found all of it", || {
        loser
            .incidents
            .list()
            .iter()
            .any(|i| i.kind == Kind::PayloadMissing && i.what.starts_with("30 of 100"))
    })
    .await;
    let is_mended = |member: &Member| member.incidents.list().iter().all(|i| i.took_ms.is_some());
    eventually("both say that it is mended", || is_mended(&loser) && is_mended(&asker)).await;
    for cid in &lost {
        assert!(
            loser.vault.local(cid).await.expect("reads").is_some(),
            "{cid} is here again"
        );
    }
    let report = loser.possession.report();
    assert_eq!((report.missing, report.repair.wanted), (0, 0));
    assert!(report.repair.repaired >= 30, "{report:?}");
    let account = &asker.possession.report().peers[0];
    assert_eq!(account.validator, Some(network.keys[1].public()));
    assert!(account.failed > 0 && account.proven > 0 && account.missing.is_empty());
    let incident = &loser.incidents.list()[0];
    assert_eq!(
        (incident.found_by, incident.kind),
        (FoundBy::Sweep, Kind::PayloadMissing)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_lies_stalls_floods_or_borrows_proves_nothing() {
    let network = Network::of(20);
    let honest = Member::open(&network, 1, &[], config()).await;
    let manners = [
        Manner::Honest,
        Manner::Guesses,
        Manner::Borrows,
        Manner::IsAStranger,
        Manner::Stalls,
        Manner::Floods,
        Manner::Repeats,
    ];
    let mut doors = Vec::new();
    for manner in manners {
        doors.push(honest.serve(manner).await);
    }
    let urls: Vec<_> = doors.iter().map(String::as_str).collect();
    let asker = Member::open(&network, 0, &urls, config()).await;
    sweep(&asker, Cause::Start).await;
    let began = Instant::now();
    asker.possession.challenge_all().await;
    asker.possession.challenge_all().await;
    assert!(
        began.elapsed() < Duration::from_secs(120),
        "each is waited for, and no longer"
    );
    let report = asker.possession.report();
    let of = |door: &String| report.peers.iter().find(|a| a.peer == *door).expect("asked");
    let counted: Vec<_> = doors
        .iter()
        .map(of)
        .map(|a| (a.proven > 0, a.failed > 0, a.lies, a.unanswered))
        .collect();
    assert_eq!(
        counted,
        [
            (true, false, 0, 0),
            (false, true, 0, 0),
            (false, false, 2, 0),
            (false, false, 2, 0),
            (false, false, 0, 2),
            (false, false, 0, 2),
            (true, false, 1, 0),
        ]
    );
    assert!(of(&doors[1]).missing.iter().all(|owed| owed.finding == Finding::Wrong));
    let charged: BTreeSet<_> = asker.incidents.list().into_iter().map(|i| i.place).collect();
    let expected = [&doors[1], &doors[2], &doors[3], &doors[6]].map(Clone::clone);
    assert_eq!(charged, BTreeSet::from(expected), "silence is no offence");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nothing_names_goes_and_what_waits_or_was_held_lately_stays() {
    let network = Network::of(10);
    let member = Member::open(&network, 0, &[], config()).await;
    let put = async |text: &'static [u8]| member.vault.put(text.into()).await.expect("kept");
    let (garbage, waits) = (put(b"garbage").await, put(b"sealed").await);
    let pending = crate::mempool::Pending::bundle(network.unnamed_commitment(), waits).expect("its payload");
    member.mempool.insert(pending).expect("there is room");

    // Whoever does not know what the others have named lets go of nothing.
    let old = Member::open_at(&network, 1, 0, config()).await;
    old.vault.put("garbage".into()).await.expect("kept");
    assert_eq!(sweep(&old, Cause::Interval).await.collected, 0);

    let patient = Config {
        garbage_grace_ms: 600_000,
        ..config()
    };
    let lately = Member::open(&network, 2, &[], patient).await;
    lately.vault.put("garbage".into()).await.expect("kept");
    assert_eq!(
        sweep(&lately, Cause::Interval).await.collected,
        0,
        "it may be named any moment"
    );

    let swept = sweep(&member, Cause::Interval).await;
    assert_eq!(
        (swept.named, swept.listed, swept.missing, swept.collected),
        (10, 12, 0, 1)
    );
    assert!(member.vault.local(&garbage.cid()).await.expect("reads").is_none());
    assert!(member.vault.local(&waits.cid()).await.expect("reads").is_some());
    for cid in network.cids() {
        assert!(
            member.vault.local(&cid).await.expect("reads").is_some(),
            "the chain names it"
        );
    }
    assert_eq!(sweep(&member, Cause::Interval).await.collected, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_vault_lets_go_of_garbage_before_it_refuses() {
    let network = Network::of(4);
    let member = Member::open_small(&network, 0, 1 << 20, config()).await;
    member.runs();
    eventually("it has looked at everything", || {
        member.possession.report().sweep.is_some()
    })
    .await;
    let large = |seed: u8| bytes::Bytes::from(vec![seed; 600_000]);
    let first = member.vault.put(large(1)).await.expect("fits");
    let second = member.vault.put(large(2)).await.expect("the first is named by nothing");
    assert!(member.vault.local(&first.cid()).await.expect("reads").is_none());
    assert!(member.vault.local(&second.cid()).await.expect("reads").is_some());

    // What was held lately does not go, and who asks in vain is not asked for again at once.
    let patient = Config {
        garbage_grace_ms: 600_000,
        ..config()
    };
    let member = Member::open_small(&network, 1, 1 << 20, patient).await;
    member.runs();
    eventually("it has looked at everything", || {
        member.possession.report().sweep.is_some()
    })
    .await;
    let first = member.vault.put(large(1)).await.expect("fits");
    let swept = || member.possession.report().sweep.map(|swept| (swept.cause, swept.at_ms));
    for _ in 0..2 {
        let refused = member.vault.put(large(2)).await.expect_err("no room");
        assert!(refused.may_pass_later(), "{refused}");
    }
    assert_eq!(swept().map(|(cause, _)| cause), Some(Cause::Full));
    let before = swept();
    assert!(member.vault.put(large(3)).await.is_err());
    assert_eq!(swept(), before, "one sweep for all of them");
    assert!(member.vault.local(&first.cid()).await.expect("reads").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_for_too_often_is_not_read() {
    let network = Network::of(20);
    let member = Member::open(&network, 0, &[], config()).await;
    let greedy = network.keys[2].public();
    let asked = Challenge::to([1; 32], network.cids().into_iter().take(16).collect()).expect("good");
    let mut answered = 0;
    for _ in 0..100 {
        let answer = member.possession.answer(greedy, &asked).await.expect("reads");
        answered += usize::from(answer.is_ok());
    }
    assert_eq!(answered, 8, "128 payloads a minute");
    let other = network.keys[3].public();
    let answer = member
        .possession
        .answer(other, &asked)
        .await
        .expect("reads")
        .expect("its turn");
    assert!(answer.proofs.iter().all(Option::is_some));
    assert_eq!(answer.holds_up_to, network.height());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_not_come_so_far_is_behind_and_not_charged() {
    let network = Network::of(20);
    let late = Member::open_at(&network, 1, 3, config()).await;
    let door = late.serve(Manner::Honest).await;
    let asker = Member::open(&network, 0, &[&door], config()).await;
    sweep(&asker, Cause::Start).await;
    for _ in 0..5 {
        asker.possession.challenge_all().await;
    }
    let account = &asker.possession.report().peers[0];
    assert_eq!((account.failed, account.holds_up_to), (0, Some(Height(3))));
    assert!(account.sampled > account.proven);
    assert!(asker.incidents.list().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_inquiry_tells_who_has_one_payload_now() {
    let network = Network::of(5);
    let (holder, loser) = (
        Member::open(&network, 1, &[], config()).await,
        Member::open(&network, 2, &[], config()).await,
    );
    let doors = [holder.serve(Manner::Honest).await, loser.serve(Manner::Honest).await];
    let silent = holder.serve(Manner::Stalls).await;
    let asker = Member::open(&network, 0, &[&doors[0], &doors[1], &silent], config()).await;
    let lost = loser.loses(1).await[0];
    let Inquiry::Holders(holders) = asker.possession.who_holds(&lost).await.expect("asks") else {
        panic!("it has the payload, and asks");
    };
    let findings: Vec<_> = holders.iter().map(|holder| holder.finding).collect();
    assert_eq!(findings, [Some(Finding::Proven), Some(Finding::Absent), None]);
    let unknown = asker.possession.who_holds(&cid_of(b"unknown")).await.expect("looks");
    assert!(matches!(unknown, Inquiry::NotHeld));
    assert!(asker.incidents.list().is_empty(), "an inquiry charges nobody");
}

#[tokio::test(flavor = "multi_thread")]
async fn inquiries_leave_this_nodes_allowance_to_its_challenges() {
    let network = Network::of(2);
    let asker = Member::open(&network, 0, &[], config()).await;
    let cid = network.cids()[0];
    let mut asked = 0;
    for _ in 0..100 {
        match asker.possession.who_holds(&cid).await.expect("asks") {
            Inquiry::Holders(_) => asked += 1,
            Inquiry::TooOften => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(
        asked, 32,
        "a quarter of the 128 payloads that peers read for it in a minute"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_erased_here_later_than_there_is_held_against_nobody() {
    let network = Network::of(20);
    let peer = Member::open(&network, 1, &[], config()).await;
    let door = peer.serve(Manner::Honest).await;
    let asker = Member::open(&network, 0, &[&door], config()).await;
    sweep(&asker, Cause::Start).await;
    // The peer has applied the erasure, of which this node has not heard.
    for cid in network.cids() {
        peer.vault.erase(&cid).await.expect("gone");
    }
    asker.possession.challenge_all().await;
    let owes = || asker.possession.report().peers[0].missing.len();
    assert!(owes() > 0, "nobody has said yet that it need not have them");
    asker.follows(&network.erases());
    // It is not asked for them any more; what it owed is forgotten, and the incident is closed.
    let sampled = || asker.possession.report().peers[0].sampled;
    let before = sampled();
    for _ in 0..5 {
        asker.possession.challenge_all().await;
    }
    assert_eq!((owes(), sampled()), (0, before));
    let incidents = asker.incidents.list();
    assert!(incidents.len() == 1 && incidents[0].took_ms.is_some(), "{incidents:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrub_that_was_broken_off_goes_on_where_it_was() {
    let network = Network::of(20);
    let peer = Member::open(&network, 1, &[], config()).await;
    let door = peer.serve(Manner::Honest).await;
    let member = Member::open(&network, 0, &[&door], config()).await;
    let (early, late) = (network.cids()[2], network.cids()[15]);
    member.loses_these(&[early, late]).await;
    // Two payloads a block, from the second block on: it was killed between the two.
    member.vault.note_scrubbed(5).await.expect("notes");
    let recovery = &member.possession.0.rooms.recovery;
    recovery.scrub_once().await.expect("mends");
    assert!(member.vault.local(&late).await.expect("reads").is_some());
    assert!(
        member.vault.local(&early).await.expect("reads").is_none(),
        "that was looked at before"
    );
    assert_eq!(
        member.vault.scrubbed().await.expect("reads"),
        0,
        "the next pass begins anew"
    );
    recovery.scrub_once().await.expect("mends");
    assert!(member.vault.local(&early).await.expect("reads").is_some());
    let incidents = member.incidents.list();
    assert_eq!(incidents.len(), 2);
    assert!(
        incidents
            .iter()
            .all(|incident| incident.kind == Kind::PayloadDamaged && incident.took_ms.is_some())
    );
}
