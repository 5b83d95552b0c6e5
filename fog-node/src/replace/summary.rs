//! What a rebuilding came to, in words: what is here now, from whom it came, and how long it took.

use std::{fmt, time::Duration};

use super::Gift;
use crate::chain::Head;

/// What a rebuilding came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The last block.
    pub head: Head,
    /// Blocks that were fetched and checked now; the others were here from an earlier attempt.
    pub blocks: u64,
    /// Payloads that were looked for and are here.
    pub payloads_held: u64,
    /// Payloads that no peer has that answers.
    pub payloads_absent: u64,
    /// From whom.
    pub gifts: Vec<Gift>,
    /// How long it took.
    pub took: Duration,
}

impl Summary {
    /// Bytes that were fetched, of everything.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let bytes = |gift: &Gift| gift.block_bytes + gift.payload_bytes;
        self.gifts.iter().map(bytes).sum()
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Head {
            height,
            digest,
            state_digest,
            ..
        } = &self.head;
        writeln!(f, "head        block {height}, digest {digest}")?;
        writeln!(f, "state       {state_digest}, as two thirds of the validators have it")?;
        writeln!(
            f,
            "blocks      {}, each by the votes on it or on a descendant",
            self.blocks
        )?;
        write!(f, "payloads    {}, each by its identifier", self.payloads_held)?;
        if self.payloads_absent > 0 {
            write!(
                f,
                "; {} ARE AT NO PEER that answers: the running node goes on asking",
                self.payloads_absent
            )?;
        }
        for gift in &self.gifts {
            write!(
                f,
                "\nfrom        {}: {} blocks ({} bytes), {} payloads ({} bytes){}",
                gift.peer,
                gift.blocks,
                gift.block_bytes,
                gift.payloads,
                gift.payload_bytes,
                if gift.was_left { "; it was left for another" } else { "" }
            )?;
        }
        write!(
            f,
            "\ntook        {:.1} s, {} bytes",
            self.took.as_secs_f64(),
            self.bytes()
        )
    }
}
