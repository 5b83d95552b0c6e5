//! A validator that signs, for whatever it hears voted on, a vote for that and a vote for something else.

use commonware_codec::{DecodeExt as _, Encode as _};
use commonware_consensus::simplex::types::{Finalize, Notarize, Proposal, Vote};
use commonware_p2p::{Receiver, Recipients, Sender};
use fog_node::consensus::{codec::EngineDigest, scheme::Scheme};

/// The same proposal with another payload.
fn twisted(proposal: &Proposal<EngineDigest>) -> Proposal<EngineDigest> {
    let mut payload = proposal.payload;
    payload.0[31] ^= 1;
    Proposal::new(proposal.round, proposal.parent, payload)
}

/// Both votes for every vote heard, for ever.
pub(crate) async fn contradict(scheme: Scheme, (mut sender, mut receiver): (impl Sender, impl Receiver)) {
    while let Ok((_, message)) = receiver.recv().await {
        let votes = match Vote::<Scheme, EngineDigest>::decode(message) {
            Ok(Vote::Notarize(heard)) => [twisted(&heard.proposal), heard.proposal]
                .map(|proposal| Vote::Notarize(Notarize::sign(&scheme, proposal).expect("a validator signs"))),
            Ok(Vote::Finalize(heard)) => [twisted(&heard.proposal), heard.proposal]
                .map(|proposal| Vote::Finalize(Finalize::sign(&scheme, proposal).expect("a validator signs"))),
            _ => continue,
        };
        for vote in votes {
            sender.send(Recipients::All, vote.encode(), true);
        }
    }
}
