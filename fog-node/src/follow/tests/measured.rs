//! How many bytes an observer keeps of a million readings, beside a full node: a measurement, run by hand.

use std::path::Path;

use futures::{StreamExt as _, stream};
use ledger::transaction::Action;
use record::bundle::{Category, SubjectKey, SubjectSecret};

use super::world::World;

const PATIENTS: usize = 1_000;
const BUNDLES_OF_EACH: usize = 50;
const READINGS_IN_EACH: u64 = 20;
const BUNDLES_IN_A_BLOCK: usize = 20;
/// Payloads written at a time: they share commits.
const PUTS: usize = 256;

fn bytes(dir: &Path, names: &[&str]) -> u64 {
    let size = |name: &&str| std::fs::metadata(dir.join(name)).map_or(0, |file| file.len());
    names.iter().map(size).sum()
}

fn strangers() -> Vec<SubjectKey> {
    let key = |_| SubjectSecret::generate(Category::Vitals, 1).expect("random numbers").1;
    (1..PATIENTS).map(key).collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement of some minutes, not a check"]
async fn bytes_of_a_million_readings() {
    let world = World::new().await;
    let keys: Vec<_> = strangers().into_iter().chain([world.holding.key.clone()]).collect();
    let mut founding = world.enrolments();
    let announce = |key: &SubjectKey| world.sign(0, 0, Action::AnnounceKey(key.clone()));
    founding.extend(keys[..PATIENTS - 1].iter().map(announce));
    for transactions in founding.chunks(BUNDLES_IN_A_BLOCK) {
        world.append(transactions.to_vec(), true).await;
    }
    world.append(vec![world.grant_to(1)], true).await;
    for round in 0..BUNDLES_OF_EACH {
        let first = 1 + round as u64 * READINGS_IN_EACH;
        let bundle = world.readings(first..first + READINGS_IN_EACH);
        let commits = stream::iter(&keys)
            .map(|key| world.commit_to(key, &bundle))
            .buffered(PUTS);
        let commits: Vec<_> = commits.map(|(_, commit)| commit).collect().await;
        for transactions in commits.chunks(BUNDLES_IN_A_BLOCK) {
            world.append(transactions.to_vec(), true).await;
        }
    }
    let readings = PATIENTS as u64 * BUNDLES_OF_EACH as u64 * READINGS_IN_EACH;
    let full = bytes(world.dir.path(), &["chain.redb"]);
    let payloads = bytes(world.dir.path(), &["vault.redb"]);
    let mut told = format!("{readings} readings\nfull node: chain {full}, vault {payloads}\n");
    let of_one = BUNDLES_OF_EACH as u64 * READINGS_IN_EACH;
    for (organization, name, granted) in [(1, "one-in-a-thousand", of_one), (2, "no-grants", 0)] {
        let mut observed = world.observe(organization, name).await;
        observed.rounds(3).await;
        observed.indexed(granted).await;
        let dir = world.dir.path().join(name);
        let parts = [
            bytes(&dir, &["proofs.redb"]),
            bytes(&dir, &["vault.redb"]),
            bytes(&dir, &["index.sqlite", "index.sqlite-wal"]),
        ];
        let proofs = observed.proofs.bytes_kept();
        told.push_str(&format!(
            "{name}, height {}: proofs {} (in use {proofs}), vault {}, index {}, together {}\n",
            observed.height(),
            parts[0],
            parts[1],
            parts[2],
            parts.iter().sum::<u64>()
        ));
    }
    // Where whoever runs it looks for it.
    std::fs::write(std::env::temp_dir().join("vitalfog-observer-bytes.txt"), told).expect("writes");
}
