//! What the chain names compared with what the vault lists: what is missing is ordered, what nobody names is let go of.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use cid::Cid;
use ledger::{block::Height, document::Payload};
use serde::Serialize;
use tokio::{
    sync::mpsc,
    time::{sleep, sleep_until},
};

use super::{Error, Named, Possession, Rooms, suspicion::Deaf};
use crate::{
    recovery::{FoundBy, Kind, Standing},
    vault::{self, Inventory},
};

/// Payloads that one sweep orders, at most; when they are here, the next one looks for the others.
const MISSING_MAX: usize = 16_384;
/// Payloads that peers are asked for until the next sweep, picked evenly from what the chain names. Large records are not among them:
/// the sweep finds one that is missing, the scrub one that is damaged.
const SAMPLE_MAX: usize = 1_024;
/// Heights that are looked through before the sweep rests for as long as that took.
const HEIGHTS_AT_ONCE: u64 = 64;
/// So far below the head a payload is that peers are asked for: they may be a moment behind.
const LAG_BLOCKS: u64 = 8;
/// Between two sweeps, whatever calls for one: nobody keeps this node sweeping.
const PAUSE: Duration = Duration::from_secs(5);
/// From the first sweep to the second; doubles up to the interval: a young chain soon has more to ask peers for.
const FIRST_PAUSE: Duration = Duration::from_secs(60);
/// Pause after chain or vault did not answer.
const FAILURE_PAUSE: Duration = Duration::from_secs(60);
/// Nothing is let go of when the last block is older: others may have named it since.
const HEAD_AGE_MAX: Duration = Duration::from_secs(60);
/// The queue of repairs may be full for so long before a sweep goes on without it.
const ORDER_TIMEOUT: Duration = Duration::from_secs(60);

/// Why it was swept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// The node was started.
    Start,
    /// It was time.
    Interval,
    /// This node could not prove something.
    Suspicion,
    /// The vault is full.
    Full,
    /// The sweep before has found more than it could order.
    Again,
}

/// What a sweep came to.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Swept {
    /// Why.
    pub cause: Cause,
    /// When it was done, in milliseconds since 1970.
    pub at_ms: i64,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// Payloads that the chain names.
    pub named: u64,
    /// Payloads that the vault listed.
    pub listed: usize,
    /// Of those that the chain names up to where all were held, those that are not here.
    pub missing: usize,
    /// Payloads that were let go of.
    pub collected: u64,
}

/// What was seen of the chain.
#[derive(Default)]
struct Look {
    named: u64,
    missing: usize,
    ordered: HashMap<Cid, Height>,
    sample: Vec<Named>,
    sampled: u64,
}

impl Look {
    /// Keeps an even sample of everything that was offered (algorithm R).
    fn offer(&mut self, one: Named) {
        self.sampled += 1;
        if self.sample.len() < SAMPLE_MAX {
            self.sample.push(one);
        } else if let Ok(at) = usize::try_from(rand::random_range(0..self.sampled))
            && at < SAMPLE_MAX
        {
            self.sample[at] = one;
        }
    }

    fn misses(&mut self, cid: Cid, height: Height) {
        self.missing += 1;
        if self.ordered.len() < MISSING_MAX {
            self.ordered.insert(cid, height);
        }
    }
}

impl Possession {
    pub(super) async fn sweep_for_ever(&self) {
        let (tell, mut told) = mpsc::channel(2 * MISSING_MAX);
        let every = Duration::from_millis(self.0.config.sweep_every_ms);
        self.0.rooms.vault.is_looked_after();
        let (mut cause, mut calm, mut deaf) = (Cause::Start, FIRST_PAUSE, Deaf::default());
        loop {
            let next = match self.sweep(cause, &tell).await {
                Ok(swept) => {
                    deaf.swept((cause, swept.missing), every, Instant::now());
                    calm.min(every)
                }
                Err(error) => {
                    tracing::warn!(%error, "the sweep could not look at everything; it is made again");
                    every.min(FAILURE_PAUSE)
                }
            };
            calm = (calm * 2).min(every);
            let hears = Instant::now() + PAUSE;
            let hears = deaf.until(hears).max(hears);
            let (next, rest, hears) = (sleep(next), sleep(PAUSE), sleep_until(hears.into()));
            tokio::pin!(next, rest, hears);
            cause = loop {
                let (has_rested, is_heard) = (rest.is_elapsed(), hears.is_elapsed());
                tokio::select! {
                    Some(cid) = told.recv() => if self.came(&cid) { break Cause::Again },
                    () = &mut next => break Cause::Interval,
                    () = &mut rest, if !has_rested => {}
                    () = &mut hears, if !is_heard => {}
                    () = self.0.suspicion.notified(), if is_heard => break Cause::Suspicion,
                    () = self.0.rooms.vault.until_room_is_wanted(), if has_rested => break Cause::Full,
                }
            };
        }
    }

    /// Looks at everything once.
    pub(super) async fn sweep(&self, cause: Cause, tell: &mpsc::Sender<Cid>) -> Result<Swept, Error> {
        let Rooms { vault, mempool, .. } = &self.0.rooms;
        let started = Instant::now();
        let grace = Duration::from_millis(self.0.config.garbage_grace_ms);
        let mut inventory = vault.inventory(grace).await?;
        // Before the chain is looked through: what leaves the mempool meanwhile is in a block that is.
        for cid in mempool.payloads() {
            inventory.name(&cid);
        }
        let look = self.look(&mut inventory, cause).await?;
        let collected = if self.may_collect() {
            vault.collect(&inventory).await?
        } else {
            0
        };
        let swept = Swept {
            cause,
            at_ms: jiff::Timestamp::now().as_millisecond(),
            took_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            named: look.named,
            listed: inventory.len(),
            missing: look.missing,
            collected,
        };
        metrics::histogram!("fog_possession_sweep_seconds").record(started.elapsed());
        metrics::gauge!("fog_possession_missing_payloads").set(look.missing as f64);
        if look.missing > 0 || collected > 0 {
            tracing::info!(?swept, "the vault was compared with the chain");
        }
        self.note(swept, look, tell).await;
        Ok(swept)
    }

    /// Names everything that the chain names. A height that cannot be read ends it: what it names must not go.
    async fn look(&self, inventory: &mut Inventory, cause: Cause) -> Result<Look, Error> {
        let Rooms { chain, vault, .. } = &self.0.rooms;
        let held_up_to = vault.retained().await?;
        let head = chain.head().height.0;
        let asked_up_to = held_up_to.min(head.saturating_sub(LAG_BLOCKS));
        let (mut look, mut since) = (Look::default(), Instant::now());
        for height in (1..=head).map(Height) {
            let payloads = chain.payloads(height).await?.ok_or(Error::Unread(height))?;
            for Payload { cid, key, .. } in payloads {
                look.named += 1;
                let is_here = inventory.name(&cid);
                if is_here && height.0 <= asked_up_to {
                    look.offer(Named { cid, height, key });
                }
                // What comes later, or while this runs, retention looks for.
                if !is_here && height.0 <= held_up_to && self.is_missing(&cid).await? {
                    look.misses(cid, height);
                }
            }
            if height.0.is_multiple_of(HEIGHTS_AT_ONCE) && cause != Cause::Full {
                sleep(since.elapsed()).await;
                since = Instant::now();
            }
        }
        Ok(look)
    }

    /// Whether a payload should be here and is not: it did not come meanwhile, and was not erased.
    async fn is_missing(&self, cid: &Cid) -> Result<bool, vault::Error> {
        let vault = &self.0.rooms.vault;
        Ok(!vault.has(cid).await? && !vault.is_erased(cid).await?)
    }

    /// Whether this node knows what the network has named: its chain is the majority's, and fresh.
    fn may_collect(&self) -> bool {
        let Rooms { chain, recovery, .. } = &self.0.rooms;
        let now_ms = u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or_default();
        let age_ms = now_ms.saturating_sub(chain.head().timestamp_ms);
        recovery.standing() == Standing::Answering && u128::from(age_ms) <= HEAD_AGE_MAX.as_millis()
    }

    /// Remembers what was seen, opens or closes the incident, and orders what is missing.
    async fn note(&self, swept: Swept, look: Look, tell: &mpsc::Sender<Cid>) {
        let Rooms {
            vault,
            repairs,
            incidents,
            ..
        } = &self.0.rooms;
        {
            let mut seen = self.seen();
            seen.swept = Some(swept);
            seen.sample = look.sample;
            seen.missing.clone_from(&look.ordered);
        }
        let first = look.ordered.iter().min_by_key(|(_, height)| **height);
        let Some((cid, height)) = first else {
            self.mended();
            return;
        };
        let what = format!(
            "{} of {} payloads that the chain names are not in the vault; the first is {cid} of block {height}",
            look.missing, look.named
        );
        let _open = incidents.found(Kind::PayloadMissing, FoundBy::Sweep, vault.place().to_owned(), what);
        let orders = async {
            for (cid, height) in look.ordered {
                repairs.order(cid, height, tell).await;
            }
        };
        if tokio::time::timeout(ORDER_TIMEOUT, orders).await.is_err() {
            tracing::warn!("the queue of repairs is full; the next sweep orders the others");
        }
    }

    /// A payload that was missing is here again; whether another sweep should look for more.
    fn came(&self, cid: &Cid) -> bool {
        let (is_last, more, left) = {
            let mut seen = self.seen();
            let was_missing = seen.missing.remove(cid).is_some();
            let more = seen.swept.is_some_and(|swept| swept.missing > MISSING_MAX);
            (was_missing && seen.missing.is_empty(), more, seen.missing.len())
        };
        metrics::gauge!("fog_possession_missing_payloads").set(left as f64);
        if is_last && !more {
            self.mended();
        }
        is_last && more
    }

    fn mended(&self) {
        let Rooms { vault, incidents, .. } = &self.0.rooms;
        if let Some(open) = incidents.unmended(Kind::PayloadMissing, vault.place()) {
            incidents.mended(open, vec!["peers".to_owned()]);
        }
    }
}
