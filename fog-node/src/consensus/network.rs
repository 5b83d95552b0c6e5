//! The real network between validators: authenticated, encrypted, to known addresses.

use std::{net::SocketAddr, num::NonZeroUsize, time::Duration};

use commonware_cryptography::{
    ChaCha20Poly1305,
    ed25519::{PrivateKey, PublicKey},
};
use commonware_p2p::{
    Address, AddressableManager as _,
    authenticated::lookup::{self, Network, Oracle, Receiver, Sender},
};
use commonware_runtime::{Handle, Quota, Supervisor as _, tokio::Context};
use commonware_stream::{
    cups::{self, Cups},
    sake::{self, Sake},
};
use commonware_utils::{NZU32, NZUsize, ordered::Map};
use ledger::{proof, state::State};
use record::ids::NetworkId;

use super::{
    codec::engine_key,
    engine::{Channels, message_bytes_max},
};
use crate::chain::Chain;

/// Small messages one peer may send on one channel, per second.
const MESSAGES_QUOTA: Quota = Quota::per_second(NZU32!(512));
/// Messages that carry whole blocks or batches of transactions, per second, peer and channel.
const BLOCKS_QUOTA: Quota = Quota::per_second(NZU32!(128));
/// Requests for missing blocks and their answers, per second and peer. A node that is behind asks for each block it has heard of,
/// every second again: below that rate its requests would wait for longer than their answers are waited for.
const BACKFILL_QUOTA: Quota = Quota::per_second(NZU32!(2_048));
/// How often a sign of life is sent.
pub(super) const PING_EVERY: Duration = Duration::from_secs(2);
/// How long a peer may take to answer a call; one that was cut off is called again soon after the cut is mended.
const DIAL_MAX: Duration = Duration::from_secs(3);
/// Capacity of the network's mailboxes, in messages.
const MAILBOX_MAX: usize = 1_024;
/// Validators that may get a seat while this node runs; with more it is started again.
const NEWCOMERS_MAX: usize = 8;
/// How much clocks may differ in a handshake.
const HANDSHAKE_SKEW: Duration = Duration::from_secs(5);
/// How old a handshake may be.
const HANDSHAKE_AGE: Duration = Duration::from_secs(10);

/// Where a validator is reached.
pub(super) type Peers = Map<PublicKey, Address>;

/// What the engine needs of the network, and the network's own task.
pub(super) struct Connected {
    pub(super) channels: Channels<Sender<PublicKey, Context>, Receiver<PublicKey>>,
    pub(super) oracle: Oracle<PublicKey>,
    pub(super) task: Handle<()>,
}

/// Lets in who gets a seat and drops who has lost it, for as long as the chain is open. A validator without an address of its
/// own in the chain is reached where the configuration says.
pub(super) async fn follow_seats(chain: Chain, configured: Peers, mut oracle: Oracle<PublicKey>) {
    let mut heads = chain.watch();
    let (mut known, mut set) = (Vec::new(), 0);
    loop {
        let state = chain.state();
        let seats: Vec<_> = state.seats().all().map(|seat| seat.key).collect();
        if seats != known {
            known = seats;
            let peers = with_seats(&state, &configured);
            if peers.len() > configured.len() + NEWCOMERS_MAX {
                tracing::error!("more validators got a seat than this node connects to; start it again");
            }
            let met = peers.iter_pairs().take(configured.len() + NEWCOMERS_MAX);
            set += 1;
            // Of a set that was never tracked there is nothing to report back.
            let _ = oracle.track(set, Peers::from_iter_dedup(met.map(|(k, a)| (k.clone(), a.clone()))));
        }
        if heads.changed().await.is_err() {
            return;
        }
    }
}

fn with_seats(state: &State, configured: &Peers) -> Peers {
    let seats: Vec<_> = state.seats().all().map(|seat| engine_key(&seat.key)).collect();
    let voted_once = state.seats().eras().iter().flat_map(|era| &era.validators);
    let left: Vec<_> = voted_once.map(engine_key).filter(|key| !seats.contains(key)).collect();
    let own = configured
        .iter_pairs()
        .map(|(key, address)| (key.clone(), address.clone()));
    let seated = state.seats().all().filter_map(|seat| {
        let address: SocketAddr = seat.address.as_ref()?.consensus.parse().ok()?;
        Some((engine_key(&seat.key), Address::from(address)))
    });
    Peers::from_iter_dedup(own.chain(seated).filter(|(key, _)| !left.contains(key)))
}

/// Listens, and connects to every peer.
pub(super) fn connect(
    context: &Context,
    key: PrivateKey,
    network: &NetworkId,
    listen: SocketAddr,
    peers: Peers,
) -> Connected {
    let peers_max = NonZeroUsize::new(peers.len() + NEWCOMERS_MAX).expect("this node is one of them");
    let handshake = Cups::<_, ChaCha20Poly1305>::new(
        Sake {
            signer: key,
            synchrony_bound: HANDSHAKE_SKEW,
            max_handshake_age: HANDSHAKE_AGE,
            version: sake::Version::V1,
        },
        cups::Version::V1,
    );
    let namespace = [proof::vote_namespace(network).as_slice(), b"/p2p"].concat();
    // A handful of known peers, often in private address ranges: reconnecting within a second is what matters, and the
    // preset for that is `local`.
    let mut config = lookup::Config::local(
        handshake,
        &namespace,
        listen,
        peers_max,
        message_bytes_max(),
        NZUsize!(MAILBOX_MAX),
    );
    // The last set alone: who has lost its seat is let in no more.
    config.tracked_peer_sets = NZUsize!(1);
    config.ping_frequency = PING_EVERY;
    config.dial_timeout = DIAL_MAX;
    let (mut network, mut oracle) = Network::new(context.child("network"), config);
    // Of a set that is tracked first there is nothing to report back.
    let _ = oracle.track(0, peers);
    let channels = Channels {
        votes: network.register(0, MESSAGES_QUOTA),
        certificates: network.register(1, MESSAGES_QUOTA),
        resolver: network.register(2, MESSAGES_QUOTA),
        backfill: network.register(3, BACKFILL_QUOTA),
        proposals: network.register(4, BLOCKS_QUOTA),
        mempool: network.register(5, BLOCKS_QUOTA),
        recall: network.register(6, MESSAGES_QUOTA),
    };
    Connected {
        channels,
        oracle,
        task: network.start(),
    }
}
