//! Whoever gets a seat is met, and whoever loses it is met no more: payloads are exchanged and heads compared without a restart
//! of anybody. Peers of the configuration stay until it is changed.

use record::signature::PublicKey;

use crate::{chain::Chain, recovery::Recovery, vault::Peer, vault::Vault};

/// Follows the seats of the chain's state, for as long as the chain is open.
pub(super) async fn meet(chain: Chain, me: PublicKey, vault: Vault, recovery: Recovery) {
    let mut heads = chain.watch();
    let mut met = Vec::new();
    loop {
        let state = chain.state();
        let seats: Vec<_> = state.seats().all().collect();
        let keys: Vec<_> = seats.iter().map(|seat| seat.key).collect();
        if keys != met {
            met = keys;
            let others = seats.iter().filter(|seat| seat.key != me);
            let addresses = others.filter_map(|seat| Some((seat.key, seat.address.as_ref()?)));
            let peers: Vec<_> = addresses
                .filter_map(|(validator, address)| {
                    let peer = Peer::try_from(address.http.clone());
                    peer.inspect_err(|why| tracing::warn!(%validator, why, "a validator's address is no use"))
                        .ok()
                })
                .collect();
            vault.keep(&peers);
            recovery.keep(&peers);
        }
        if heads.changed().await.is_err() {
            return;
        }
    }
}
