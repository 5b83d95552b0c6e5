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

/// What the nodes showed, each for itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Agreement {
    /// The head that each node showed, in the order of the nodes: at the height at which they were compared, or the last.
    pub shown: Vec<Option<Head>>,
    /// Who is behind, or at which height they differ; absent if all agree.
    pub fault: Option<String>,
}

impl Agreement {
    /// The height at which all nodes agree.
    #[must_use]
    pub fn height(&self) -> Option<u64> {
        let agreed = self.shown.first().filter(|_| self.fault.is_none())?;
        agreed.as_ref().map(|head| head.height)
    }
}

/// Waits until every node has shown its head at one height, not below the highest there is now, and compares them.
pub async fn agree(nodes: &[Node], names: &[&str], within: Duration) -> Agreement {
    let deadline = Instant::now() + within;
    let mut seen = Sightings::default();
    let mut least = 0;
    loop {
        let heads = join_all(nodes.iter().map(async |node| node.head().await.ok())).await;
        if least == 0 {
            least = heads.iter().flatten().map(|head| head.height).max().unwrap_or(0);
        }
        seen.add(least, heads);
        if let Some(agreement) = seen.judge() {
            return agreement;
        }
        if Instant::now() >= deadline {
            return seen.behind(names, least);
        }
        sleep(LOOK_EVERY).await;
    }
}

/// Which node showed which head, by height.
#[derive(Default)]
struct Sightings {
    by_height: BTreeMap<u64, Vec<Option<Head>>>,
    last: Vec<Option<Head>>,
}

impl Sightings {
    fn add(&mut self, least: u64, heads: Vec<Option<Head>>) {
        let count = heads.len();
        self.last.resize(count, None);
        for (i, head) in heads.into_iter().enumerate() {
            let Some(head) = head else { continue };
            if head.height >= least {
                let of_one_height = self.by_height.entry(head.height).or_insert_with(|| vec![None; count]);
                of_one_height[i] = Some(head.clone());
            }
            self.last[i] = Some(head);
        }
    }

    fn judge(&self) -> Option<Agreement> {
        // Two heads of one height that differ are enough, whoever is still missing.
        let differ = |heads: &[Option<Head>]| {
            let mut shown = heads.iter().flatten();
            let first = shown.next();
            shown.any(|head| Some(head) != first)
        };
        if let Some((height, heads)) = self.by_height.iter().find(|(_, heads)| differ(heads)) {
            return Some(Agreement {
                shown: heads.clone(),
                fault: Some(format!("the nodes' heads differ at height {height}")),
            });
        }
        let complete = |heads: &&Vec<Option<Head>>| heads.iter().all(Option::is_some);
        self.by_height.values().rev().find(complete).map(|heads| Agreement {
            shown: heads.clone(),
            fault: None,
        })
    }

    fn behind(&self, names: &[&str], least: u64) -> Agreement {
        Agreement {
            shown: self.last.clone(),
            fault: Some(self.who_is_behind(names, least)),
        }
    }

    fn who_is_behind(&self, names: &[&str], least: u64) -> String {
        let seen = |i: usize, heads: &Vec<Option<Head>>| heads.get(i).is_some_and(Option::is_some);
        let reached = |i: usize| self.by_height.values().any(|heads| seen(i, heads));
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
        let behind = seen.behind(&["a", "b"], 5);
        assert_eq!(behind.fault.as_deref(), Some("b did not reach height 5"));
        assert_eq!((behind.height(), &behind.shown[1]), (None, &head(4, b"x")));
        seen.add(5, vec![head(7, b"x"), head(5, b"x")]);
        let agreement = seen.judge().expect("complete");
        assert_eq!((agreement.height(), agreement.fault), (Some(5), None));
    }

    #[test]
    fn another_state_at_the_same_height_is_no_agreement() {
        let mut seen = Sightings::default();
        seen.add(5, vec![head(5, b"x"), head(5, b"y"), None]);
        let agreement = seen.judge().expect("they differ");
        assert!(agreement.fault.as_ref().is_some_and(|fault| fault.contains("height 5")));
        assert_eq!(agreement.height(), None);
        assert_eq!(
            agreement.shown,
            [head(5, b"x"), head(5, b"y"), None],
            "each node's own, not one for all"
        );
    }
}
