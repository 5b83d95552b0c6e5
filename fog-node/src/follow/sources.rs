//! The fog nodes that an observer asks: one question each, nothing believed; who fails rests for a while.

use std::{collections::BTreeSet, time::Duration};

use futures::future::join_all;
use ledger::{
    agreement::SignedHead,
    block::Height,
    handover::{Committees, HANDOVERS_BYTES_MAX, Handovers},
    light::{
        COMMITMENTS_BYTES_MAX, CarriedCommitments, CarriedHeaders, CarriedState, HEADERS_BYTES_MAX, HEADERS_MAX,
        LightError, ProvenHeaders, STATE_BYTES_MAX,
    },
    state::State,
};
use record::{
    canonical::{Digest, MEDIA_TYPE},
    ids::KeyId,
};
use reqwest::{StatusCode, header};
use tokio::{task::spawn_blocking, time::Instant};

use super::voters::Voters;
use crate::{recovery::limited, vault::Peer};

/// A signed head has at most this many bytes of JSON.
const HEAD_BYTES_MAX: usize = 4_096;
/// How long a node that did not answer is left alone; doubles.
const REST: Duration = Duration::from_secs(2);
/// How long it is left alone at most, and a node that lied at once.
const REST_MAX: Duration = Duration::from_secs(60);

/// What a node did instead of answering.
#[derive(Debug, thiserror::Error)]
pub(super) enum Miss {
    /// It does not have it (yet), or may not answer now.
    #[error("it does not have it")]
    Absent,
    /// It is not reached, is too slow, or answers nonsense to the protocol.
    #[error("it does not answer")]
    Failed,
    /// It does not accept the organisation's token.
    #[error("it refuses the token (status {0}); renew the file and start again")]
    Refused(StatusCode),
    /// What it gave does not hold.
    #[error("what it gave does not hold: {0}")]
    Lied(#[from] LightError),
}

impl Miss {
    const fn outcome(&self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Failed => "failed",
            Self::Refused(_) => "refused",
            Self::Lied(_) => "lied",
        }
    }
}

pub(super) type Answer<T> = Result<T, Miss>;

/// One fog node. Clones share the client.
#[derive(Clone, Debug)]
pub(super) struct Source {
    client: reqwest::Client,
    peer: Peer,
    timeout: Duration,
    committees: Voters,
}

impl Source {
    async fn get(&self, path: &str, bytes_max: usize) -> Answer<bytes::Bytes> {
        let request = self
            .client
            .get(format!("{}{path}", self.peer))
            .header(header::ACCEPT, MEDIA_TYPE);
        let answered = async {
            let answer = request.send().await.map_err(|_| Miss::Failed)?;
            match answer.status() {
                StatusCode::OK => limited(answer, bytes_max).await.ok_or(Miss::Failed),
                StatusCode::NOT_FOUND | StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
                    Err(Miss::Absent)
                }
                status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => Err(Miss::Refused(status)),
                _ => Err(Miss::Failed),
            }
        };
        // The whole answer, not only its beginning.
        tokio::time::timeout(self.timeout, answered)
            .await
            .unwrap_or(Err(Miss::Failed))
    }

    /// The final headers from a height on, and whether there may be more.
    pub(super) async fn headers(self, from: Height) -> Answer<(ProvenHeaders, bool)> {
        let path = format!("/api/v1/chain/headers?from={from}&count={HEADERS_MAX}");
        let bytes = self.get(&path, HEADERS_BYTES_MAX).await?;
        // Some hundred signatures: too long for a thread that serves others.
        let checked = spawn_blocking(move || {
            let carried = CarriedHeaders::decode(&bytes)?;
            let is_full = carried.0.len() == HEADERS_MAX;
            Ok::<_, LightError>((carried.proven(from, &self.committees.known())?, is_full))
        });
        Ok(checked.await.map_err(|_| Miss::Failed)??)
    }

    /// The state it has now, made of the parts it gives; who else says so is not looked at.
    pub(super) async fn state(self, known: State) -> Answer<(CarriedState, State)> {
        let path = format!("/api/v1/chain/state?known={}", known.register_digest());
        let bytes = self.get(&path, STATE_BYTES_MAX).await?;
        let checked = spawn_blocking(move || {
            let carried = CarriedState::decode(&bytes)?;
            let state = carried.state(Some(known.register()))?;
            Ok::<_, LightError>((carried, state))
        });
        Ok(checked.await.map_err(|_| Miss::Failed)??)
    }

    /// Its signed word on a height.
    pub(super) async fn head(self, height: Height) -> Answer<SignedHead> {
        let bytes = self.get(&format!("/api/v1/heads/{height}"), HEAD_BYTES_MAX).await?;
        serde_json::from_slice(&bytes).map_err(|_| Miss::Failed)
    }

    /// The committees, as it tells of them, each proven from the founders on.
    pub(super) async fn committees(self) -> Answer<Committees> {
        let bytes = self.get("/api/v1/chain/validators", HANDOVERS_BYTES_MAX).await?;
        let told: Handovers = serde_json::from_slice(&bytes).map_err(|_| Miss::Failed)?;
        let proven = spawn_blocking(move || self.committees.proven(told));
        Ok(proven.await.map_err(|_| Miss::Failed)??)
    }

    /// One answer of commitments, each with a receipt that holds.
    pub(super) async fn commitments(
        &self,
        (from, to): (Height, Height),
        keys: &BTreeSet<KeyId>,
    ) -> Answer<(CarriedCommitments, Vec<(Height, Digest)>)> {
        let mut path = format!("/api/v1/chain/commitments?from={from}&to={to}");
        for key in keys {
            path.push_str(&format!("&key={key}"));
        }
        let bytes = self.get(&path, COMMITMENTS_BYTES_MAX).await?;
        let committees = self.committees.known();
        let checked = spawn_blocking(move || {
            let carried = CarriedCommitments::decode(&bytes)?;
            let digests: Result<_, LightError> = carried.blocks.iter().map(|block| block.check(&committees)).collect();
            Ok::<_, LightError>((carried, digests?))
        });
        Ok(checked.await.map_err(|_| Miss::Failed)??)
    }
}

/// How a node has behaved.
#[derive(Debug, Default)]
struct Record {
    until: Option<Instant>,
    misses: u32,
}

/// All of them. They rest on their own; if all rest, all are asked.
#[derive(Debug)]
pub(super) struct Sources {
    sources: Vec<(Source, Record)>,
    preferred: usize,
    /// Whether votes came since the last look that no committee known here has cast.
    strange_votes: bool,
}

impl Sources {
    pub(super) fn new(client: &reqwest::Client, peers: &[Peer], timeout: Duration, committees: &Voters) -> Self {
        let source = |peer: &Peer| Source {
            client: client.clone(),
            peer: peer.clone(),
            timeout,
            committees: committees.clone(),
        };
        Self {
            sources: peers.iter().map(|peer| (source(peer), Record::default())).collect(),
            preferred: 0,
            strange_votes: false,
        }
    }

    /// Whether votes came since the last look that no committee known here has cast: lies, or another committee's.
    pub(super) const fn met_strange_votes(&mut self) -> bool {
        std::mem::replace(&mut self.strange_votes, false)
    }

    pub(super) fn name(&self, at: usize) -> &Peer {
        &self.sources[at].0.peer
    }

    /// Those that do not rest, the preferred one first.
    fn awake(&self) -> Vec<usize> {
        let now = Instant::now();
        let count = self.sources.len();
        let all = (0..count).map(|at| (self.preferred + at) % count);
        let rests = |at: &usize| self.sources[*at].1.until.is_some_and(|until| until > now);
        let awake: Vec<_> = all.clone().filter(|at| !rests(at)).collect();
        if awake.is_empty() { all.collect() } else { awake }
    }

    /// Asks another one first from now on.
    pub(super) fn prefer_another(&mut self) {
        self.preferred = (self.preferred + 1) % self.sources.len().max(1);
    }

    fn note<T>(&mut self, at: usize, answer: &Answer<T>) {
        let outcome = answer.as_ref().map_or_else(Miss::outcome, |_| "given");
        metrics::counter!("fog_follow_answers_total", "outcome" => outcome).increment(1);
        self.strange_votes |= matches!(answer, Err(Miss::Lied(LightError::NotFinal(_))));
        let (source, record) = &mut self.sources[at];
        let rest = match answer {
            Ok(_) | Err(Miss::Absent) => {
                *record = Record::default();
                return;
            }
            Err(Miss::Lied(_)) => REST_MAX,
            Err(_) => (REST * 2_u32.saturating_pow(record.misses)).min(REST_MAX),
        };
        if let Err(miss) = answer
            && (record.misses == 0 || matches!(miss, Miss::Lied(_)))
        {
            tracing::warn!(node = %source.peer, %miss, "a fog node is left alone for a while");
        }
        record.misses = record.misses.saturating_add(1);
        record.until = Some(Instant::now() + rest);
    }

    /// A node gave what holds by itself and contradicts what is known.
    pub(super) fn lied(&mut self, at: usize, about: Height) {
        self.note::<()>(at, &Err(Miss::Lied(LightError::BrokenChain(about))));
    }

    /// Asks all that are awake at once.
    pub(super) async fn ask_all<T, F: Future<Output = Answer<T>>>(
        &mut self,
        question: impl Fn(Source) -> F,
    ) -> Vec<(usize, T)> {
        let awake = self.awake();
        let asked = awake.iter().map(|at| question(self.sources[*at].0.clone()));
        let mut given = Vec::new();
        for (at, answer) in awake.iter().zip(join_all(asked).await) {
            self.note(*at, &answer);
            given.extend(answer.ok().map(|answer| (*at, answer)));
        }
        given
    }

    /// Asks one after the other until one answers.
    pub(super) async fn ask_one<T, F: Future<Output = Answer<T>>>(
        &mut self,
        question: impl Fn(Source) -> F,
    ) -> Option<(usize, T)> {
        for at in self.awake() {
            let answer = question(self.sources[at].0.clone()).await;
            self.note(at, &answer);
            if let Ok(answer) = answer {
                self.preferred = at;
                return Some((at, answer));
            }
        }
        None
    }
}
