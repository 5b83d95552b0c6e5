//! The paper's Algorithm 2 to the letter: the whole chain compared with every peer's, block by block, and the majority named.
//!
//! An audit for people, never on the way of a transaction: it costs a pass over every chain. What nodes do for ever is the
//! comparison of signed heads (`recovery`), which costs the same whatever the chain's length.

use std::{collections::BTreeMap, fmt, time::Duration};

use futures::future::join_all;
use ledger::{
    block::{Block, Height},
    genesis::Genesis,
    proof::{CARRIED_BYTES_MAX, CarriedBlock, ValidatorSet},
};
use record::{
    canonical::{Digest, MEDIA_TYPE},
    ids::NetworkId,
};
use reqwest::{StatusCode, header};
use serde::Deserialize;

/// A node may take this long to answer one question.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Heights at which chains differ that are named one by one; the others are counted.
const DIFFERENCES_NAMED_MAX: usize = 20;

/// A node that is compared.
#[derive(Clone, Debug)]
pub struct Audited {
    /// Base of its addresses.
    pub url: String,
}

/// What was compared, and how it came out.
#[derive(Debug, Default)]
pub struct Findings {
    /// Nodes that answered, by their addresses, and their heights.
    pub nodes: Vec<(String, Height)>,
    /// Heights up to which all were compared.
    pub compared: u64,
    /// Where they differ: height, and who has which digest.
    pub differences: Vec<(Height, BTreeMap<String, Vec<String>>)>,
    /// How many more heights differ.
    pub more: u64,
    /// Heights at which the first node is not with the majority.
    pub outside: u64,
    /// How long it took.
    pub took: Duration,
}

impl Findings {
    /// Whether the first node has what the majority has, at every height.
    #[must_use]
    pub const fn agrees(&self) -> bool {
        self.outside == 0
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (url, height) in &self.nodes {
            writeln!(f, "  {url} is at height {height}")?;
        }
        for (height, said) in &self.differences {
            writeln!(f, "  height {height}:")?;
            for (digest, nodes) in said {
                writeln!(
                    f,
                    "    {digest}  {} of {}: {}",
                    nodes.len(),
                    self.nodes.len(),
                    nodes.join(", ")
                )?;
            }
        }
        if self.more > 0 {
            writeln!(f, "  and {} more heights differ", self.more)?;
        }
        let verdict = if self.agrees() {
            "this node has what the majority has, block by block"
        } else {
            "THIS NODE IS NOT WITH THE MAJORITY"
        };
        write!(
            f,
            "{verdict}: {} nodes, {} blocks each, compared in {:.1} s",
            self.nodes.len(),
            self.compared + 1,
            self.took.as_secs_f64()
        )
    }
}

/// Why there is nothing to say.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The node that is audited must answer.
    #[error("{0} does not answer; the audit asks the running node, and its peers")]
    Silent(String),
    /// One node alone is no comparison.
    #[error("no peer answers: there is nothing to compare with")]
    Alone,
}

#[derive(Deserialize)]
struct Head {
    height: Height,
}

/// Compares the whole chain of the first node with those of the others, from the genesis on.
///
/// # Errors
/// [`Error`].
pub async fn compare(client: &reqwest::Client, nodes: &[Audited], genesis: &Genesis) -> Result<Findings, Error> {
    let started = std::time::Instant::now();
    // Its name is the digest of the whole document: once is enough for all blocks.
    let network = ValidatorSet::of(genesis).network;
    let heads = join_all(nodes.iter().map(|node| head(client, node))).await;
    if heads.first().is_none_or(Option::is_none) {
        return Err(Error::Silent(
            nodes.first().map(|node| node.url.clone()).unwrap_or_default(),
        ));
    }
    let present: Vec<_> = nodes
        .iter()
        .zip(heads)
        .filter_map(|(node, head)| Some((node, head?)))
        .collect();
    if present.len() < 2 {
        return Err(Error::Alone);
    }
    let top = present.iter().map(|(_, height)| height.0).min().unwrap_or_default();
    let mut findings = Findings {
        nodes: present
            .iter()
            .map(|(node, height)| (node.url.clone(), *height))
            .collect(),
        compared: top,
        ..Findings::default()
    };
    for height in (0..=top).map(Height) {
        let said = join_all(present.iter().map(|(node, _)| digest(client, node, height, network))).await;
        findings.note(height, &said);
    }
    findings.took = started.elapsed();
    Ok(findings)
}

impl Findings {
    /// What the nodes have at a height; the first one is audited.
    fn note(&mut self, height: Height, said: &[Option<Digest>]) {
        let word =
            |digest: &Option<Digest>| digest.map_or_else(|| "no good block".to_owned(), |digest| digest.to_string());
        let mut holders: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for ((url, _), digest) in self.nodes.iter().zip(said) {
            holders.entry(word(digest)).or_default().push(url.clone());
        }
        if holders.len() == 1 && said.iter().all(Option::is_some) {
            return;
        }
        let own = said.first().map(word).unwrap_or_default();
        let with_majority = holders.get(&own).is_some_and(|with| 2 * with.len() > said.len());
        if !with_majority || said.first().is_none_or(Option::is_none) {
            self.outside += 1;
        }
        if self.differences.len() < DIFFERENCES_NAMED_MAX {
            self.differences.push((height, holders));
        } else {
            self.more += 1;
        }
    }
}

async fn head(client: &reqwest::Client, node: &Audited) -> Option<Height> {
    let request = client
        .get(format!("{}/api/v1/chain/head", node.url))
        .timeout(ANSWER_TIMEOUT);
    let head: Head = request.send().await.ok()?.json().await.ok()?;
    Some(head.height)
}

/// The digest of a node's block, computed here from its bytes; `None` if it gives no whole block of that height.
async fn digest(client: &reqwest::Client, node: &Audited, height: Height, network: NetworkId) -> Option<Digest> {
    let request = client
        .get(format!("{}/api/v1/chain/blocks/{height}", node.url))
        .header(header::ACCEPT, MEDIA_TYPE)
        .timeout(ANSWER_TIMEOUT);
    let answer = request
        .send()
        .await
        .ok()
        .filter(|answer| answer.status() == StatusCode::OK)?;
    if answer
        .content_length()
        .is_some_and(|length| length > CARRIED_BYTES_MAX as u64)
    {
        return None;
    }
    let block: Block = CarriedBlock::decode(&answer.bytes().await.ok()?).ok()?.block;
    let is_whole = block.is_whole() && block.header.height == height;
    (is_whole && block.header.network == network).then(|| block.header.digest())
}

#[cfg(test)]
mod tests {
    use super::*;
    use record::canonical::Domain;

    fn findings(nodes: usize) -> Findings {
        Findings {
            nodes: (0..nodes).map(|i| (format!("https://node-{i}"), Height(9))).collect(),
            ..Findings::default()
        }
    }

    fn digest(what: u8) -> Option<Digest> {
        Some(Digest::of(Domain::HEADER, &[&[what]]))
    }

    #[test]
    fn equal_chains_agree() {
        let mut findings = findings(4);
        findings.note(Height(1), &[digest(1); 4]);
        assert!(findings.agrees() && findings.differences.is_empty());
    }

    #[test]
    fn the_majority_is_named_and_who_stands_outside() {
        let mut findings = findings(4);
        findings.note(Height(1), &[digest(1), digest(1), digest(2), digest(1)]);
        assert!(findings.agrees(), "another node is outside, not this one");
        findings.note(Height(2), &[digest(2), digest(1), digest(1), digest(1)]);
        assert!(!findings.agrees());
        findings.note(Height(3), &[None, digest(1), digest(1), digest(1)]);
        findings.note(Height(4), &[digest(1), digest(1), digest(2), digest(2)]);
        assert_eq!(
            (findings.outside, findings.differences.len()),
            (3, 4),
            "half is no majority"
        );
        let told = findings.to_string();
        assert!(
            told.contains("NOT WITH THE MAJORITY") && told.contains("no good block"),
            "{told}"
        );
    }

    #[test]
    fn a_long_list_is_counted() {
        let mut findings = findings(2);
        for height in 0..30 {
            findings.note(Height(height), &[digest(1), digest(2)]);
        }
        assert_eq!((findings.differences.len(), findings.more), (DIFFERENCES_NAMED_MAX, 10));
    }
}
