//! The sealed payloads that the chain names, into the vault: many at a time, each by its content identifier.

use cid::Cid;
use futures::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use ledger::block::Height;

use super::{Error, Progress};
use crate::{
    chain::Chain,
    vault::{self, Vault},
};

/// Payloads that are looked for at the same time.
const SOUGHT_MAX: usize = 64;
/// Payloads that may be at no peer; more mean that something is wrong with the peers or with this node's disk.
const ABSENT_MAX: u64 = 64;
/// The height up to which everything is held is written so often, in blocks: there an interrupted run goes on.
const NOTE_BLOCKS: u64 = 1_024;

/// How it came out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Payloads {
    /// Held here.
    pub(super) held: u64,
    /// At no peer that answered in time.
    pub(super) absent: u64,
    /// The lowest height with one of those.
    lowest_absent: Option<Height>,
}

type Sought<'a> = FuturesUnordered<BoxFuture<'a, (Height, Cid, Result<(), vault::Error>)>>;

/// Brings every payload that the chain names; what nobody has now is named in the log, and looked for again by the running node.
pub(super) async fn fetch(chain: &Chain, vault: &Vault, progress: &mut Progress) -> Result<Payloads, Error> {
    let head = chain.head().height;
    let mut payloads = Payloads::default();
    let mut noted = vault.retained().await?;
    while noted < head.0 {
        let to = head.0.min(noted + NOTE_BLOCKS);
        stretch(chain, vault, (noted + 1, to), &mut payloads, progress).await?;
        noted = to;
        if payloads.lowest_absent.is_none() {
            vault.note_retained(noted).await?;
        }
    }
    if let Some(lowest) = payloads.lowest_absent {
        let held = lowest.0.saturating_sub(1);
        if vault.retained().await? < held {
            vault.note_retained(held).await?;
        }
    }
    Ok(payloads)
}

async fn stretch(
    chain: &Chain,
    vault: &Vault,
    (from, to): (u64, u64),
    payloads: &mut Payloads,
    progress: &mut Progress,
) -> Result<(), Error> {
    let mut sought = Sought::new();
    for height in (from..=to).map(Height) {
        for payload in chain.payloads(height).await?.unwrap_or_default() {
            if sought.len() >= SOUGHT_MAX
                && let Some(answer) = sought.next().await
            {
                payloads.note(answer)?;
            }
            sought.push(Box::pin(async move {
                (height, payload.cid, vault.fetch(&payload.cid).await.map(drop))
            }));
        }
        progress.say(|| format!("payloads of block {height}: {} held", payloads.held));
    }
    while let Some(answer) = sought.next().await {
        payloads.note(answer)?;
    }
    Ok(())
}

impl Payloads {
    fn note(&mut self, (height, cid, answer): (Height, Cid, Result<(), vault::Error>)) -> Result<(), Error> {
        match answer {
            Ok(()) => self.held += 1,
            Err(vault::Error::Absent(_)) => {
                tracing::warn!(%cid, %height, "a payload that the chain names is at no peer that answers");
                self.absent += 1;
                self.lowest_absent = Some(self.lowest_absent.map_or(height, |lowest| lowest.min(height)));
                if self.absent > ABSENT_MAX {
                    return Err(Error::Withheld(format!(
                        "{} payloads are at no peer that answers, or cannot be kept here",
                        self.absent
                    )));
                }
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}
