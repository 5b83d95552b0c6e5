//! The seat that this node asks for; whoever gets one is met, and whoever loses it is met no more: payloads are exchanged and heads compared without a restart
//! of anybody. Peers of the configuration stay until it is changed.

use ledger::genesis::{Address, Validator};
use record::signature::PublicKey;

use super::Node;
use crate::{chain::Chain, http::caller, recovery::Recovery, vault::Peer, vault::Vault};

impl Node {
    /// What the members are asked to give a seat to: this node, as its configuration describes it. The others reach it where
    /// `consensus.listen` and `http.public_url` say.
    #[must_use]
    pub fn seat(&self) -> Validator {
        Validator {
            organization: self.config.organization.clone(),
            key: self.key.public(),
            tls: self
                .identity
                .chain
                .first()
                .and_then(caller::Peer::identity)
                .expect("a certificate that was read has a key"),
            address: Some(Address {
                consensus: self.config.consensus.listen.to_string(),
                http: self.own_url(),
            }),
        }
    }
}

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
