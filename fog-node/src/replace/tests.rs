//! A lost node among honest peers, and among peers that lie, stall, or have nothing.

use ledger::{agreement::SignedHead, block::Height, policy::ValidityPolicy, proof::CarriedBlock};
use record::{
    canonical::{Digest, cid_of},
    signature::SigningKey,
};
use tempfile::tempdir;

use super::{
    Error,
    village::{BLOCKS, PAYLOAD, Reply, UNPROVEN, Village, except, except_blocks},
};

const ALL: u64 = BLOCKS as u64;

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_node_is_rebuilt_from_honest_peers() {
    let (village, dir) = (Village::found(), tempdir().expect("a folder"));
    let (rebuilt, rooms) = village.rebuild(dir.path(), village.all_honest()).await;
    assert_eq!(rebuilt.left(), [false; 3]);
    let summary = rebuilt.result.expect("rebuilt");
    assert_eq!((summary.blocks, summary.head.height), (ALL, Height(ALL)));
    assert_eq!(
        rooms.chain.position_at(Height(ALL)).expect("reads"),
        village.positions.last().copied()
    );
    for height in 1..=ALL {
        let block = rooms.chain.block(Height(height)).await.expect("reads").expect("there");
        assert_eq!(
            block.finalization.is_none(),
            UNPROVEN.contains(&height),
            "block {height}"
        );
    }
    let held = rooms.vault.local(&cid_of(PAYLOAD)).await.expect("reads");
    assert_eq!(held.as_deref(), Some(PAYLOAD));
    assert_eq!((summary.payloads_held, summary.payloads_absent), (1, 0));
    assert_eq!(rooms.vault.retained().await.expect("reads"), ALL);
    assert!(summary.gifts.iter().all(|gift| gift.blocks > ALL / 6), "{summary}");
    let bytes: usize = village.blocks[1..].iter().map(|block| block.encode().len()).sum();
    assert!(summary.bytes() > bytes as u64, "{summary}");
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_votes_are_refused_and_another_peer_is_used() {
    let (village, dir) = (Village::found(), tempdir().expect("a folder"));
    let forge = |mut carried: CarriedBlock| {
        if let Some(votes) = &mut carried.finalization {
            let key = SigningKey::random();
            votes.votes[0].signature = key.sign_raw(b"something else");
        }
        carried
    };
    let mut answers = village.all_honest();
    answers[0] = except_blocks(village.honest(1, BLOCKS), forge);
    let (rebuilt, rooms) = village.rebuild(dir.path(), answers).await;
    assert_eq!(rebuilt.left(), [true, false, false]);
    assert_eq!(rooms.chain.head().height, Height(ALL));
    let block = rooms.chain.block(Height(1)).await.expect("reads").expect("there");
    assert!(
        block.finalization.is_some(),
        "the votes that hold are kept, whoever forged theirs"
    );

    let all_forged = (1..4).map(|key| except_blocks(village.honest(key, BLOCKS), forge));
    let alone = tempdir().expect("a folder");
    let (rebuilt, rooms) = village.rebuild(alone.path(), all_forged.collect()).await;
    assert!(
        matches!(rebuilt.result, Err(Error::Withheld(_))),
        "{:?}",
        rebuilt.result
    );
    assert_eq!(rooms.chain.head().height, Height(0), "nothing is believed");
}

#[tokio::test(flavor = "multi_thread")]
async fn votes_of_too_few_or_twice_the_same_prove_nothing() {
    let (village, dir) = (Village::grown(12), tempdir().expect("a folder"));
    let thin = |mut carried: CarriedBlock| {
        if let Some(votes) = &mut carried.finalization {
            votes.votes[1] = votes.votes[0].clone();
        }
        carried
    };
    let answers = (1..4).map(|key| except_blocks(village.honest(key, 12), thin));
    let (rebuilt, rooms) = village.rebuild(dir.path(), answers.collect()).await;
    assert!(matches!(rebuilt.result, Err(Error::Withheld(_))));
    assert_eq!(rooms.chain.head().height, Height(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn other_blocks_without_votes_are_found_out_by_the_parents_digest() {
    let (village, dir) = (Village::found(), tempdir().expect("a folder"));
    let policy: ValidityPolicy = village.genesis.policy.clone();
    let forge = move |mut carried: CarriedBlock| {
        carried.block.header.timestamp_ms += 1;
        carried.block.header = policy.mine(carried.block.header).0;
        carried.finalization = None;
        carried
    };
    let mut answers = village.all_honest();
    answers[1] = except_blocks(village.honest(2, BLOCKS), forge);
    let (rebuilt, rooms) = village.rebuild(dir.path(), answers).await;
    assert_eq!(rebuilt.left(), [false, true, false]);
    assert_eq!(
        rooms.chain.position_at(Height(ALL)).expect("reads"),
        village.positions.last().copied()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_chain_of_another_network_is_refused() {
    let (village, other, dir) = (Village::found(), Village::found(), tempdir().expect("a folder"));
    let mut answers = village.all_honest();
    answers[2] = other.honest(3, BLOCKS);
    let (rebuilt, rooms) = village.rebuild(dir.path(), answers).await;
    assert_eq!(rebuilt.left(), [false, false, true]);
    assert_eq!(rooms.chain.head().height, Height(ALL));
    let strangers = tempdir().expect("a folder");
    let (rebuilt, _) = village.rebuild(strangers.path(), other.all_honest()).await;
    assert!(matches!(
        rebuilt.result,
        Err(Error::NoAgreement {
            agree: 0,
            needed: 2,
            answered: 3
        })
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shorter_chain_convinces_nobody_while_one_peer_has_it_all() {
    let (village, dir) = (Village::found(), tempdir().expect("a folder"));
    let answers = vec![village.honest(1, 5), village.honest(2, 70), village.honest(3, BLOCKS)];
    let (rebuilt, rooms) = village.rebuild(dir.path(), answers).await;
    assert_eq!(rebuilt.left(), [false; 3], "who is behind does not lie");
    assert_eq!(rooms.chain.head().height, Height(ALL));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_stalls_or_names_a_height_that_is_not_there_is_passed_over() {
    let (village, dir) = (Village::found(), tempdir().expect("a folder"));
    let mut answers = village.all_honest();
    answers[0] = except(village.honest(1, BLOCKS), |path, reply| {
        if path.contains("/blocks/") || path.contains("/ipfs/") {
            Reply::Stall
        } else {
            reply
        }
    });
    answers[1] = except(village.honest(2, BLOCKS), |path, reply| match path {
        "/api/v1/chain/head" => Reply::Body(br#"{"height":1000000}"#.to_vec()),
        _ => reply,
    });
    let (rebuilt, rooms) = village.rebuild(dir.path(), answers).await;
    assert_eq!(rebuilt.left(), [true, false, false]);
    assert_eq!(rooms.chain.head().height, Height(ALL));
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_that_do_not_answer_are_a_clear_failure() {
    let (village, dir) = (Village::grown(9), tempdir().expect("a folder"));
    let silent = |key| except(village.honest(key, 9), |_, _| Reply::Stall);
    let (rebuilt, _) = village
        .rebuild(dir.path(), vec![village.honest(1, 9), silent(2), silent(3)])
        .await;
    let refused = rebuilt.result.expect_err("one of four is no majority").to_string();
    assert!(
        refused.contains("1 other validators agree") && refused.contains("2 are needed"),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_payload_is_never_kept() {
    let (village, dir) = (Village::grown(9), tempdir().expect("a folder"));
    let wrong = |key| {
        except(village.honest(key, 9), |path, reply| {
            if path.contains("/ipfs/") {
                Reply::Body(b"something else".to_vec())
            } else {
                reply
            }
        })
    };
    let (rebuilt, rooms) = village
        .rebuild(dir.path(), vec![wrong(1), wrong(2), village.honest(3, 9)])
        .await;
    let summary = rebuilt.result.expect("rebuilt");
    assert_eq!((summary.payloads_held, summary.gifts[2].payloads), (1, 1));
    assert!(rooms.vault.local(&cid_of(PAYLOAD)).await.expect("reads").is_some());

    let nobody = tempdir().expect("a folder");
    let (rebuilt, rooms) = village.rebuild(nobody.path(), vec![wrong(1), wrong(2), wrong(3)]).await;
    let summary = rebuilt.result.expect("the chain is rebuilt");
    assert_eq!((summary.payloads_held, summary.payloads_absent), (0, 1));
    assert!(summary.to_string().contains("1 ARE AT NO PEER"), "{summary}");
    assert_eq!(rooms.vault.local(&cid_of(PAYLOAD)).await.expect("reads"), None);
    assert_eq!(
        rooms.vault.retained().await.expect("reads"),
        1,
        "it is looked for again"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_rebuilding_goes_on_from_what_is_there() {
    let (village, dir) = (Village::found(), tempdir().expect("a folder"));
    // The peers lose everything above block 100 while it climbs.
    let broken = |key| {
        except(village.honest(key, BLOCKS), |path, reply| {
            let height = path.rsplit('/').next().and_then(|last| last.parse::<u64>().ok());
            let is_gone = path.contains("/blocks/") && (101..ALL).contains(&height.unwrap_or_default());
            if is_gone { Reply::Absent } else { reply }
        })
    };
    let (rebuilt, rooms) = village.rebuild(dir.path(), (1..4).map(broken).collect()).await;
    assert!(matches!(rebuilt.result, Err(Error::Withheld(_))));
    let reached = rooms.chain.head().height.0;
    assert!((1..=100).contains(&reached), "{reached}");
    drop(rooms.chain);
    let elsewhere = tempdir().expect("a folder");
    std::fs::copy(dir.path().join("chain.redb"), elsewhere.path().join("chain.redb")).expect("copies");
    let (rebuilt, rooms) = village.rebuild(elsewhere.path(), village.all_honest()).await;
    assert_eq!(rebuilt.result.expect("rebuilt").blocks, ALL - reached);
    assert_eq!(
        rooms.chain.position_at(Height(ALL)).expect("reads"),
        village.positions.last().copied()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn two_histories_with_votes_are_never_joined() {
    let (village, dir) = (Village::grown(9), tempdir().expect("a folder"));
    let (_, rooms) = village.rebuild(dir.path(), village.all_honest()).await;
    drop(rooms);
    let forked = village.forked(6, 15);
    let again = tempdir().expect("a folder");
    std::fs::copy(dir.path().join("chain.redb"), again.path().join("chain.redb")).expect("copies");
    let (rebuilt, rooms) = forked.rebuild(again.path(), forked.all_honest()).await;
    let refused = rebuilt.result.expect_err("more than a third lied");
    assert!(matches!(&refused, Error::Contradiction(_)), "{refused}");
    assert_eq!(rooms.chain.head().height, Height(9));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_state_of_the_same_blocks_is_no_success() {
    let (village, dir) = (Village::grown(9), tempdir().expect("a folder"));
    let liar = |key: usize| {
        let signer = village.keys[key].clone();
        except(village.honest(key, 9), move |path, reply| match reply {
            Reply::Body(bytes) if path.contains("/heads/") => {
                let mut head: SignedHead = serde_json::from_slice(&bytes).expect("a head");
                head.position.state_digest = Digest::ZERO;
                let head = SignedHead::sign(head.network, head.position, &signer);
                Reply::Body(serde_json::to_vec(&head).expect("JSON"))
            }
            other => other,
        })
    };
    let (rebuilt, _) = village
        .rebuild(dir.path(), vec![liar(1), liar(2), village.honest(3, 9)])
        .await;
    let refused = rebuilt.result.expect_err("two thirds have another state");
    assert!(matches!(&refused, Error::Contradiction(_)), "{refused}");
    let one = tempdir().expect("a folder");
    let (rebuilt, _) = village
        .rebuild(one.path(), vec![liar(1), village.honest(2, 9), village.honest(3, 9)])
        .await;
    rebuilt.result.expect("one liar does not matter");
}

#[tokio::test(flavor = "multi_thread")]
async fn this_nodes_own_earlier_word_counts_for_nothing() {
    let (village, dir) = (Village::grown(9), tempdir().expect("a folder"));
    let (mut answers, old) = (village.all_honest(), village.honest(0, 9));
    answers.truncate(1);
    answers.push(old);
    let (rebuilt, _) = village.rebuild(dir.path(), answers).await;
    assert!(matches!(rebuilt.result, Err(Error::NoAgreement { agree: 1, .. })));
}
