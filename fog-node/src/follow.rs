//! Follows the network from outside: headers with their votes, the state, the commitments we may read; believes no node.
//!
//! One task, round after round. Of each round:
//!
//! 1. *State.* One node gives it whole, or says that it has not changed; it counts when f + 1 validators signed its digest:
//!    one of them is honest.
//! 2. *Headers.* Each is the child of the one before, and the last one carries two thirds of the votes. All nodes are asked:
//!    one that lags or stalls keeps nobody back, and one that shows another header with as many votes is evidence that more
//!    validators lie than the network bears. Then nothing is followed or answered any more.
//! 3. *Commitments* to the keys that we hold and were granted, each with its receipt. All nodes are asked, and what one leaves
//!    out another gives: a height is known when f + 1 nodes have answered for it, one of which is honest.
//! 4. The head moves to the state's height when all three are there. What is read comes from below the head.

mod learn;
mod sources;
#[cfg(test)]
mod tests;
mod voters;

use std::{path::PathBuf, time::Duration};

use ledger::{
    block::Height,
    handover::Committees,
    light::{CarriedHeader, CarriedState, Fork, ProvenHeader, ProvenHeaders, witnesses, witnesses_needed},
    proof::ValidatorSet,
    state::State,
};
use record::{canonical::Digest, ids::OrganizationId};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use crate::{
    keyring::Keyring,
    projection::{self, Projection},
    proofs::{self, Proofs},
    recovery::{FoundBy, Incidents, Kind},
    vault::Peer,
};
use sources::Sources;
use voters::Voters;

/// Whom to follow, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The fog nodes to ask; more than can lie, so at least f + 1 of the 3f + 1 validators'.
    pub nodes: Vec<Peer>,
    /// Pause between two rounds.
    pub poll_every_ms: u64,
    /// A node may take this long to answer one question.
    pub answer_timeout_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            nodes: Vec::new(),
            poll_every_ms: 1_000,
            answer_timeout_ms: 2_000,
        }
    }
}

impl Config {
    /// What is wrong with it, each with the key to change.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let values = [
            ("poll_every_ms", self.poll_every_ms),
            ("answer_timeout_ms", self.answer_timeout_ms),
        ];
        let zero = values.iter().filter(|(_, value)| *value == 0);
        zero.map(|(key, _)| format!("follow.{key} must be at least 1"))
            .collect()
    }

    /// What is wrong with it in a network with these validators.
    #[must_use]
    pub fn too_few(&self, validators: &ValidatorSet) -> Option<String> {
        let needed = witnesses_needed(validators);
        (self.nodes.len() < needed).then(|| {
            format!(
                "follow.nodes has {} fog nodes, at least {needed} of the {} are needed: one of them is honest then",
                self.nodes.len(),
                validators.validators.len()
            )
        })
    }
}

/// Why a round came to nothing; the next one is tried.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What is proven cannot be kept: the process must not go on.
    #[error(transparent)]
    Proofs(#[from] proofs::Error),
    /// The index does not answer.
    #[error(transparent)]
    Index(#[from] projection::Failure),
    /// Fewer than f + 1 nodes have told all.
    #[error("{answered} nodes told all commitments up to height {to}, {needed} are needed")]
    TooFewNodes {
        /// Which height.
        to: Height,
        /// How many did.
        answered: usize,
        /// How many are needed.
        needed: usize,
    },
}

/// The rooms it works with.
#[derive(Clone, Debug)]
pub struct Rooms {
    /// What is kept.
    pub proofs: Proofs,
    /// Who is told of late bundles.
    pub projection: Projection<Proofs>,
    /// Whose bundles are asked for.
    pub keyring: Keyring,
    /// Where evidence is recorded.
    pub incidents: Incidents,
}

/// The follower's task.
#[derive(Debug)]
pub struct Follower {
    config: Config,
    organization: OrganizationId,
    voters: Voters,
    /// The epoch for which the nodes were asked who votes next.
    asked_in: Option<u64>,
    evidence_dir: PathBuf,
    rooms: Rooms,
    sources: Sources,
    /// A state that was witnessed and whose header is not final yet.
    pending: Option<(CarriedState, State)>,
}

impl Follower {
    /// A follower for an organisation's keys. The client carries its token. Evidence is written to a folder.
    #[must_use]
    pub fn new(
        config: &Config,
        (organization, founding): (OrganizationId, Committees),
        client: &reqwest::Client,
        evidence_dir: PathBuf,
        rooms: Rooms,
    ) -> Self {
        let timeout = Duration::from_millis(config.answer_timeout_ms);
        let voters = Voters::new(founding);
        Self {
            sources: Sources::new(client, &config.nodes, timeout, &voters),
            config: config.clone(),
            organization,
            voters,
            asked_in: None,
            evidence_dir,
            rooms,
            pending: None,
        }
    }

    /// Runs until what is proven cannot be kept any more.
    pub async fn run(mut self) {
        let mut is_failing = false;
        loop {
            match self.round().await {
                Ok(()) => is_failing = false,
                Err(Error::Proofs(error)) => {
                    tracing::error!(%error, "what is proven cannot be kept");
                    return;
                }
                Err(error) => {
                    metrics::counter!("fog_follow_failures_total").increment(1);
                    if !is_failing {
                        tracing::warn!(%error, "the observer waits; what it knows gets older");
                    }
                    is_failing = true;
                }
            }
            sleep(Duration::from_millis(self.config.poll_every_ms)).await;
        }
    }

    async fn round(&mut self) -> Result<(), Error> {
        if self.rooms.proofs.is_forked() {
            return Ok(());
        }
        self.hand_over_late().await?;
        self.follow_committees().await;
        if self.pending.is_none() {
            self.pending = self.witnessed().await;
        }
        if self.pending.is_none() && self.rooms.proofs.head().height.0 == 0 {
            // Nothing is followed before it is known who may do what.
            return Ok(());
        }
        self.follow().await?;
        self.adopt().await
    }

    /// Learns who votes, once an epoch, and again as long as headers come that nobody known has voted for.
    async fn follow_committees(&mut self) {
        let epoch = self.rooms.proofs.anchor().header.epoch;
        if self.asked_in == Some(epoch) && !self.sources.met_strange_votes() {
            return;
        }
        let told = self.sources.ask_all(|source| source.committees()).await;
        if !told.is_empty() {
            self.asked_in = Some(epoch);
        }
        for (_, committees) in told {
            self.voters.learn(committees);
        }
    }

    /// A newer state than the one we have, which f + 1 validators signed.
    async fn witnessed(&mut self) -> Option<(CarriedState, State)> {
        let known = State::clone(&self.rooms.proofs.state());
        let head = self.rooms.proofs.head().height;
        let asked = self.sources.ask_one(|source| source.state(known.clone())).await;
        let (_, (carried, state)) = asked?;
        let position = carried.position;
        if position.height <= head {
            // Nothing new there, or a node that lags.
            self.sources.prefer_another();
            return None;
        }
        let heads = self.sources.ask_all(|source| source.head(position.height)).await;
        let heads: Vec<_> = heads.into_iter().map(|(_, head)| head).collect();
        let committees = self.voters.known();
        let validators = committees.newest();
        if witnesses(&position, &heads, validators) < witnesses_needed(validators) {
            // Not everywhere yet, or a lie.
            self.sources.prefer_another();
            return None;
        }
        Some((carried, state))
    }

    /// Follows headers, and learns the commitments below them, as far as they go.
    async fn follow(&mut self) -> Result<(), Error> {
        loop {
            let anchor = self.rooms.proofs.anchor();
            let from = anchor.header.height;
            let asked = self.sources.ask_one(|source| source.headers(from)).await;
            let Some((at, (headers, is_full))) = asked else { break };
            let is_new = self.take(at, headers).await?;
            if !is_full || !is_new {
                break;
            }
            self.learn().await?;
        }
        // At the tip, or with a node that lags: what do the others have?
        let from = self.rooms.proofs.anchor().header.height;
        for (at, (headers, _)) in self.sources.ask_all(|source| source.headers(from)).await {
            self.take(at, headers).await?;
        }
        self.learn().await
    }

    /// Appends what goes on from the anchor, and gives whether anything did. Headers that go on from another one of the
    /// anchor's height are a fork.
    async fn take(&mut self, at: usize, headers: ProvenHeaders) -> Result<bool, Error> {
        let anchor = self.rooms.proofs.anchor();
        let (height, followed) = (anchor.header.height, anchor.header.digest());
        let carried = headers.headers();
        let Some(same) = carried.iter().position(|carried| carried.header.height == height) else {
            return Ok(false);
        };
        if carried[same].header.digest() == followed {
            let new: Vec<CarriedHeader> = carried[same + 1..].to_vec();
            let is_new = !new.is_empty();
            self.rooms.proofs.extend(new).await?;
            return Ok(is_new);
        }
        // Nobody votes on the genesis, and a height has one epoch: another one is no evidence, but nonsense.
        let is_evidence = height.0 > 0 && carried[same].header.epoch == anchor.header.epoch;
        if let Some(other) = headers.proof_of(height).filter(|_| is_evidence) {
            self.found_fork(height, followed, other).await?;
        }
        self.sources.lied(at, height);
        Ok(false)
    }

    /// Two blocks of one height have two thirds of the votes: nothing is believed from now on, and the evidence is kept.
    async fn found_fork(&mut self, height: Height, followed: Digest, other: ProvenHeader) -> Result<(), Error> {
        let anchor = self.rooms.proofs.anchor();
        let ours = anchor.finalization.filter(|_| anchor.header.height == height);
        let proof = match ours {
            Some(finalization) => Some(ProvenHeader {
                headers: vec![anchor.header],
                finalization,
            }),
            None => self.proof_of(height, &followed).await,
        };
        let found = other.headers.first().map(ledger::block::Header::digest);
        let fork = Fork {
            height,
            followed,
            proof,
            other,
        };
        self.rooms.proofs.keep_fork(&fork)?;
        let file = self.evidence_dir.join(format!("fork-{height}.json"));
        let text = serde_json::to_string_pretty(&fork).expect("evidence has string keys and whole numbers");
        if let Err(error) = std::fs::write(&file, text) {
            tracing::error!(%error, "the evidence's file cannot be written; proofs.redb has it");
        }
        let what = format!(
            "blocks {followed} and {found:?} both have two thirds of the votes; the evidence is in {}",
            file.display()
        );
        // It stays open: no observer can mend this.
        let _open = self
            .rooms
            .incidents
            .found(Kind::Forked, FoundBy::Following, format!("height {height}"), what);
        Ok(())
    }

    /// What proves a header that was followed: somebody may still have it.
    async fn proof_of(&mut self, height: Height, followed: &Digest) -> Option<ProvenHeader> {
        let answers = self.sources.ask_all(|source| source.headers(height)).await;
        let proofs = answers
            .into_iter()
            .filter_map(|(_, (headers, _))| headers.proof_of(height));
        proofs
            .into_iter()
            .find(|proof| proof.headers.first().map(ledger::block::Header::digest) == Some(*followed))
    }

    /// Moves the head to the height of the witnessed state, when its header is final and its commitments are known.
    async fn adopt(&mut self) -> Result<(), Error> {
        let proofs = &self.rooms.proofs;
        let Some((carried, _)) = &self.pending else {
            return Ok(());
        };
        let height = carried.position.height;
        if proofs.is_forked() || proofs.anchor().header.height < height || proofs.through()? < height {
            return Ok(());
        }
        let header = proofs.header_at(height)?;
        let (Some((carried, state)), Some(header)) = (self.pending.take(), header) else {
            // Nothing is known of a height this old any more: the next state is asked for.
            return Ok(());
        };
        if header.digest == carried.position.digest {
            proofs.adopt(carried, state, header.timestamp_ms).await?;
            return Ok(());
        }
        let (signed, voted) = (carried.position.digest, header.digest);
        let what = format!("validators signed block {signed}, votes say {voted}");
        let place = format!("height {height}");
        let _open = self
            .rooms
            .incidents
            .found(Kind::Diverged, FoundBy::Following, place, what);
        Ok(())
    }
}
