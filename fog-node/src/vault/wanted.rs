//! Which payloads somebody waits for: one task keeps the list, seeks each once however many wait, and tells them.

use std::{
    collections::{HashMap, hash_map},
    sync::Arc,
    time::Duration,
};

use cid::Cid;
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    task::{AbortHandle, JoinSet},
};

use record::bundle::PAYLOAD_BYTES_MAX;

use super::{Error, exchange::Exchange, gather::Objects, objects::is_of_object, store::Store, tenure::Tenure};

/// Messages waiting for the seeker, at most; senders wait.
pub(super) const MESSAGES_MAX: usize = 1_024;
/// Different payloads sought at a time, at most; a want above it is answered "absent".
const WANTED_MAX: usize = 8_192;
/// Payloads being fetched from peers at a time, at most.
const FETCHES_MAX: usize = 64;
/// Pause before the second round of asking all peers; doubles up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(100);
/// The longest pause between two rounds.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// What the seeker is told.
pub(super) enum Message {
    /// Somebody waits for a payload; dropping the other end of `reply` is giving up.
    Want {
        /// Which payload.
        cid: Cid,
        /// How long to wait for a push before peers are asked.
        grace: Duration,
        /// Told when it is held.
        reply: oneshot::Sender<()>,
    },
    /// These payloads are now durable here.
    Arrived(Vec<Cid>),
}

/// One payload that is sought.
struct Wanted {
    waiters: Vec<oneshot::Sender<()>>,
    pause: Duration,
    round: AbortHandle,
}

/// The task that seeks.
pub(super) struct Seeker {
    messages: mpsc::Receiver<Message>,
    wanted: HashMap<Cid, Wanted>,
    rounds: JoinSet<(Cid, bool)>,
    sources: Sources,
}

/// Where rounds look.
#[derive(Clone)]
struct Sources {
    fetches: Arc<Semaphore>,
    store: Store,
    tenure: Tenure,
    exchange: Exchange,
    objects: Objects,
}

impl Seeker {
    pub(super) fn new(
        messages: mpsc::Receiver<Message>,
        (store, tenure, objects): (Store, Tenure, Objects),
        exchange: Exchange,
    ) -> Self {
        Self {
            messages,
            wanted: HashMap::new(),
            rounds: JoinSet::new(),
            sources: Sources {
                fetches: Arc::new(Semaphore::new(FETCHES_MAX)),
                store,
                tenure,
                exchange,
                objects,
            },
        }
    }

    /// Runs until the last [`super::Vault`] is gone.
    pub(super) async fn run(mut self) {
        loop {
            tokio::select! {
                message = self.messages.recv() => match message {
                    Some(Message::Want { cid, grace, reply }) => self.want(cid, grace, reply),
                    Some(Message::Arrived(cids)) => cids.iter().for_each(|cid| self.arrived(cid)),
                    None => return,
                },
                Some(round) = self.rounds.join_next() => match round {
                    Ok((cid, true)) => self.arrived(&cid),
                    Ok((cid, false)) => self.again(cid),
                    // Aborted, because its payload arrived.
                    Err(_) => {}
                },
            }
        }
    }

    fn want(&mut self, cid: Cid, grace: Duration, reply: oneshot::Sender<()>) {
        let full = self.wanted.len() >= WANTED_MAX;
        match self.wanted.entry(cid) {
            hash_map::Entry::Occupied(mut wanted) => wanted.get_mut().waiters.push(reply),
            hash_map::Entry::Vacant(_) if full => metrics::counter!("fog_vault_wants_refused_total").increment(1),
            hash_map::Entry::Vacant(vacant) => {
                let round = self.rounds.spawn(round(cid, grace, self.sources.clone()));
                vacant.insert(Wanted {
                    waiters: vec![reply],
                    pause: PAUSE,
                    round,
                });
            }
        }
    }

    fn arrived(&mut self, cid: &Cid) {
        if let Some(wanted) = self.wanted.remove(cid) {
            wanted.round.abort();
            for waiter in wanted.waiters {
                // A waiter that gave up is no failure.
                let _ = waiter.send(());
            }
        }
    }

    fn again(&mut self, cid: Cid) {
        let hash_map::Entry::Occupied(mut wanted) = self.wanted.entry(cid) else {
            return;
        };
        wanted.get_mut().waiters.retain(|waiter| !waiter.is_closed());
        if wanted.get().waiters.is_empty() {
            wanted.remove();
            return;
        }
        let pause = wanted.get().pause;
        wanted.get_mut().pause = (pause * 2).min(PAUSE_MAX);
        wanted.get_mut().round = self.rounds.spawn(round(cid, pause, self.sources.clone()));
    }
}

/// After a pause, looks here once more (a push may have come before the want was noted), then asks the peers.
async fn round(cid: Cid, pause: Duration, sources: Sources) -> (Cid, bool) {
    tokio::time::sleep(pause).await;
    let found = if is_of_object(&cid) {
        sources.objects.gather(cid).await
    } else {
        sources.payload(&cid).await
    };
    let is_held = found.unwrap_or_else(|error| {
        tracing::warn!(%cid, %error, "a payload could not be looked for, or not be kept");
        false
    });
    (cid, is_held)
}

impl Sources {
    async fn payload(&self, cid: &Cid) -> Result<bool, Error> {
        let found = {
            let _turn = self.tenure.hold(cid).await;
            self.store.read(cid).await
        };
        match found {
            Ok(found) if found.is_some() => return Ok(true),
            Ok(_) => {}
            // What comes could not be kept.
            Err(error) => {
                tracing::debug!(%cid, %error, "a payload is not sought now");
                return Ok(false);
            }
        }
        let _permit = self.fetches.acquire().await.expect("the semaphore is never closed");
        let Some(payload) = self.exchange.fetch(cid, PAYLOAD_BYTES_MAX).await else {
            return Ok(false);
        };
        let _turn = self.tenure.hold(cid).await;
        self.store.put(*cid, payload).await.map(|()| true)
    }
}
