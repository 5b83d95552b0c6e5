//! No vote before it is known what this key has voted already.
//!
//! The engine's vote journal remembers that. A journal that was lost, or restored from an old copy, does not; a node that
//! votes all the same may contradict itself and becomes the liar of the network. So every validator starts with its
//! [`Fence`] shut: it follows, and signs nothing. It asks the others what they have seen (`recall`), and
//! `opening` says when that is enough, and above which round it may sign again; it is opened when the others have left that
//! round behind.
//!
//! **Why it is enough.** Whoever votes in view v has seen a quorum's certificate of view v - 1, or v is the first view of an
//! epoch. Of that quorum at least n - 2f - 1 are honest others, so that among 2f + 1 others at least one tells of it: nothing
//! was signed above the highest quorum told of but in the view after it, or in the first of the next epoch. Where no
//! node may lie (f = 0), no quorum came about without all the others, and what none of them has seen binds nobody.
//!
//! A founder's first start needs none of this (`unvoted`).
//!
//! **What is not closed.** A vote in the very first view of a network, before any quorum, which only liars have seen; and one
//! that a whole-looking old journal lacks and that reached liars alone. Nobody can tell of these.

use commonware_consensus::types::Round;
use ledger::quorum::liars_max;
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

    /// An epoch ends with a block that was proposed in this round. If that lies above the last round that may have been voted
    /// in, the first round of the next epoch was not: its quorums stood higher than all that was told of.
    pub(super) fn pass(&self, end: Round) {
        self.0.send_if_modified(|gate| match gate {
            Gate::Above(last) if end > *last => {
                *gate = Gate::Open;
                true
            }
            _ => false,
        });
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

/// A vote that was cast: its round, and whether it was the last one its voter may cast in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cast {
    pub(super) round: Round,
    /// To finalize, or to give the round up.
    pub(super) is_last: bool,
}

/// What this node's own journal remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Journal {
    /// The last vote that it has signed.
    Remembers(Cast),
    /// None, or none that can be read.
    Blank,
}

/// What another validator has seen, each part proven by signatures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// The highest round with a quorum.
    pub(super) certified: Option<Round>,
    /// The last vote of this node.
    pub(super) voted: Option<Cast>,
}

/// What may be signed from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Opening {
    /// The journal is whole, or the network has not begun.
    Everything,
    /// Only what lies above a round.
    Above(Round),
}

/// Whether the answers of so many others suffice, in a committee of `validators`, this node included.
pub(super) fn opening(journal: Journal, told: &[Told], validators: usize) -> Option<Opening> {
    let liars_max = liars_max(validators);
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
    match certified.max(voted.map(|voted| voted.round)) {
        None => Some(Opening::Everything),
        Some(_) if told.len() < (2 * liars_max + 1).min(validators - 1) => None,
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

    fn cast(round: Round, is_last: bool) -> Cast {
        Cast { round, is_last }
    }

    fn told(certified: u64, voted: u64) -> Told {
        let some = |view: u64| (view > 0).then(|| round(3, view));
        Told {
            certified: some(certified),
            voted: some(voted).map(|round| cast(round, false)),
        }
    }

    #[test]
    fn a_whole_journal_needs_as_many_others_as_a_quorum_does() {
        let journal = Journal::Remembers(cast(round(3, 7), false));
        assert_eq!(opening(journal, &[told(7, 7)], 4), None);
        assert_eq!(
            opening(journal, &[told(7, 7), told(9, 6)], 4),
            Some(Opening::Everything)
        );
    }

    #[test]
    fn an_old_journal_is_found_out_by_one_vote_and_waits_for_all_that_are_needed() {
        let journal = Journal::Remembers(cast(round(3, 7), false));
        let found_out = [told(9, 8), told(7, 7)];
        assert_eq!(opening(journal, &found_out, 4), None);
        let three = [told(9, 8), told(7, 7), told(11, 0)];
        assert_eq!(opening(journal, &three, 4), Some(Opening::Above(round(3, 12))));
    }

    #[test]
    fn a_journal_that_lacks_the_last_vote_of_a_round_is_old() {
        let journal = Journal::Remembers(cast(round(3, 7), false));
        let mut finalized = told(7, 7);
        finalized.voted = Some(cast(round(3, 7), true));
        assert_eq!(opening(journal, &[finalized, told(7, 7)], 4), None);
    }

    #[test]
    fn five_with_one_down_suffice() {
        let three = [told(1, 0), told(4, 0), told(2, 0)];
        assert_eq!(opening(Journal::Blank, &three, 5), Some(Opening::Above(round(3, 5))));
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
        fence.pass(round(3, 12));
        assert!(
            !fence.permits(round(4, 1)),
            "the epoch may have ended before it was lost"
        );
        fence.pass(round(3, 13));
        assert!(fence.permits(round(4, 1)));
        fence.apply(Opening::Everything);
        assert!(fence.permits(round(0, 1)));
    }
}
