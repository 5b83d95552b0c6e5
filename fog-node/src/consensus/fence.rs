//! No vote before it is known what this key has voted already.
//!
//! The engine's vote journal remembers that. A journal that was lost, or restored from an old copy, does not; a node that
//! votes all the same may contradict itself and becomes the liar of the network. So every validator starts with its
//! [`Fence`] shut: it follows, and signs nothing. It asks the others what they have seen (`recall`), and
//! `opening` says when that is enough, and above which round it may sign again; it is opened when the others have left that
//! round behind.
//!
//! **Why it is enough.** Whoever votes in view v has seen a quorum's certificate of view v - 1, or v is the first view of an
//! epoch. Of that quorum, f honest others stood in view v - 1, so that among n - f others at least one tells of it: nothing
//! was signed above the highest certificate told of but in the view after it, or in the first of the next epoch. Where no
//! node may lie (f = 0), nothing was certified without all the others, and what none of them has seen binds nobody.

use commonware_consensus::types::Round;
use tokio::sync::watch;

/// What may be signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gate {
    /// Nothing.
    Shut,
    /// Everything.
    Open,
    /// What lies above the last round that may have been voted in, which is this one or the next epoch's first.
    Above(Round),
}

/// Stands between the scheme and the signing key; clones are one.
#[derive(Clone, Debug)]
pub struct Fence(watch::Sender<Gate>);

impl Fence {
    /// A fence that lets nothing through until it is opened.
    #[must_use]
    pub fn shut() -> Self {
        Self(watch::Sender::new(Gate::Shut))
    }

    /// A fence that lets everything through, for keys that have never voted.
    #[must_use]
    pub fn open() -> Self {
        Self(watch::Sender::new(Gate::Open))
    }

    fn gate(&self) -> Gate {
        *self.0.borrow()
    }

    /// Resolves when something may be signed.
    pub(super) async fn opened(&self) {
        let mut gate = self.0.subscribe();
        // The sender is here.
        let _ = gate.wait_for(|gate| *gate != Gate::Shut).await;
    }

    /// Whether nothing at all may be signed.
    #[must_use]
    pub fn is_shut(&self) -> bool {
        self.gate() == Gate::Shut
    }

    /// Whether a vote in a round may be signed.
    #[must_use]
    pub fn permits(&self, round: Round) -> bool {
        match self.gate() {
            Gate::Shut => false,
            Gate::Open => true,
            Gate::Above(last) => round > last && !is_first_after(last, round),
        }
    }

    pub(super) fn apply(&self, opening: Opening) {
        let gate = match opening {
            Opening::Everything => Gate::Open,
            Opening::Above(round) => Gate::Above(round),
        };
        self.0.send_replace(gate);
    }
}

/// Whether a round is the first of the epoch after another's: the one that is entered without a certificate of its epoch.
fn is_first_after(last: Round, round: Round) -> bool {
    round.epoch() == last.epoch().next() && round.view().get() == 1
}

/// What this node's own journal remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Journal {
    /// The highest round in which it has signed a vote.
    Remembers(Round),
    /// None, or none that can be read.
    Blank,
}

/// What another validator has seen, each part proven by signatures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// The highest round with a quorum's certificate.
    pub(super) certified: Option<Round>,
    /// The highest round in which this node voted.
    pub(super) voted: Option<Round>,
}

/// What may be signed from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opening {
    /// The journal is whole, or the network has not begun.
    Everything,
    /// Only what lies above a round.
    Above(Round),
}

/// Whether the answers of so many others suffice, in a committee of `validators`, this node included.
pub(super) fn opening(journal: Journal, told: &[Told], validators: usize) -> Option<Opening> {
    let liars_max = validators.saturating_sub(1) / 3;
    let quorum = validators - liars_max;
    // Without these many others nothing becomes final anyway.
    if told.len() + 1 < quorum {
        return None;
    }
    let voted = told.iter().filter_map(|told| told.voted).max();
    if let Journal::Remembers(own) = journal
        && voted.is_none_or(|voted| voted <= own)
    {
        return Some(Opening::Everything);
    }
    let certified = told.iter().filter_map(|told| told.certified).max();
    match certified.max(voted) {
        None => Some(Opening::Everything),
        Some(_) if told.len() < quorum.min(validators - 1) => None,
        Some(_) if liars_max == 0 => Some(Opening::Everything),
        Some(top) => Some(Opening::Above(Round::new(top.epoch(), top.view().next()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use commonware_consensus::types::{Epoch, View};

    fn round(epoch: u64, view: u64) -> Round {
        Round::new(Epoch::new(epoch), View::new(view))
    }

    fn told(certified: u64, voted: u64) -> Told {
        let some = |view: u64| (view > 0).then(|| round(3, view));
        Told {
            certified: some(certified),
            voted: some(voted),
        }
    }

    #[test]
    fn a_whole_journal_needs_as_many_others_as_a_quorum_does() {
        let journal = Journal::Remembers(round(3, 7));
        assert_eq!(opening(journal, &[told(7, 7)], 4), None);
        assert_eq!(
            opening(journal, &[told(7, 7), told(9, 6)], 4),
            Some(Opening::Everything)
        );
    }

    #[test]
    fn an_old_journal_is_found_out_by_one_vote_and_waits_for_all_that_are_needed() {
        let journal = Journal::Remembers(round(3, 7));
        let found_out = [told(9, 8), told(7, 7)];
        assert_eq!(opening(journal, &found_out, 4), None);
        let three = [told(9, 8), told(7, 7), told(11, 0)];
        assert_eq!(opening(journal, &three, 4), Some(Opening::Above(round(3, 12))));
    }

    #[test]
    fn a_blank_journal_votes_at_once_only_where_nothing_was_certified() {
        let nothing = [Told::default(); 2];
        assert_eq!(opening(Journal::Blank, &nothing, 4), Some(Opening::Everything));
        assert_eq!(opening(Journal::Blank, &[Told::default(), told(1, 0)], 4), None);
        let three = [Told::default(), told(1, 0), told(4, 5)];
        assert_eq!(opening(Journal::Blank, &three, 4), Some(Opening::Above(round(3, 6))));
        assert_eq!(opening(Journal::Blank, &[], 1), Some(Opening::Everything), "alone");
    }

    #[test]
    fn the_fence_lets_through_what_lies_above_and_no_first_round_that_may_have_been_voted_in() {
        let fence = Fence::shut();
        assert!(fence.is_shut() && !fence.permits(round(9, 9)));
        fence.apply(Opening::Above(round(3, 12)));
        let permitted = [(3, 12), (3, 13), (4, 1), (4, 2), (5, 1)].map(|(e, v)| fence.permits(round(e, v)));
        assert_eq!(permitted, [false, true, false, true, true]);
        fence.apply(Opening::Everything);
        assert!(fence.permits(round(0, 1)));
    }
}
