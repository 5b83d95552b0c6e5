//! What each validator has seen of the others, told to whoever asks: so that a node that forgot its own votes learns of them.
//!
//! Every node notes the highest certificate and each validator's highest vote. A node that starts asks until the answers
//! suffice ([`super::fence`]). Nothing in an answer is believed but what signatures prove: a quorum's on the certificate, the
//! asker's own on the vote.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use commonware_actor::Feedback;
use commonware_codec::{Decode as _, Encode as _, RangeCfg};
use commonware_consensus::{
    Reporter,
    simplex::types::{Activity, Certificate, Finalize, Notarize, Nullify, Vote},
    types::{Epoch, Round},
};
use commonware_cryptography::{
    certificate::{Attestation, Scheme as _, Verifier as _},
    ed25519::PublicKey,
};
use commonware_macros::select;
use commonware_p2p::{Receiver, Recipients, Sender};
use commonware_parallel::Sequential;
use commonware_runtime::Clock;
use commonware_utils::{Participant, ordered::Quorum as _, sys_rng};
use ledger::block::Height;

use super::{
    codec::EngineDigest,
    fence::{Cast, Fence, Journal, Opening, Told, opening},
    finalization::in_engine_form,
    scheme::Scheme,
    schemes::Schemes,
};
use crate::chain::Chain;

/// Between two questions, and between two looks whether it is time, while the fence is shut.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Blocks below the head whose votes a node that has just started still tells of.
const TOLD_BLOCKS: u64 = 64;
/// An encoded vote has at most this many bytes: its tag, a proposal, a signature.
const VOTE_BYTES_MAX: usize = 256;
/// An encoded certificate has at most this many bytes: a proposal, and a signature of each of 64 validators.
const CERTIFICATE_BYTES_MAX: usize = 8_192;
/// A message has at most this many bytes.
pub(super) const MESSAGE_BYTES_MAX: u32 = 64 + (VOTE_BYTES_MAX + CERTIFICATE_BYTES_MAX) as u32;

type EngineVote = Vote<Scheme, EngineDigest>;
type EngineCertificate = Certificate<Scheme, EngineDigest>;

/// A question (no bytes) or an answer: an encoded certificate and an encoded vote, each empty if there is none.
type Message = Option<(Bytes, Bytes)>;

fn cast(vote: &EngineVote) -> Cast {
    let (round, is_last) = match vote {
        Vote::Notarize(vote) => (vote.round(), false),
        Vote::Nullify(vote) => (vote.round(), true),
        Vote::Finalize(vote) => (vote.round(), true),
    };
    Cast { round, is_last }
}

/// The votes that make a quorum, one by one.
fn votes_of(certificate: &EngineCertificate) -> Vec<EngineVote> {
    let votes = match certificate {
        Certificate::Notarization(quorum) => &quorum.certificate,
        Certificate::Nullification(quorum) => &quorum.certificate,
        Certificate::Finalization(quorum) => &quorum.certificate,
    };
    let attestations = votes.signers.iter().zip(&votes.signatures);
    let attestations = attestations.map(|(signer, signature)| Attestation {
        signer,
        signature: signature.clone(),
    });
    let vote = |attestation| match certificate {
        Certificate::Notarization(quorum) => Vote::Notarize(Notarize {
            proposal: quorum.proposal.clone(),
            attestation,
        }),
        Certificate::Nullification(quorum) => Vote::Nullify(Nullify {
            round: quorum.round,
            attestation,
        }),
        Certificate::Finalization(quorum) => Vote::Finalize(Finalize {
            proposal: quorum.proposal.clone(),
            attestation,
        }),
    };
    attestations.map(vote).collect()
}

fn certified_round(certificate: &EngineCertificate) -> Round {
    match certificate {
        Certificate::Notarization(certificate) => certificate.round(),
        Certificate::Nullification(certificate) => certificate.round(),
        Certificate::Finalization(certificate) => certificate.round(),
    }
}

fn signer_of(vote: &EngineVote) -> Participant {
    match vote {
        Vote::Notarize(vote) => vote.attestation.signer,
        Vote::Nullify(vote) => vote.attestation.signer,
        Vote::Finalize(vote) => vote.attestation.signer,
    }
}

#[derive(Debug, Default)]
struct Seen {
    certificate: Option<EngineCertificate>,
    votes: BTreeMap<PublicKey, EngineVote>,
}

/// Notes what the engine reports; clones share it.
#[derive(Clone, Debug)]
pub(super) struct Witness {
    schemes: Schemes,
    // A lock for a moment: the engine reports from its own task, questions are answered from another.
    seen: Arc<Mutex<Seen>>,
}

impl Witness {
    /// A witness that knows what the votes on the newest blocks of the chain say, and quorums that were seen before.
    pub(super) fn new(schemes: Schemes, chain: &Chain, quorums: Vec<EngineCertificate>) -> Self {
        let witness = Self {
            schemes,
            seen: Arc::default(),
        };
        for quorum in quorums {
            witness.note_certificate(quorum);
        }
        let head = chain.head().height.0;
        for height in (head.saturating_sub(TOLD_BLOCKS)..=head).map(Height) {
            if let Err(error) = witness.note_block(chain, height) {
                // The scrub finds it too, and mends it.
                tracing::warn!(%error, %height, "the votes on a block cannot be read");
            }
        }
        witness
    }

    fn note_block(&self, chain: &Chain, height: Height) -> Result<(), crate::chain::Error> {
        let Some(block) = chain.block_now(height)? else {
            return Ok(());
        };
        let header = &block.block.header;
        let scheme = self.schemes.at(Epoch::new(header.epoch));
        if let (Some(scheme), Some(votes)) = (scheme, &block.finalization)
            && let Some(finalization) = in_engine_form(&scheme, header, votes)
        {
            self.note_certificate(Certificate::Finalization(finalization));
        }
        Ok(())
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().expect("nobody panics while it holds what was seen")
    }

    /// The engine reports only quorums that it has checked. Each vote in one was seen, too.
    pub(super) fn note_certificate(&self, certificate: EngineCertificate) {
        if let Some(scheme) = self.schemes.at(certified_round(&certificate).epoch()) {
            for vote in votes_of(&certificate) {
                self.note_checked(vote, &scheme);
            }
        }
        let mut seen = self.seen();
        let known = seen.certificate.as_ref().map(certified_round);
        if known < Some(certified_round(&certificate)) {
            seen.certificate = Some(certificate);
        }
    }

    /// The engine may report votes before it has checked them.
    fn note_vote(&self, vote: EngineVote) {
        let Some(scheme) = self.schemes.at(cast(&vote).round.epoch()) else {
            return;
        };
        if self.is_news(&vote, &scheme) && is_signed(&vote, &scheme) {
            self.note_checked(vote, &scheme);
        }
    }

    fn is_news(&self, vote: &EngineVote, scheme: &Scheme) -> bool {
        let voter = scheme.participants().key(signer_of(vote));
        voter.is_some_and(|voter| self.seen().votes.get(voter).map(cast) < Some(cast(vote)))
    }

    fn note_checked(&self, vote: EngineVote, scheme: &Scheme) {
        if self.is_news(&vote, scheme)
            && let Some(voter) = scheme.participants().key(signer_of(&vote))
        {
            self.seen().votes.insert(voter.clone(), vote);
        }
    }

    /// The highest round with a quorum's certificate that was seen here.
    fn certified(&self) -> Option<Round> {
        self.seen().certificate.as_ref().map(certified_round)
    }

    /// What is told to a validator.
    fn tell(&self, asker: &PublicKey) -> Message {
        let seen = self.seen();
        let certificate = seen.certificate.as_ref().map(|certificate| certificate.encode());
        let vote = seen.votes.get(asker).map(|vote| vote.encode());
        Some((certificate.unwrap_or_default(), vote.unwrap_or_default()))
    }
}

impl Reporter for Witness {
    type Activity = Activity<Scheme, EngineDigest>;

    fn report(&mut self, activity: Self::Activity) -> Feedback {
        match activity {
            Activity::Notarize(vote) => self.note_vote(Vote::Notarize(vote)),
            Activity::Nullify(vote) => self.note_vote(Vote::Nullify(vote)),
            Activity::Finalize(vote) => self.note_vote(Vote::Finalize(vote)),
            Activity::Notarization(certificate) => self.note_certificate(Certificate::Notarization(certificate)),
            Activity::Nullification(certificate) => self.note_certificate(Certificate::Nullification(certificate)),
            Activity::Finalization(certificate) => self.note_certificate(Certificate::Finalization(certificate)),
            _ => {}
        }
        Feedback::Ok
    }
}

fn is_signed(vote: &EngineVote, scheme: &Scheme) -> bool {
    let mut rng = sys_rng();
    match vote {
        Vote::Notarize(vote) => vote.verify(&mut rng, scheme, &Sequential),
        Vote::Nullify(vote) => vote.verify::<_, EngineDigest>(&mut rng, scheme, &Sequential),
        Vote::Finalize(vote) => vote.verify(&mut rng, scheme, &Sequential),
    }
}

/// Who asks, and what it remembers itself.
pub(super) struct Asker {
    pub(super) me: PublicKey,
    pub(super) journal: Journal,
    pub(super) schemes: Schemes,
    pub(super) chain: Chain,
    pub(super) fence: Fence,
}

impl Asker {
    /// What an answer proves; `None` while its committee is not known here, or if a signature is wrong.
    fn proven(&self, (certificate, vote): (Bytes, Bytes)) -> Option<Told> {
        let certified = if certificate.is_empty() {
            None
        } else {
            let unbounded = Scheme::certificate_codec_config_unbounded();
            let certificate = EngineCertificate::decode_cfg(certificate, &unbounded).ok()?;
            let round = certified_round(&certificate);
            let scheme = self.schemes.at(round.epoch())?;
            certificate
                .verify(&mut sys_rng(), &*scheme, &Sequential)
                .then_some(())?;
            Some(round)
        };
        let voted = if vote.is_empty() {
            None
        } else {
            let vote = EngineVote::decode_cfg(vote, &()).ok()?;
            let scheme = self.schemes.at(cast(&vote).round.epoch())?;
            let is_mine = scheme.participants().key(signer_of(&vote)) == Some(&self.me);
            (is_mine && is_signed(&vote, &scheme)).then(|| cast(&vote))
        };
        Some(Told { certified, voted })
    }

    /// What suffices for, of what the others have told: the committee of this epoch for a whole journal; for another one that of
    /// the next epoch as well, whose votes this node may have cast before its chain was lost.
    fn consider(&self, told: &BTreeMap<PublicKey, Told>) -> Option<Opening> {
        let epoch = self.chain.state().seats().epoch();
        match self.consider_in(epoch, told)? {
            Opening::Everything if self.journal != Journal::Blank => Some(Opening::Everything),
            now => Some(now.max(self.consider_in(epoch + 1, told)?)),
        }
    }

    fn consider_in(&self, epoch: u64, told: &BTreeMap<PublicKey, Told>) -> Option<Opening> {
        let scheme = self.schemes.at(Epoch::new(epoch))?;
        let committee = scheme.participants();
        let others = told.iter().filter(|(by, _)| committee.index(by).is_some());
        let told: Vec<_> = others.map(|(_, told)| *told).collect();
        // Who is not in the committee counts itself as one more.
        let validators = committee.len() + usize::from(committee.index(&self.me).is_none());
        opening(self.journal, &told, validators)
    }

    /// Opens the fence if it is time; whether it did.
    fn open(&self, opening: Opening, witness: &Witness) -> bool {
        let is_time = match opening {
            Opening::Everything => true,
            // Until then the engine would stand in a round in which it may not vote.
            Opening::Above(round) => witness.certified() >= Some(round),
        };
        if is_time {
            tracing::info!(?opening, journal = ?self.journal, "this node may vote");
            self.fence.apply(opening);
        }
        is_time
    }
}

/// Asks while the fence is shut, and answers for ever.
pub(super) async fn run(
    clock: impl Clock,
    asker: Asker,
    witness: Witness,
    (mut peers, mut messages): (impl Sender<PublicKey = PublicKey>, impl Receiver<PublicKey = PublicKey>),
) {
    let mut told = BTreeMap::new();
    let mut opening = asker.consider(&told);
    loop {
        let opened = opening.is_some_and(|opening| asker.open(opening, &witness));
        if opened {
            opening = None;
        } else if opening.is_none() && asker.fence.is_shut() {
            let question: Message = None;
            let _ = peers.send(Recipients::All, question.encode(), true);
        }
        let next_look = clock.current() + LOOK_EVERY;
        loop {
            select! {
                message = messages.recv() => {
                    let Ok((peer, message)) = message else { return };
                    let limits = (RangeCfg::from(0..=CERTIFICATE_BYTES_MAX), RangeCfg::from(0..=VOTE_BYTES_MAX));
                    match Message::decode_cfg(Bytes::from(message), &limits) {
                        Ok(None) => {
                            let answer = witness.tell(&peer);
                            let _ = peers.send(Recipients::One(peer), answer.encode(), true);
                        }
                        Ok(Some(answer)) if opening.is_none() && asker.fence.is_shut() => {
                            if let Some(answer) = asker.proven(answer) {
                                told.insert(peer, answer);
                                opening = asker.consider(&told);
                            }
                            if opening.is_some() {
                                break;
                            }
                        }
                        Ok(Some(_)) | Err(_) => {}
                    }
                },
                () = clock.sleep_until(next_look) => break,
            }
        }
    }
}
