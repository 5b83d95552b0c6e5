//! Payloads of final blocks are fetched by nodes that did not vote on them: the chain says what is to be held.

use std::{collections::HashSet, time::Duration};

use cid::Cid;
use commonware_macros::select;
use commonware_runtime::Clock;
use futures::{StreamExt as _, stream::FuturesUnordered};
use tokio::sync::mpsc;

use super::{Payloads, next};

/// Payloads that wait to be looked at; more are let go and found by a later scrub of the vault.
pub(super) const WAITING_MAX: usize = 8_192;
/// Payloads that are looked for at the same time.
const FETCHES_MAX: usize = 16;
/// How long one attempt may take.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause before the next attempt, doubled each time.
const PAUSE: Duration = Duration::from_secs(5);
/// Attempts before a payload is reported as missing.
const ATTEMPTS_MAX: u32 = 5;

/// Sees to it that every payload it is told of is held here, until nobody tells it any more.
pub(super) async fn retain<P: Payloads>(clock: impl Clock, payloads: P, mut wanted: mpsc::Receiver<Cid>) {
    let mut fetches = FuturesUnordered::new();
    let mut fetching = HashSet::new();
    loop {
        if fetches.len() >= FETCHES_MAX {
            if let Some(done) = fetches.next().await {
                fetching.remove(&done);
            }
            continue;
        }
        select! {
            cid = wanted.recv() => {
                let Some(cid) = cid else { return };
                if fetching.insert(cid) {
                    fetches.push(fetch(&clock, &payloads, cid));
                }
            },
            done = next(&mut fetches) => {
                fetching.remove(&done);
            },
        }
    }
}

async fn fetch<P: Payloads>(clock: &impl Clock, payloads: &P, cid: Cid) -> Cid {
    for attempt in 0..ATTEMPTS_MAX {
        if payloads.hold(&cid, ATTEMPT_TIMEOUT).await.is_some() {
            return cid;
        }
        clock.sleep(PAUSE * 2_u32.pow(attempt)).await;
    }
    metrics::counter!("fog_consensus_payloads_missing_total").increment(1);
    tracing::warn!(%cid, "a payload that the chain names is neither here nor at a peer");
    cid
}
