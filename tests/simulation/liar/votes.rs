//! A validator that proposes nothing and answers each vote it hears with votes that no honest one would give.

use std::collections::BTreeMap;

use commonware_codec::{DecodeExt as _, Encode as _};
use commonware_consensus::{
    simplex::types::{Finalize, Notarize, Nullify, Proposal, Vote},
    types::{Participant, Round, View},
};
use commonware_p2p::{Receiver, Recipients, Sender};
use fog_node::consensus::{codec::EngineDigest, scheme::Scheme};

use crate::wire::{in_first_epoch, of_first_epoch};

type EngineVote = Vote<Scheme, EngineDigest>;

/// Views whose proposals a replayer remembers, at most.
const REMEMBERED_MAX: usize = 64;
/// A replayed vote is this many views old.
const OUTDATED_VIEWS: u64 = 5;

/// What it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The same vote, and one for another block in the same round.
    Contradict,
    /// That it gives the round up, and that its block is final.
    NullifyAndFinalize,
    /// That it gives up every round in which there is a block.
    NullifyOnly,
    /// The same vote under another validator's name.
    Impersonate,
    /// A vote for a block of some rounds ago.
    Replay,
    /// The same vote for the same view of the next epoch.
    OtherEpoch,
}

/// Both kinds of votes for a block, whichever was heard.
fn voted(scheme: &Scheme, proposal: Proposal<EngineDigest>, finally: bool) -> EngineVote {
    if finally {
        Vote::Finalize(Finalize::sign(scheme, proposal).expect("a validator signs"))
    } else {
        Vote::Notarize(Notarize::sign(scheme, proposal).expect("a validator signs"))
    }
}

fn nullified(scheme: &Scheme, round: Round) -> EngineVote {
    Vote::Nullify(Nullify::sign::<EngineDigest>(scheme, round).expect("a validator signs"))
}

/// The same proposal with another payload.
fn twisted(proposal: &Proposal<EngineDigest>) -> Proposal<EngineDigest> {
    let mut payload = proposal.payload;
    payload.0[31] ^= 1;
    Proposal::new(proposal.round, proposal.parent, payload)
}

/// The same vote, said to be another validator's.
fn renamed(vote: EngineVote) -> EngineVote {
    let another = |signer: Participant| Participant::new(u32::from(signer.get() == 0));
    match vote {
        Vote::Notarize(mut vote) => {
            vote.attestation.signer = another(vote.attestation.signer);
            Vote::Notarize(vote)
        }
        Vote::Finalize(mut vote) => {
            vote.attestation.signer = another(vote.attestation.signer);
            Vote::Finalize(vote)
        }
        Vote::Nullify(mut vote) => {
            vote.attestation.signer = another(vote.attestation.signer);
            Vote::Nullify(vote)
        }
    }
}

fn next_epoch(round: Round) -> Round {
    Round::new(round.epoch().next(), round.view())
}

struct Liar {
    scheme: Scheme,
    remembered: BTreeMap<View, Proposal<EngineDigest>>,
}

impl Liar {
    /// What it says about a vote for a block.
    fn about(&mut self, answer: Answer, proposal: Proposal<EngineDigest>, finally: bool) -> Vec<EngineVote> {
        let scheme = &self.scheme;
        let round = proposal.round;
        match answer {
            Answer::Contradict => vec![
                voted(scheme, twisted(&proposal), finally),
                voted(scheme, proposal, finally),
            ],
            Answer::NullifyAndFinalize => vec![nullified(scheme, round), voted(scheme, proposal, true)],
            Answer::NullifyOnly => vec![nullified(scheme, round)],
            Answer::Impersonate => vec![renamed(voted(scheme, proposal, finally))],
            Answer::Replay => {
                let view = round.view();
                self.remembered.insert(view, proposal);
                if self.remembered.len() > REMEMBERED_MAX {
                    self.remembered.pop_first();
                }
                let old = view.get().checked_sub(OUTDATED_VIEWS).map(View::new);
                let old = old.and_then(|view| self.remembered.get(&view)).cloned();
                old.map(|old| voted(&self.scheme, old, finally)).into_iter().collect()
            }
            Answer::OtherEpoch => {
                let other = Proposal::new(next_epoch(round), proposal.parent, proposal.payload);
                vec![voted(scheme, other, finally)]
            }
        }
    }

    /// What it says about a vote to give a round up.
    fn about_nothing(&self, answer: Answer, round: Round) -> Vec<EngineVote> {
        match answer {
            Answer::OtherEpoch => vec![nullified(&self.scheme, next_epoch(round))],
            Answer::Impersonate => vec![renamed(nullified(&self.scheme, round))],
            _ => Vec::new(),
        }
    }
}

/// Answers, for ever.
pub(super) async fn answer(answer: Answer, scheme: Scheme, (mut sender, mut receiver): (impl Sender, impl Receiver)) {
    let mut liar = Liar {
        scheme,
        remembered: BTreeMap::new(),
    };
    while let Ok((_, message)) = receiver.recv().await {
        let Some(message) = in_first_epoch(message) else {
            continue;
        };
        let lies = match EngineVote::decode(message) {
            Ok(Vote::Notarize(heard)) => liar.about(answer, heard.proposal, false),
            Ok(Vote::Finalize(heard)) => liar.about(answer, heard.proposal, true),
            Ok(Vote::Nullify(heard)) => liar.about_nothing(answer, heard.round),
            Err(_) => continue,
        };
        for lie in lies {
            sender.send(Recipients::All, of_first_epoch(lie.encode()), true);
        }
    }
}
