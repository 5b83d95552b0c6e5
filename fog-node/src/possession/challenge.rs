//! Each peer asked for proof of some payloads, again and again: first what it owes, then what chance picks.

use std::{
    sync::PoisonError,
    time::{Duration, Instant},
};

use cid::Cid;
use futures::{StreamExt as _, future::join_all, stream};
use ledger::{
    block::Height,
    holding::{Answer, Challenge},
};
use record::{canonical::Digest, ids::KeyId, signature::PublicKey};
use serde::Serialize;
use tokio::time::sleep;

use super::{
    INQUIRIES_A_MINUTE, Named, Possession,
    account::{Account, Finding, Judged, Owed},
    asking::Miss,
};
use crate::{
    recovery::{FoundBy, Kind},
    vault::{self, Peer},
};

/// Peers that are asked at the same time.
const PEERS_AT_ONCE: usize = 4;

/// Whether one peer holds one payload, as it proved just now.
#[derive(Clone, Debug, Serialize)]
pub struct Holder {
    /// Where it answers.
    pub peer: String,
    /// Who it is; nothing if there is no answer.
    pub validator: Option<PublicKey>,
    /// What became of it; nothing if there is no answer.
    pub finding: Option<Finding>,
}

/// What an inquiry after one payload came to.
#[derive(Clone, Debug)]
pub enum Inquiry {
    /// Others are being made.
    Busy,
    /// As many were made as are in a minute.
    TooOften,
    /// This node does not hold the payload, and cannot judge what others prove of it.
    NotHeld,
    /// Who proved it, and who did not.
    Holders(Vec<Holder>),
}

impl Possession {
    pub(super) async fn challenge_for_ever(&self) {
        loop {
            sleep(Duration::from_millis(self.0.config.challenge_every_ms)).await;
            self.challenge_all().await;
        }
    }

    /// Challenges every peer once.
    pub(super) async fn challenge_all(&self) {
        let peers = self.0.rooms.vault.peers();
        self.seen()
            .accounts
            .retain(|known, _| peers.iter().any(|peer| peer.to_string() == *known));
        stream::iter(&peers)
            .for_each_concurrent(PEERS_AT_ONCE, |peer| self.challenge(peer))
            .await;
    }

    async fn challenge(&self, peer: &Peer) {
        if let Err(error) = self.forgive_erased(peer).await {
            return tracing::debug!(%error, "what a peer owes cannot be looked at now");
        }
        let picked = self.pick(peer);
        let cids = picked.iter().map(|named| named.cid).collect();
        let Ok(challenge) = Challenge::to(rand::random(), cids) else {
            // There is nothing yet that every node should have.
            return;
        };
        let state = self.0.rooms.chain.state();
        let judged = match self.0.asking.ask(peer, &challenge, &state).await {
            Ok(answer) => match self.judge(&answer, (&challenge, &picked)).await {
                // What was erased meanwhile was asked for in vain, and proves nothing.
                Ok(findings) => Ok(Judged {
                    validator: answer.validator,
                    holds_up_to: answer.holds_up_to,
                    findings: self.without_erased(findings),
                }),
                Err(error) => return tracing::debug!(%error, "an answer cannot be judged now"),
            },
            Err(miss) => Err(miss),
        };
        self.enter(peer, &judged);
    }

    /// What a peer is asked for: half of it may be what it owes, so that a peer which owes much is not asked for that alone.
    /// What was erased since the sweep is left out: it is nowhere meant to be.
    fn pick(&self, peer: &Peer) -> Vec<Named> {
        let state = self.0.rooms.chain.state();
        let count = self.0.config.challenge_payloads;
        let seen = self.seen();
        let owed = seen.accounts.get(&peer.to_string()).map_or(&[][..], |a| &a.missing);
        let mut picked: Vec<_> = owed.iter().take(count.div_ceil(2)).map(Owed::named).collect();
        for _ in picked.len()..count {
            if seen.sample.is_empty() {
                break;
            }
            let one = seen.sample[rand::random_range(0..seen.sample.len())];
            let is_new = picked.iter().all(|other| other.cid.hash() != one.cid.hash());
            if is_new && state.tombstone(&one.key).is_none() {
                picked.push(one);
            }
        }
        picked
    }

    /// What a peer owes and was erased is not owed any more, also while that peer is silent.
    async fn forgive_erased(&self, peer: &Peer) -> Result<(), vault::Error> {
        let (place, state) = (peer.to_string(), self.0.rooms.chain.state());
        let owed = self.seen().accounts.get(&place).map(|a| a.missing.clone());
        let mut erased = Vec::new();
        for owed in owed.unwrap_or_default() {
            // The same bytes may have been committed to under another key, too.
            if state.tombstone(&owed.named().key).is_some() || self.0.rooms.vault.is_erased(&owed.cid).await? {
                erased.push(owed.cid);
            }
        }
        let is_clear = {
            let mut seen = self.seen();
            let account = seen.accounts.get_mut(&place);
            account.is_some_and(|account| {
                account.forgives(|named| erased.contains(&named.cid)) && account.charge(Instant::now()).is_none()
            })
        };
        if is_clear {
            self.close(place);
        }
        Ok(())
    }

    fn without_erased(&self, mut findings: Vec<(Named, Finding)>) -> Vec<(Named, Finding)> {
        let state = self.0.rooms.chain.state();
        findings.retain(|(named, _)| state.tombstone(&named.key).is_none());
        findings
    }

    /// Compares proofs with this node's own bytes, one payload in memory at a time.
    async fn judge(
        &self,
        answer: &Answer,
        (challenge, picked): (&Challenge, &[Named]),
    ) -> Result<Vec<(Named, Finding)>, vault::Error> {
        let network = self.0.rooms.chain.state().network;
        let mut findings = Vec::with_capacity(picked.len());
        for (named, proof) in picked.iter().zip(&answer.proofs) {
            let Named { cid, height, .. } = named;
            let finding = match (proof, self.0.rooms.vault.local(cid).await?) {
                (None, _) if *height > answer.holds_up_to => Finding::Behind,
                (None, Some(_)) => Finding::Absent,
                (Some(proof), Some(payload)) => {
                    if *proof == challenge.proof(&network, &answer.validator, &payload) {
                        Finding::Proven
                    } else {
                        Finding::Wrong
                    }
                }
                (_, None) => {
                    // What was picked was here when the chain was looked through.
                    self.suspect(cid).await?;
                    Finding::Unjudged
                }
            };
            findings.push((*named, finding));
        }
        Ok(findings)
    }

    /// Enters what a peer proved, and opens or closes the incident about it.
    fn enter(&self, peer: &Peer, judged: &Result<Judged, Miss>) {
        let (place, now) = (peer.to_string(), Instant::now());
        let charge = {
            let mut seen = self.seen();
            let account = seen
                .accounts
                .entry(place.clone())
                .or_insert_with(|| Account::of(place.clone()));
            match judged {
                Ok(judged) => account.answered(judged, now),
                Err(Miss::Failed) => account.missed(),
                Err(Miss::Lied) => account.lied(),
            }
            account.charge(now)
        };
        count(&place, judged);
        let incidents = &self.0.rooms.incidents;
        match charge {
            Some(what) => {
                let _open = incidents.found(Kind::PossessionUnproven, FoundBy::Challenge, place, what);
            }
            None if judged.is_ok() => self.close(place),
            // Silence mends nothing.
            None => {}
        }
    }

    fn close(&self, place: String) {
        let incidents = &self.0.rooms.incidents;
        if let Some(open) = incidents.unmended(Kind::PossessionUnproven, &place) {
            incidents.mended(open, vec![place]);
        }
    }

    /// Asks every peer for proof of one payload, now. Nobody is charged by it: the chain may not name this payload.
    ///
    /// # Errors
    /// The vault cannot be asked.
    pub async fn who_holds(&self, cid: &Cid) -> Result<Inquiry, vault::Error> {
        let Ok(_turn) = self.0.inquiries.try_acquire() else {
            return Ok(Inquiry::Busy);
        };
        if self.0.rooms.vault.local(cid).await?.is_none() {
            return Ok(Inquiry::NotHeld);
        }
        let is_allowed = {
            let mut inquired = self.0.inquired.lock().unwrap_or_else(PoisonError::into_inner);
            inquired.takes(1, INQUIRIES_A_MINUTE, Instant::now())
        };
        if !is_allowed {
            return Ok(Inquiry::TooOften);
        }
        let peers = self.0.rooms.vault.peers();
        let asked = peers.iter().map(async |peer| {
            let answered = self.ask_for(peer, cid).await;
            Holder {
                peer: peer.to_string(),
                validator: answered.map(|(validator, _)| validator),
                finding: answered.map(|(_, finding)| finding),
            }
        });
        Ok(Inquiry::Holders(join_all(asked).await))
    }

    async fn ask_for(&self, peer: &Peer, cid: &Cid) -> Option<(PublicKey, Finding)> {
        let challenge = Challenge::to(rand::random(), vec![*cid]).ok()?;
        let state = self.0.rooms.chain.state();
        let answer = self.0.asking.ask(peer, &challenge, &state).await.ok()?;
        // No key: whether it was erased says the vault, which has it not then.
        let picked = [Named {
            cid: *cid,
            height: Height(0),
            key: KeyId(Digest::ZERO),
        }];
        let findings = self.judge(&answer, (&challenge, &picked)).await.ok()?;
        findings.first().map(|(_, finding)| (answer.validator, *finding))
    }
}

/// Counts, per peer; there are at most as many as validators.
fn count(peer: &str, judged: &Result<Judged, Miss>) {
    let add = |outcome: &'static str| {
        metrics::counter!("fog_possession_payloads_total", "peer" => peer.to_owned(), "outcome" => outcome)
            .increment(1);
    };
    match judged {
        Ok(judged) => judged.findings.iter().for_each(|(_, finding)| add(finding.word())),
        Err(Miss::Failed) => add("unanswered"),
        Err(Miss::Lied) => add("lied"),
    }
}
