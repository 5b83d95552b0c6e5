//! Two of four validators lie together: agreement may break, and whoever compares sees it, with names (fault F22).

use std::{
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind},
};

use commonware_runtime::Runner as _;
use fog_node::{
    audit::{self, Audited},
    chain::Chain,
};
use ledger::block::Height;
use tokio::net::TcpListener;
use warp::Filter as _;

use crate::{
    STEADY,
    disks::Disks,
    enrol,
    properties::{self, assert_chains, assert_receipts},
    seeded, submit,
    world::{World, settled},
};

/// Lets a chain be read over HTTP, as a node's own door does; gives its address.
async fn served(chain: &Chain) -> Audited {
    let (heads, blocks) = (chain.clone(), chain.clone());
    let head = warp::path!("api" / "v1" / "chain" / "head").map(move || warp::reply::json(&heads.head()));
    let block = warp::path!("api" / "v1" / "chain" / "blocks" / u64).then(move |height| {
        let blocks = blocks.clone();
        async move {
            let block = blocks.carried(Height(height)).await.expect("reads");
            block.expect("no gap below the head").encode()
        }
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(warp::serve(head.or(block)).incoming(listener).run());
    Audited {
        url: format!("http://{address}"),
    }
}

/// Validators 2 and 3 run twice each: their first selves agree with validator 0, their second selves with validator 1,
/// who cannot reach each other. Both sides finalize, each with three valid votes.
#[test]
fn two_liars_of_four_can_fork_and_comparing_names_them() {
    let disks = Disks::with_spares(4, 2);
    let (chains, submitted) = seeded(50).start(|context| {
        let disks = &disks;
        async move {
            let world = World::new(&context, disks, STEADY).await;
            for (from, to) in [(0, 1), (1, 0), (2, 3), (3, 2)] {
                world.cut(from, to).await;
            }
            let mut sides = [
                vec![world.start(&context, disks, 0).await],
                vec![world.start(&context, disks, 1).await],
            ];
            for (liar, spare) in [(2, 4), (3, 5)] {
                world.start_twins(&context, disks, (liar, spare), (&[0], &[1])).await;
            }
            let mut submitted = Vec::new();
            for (numbers, side) in [0..6, 10..16].into_iter().zip(&mut sides) {
                let mut here = enrol(disks, side);
                settled(&context, side, 1, &here).await;
                here.extend(submit(&context, disks, side, numbers).await);
                settled(&context, side, 4, &here).await;
                submitted.push(here);
            }
            (sides.map(|side| side[0].chain.clone()), submitted)
        }
    });
    // Each side by itself is a chain without a fault, and its receipts hold.
    for (chain, submitted) in chains.iter().zip(&submitted) {
        assert_chains(&disks.clinic, &[chain], &disks.runtime);
        assert_receipts(chain, submitted, &disks.runtime);
    }
    let [one, other] = &chains;
    let fork = properties::fork([one, other], &disks.runtime).expect("the two sides differ");
    let liars: BTreeSet<_> = disks.clinic.validators[2..].iter().map(|key| key.public()).collect();
    println!("a fork at height {}, by {:?}", fork.height, fork.guilty);
    assert_eq!(fork.guilty, liars, "who voted on both sides is named, and nobody else");
    let findings = disks.runtime.block_on(async {
        let nodes = [served(one).await, served(other).await];
        audit::compare(&reqwest::Client::new(), &nodes, &disks.clinic.genesis).await
    });
    let findings = findings.expect("both answer");
    assert!(!findings.agrees(), "the audit names it as well: {findings}");
    assert_eq!(
        findings.differences.first().map(|(height, _)| *height),
        Some(fork.height)
    );
    let compared = catch_unwind(AssertUnwindSafe(|| {
        assert_chains(&disks.clinic, &[one, other], &disks.runtime)
    }));
    assert!(
        compared.is_err(),
        "the check of every other simulation would have seen it"
    );
}
