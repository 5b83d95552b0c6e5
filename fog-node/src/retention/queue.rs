//! What is missing here and waits to be had from a peer: each payload once, the one that waits longest first.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use cid::Cid;
use ledger::block::Height;
use tokio::sync::mpsc;

/// Payloads that are wanted at a time, at most; whoever wants more waits.
pub(super) const QUEUE_MAX: usize = 16_384;
/// Pause before the second attempt; doubles up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_secs(1);
/// The longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_secs(300);

/// A payload that is wanted.
struct Wanted {
    height: Height,
    arrival: u64,
    attempts: u32,
    pause: Duration,
    /// Told when it is here; who does not listen any more is no failure.
    tell: Vec<mpsc::Sender<Cid>>,
}

/// The queue: a payload in it waits until it is due, or is being asked for.
#[derive(Default)]
pub(super) struct Queue {
    wanted: HashMap<Cid, Wanted>,
    due: BTreeSet<(Instant, u64, Cid)>,
    /// How many are wanted of each height.
    open: BTreeMap<Height, usize>,
    /// Since when each is wanted, in the order in which they came.
    arrivals: BTreeMap<u64, Instant>,
    /// Among those that are due at the same moment, who came first goes first.
    turns: u64,
}

impl Queue {
    pub(super) fn has_room(&self) -> bool {
        self.wanted.len() < QUEUE_MAX
    }

    pub(super) fn len(&self) -> usize {
        self.wanted.len()
    }

    /// Wants a payload, at once; one that is wanted already is wanted once.
    pub(super) fn want(&mut self, cid: Cid, height: Height, tell: Option<mpsc::Sender<Cid>>, now: Instant) {
        if let Some(wanted) = self.wanted.get_mut(&cid) {
            // Each sweep orders what is still missing: whoever listens is told once, however often it ordered.
            wanted.tell.retain(|known| !known.is_closed());
            if let Some(tell) = tell
                && wanted.tell.iter().all(|known| !known.same_channel(&tell))
            {
                wanted.tell.push(tell);
            }
            return;
        }
        self.turns += 1;
        self.arrivals.insert(self.turns, now);
        let wanted = Wanted {
            height,
            arrival: self.turns,
            attempts: 0,
            pause: PAUSE,
            tell: tell.into_iter().collect(),
        };
        self.wanted.insert(cid, wanted);
        *self.open.entry(height).or_default() += 1;
        self.wait(cid, now);
    }

    fn wait(&mut self, cid: Cid, until: Instant) {
        self.turns += 1;
        self.due.insert((until, self.turns, cid));
    }

    /// When the next one is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due.first().map(|(at, ..)| *at)
    }

    /// The next one that is due, to be asked for.
    pub(super) fn next(&mut self, now: Instant) -> Option<Cid> {
        self.due().filter(|at| *at <= now)?;
        self.due.pop_first().map(|(.., cid)| cid)
    }

    /// It is here.
    pub(super) fn had(&mut self, cid: &Cid) {
        let Some(wanted) = self.wanted.remove(cid) else { return };
        self.arrivals.remove(&wanted.arrival);
        if let Some(open) = self.open.get_mut(&wanted.height) {
            *open -= 1;
            if *open == 0 {
                self.open.remove(&wanted.height);
            }
        }
        for listener in wanted.tell {
            let _told = listener.try_send(*cid);
        }
    }

    /// It could not be had: it waits, each time longer. Gives its height and how often it was asked for.
    pub(super) fn again(&mut self, cid: Cid, now: Instant) -> Option<(Height, u32)> {
        let wanted = self.wanted.get_mut(&cid)?;
        wanted.attempts += 1;
        let (told, until) = ((wanted.height, wanted.attempts), now + wanted.pause);
        wanted.pause = (wanted.pause * 2).min(PAUSE_MAX);
        self.wait(cid, until);
        Some(told)
    }

    /// The height up to which nothing is wanted, if the chain was read up to another one.
    pub(super) fn complete_up_to(&self, read: Height) -> Height {
        let lowest = self.open.first_key_value();
        lowest.map_or(read, |(height, _)| read.min(Height(height.0.saturating_sub(1))))
    }

    /// Since when the one that waits longest is wanted.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.arrivals.first_key_value().map(|(_, since)| *since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use record::canonical::cid_of;

    #[test]
    fn the_lowest_height_with_something_wanted_bounds_what_is_complete() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        for (name, height) in [("a", 5), ("b", 5), ("c", 7)] {
            queue.want(cid_of(name.as_bytes()), Height(height), None, now);
        }
        queue.had(&cid_of(b"c"));
        queue.had(&cid_of(b"a"));
        assert_eq!(queue.complete_up_to(Height(9)), Height(4));
        queue.had(&cid_of(b"b"));
        assert_eq!(queue.complete_up_to(Height(9)), Height(9));
        // What was lost below what was read before bounds it, too; what is above does not move it up.
        queue.want(cid_of(b"d"), Height(12), None, now);
        assert_eq!(queue.complete_up_to(Height(9)), Height(9));
    }

    #[test]
    fn what_cannot_be_had_waits_ever_longer_and_lets_the_others_pass() {
        let (mut queue, start) = (Queue::default(), Instant::now());
        let (gone, there) = (cid_of(b"gone"), cid_of(b"there"));
        queue.want(gone, Height(1), None, start);
        queue.want(there, Height(2), None, start);
        assert_eq!(queue.next(start), Some(gone));
        assert_eq!(queue.again(gone, start), Some((Height(1), 1)));
        assert_eq!(queue.next(start), Some(there));
        assert_eq!(queue.next(start), None, "it waits");
        let mut now = start;
        for attempt in 2..20 {
            now = queue.due().expect("it waits");
            assert_eq!(queue.next(now), Some(gone));
            assert_eq!(queue.again(gone, now), Some((Height(1), attempt)));
        }
        assert_eq!(queue.due(), Some(now + PAUSE_MAX));
    }

    #[test]
    fn one_payload_is_wanted_once_and_everybody_is_told() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        let (tell, mut told) = mpsc::channel(2);
        queue.want(cid_of(b"a"), Height(1), Some(tell.clone()), now);
        queue.want(cid_of(b"a"), Height(1), Some(tell), now);
        let (tell, mut told_too) = mpsc::channel(2);
        for _ in 0..1_000 {
            queue.want(cid_of(b"a"), Height(1), Some(tell.clone()), now);
        }
        assert_eq!(queue.wanted[&cid_of(b"a")].tell.len(), 2, "however often it is ordered");
        assert_eq!((queue.len(), queue.next(now)), (1, Some(cid_of(b"a"))));
        assert_eq!(queue.next(now), None);
        queue.had(&cid_of(b"a"));
        for told in [&mut told, &mut told_too] {
            assert_eq!(told.try_recv(), Ok(cid_of(b"a")));
            assert!(told.try_recv().is_err(), "once");
        }
        assert!(queue.due().is_none());
    }
}
