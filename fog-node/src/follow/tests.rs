//! An observer among honest nodes and liars: what it believes, what it refuses, and what stops it for good.

#[cfg(test)]
mod measured;
#[cfg(test)]
mod world;

use ledger::{
    block::{Block, Height},
    handover::Committees,
    light::{CarriedHeader, Fork},
    proof::{Receipt, ValidatorSet},
    transaction::{Action, Erasure},
};

use crate::{
    consensus::codec::tests::child,
    erasure::{Forgetting, Forgotten},
    recovery::{FoundBy, Kind},
};
use world::{Lie, Observed, World};

/// Three blocks: enrolments, a commitment without votes of its own, and a voted one on top.
async fn filled() -> (World, record::ids::BundleId) {
    let world = World::new().await;
    world.append(world.enrolments(), true).await;
    let (bundle, commit) = world.commit(1).await;
    world.append(vec![commit], false).await;
    world.append(vec![], true).await;
    (world, bundle)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_custodian_may_read_is_proven_and_projected() {
    let (world, bundle) = filled().await;
    let mut observed = world.observe(0, "observer").await;
    observed.rounds(1).await;
    assert_eq!(
        (observed.height(), observed.proofs.anchor().header.height),
        (3, Height(3))
    );
    let receipt = observed.proofs.receipt(&bundle).expect("reads").expect("learned");
    let committees = Committees::founding(&world.genesis);
    assert_eq!(Receipt::verify(&receipt, &committees).expect("holds").bundle(), bundle);
    observed.indexed(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_without_votes_waits_for_a_descendant_with_votes() {
    let (world, _) = filled().await;
    let mut observed = world.observe(0, "observer").await;
    observed.rounds(1).await;
    world.append(vec![], false).await;
    observed.rounds(2).await;
    assert_eq!(
        (observed.height(), observed.proofs.anchor().header.height),
        (3, Height(3))
    );
    world.append(vec![], true).await;
    observed.rounds(2).await;
    assert_eq!(observed.height(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_proven_is_there_after_a_restart() {
    let (world, bundle) = filled().await;
    let mut observed = world.observe(0, "observer").await;
    observed.rounds(1).await;
    let (head, state) = (observed.proofs.head(), observed.proofs.state());
    let proofs = observed.proofs.clone();
    drop(observed);
    let (dir, genesis) = (world.dir.path().join("observer"), world.genesis.clone());
    let closed = tokio::task::spawn_blocking(move || {
        drop(proofs);
        std::fs::copy(dir.join("proofs.redb"), dir.join("copy")).expect("copies");
        std::fs::create_dir(dir.join("again")).expect("a folder");
        std::fs::rename(dir.join("copy"), dir.join("again/proofs.redb")).expect("renames");
        crate::proofs::Proofs::open(&dir.join("again"), &genesis).expect("opens")
    });
    let again = closed.await.expect("does not panic");
    assert_eq!((again.head(), again.state()), (head, state));
    assert!(again.receipt(&bundle).expect("reads").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn liars_and_laggards_keep_nobody_back() {
    let lies = [
        Lie::ForgedVotes,
        Lie::Stale(Height(1)),
        Lie::Silent,
        Lie::Omits,
        Lie::WrongPayload,
    ];
    for lie in lies {
        let (world, bundle) = filled().await;
        // Whoever is asked first.
        world.set(0, lie.clone());
        let mut observed = world.observe(0, "observer").await;
        observed.rounds(3).await;
        assert_eq!(observed.height(), 3, "{lie:?}");
        assert!(observed.proofs.receipt(&bundle).expect("reads").is_some(), "{lie:?}");
        assert!(!observed.proofs.is_forked(), "{lie:?}");
        observed.indexed(1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_that_one_node_tells_of_is_hidden_by_nobody() {
    let (world, bundle) = filled().await;
    for liar in 0..3 {
        world.set(liar, Lie::Omits);
    }
    let mut observed = world.observe(0, "observer").await;
    observed.rounds(2).await;
    assert!(observed.proofs.receipt(&bundle).expect("reads").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commitment_that_was_refused_is_not_passed_off_as_one_that_took_effect() {
    let (world, bundle) = filled().await;
    let (refused, commit) = world.commit(2).await;
    // In a voted block, with a path to its root: all that is missing is the gateway's signature.
    let forged = commit.claims().clone().sign(&world.keys[1]);
    world.append(vec![forged], true).await;
    world.set(0, Lie::Refused);
    let mut observed = world.observe(0, "observer").await;
    observed.rounds(3).await;
    assert_eq!(observed.height(), 4);
    let receipt = |bundle| observed.proofs.receipt(bundle).expect("reads");
    assert!(receipt(&bundle).is_some() && receipt(&refused).is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn with_too_few_nodes_nothing_is_known() {
    let (world, _) = filled().await;
    for silent in 1..4 {
        world.set(silent, Lie::Stale(Height(0)));
    }
    let mut observed = world.observe(0, "observer").await;
    observed.rounds(5).await;
    assert_eq!(
        observed.height(),
        0,
        "one node alone proves headers, and neither state nor completeness"
    );
    world.set(1, Lie::Honest);
    observed.rounds(5).await;
    assert_eq!(observed.height(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_voted_headers_of_one_height_stop_the_observer_and_are_kept() {
    let (world, _) = filled().await;
    let mut observed = world.observe(0, "observer").await;
    observed.rounds(1).await;
    // All validators vote for another third block, and one node shows it.
    let mut forked = Vec::new();
    let mut parent = Block::genesis(&world.genesis);
    for _ in 0..4 {
        let mut block = child(&world.genesis, &parent, vec![]);
        block.header.timestamp_ms += 7;
        block.header = world.genesis.policy.mine(block.header).0;
        forked.push(CarriedHeader {
            finalization: Some(world.votes(&block)),
            header: block.header.clone(),
        });
        parent = block;
    }
    world.set(2, Lie::Fork(forked));
    world.append(vec![], true).await;
    observed.rounds(2).await;
    assert!(observed.proofs.is_forked());
    let incidents = observed.incidents.list();
    assert_eq!(
        (incidents[0].kind, incidents[0].found_by),
        (Kind::Forked, FoundBy::Following)
    );
    let height = incidents[0].place.strip_prefix("height ").expect("a place");
    let file = world.dir.path().join(format!("observer/fork-{height}.json"));
    let fork: Fork = serde_json::from_str(&std::fs::read_to_string(file).expect("written")).expect("evidence");
    let validators = ValidatorSet::of(&world.genesis);
    let proof = fork.proof.expect("the observer still had it");
    for side in [&proof, &fork.other] {
        assert_eq!(side.headers[0].height, fork.height);
        let last = side.headers.last().expect("a header");
        assert!(side.finalization.check(last, &validators).is_ok());
    }
    assert_ne!(proof.headers[0].digest(), fork.other.headers[0].digest());
    let height = observed.height();
    world.set(2, Lie::Honest);
    world.append(vec![], true).await;
    observed.rounds(2).await;
    assert_eq!(observed.height(), height, "it does not go on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_without_a_grant_gives_nothing_and_with_one_everything_from_the_start() {
    let (world, bundle) = filled().await;
    let mut observed = world.observe(1, "observer").await;
    observed.rounds(2).await;
    assert_eq!(observed.height(), 3);
    assert!(observed.proofs.receipt(&bundle).expect("reads").is_none());
    world.append(vec![world.grant_to(1)], true).await;
    observed.rounds(3).await;
    assert!(observed.proofs.receipt(&bundle).expect("reads").is_some());
    // It was learned after its height was handed on, and is opened all the same.
    observed.indexed(1).await;
}

impl Observed {
    fn forgetting(&self, world: &World, organization: usize) -> Forgetting {
        let forgotten = Forgotten {
            proofs: self.proofs.clone(),
            vault: self.vault.clone(),
            index: self.index.clone(),
            keyring: self.keyring.clone(),
            incidents: self.incidents.clone(),
        };
        Forgetting::new(forgotten, world.genesis.organizations[organization].id.clone())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_half_stays_with_an_observer_that_never_had_the_key_from_who_erases_it() {
    let (world, _) = filled().await;
    let mut observed = world.observe(1, "observer").await;
    let key = world.holding.key.id();
    world
        .append(vec![world.sign(0, 9, Action::Erase(Erasure { key }))], true)
        .await;
    observed.rounds(2).await;
    assert!(observed.proofs.state().tombstone(&key).is_some(), "it has followed");
    for _ in 0..2 {
        let mut forgetting = observed.forgetting(&world, 1);
        forgetting.step().await.expect("leaves it");
    }
    assert!(observed.keyring.secret(&key).is_some());
    let kinds: Vec<_> = observed.incidents.list().iter().map(|one| one.kind).collect();
    assert_eq!(kinds, [Kind::ErasedByAnother], "said once");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_erased_on_the_chain_is_gone_from_an_observer_too() {
    let (world, _) = filled().await;
    let mut observed = world.observe(0, "observer").await;
    observed.rounds(1).await;
    observed.indexed(1).await;
    let key = world.holding.key.id();
    let commitments = observed
        .proofs
        .included(Height(2))
        .expect("reads")
        .expect("learned")
        .included;
    let cid = commitments[0].transaction.payload().expect("a bundle").cid;
    assert!(observed.keyring.secret(&key).is_some() && observed.vault.local(&cid).await.expect("reads").is_some());
    world
        .append(vec![world.sign(0, 9, Action::Erase(Erasure { key }))], true)
        .await;
    observed.rounds(2).await;
    assert!(observed.proofs.state().tombstone(&key).is_some(), "it has followed");
    let mut forgetting = observed.forgetting(&world, 0);
    for _ in 0..2 {
        forgetting.step().await.expect("erases, and has nothing to do then");
        assert!(observed.keyring.secret(&key).is_none());
        assert_eq!(observed.vault.local(&cid).await.expect("reads"), None);
        assert_eq!(observed.index.counts().await.expect("counts").observations, 0);
    }
    assert!(observed.vault.is_erased(&cid).await.expect("knows"));
}
