//! Whoever gets a seat is met: payloads are exchanged and heads compared with it, without a restart of anybody.

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
            for (seat, address) in others.filter_map(|seat| Some((seat, seat.address.as_ref()?))) {
                match Peer::try_from(address.http.clone()) {
                    Ok(peer) => {
                        vault.meet(&peer);
                        recovery.meet(&peer);
                    }
                    Err(why) => tracing::warn!(validator = %seat.key, why, "a validator's address is no use"),
                }
            }
        }
        if heads.changed().await.is_err() {
            return;
        }
    }
}
