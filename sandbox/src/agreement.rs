//! Whether all nodes stand at the same head: block digest and state digest compared at one height.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use futures::future::join_all;
use tokio::time::sleep;

use crate::client::{Head, Node};

/// Heads move about once a second even when nothing happens; looking this often, none is missed.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Waits until every node has shown its head at one height, not below the highest there is now, and compares them.
///
/// # Errors
/// A sentence: who is behind, or at which height they differ.
pub async fn agree(nodes: &[Node], names: &[&str], within: Duration) -> Result<Head, String> {
    let deadline = Instant::now() + within;
    let mut seen = Sightings::default();
    let mut least = 0;
    loop {
        let heads = join_all(nodes.iter().map(async |node| node.head().await.ok())).await;
        if least == 0 {
            least = heads.iter().flatten().map(|head| head.height).max().unwrap_or(0);
        }
        seen.add(least, heads);
        if let Some(agreed) = seen.judge() {
            return agreed;
        }
        if Instant::now() >= deadline {
            return Err(seen.behind(names, least));
        }
        sleep(LOOK_EVERY).await;
    }
}

/// Which node showed which head, by height.
#[derive(Default)]
struct Sightings(BTreeMap<u64, Vec<Option<Head>>>);

impl Sightings {
    fn add(&mut self, least: u64, heads: Vec<Option<Head>>) {
        let count = heads.len();
        for (i, head) in heads.into_iter().enumerate() {
            if let Some(head) = head.filter(|head| head.height >= least) {
                let of_one_height = self.0.entry(head.height).or_insert_with(|| vec![None; count]);
                of_one_height[i] = Some(head);
            }
        }
    }

    fn judge(&self) -> Option<Result<Head, String>> {
        let of_one_height = |heads: &Vec<Option<Head>>| heads.iter().cloned().collect::<Option<Vec<_>>>();
        let complete = self.0.values().rev().find_map(of_one_height);
        // Two heads of one height that differ are enough, whoever is still missing.
        let differ = |heads: &&Vec<Option<Head>>| {
            heads
                .iter()
                .flatten()
                .any(|head| Some(head) != heads.iter().flatten().next())
        };
        if let Some(height) = self
            .0
            .values()
            .find(differ)
            .and_then(|heads| heads.iter().flatten().next())
        {
            return Some(Err(format!("the nodes' heads differ at height {}", height.height)));
        }
        complete.map(|heads| heads.into_iter().next().ok_or_else(|| "there is no node".to_owned()))
    }

    fn behind(&self, names: &[&str], least: u64) -> String {
        let reached = |i: usize| self.0.values().any(|heads| heads.get(i).is_some_and(Option::is_some));
        let behind: Vec<_> = names
            .iter()
            .enumerate()
            .filter(|(i, _)| !reached(*i))
            .map(|(_, name)| *name)
            .collect();
        if behind.is_empty() {
            return "the nodes never stood at the same height".to_owned();
        }
        format!("{} did not reach height {least}", behind.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use record::canonical::{Digest, Domain};

    fn head(height: u64, state: &[u8]) -> Option<Head> {
        let digest = Digest::of(Domain::HEADER, &[&height.to_be_bytes()]);
        Some(Head {
            height,
            digest,
            state_digest: Digest::of(Domain::STATE, &[state]),
        })
    }

    #[test]
    fn nodes_that_pass_the_same_height_one_after_the_other_agree() {
        let mut seen = Sightings::default();
        seen.add(5, vec![head(5, b"x"), head(4, b"x")]);
        assert!(seen.judge().is_none());
        assert_eq!(seen.behind(&["a", "b"], 5), "b did not reach height 5");
        seen.add(5, vec![head(7, b"x"), head(5, b"x")]);
        assert_eq!(seen.judge().expect("complete").expect("equal").height, 5);
    }

    #[test]
    fn another_state_at_the_same_height_is_no_agreement() {
        let mut seen = Sightings::default();
        seen.add(5, vec![head(5, b"x"), head(5, b"y"), None]);
        assert!(
            seen.judge()
                .expect("they differ")
                .expect_err("they differ")
                .contains("height 5")
        );
    }
}
