//! What one peer has proven and what it owes: a few counters, and a bounded list of payloads.

use std::time::{Duration, Instant};

use cid::Cid;
use ledger::block::Height;
use record::{ids::KeyId, signature::PublicKey};
use serde::{Serialize, Serializer};

use super::Named;

/// Payloads that a peer owes and that are remembered, at most; further ones are counted.
pub(super) const OWED_MAX: usize = 64;
/// A peer may say for so long that it has not come as far as what it is asked for.
const BEHIND_MAX: Duration = Duration::from_secs(3_600);

/// What became of one payload of a challenge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Finding {
    /// The peer has the bytes at hand.
    Proven,
    /// It says that it does not have them.
    Absent,
    /// What it computed is not what these bytes give.
    Wrong,
    /// It says that it has not come so far.
    Behind,
    /// This node cannot judge: it does not have the bytes now.
    Unjudged,
}

impl Finding {
    /// The word of the metric.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Proven => "proven",
            Self::Absent => "absent",
            Self::Wrong => "wrong",
            Self::Behind => "behind",
            Self::Unjudged => "unjudged",
        }
    }
}

/// A payload that a peer should have and did not prove.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Owed {
    /// Which.
    #[serde(serialize_with = "as_text")]
    pub cid: Cid,
    /// Where the chain names it.
    pub height: Height,
    /// What it said last.
    pub finding: Finding,
    #[serde(skip)]
    key: KeyId,
}

impl Owed {
    pub(super) const fn named(&self) -> Named {
        Named {
            cid: self.cid,
            height: self.height,
            key: self.key,
        }
    }
}

fn as_text<S: Serializer>(cid: &Cid, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(cid)
}

/// What is known of one peer since this node was started.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Account {
    /// Where it answers.
    pub peer: String,
    /// Who it is; nothing before its first answer.
    pub validator: Option<PublicKey>,
    /// Payloads that it was asked for.
    pub sampled: u64,
    /// Of them, proven.
    pub proven: u64,
    /// Of them, absent or wrong.
    pub failed: u64,
    /// Challenges without an answer.
    pub unanswered: u64,
    /// Challenges to which something came that is no answer of that validator.
    pub lies: u64,
    /// When it last proved something, in milliseconds since 1970.
    pub last_proof_ms: Option<i64>,
    /// It says that it holds every payload up to here.
    pub holds_up_to: Option<Height>,
    /// What it owes; it is asked for these first.
    pub missing: Vec<Owed>,
    #[serde(skip)]
    behind_since: Option<Instant>,
    #[serde(skip)]
    lied_last: bool,
}

/// An answer, judged.
pub(super) struct Judged {
    pub(super) validator: PublicKey,
    pub(super) holds_up_to: Height,
    pub(super) findings: Vec<(Named, Finding)>,
}

impl Account {
    pub(super) fn of(peer: String) -> Self {
        Self {
            peer,
            ..Self::default()
        }
    }

    /// Enters an answer.
    pub(super) fn answered(&mut self, judged: &Judged, now: Instant) {
        self.validator = Some(judged.validator);
        self.holds_up_to = Some(judged.holds_up_to);
        self.lied_last = false;
        let mut is_behind = false;
        for (Named { cid, height, key }, finding) in &judged.findings {
            self.sampled += 1;
            let known = self.missing.iter().position(|owed| owed.cid == *cid);
            match finding {
                Finding::Proven => {
                    self.proven += 1;
                    self.last_proof_ms = Some(jiff::Timestamp::now().as_millisecond());
                    if let Some(at) = known {
                        self.missing.remove(at);
                    }
                }
                Finding::Absent | Finding::Wrong => {
                    self.failed += 1;
                    if let Some(at) = known {
                        self.missing[at].finding = *finding;
                    } else if self.missing.len() < OWED_MAX {
                        self.missing.push(Owed {
                            cid: *cid,
                            height: *height,
                            finding: *finding,
                            key: *key,
                        });
                    }
                }
                Finding::Behind => is_behind = true,
                Finding::Unjudged => {}
            }
        }
        self.behind_since = is_behind.then(|| self.behind_since.unwrap_or(now));
    }

    /// Forgets what it owes and is erased: it need not have that any more. Whether there was any.
    pub(super) fn forgives(&mut self, is_erased: impl Fn(&Named) -> bool) -> bool {
        let before = self.missing.len();
        self.missing.retain(|owed| !is_erased(&owed.named()));
        self.missing.len() < before
    }

    /// Enters that nothing came.
    pub(super) const fn missed(&mut self) {
        self.unanswered += 1;
    }

    /// Enters that something came that is no answer.
    pub(super) const fn lied(&mut self) {
        self.lies += 1;
        self.lied_last = true;
    }

    /// What speaks against this peer, in words; nothing if nothing does.
    pub(super) fn charge(&self, now: Instant) -> Option<String> {
        if let Some(first) = self.missing.first() {
            let (count, cid, height) = (self.missing.len(), first.cid, first.height);
            return Some(format!(
                "it proved {} of {} payloads that it was asked for, and owes {count}; the first is {cid} of block {height}",
                self.proven, self.sampled
            ));
        }
        if self.lied_last {
            return Some("it answered a challenge with something that is no answer of that validator".to_owned());
        }
        let behind = self
            .behind_since
            .filter(|since| now.duration_since(*since) > BEHIND_MAX);
        behind.map(|_| "it has said for an hour that it has not come as far as what it is asked for".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use record::{
        canonical::{Digest, Domain, cid_of},
        signature::SigningKey,
    };

    fn named(name: &[u8]) -> Named {
        Named {
            cid: cid_of(name),
            height: Height(3),
            key: KeyId(Digest::of(Domain::TLS_KEY, &[name])),
        }
    }

    fn judged(findings: Vec<(&[u8], Finding)>) -> Judged {
        let findings = findings.into_iter();
        Judged {
            validator: SigningKey::random().public(),
            holds_up_to: Height(9),
            findings: findings.map(|(name, finding)| (named(name), finding)).collect(),
        }
    }

    #[test]
    fn who_owes_a_payload_is_charged_until_he_has_proven_just_that_one() {
        let (mut account, now) = (Account::of("peer".to_owned()), Instant::now());
        account.answered(&judged(vec![(b"a", Finding::Proven), (b"b", Finding::Absent)]), now);
        assert!(account.charge(now).expect("it owes one").contains("1 of 2"));
        account.answered(&judged(vec![(b"a", Finding::Proven), (b"b", Finding::Wrong)]), now);
        account.missed();
        account.answered(&judged(vec![(b"b", Finding::Unjudged)]), now);
        assert_eq!(account.missing[0].finding, Finding::Wrong);
        assert!(account.charge(now).is_some());
        account.answered(&judged(vec![(b"b", Finding::Proven)]), now);
        assert_eq!((account.charge(now), account.failed, account.unanswered), (None, 2, 1));
    }

    #[test]
    fn what_is_erased_is_not_owed_any_more_and_the_rest_is() {
        let (mut account, now) = (Account::of("peer".to_owned()), Instant::now());
        account.answered(&judged(vec![(b"a", Finding::Absent), (b"b", Finding::Absent)]), now);
        let erased = named(b"a").key;
        assert!(account.forgives(|owed| owed.key == erased));
        assert!(account.charge(now).expect("it owes the other").contains("owes 1"));
        assert!(!account.forgives(|owed| owed.key == erased));
        assert!(account.forgives(|owed| owed.cid == cid_of(b"b")));
        assert_eq!(account.charge(now), None);
    }

    #[test]
    fn what_a_peer_owes_is_a_bounded_list() {
        let (mut account, now) = (Account::of("peer".to_owned()), Instant::now());
        for at in 0..OWED_MAX + 10 {
            account.answered(&judged(vec![(&at.to_be_bytes(), Finding::Absent)]), now);
        }
        assert_eq!(
            (account.missing.len(), account.failed),
            (OWED_MAX, OWED_MAX as u64 + 10)
        );
    }

    #[test]
    fn who_is_behind_is_not_charged_at_once_and_not_excused_for_ever() {
        let (mut account, start) = (Account::of("peer".to_owned()), Instant::now());
        let late = start + BEHIND_MAX + Duration::from_secs(1);
        account.answered(&judged(vec![(b"a", Finding::Behind)]), start);
        assert_eq!(account.charge(start + BEHIND_MAX / 2), None);
        account.answered(&judged(vec![(b"b", Finding::Behind)]), late);
        assert!(account.charge(late).is_some());
        account.answered(&judged(vec![(b"b", Finding::Proven)]), late);
        assert_eq!(account.charge(late), None);
    }

    #[test]
    fn a_lie_is_charged_until_an_answer_comes() {
        let (mut account, now) = (Account::of("peer".to_owned()), Instant::now());
        account.lied();
        account.missed();
        assert!(account.charge(now).is_some());
        account.answered(&judged(vec![(b"a", Finding::Proven)]), now);
        assert_eq!((account.charge(now), account.lies), (None, 1));
    }
}
