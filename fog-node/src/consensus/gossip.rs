//! Waiting transactions travel to every peer's mempool, so that whoever leads can order them.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use bytes::Bytes;
use commonware_codec::{Decode as _, Encode as _, RangeCfg};
use commonware_cryptography::ed25519::PublicKey;
use commonware_macros::select;
use commonware_p2p::{Receiver, Recipients, Sender};
use commonware_runtime::Clock;
use futures::stream::FuturesUnordered;
use ledger::{
    state::identifiers,
    transaction::{SignedTransaction, TRANSACTION_BYTES_MAX, TransactionId},
};

use super::{Payloads, application::Rooms, next};
use crate::mempool::Pending;

/// Transactions in one message, at most.
const BATCH_MAX: usize = 256;
/// A message has at most this many bytes: transactions with the length of each in front.
pub(super) const MESSAGE_BYTES_MAX: usize = 5 + BATCH_MAX * (5 + TRANSACTION_BYTES_MAX);
/// Messages are sent at most this often, so that a burst becomes few messages and stays below the peers' quota.
const INTERVAL: Duration = Duration::from_millis(10);
/// Transactions gossiped by one peer that are being checked at the same time; more are let go, their sender still has
/// them. Per peer, so that one that sends nonsense takes nothing from the others.
const CHECKS_PER_PEER_MAX: usize = 256;
/// How long a gossiped transaction may wait for our own chain to know its author and names.
const STATE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a gossiped commitment may wait for its payload to arrive.
const PAYLOAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Sends what this node's own clients inserted, for ever.
pub(super) async fn send<P: Payloads>(
    clock: impl Clock,
    rooms: Rooms<P>,
    mut peers: impl Sender<PublicKey = PublicKey>,
) {
    loop {
        let batch = rooms.mempool.take_local(BATCH_MAX).await;
        let message: Vec<Bytes> = batch
            .iter()
            .map(|transaction| Bytes::from(transaction.encode()))
            .collect();
        // Whom it does not reach learns of the transactions in a block; we propose them ourselves when it is our turn.
        let _ = peers.send(Recipients::All, message.encode(), false);
        clock.sleep(INTERVAL).await;
    }
}

/// Takes what peers send into the mempool once it is checked, until the network closes.
pub(super) async fn receive<P: Payloads>(
    clock: impl Clock,
    rooms: Rooms<P>,
    mut peers: impl Receiver<PublicKey = PublicKey>,
) {
    let mut checks = FuturesUnordered::new();
    let mut checking: HashMap<PublicKey, HashSet<TransactionId>> = HashMap::new();
    loop {
        select! {
            message = peers.recv() => {
                let Ok((peer, message)) = message else { return };
                let of_peer = checking.entry(peer.clone()).or_default();
                for transaction in decode(message.into()) {
                    if of_peer.len() < CHECKS_PER_PEER_MAX && of_peer.insert(transaction.id()) {
                        let (peer, checked) = (peer.clone(), check(&clock, &rooms, transaction));
                        checks.push(async move { (peer, checked.await) });
                    }
                }
            },
            checked = next(&mut checks) => {
                let (peer, id) = checked;
                if let Some(of_peer) = checking.get_mut(&peer) {
                    of_peer.remove(&id);
                }
            },
        }
    }
}

fn decode(message: Bytes) -> Vec<SignedTransaction> {
    let limits = (RangeCfg::from(0..=BATCH_MAX), RangeCfg::from(0..=TRANSACTION_BYTES_MAX));
    let transactions = Vec::<Bytes>::decode_cfg(message, &limits).unwrap_or_default();
    transactions
        .iter()
        .filter_map(|bytes| SignedTransaction::decode(bytes).ok())
        .collect()
}

/// Checks one transaction and queues it if it would take effect and, for a commitment, its payload is held here.
async fn check<P: Payloads>(clock: &impl Clock, rooms: &Rooms<P>, transaction: SignedTransaction) -> TransactionId {
    let id = transaction.id();
    let outcome = match accept(clock, rooms, transaction).await {
        Some(_) => "queued",
        None => "dropped",
    };
    metrics::counter!("fog_consensus_gossip_total", "outcome" => outcome).increment(1);
    id
}

async fn accept<P: Payloads>(clock: &impl Clock, rooms: &Rooms<P>, transaction: SignedTransaction) -> Option<()> {
    if rooms.mempool.contains(&transaction.id()) {
        return Some(());
    }
    for identifier in identifiers(&transaction) {
        if rooms.chain.took_effect_at(&identifier).ok()?.is_some() {
            return None;
        }
    }
    admitted(clock, rooms, &transaction).await?;
    let pending = match transaction.payload() {
        Some(_) => {
            let held = rooms.payloads.hold_committed(&transaction, PAYLOAD_TIMEOUT).await?;
            Pending::bundle(transaction, held)
        }
        None => Pending::plain(transaction),
    };
    rooms.mempool.receive(pending.ok()?).ok().map(|_| ())
}

/// Waits until the state admits it; `None` if it never will, or not in time.
async fn admitted<P: Payloads>(clock: &impl Clock, rooms: &Rooms<P>, transaction: &SignedTransaction) -> Option<()> {
    let deadline = clock.current() + STATE_TIMEOUT;
    let mut heads = rooms.chain.watch();
    loop {
        match rooms.chain.state().admit(transaction) {
            Ok(()) => return Some(()),
            Err(refused) if !refused.may_pass_later() => return None,
            Err(_) => {}
        }
        let left = deadline
            .duration_since(clock.current())
            .ok()
            .filter(|left| !left.is_zero())?;
        select! {
            changed = heads.changed() => changed.ok()?,
            () = clock.sleep(left) => {},
        }
    }
}
