//! One of four validators lies, in every way there is: the others agree, lose nothing, and shut out whom they caught.

use commonware_runtime::Runner as _;

use crate::{
    STEADY, assert_all,
    disks::Disks,
    enrol,
    liar::{LIES, Lie},
    seeded, start_all, submit,
    world::{World, settled},
};

/// What one lie came to.
#[derive(Debug)]
struct Outcome {
    /// Blocks of the liar that became final.
    by_liar: usize,
    /// Who has shut out whom.
    shut_out: Vec<(usize, usize)>,
}

/// Three honest validators and one that lies; who of the four it is follows from the seed.
fn told(lie: Lie, seed: u64) -> Outcome {
    let liar = seed as usize % 4;
    let disks = Disks::with_spares(4, 1);
    let (chains, submitted, shut_out) = seeded(seed).start(|context| {
        let disks = &disks;
        async move {
            let world = World::new(&context, disks, STEADY).await;
            let honest = (0..4).filter(|validator| *validator != liar);
            let mut nodes = start_all(&context, &world, disks, honest).await;
            lie.start(&context, &world, disks, (liar, 4)).await;
            let mut submitted = enrol(disks, &nodes);
            settled(&context, &mut nodes, 1, &submitted).await;
            submitted.extend(submit(&context, disks, &nodes, 0..6).await);
            // One falls behind and catches up, also from the liar.
            let away = nodes.remove(1);
            let validator = away.validator;
            away.crash(&context).await;
            submitted.extend(submit(&context, disks, &nodes, 6..10).await);
            nodes.push(world.start(&context, disks, validator).await);
            submitted.extend(submit(&context, disks, &nodes, 10..14).await);
            settled(&context, &mut nodes, 10, &submitted).await;
            let chains: Vec<_> = nodes.iter().map(|node| node.chain.clone()).collect();
            (chains, submitted, world.shut_out().await)
        }
    });
    assert_all(&disks, &chains, &submitted);
    let height = chains[0].head().height;
    let key = disks.clinic.validators[liar].public();
    let led = (1..=height.0).filter(|height| {
        let block = chains[0].block(ledger::block::Height(*height));
        let block = disks.runtime.block_on(block).expect("reads").expect("no gap");
        block.block.header.leader == key
    });
    Outcome {
        by_liar: led.count(),
        shut_out,
    }
}

fn assert_harmless(lie: Lie, seed: u64, outcome: &Outcome) {
    let liar = seed as usize % 4;
    let Outcome { by_liar, shut_out } = outcome;
    assert!(
        shut_out.iter().all(|(by, whom)| *by == liar || *whom == liar),
        "{lie:?}, seed {seed}: an honest validator shut out another: {shut_out:?}"
    );
    if lie.is_evident() {
        let by = (0..4).filter(|by| shut_out.contains(&(*by, liar))).count();
        assert_eq!(by, 3, "{lie:?}, seed {seed}: everybody saw it: {shut_out:?}");
    }
    if !lie.proposes_well() {
        assert_eq!(*by_liar, 0, "{lie:?}, seed {seed}: no such block becomes final");
    }
}

/// Faults F19 and F20, and F21 for what a liar serves to who catches up.
#[test]
fn whatever_way_one_of_four_lies_the_others_agree() {
    for (number, lie) in LIES.into_iter().enumerate() {
        for seed in [100 + number as u64, 201 + 3 * number as u64] {
            let outcome = told(lie, seed);
            println!("{lie:?}, seed {seed}: {outcome:?}");
            assert_harmless(lie, seed, &outcome);
        }
    }
}
