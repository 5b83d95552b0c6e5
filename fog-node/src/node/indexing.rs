//! The composition for `reindex` and `index verify`: the stores of a stopped node, without doors and without the engine.

use std::fmt;

use ::http::HeaderMap;
use ledger::block::Height;

use super::{Error, Node, open, peers_client};
use crate::{
    chain::Chain,
    index::{self, Index},
    keyring::Keyring,
    projection::{Difference, Projection},
    vault::Vault,
};

/// Blocks between two lines of progress.
const BLOCKS_A_LINE: u64 = 1_000;

/// What a comparison of the index with the chain came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// The chain's head.
    pub head: Height,
    /// How far the chain is projected.
    pub projected: Height,
    /// Blocks whose rows are not what the chain gives, the first of them, with how they differ.
    pub blocks: Vec<(Height, Difference)>,
    /// Rows altered, missing or invented, all together.
    pub rows: u64,
    /// Whether rows are there that belong to no block, or their number is not the one that this node wrote.
    pub uncounted: bool,
    /// Whether it was put right.
    pub repaired: bool,
}

impl Findings {
    /// Whether each row is what the chain gives, and no other is there.
    #[must_use]
    pub const fn is_sound(&self) -> bool {
        self.rows == 0 && !self.uncounted
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (height, difference) in &self.blocks {
            writeln!(
                f,
                "block {height}: {} rows missing or changed, {} changed or invented",
                difference.missing, difference.strange
            )?;
        }
        writeln!(
            f,
            "chain       {} blocks, {} of them projected",
            self.head, self.projected
        )?;
        writeln!(f, "altered     {} rows", self.rows)?;
        if self.uncounted {
            writeln!(
                f,
                "number      not the one that this node wrote, or rows that belong to no block"
            )?;
        }
        let end = match (self.is_sound(), self.repaired) {
            (true, _) => "every row is what the chain gives",
            (false, true) => "put right from the chain",
            (false, false) => "not repaired: run it with --repair, or `fog-node reindex`",
        };
        write!(f, "result      {end}")
    }
}

impl Node {
    /// Makes the index anew, from the first block on. It may be ended at any moment: run again, or when the node is started, it
    /// goes on.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn reindex(self, mut say: impl FnMut(String)) -> Result<String, Error> {
        let (chain, projection) = self.projection().await?;
        let head = chain.head().height;
        projection.forget().await.map_err(open("index"))?;
        say(format!("the index is empty; {head} blocks are projected anew"));
        let started = std::time::Instant::now();
        while let Some(height) = projection.advance().await.map_err(open("index"))? {
            if height.0.is_multiple_of(BLOCKS_A_LINE) {
                say(format!("block {height} of {head}"));
            }
        }
        let counts = projection.counts().await.map_err(open("index"))?;
        Ok(format!(
            "{head} blocks, {} observations, {} rejected, in {:.1} s",
            counts.observations,
            counts.rejected,
            started.elapsed().as_secs_f64()
        ))
    }

    /// Compares every row with what the chain and the payloads give, and, if it is asked to, makes them so.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn verify_index(self, repair: bool, mut say: impl FnMut(String)) -> Result<Findings, Error> {
        const NAMED_MAX: usize = 100;
        let (chain, projection) = self.projection().await?;
        let head = chain.head().height;
        let mut findings = Findings {
            head,
            uncounted: !projection.is_counted().await.map_err(open("index"))?,
            ..Findings::default()
        };
        findings.projected = match projection.projected().await {
            Err(crate::projection::Failure::Index(index::Error::Altered(_))) => Height(0),
            projected => projected.map_err(open("index"))?,
        };
        for height in (1..=findings.projected.min(head).0).map(Height) {
            let difference = projection.difference(height).await.map_err(open("index"))?;
            if difference.rows() > 0 {
                findings.rows += difference.rows();
                if findings.blocks.len() < NAMED_MAX {
                    findings.blocks.push((height, difference));
                }
                if repair {
                    projection.verify(height).await.map_err(open("index"))?;
                }
            }
            if height.0.is_multiple_of(BLOCKS_A_LINE) {
                say(format!("block {height} of {head}"));
            }
        }
        if repair && !findings.is_sound() {
            projection.mend().await.map_err(open("index"))?;
            while projection.advance().await.map_err(open("index"))?.is_some() {}
            findings.repaired = projection.is_counted().await.map_err(open("index"))?;
        }
        Ok(findings)
    }

    async fn projection(&self) -> Result<(Chain, Projection), Error> {
        let (config, data_dir) = (&self.config, &self.config.data_dir);
        let client = peers_client(&self.identity, HeaderMap::new())?;
        let keyring = Keyring::load(&config.keyring, data_dir).map_err(open("keyring"))?;
        let chain = Chain::open(&config.chain, data_dir, &self.genesis).map_err(open("chain: is the node stopped?"))?;
        let vault = Vault::open(&config.vault, data_dir, client)
            .await
            .map_err(open("vault"))?;
        let index = Index::open(&config.index, data_dir).await.map_err(open("index"))?;
        Ok((chain.clone(), Projection::new(chain, vault, index, keyring)))
    }
}
