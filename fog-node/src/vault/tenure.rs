//! Who may let go of a payload, and when: nothing that was held lately goes, whether the chain names it yet or not.
//!
//! A payload is there before anything names it: it is put, its commitment waits, a voter holds it, and only then the chain
//! has it. So whoever makes a [`super::Held`] notes it here first, and goes in beside the others; garbage is
//! removed a few payloads at a time, alone, and none that was noted since the collection began, or some time before.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use cid::Cid;
use tokio::sync::{Notify, RwLock, RwLockReadGuard, RwLockWriteGuard, watch};

use super::store::digest;

/// Payloads that are remembered as held lately, at most; with more of them nothing is let go of until they are fewer.
const LATELY_MAX: usize = 262_144;
/// A full list is gone through for what is too old to matter once in so long, at most.
const SWEEP_PAUSE: Duration = Duration::from_secs(1);
/// A put into a full vault waits so long for a collection.
const ROOM_TIMEOUT: Duration = Duration::from_secs(20);
/// After a collection that gave a full vault no room, none is asked for until so long after.
const ROOM_PAUSE: Duration = Duration::from_secs(60);

/// What was held lately.
struct Lately {
    held: HashMap<[u8; 32], Instant>,
    /// Everything that was held after this moment is in the list.
    whole_since: Instant,
    /// How long before a collection what was held stays, as the last one had it.
    grace: Option<Duration>,
    /// When it was looked last for what is too old to matter.
    swept: Instant,
}

struct Shared {
    // Held for a look or an entry, never across an await.
    lately: Mutex<Lately>,
    /// Who holds goes in beside others, who lets go goes in alone.
    turn: RwLock<()>,
    wanted: Notify,
    collected: watch::Sender<Collected>,
    has_collector: AtomicBool,
}

/// What collections have come to.
#[derive(Clone, Copy, Debug, Default)]
struct Collected {
    payloads: u64,
    /// When one was asked for that gave no room.
    in_vain: Option<Instant>,
}

/// The list; clones share it.
#[derive(Clone)]
pub(super) struct Tenure(Arc<Shared>);

/// The moment from which on whatever was held stays.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark(Instant);

impl Lately {
    /// Drops what the next collection would not look at. One that is under way and has an older mark lets nothing more go.
    fn drop_older(&mut self, now: Instant) {
        let oldest = self.grace.and_then(|grace| now.checked_sub(grace));
        let Some(oldest) = oldest.filter(|_| now.saturating_duration_since(self.swept) >= SWEEP_PAUSE) else {
            return;
        };
        self.swept = now;
        self.held.retain(|_, at| *at >= oldest);
        self.whole_since = self.whole_since.max(oldest);
    }
}

impl Tenure {
    pub(super) fn starting(now: Instant) -> Self {
        let lately = Lately {
            held: HashMap::new(),
            // What was held before the start nobody knows.
            whole_since: now,
            grace: None,
            swept: now,
        };
        Self(Arc::new(Shared {
            lately: Mutex::new(lately),
            turn: RwLock::default(),
            wanted: Notify::new(),
            collected: watch::Sender::default(),
            has_collector: AtomicBool::new(false),
        }))
    }

    fn lately(&self) -> MutexGuard<'_, Lately> {
        self.0.lately.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes in to hold a payload, which stays from now on. Until the guard is dropped nothing is let go of.
    pub(super) async fn hold(&self, cid: &Cid) -> RwLockReadGuard<'_, ()> {
        let turn = self.0.turn.read().await;
        self.note(digest(cid), Instant::now());
        turn
    }

    fn note(&self, key: [u8; 32], now: Instant) {
        let mut lately = self.lately();
        let is_full = |lately: &Lately| lately.held.len() >= LATELY_MAX && !lately.held.contains_key(&key);
        if is_full(&lately) {
            lately.drop_older(now);
        }
        if is_full(&lately) {
            lately.whole_since = now;
        } else {
            lately.held.insert(key, now);
        }
    }

    /// Begins a collection: what is held from `grace` before now on stays.
    pub(super) fn begin(&self, now: Instant, grace: Duration) -> Mark {
        let mut lately = self.lately();
        let mark = now.checked_sub(grace).unwrap_or(lately.whole_since);
        lately.grace = Some(grace);
        lately.held.retain(|_, at| *at >= mark);
        if lately.held.capacity() > 4 * lately.held.len() {
            lately.held.shrink_to_fit();
        }
        Mark(mark)
    }

    /// Goes in to let go of some payloads; nobody holds one meanwhile.
    pub(super) async fn alone(&self) -> RwLockWriteGuard<'_, ()> {
        self.0.turn.write().await
    }

    /// Whether a payload may go now, in a collection with this mark.
    pub(super) fn lets_go(&self, key: &[u8; 32], Mark(mark): Mark) -> bool {
        let lately = self.lately();
        lately.whole_since < mark && lately.held.get(key).is_none_or(|at| *at < mark)
    }

    /// Says what a collection came to.
    pub(super) fn collected(&self, payloads: u64) {
        self.0.collected.send_modify(|collected| collected.payloads += payloads);
    }

    /// Payloads that were let go of since the start.
    pub(super) fn let_go(&self) -> u64 {
        self.0.collected.borrow().payloads
    }

    /// Says that somebody collects from now on.
    pub(super) fn is_looked_after(&self) {
        self.0.has_collector.store(true, Ordering::Relaxed);
    }

    /// Resolves when somebody found the vault full.
    pub(super) async fn until_room_is_wanted(&self) {
        self.0.wanted.notified().await;
    }

    /// Asks for room in a full vault and waits for it, unless that was in vain just now; whether to try again.
    pub(super) async fn make_room(&self) -> bool {
        let mut collected = self.0.collected.subscribe();
        let before = *collected.borrow_and_update();
        let was_in_vain = before.in_vain.is_some_and(|at| at.elapsed() < ROOM_PAUSE);
        if was_in_vain || !self.0.has_collector.load(Ordering::Relaxed) {
            return false;
        }
        self.0.wanted.notify_one();
        let done = tokio::time::timeout(ROOM_TIMEOUT, collected.changed()).await;
        let has_room = matches!(done, Ok(Ok(()))) && collected.borrow().payloads > before.payloads;
        if !has_room {
            // Nobody is told: it changes nothing for who waits.
            self.0.collected.send_if_modified(|collected| {
                collected.in_vain = Some(Instant::now());
                false
            });
        }
        has_room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(600);

    #[test]
    fn nothing_goes_that_was_held_since_the_mark_or_before_anybody_looked() {
        let start = Instant::now();
        let tenure = Tenure::starting(start);
        let (old, new, unknown) = ([1; 32], [2; 32], [3; 32]);
        tenure.note(old, start);
        let mark = tenure.begin(start, GRACE);
        assert!(!tenure.lets_go(&unknown, mark), "held before the start, perhaps");
        let later = start + GRACE + Duration::from_secs(1);
        let mark = tenure.begin(later, GRACE);
        tenure.note(new, later + GRACE * 3);
        assert!(tenure.lets_go(&old, mark) && tenure.lets_go(&unknown, mark));
        assert!(!tenure.lets_go(&new, mark), "however long the collection takes");
        tenure.note(old, later);
        assert!(!tenure.lets_go(&old, mark), "it was put again");
    }

    #[test]
    fn with_too_many_to_remember_nothing_goes_until_they_are_fewer() {
        let start = Instant::now();
        let tenure = Tenure::starting(start);
        let key = |at: usize| {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&at.to_be_bytes());
            key
        };
        let busy = start + GRACE * 2;
        for at in 0..=LATELY_MAX {
            tenure.note(key(at), busy);
        }
        assert_eq!(tenure.lately().held.len(), LATELY_MAX);
        let mark = tenure.begin(busy + GRACE / 2, GRACE);
        assert!(!tenure.lets_go(&[9; 32], mark), "it may be the one that found no place");
        let mark = tenure.begin(busy + GRACE * 2, GRACE);
        assert!(tenure.lets_go(&[9; 32], mark) && tenure.lately().held.is_empty());
    }

    #[test]
    fn a_full_list_drops_what_is_too_old_before_it_loses_track() {
        let start = Instant::now();
        let tenure = Tenure::starting(start);
        tenure.begin(start, GRACE);
        for at in 0..LATELY_MAX {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&at.to_be_bytes());
            tenure.note(key, start);
        }
        let later = start + GRACE * 2;
        let running = tenure.begin(start + GRACE / 2, GRACE);
        tenure.note([9; 32], later);
        assert_eq!(tenure.lately().held.len(), 1, "the one that is new");
        assert!(!tenure.lets_go(&[0; 32], running), "it was held after that mark");
        let mark = tenure.begin(later + Duration::from_secs(1), GRACE);
        assert!(tenure.lets_go(&[0; 32], mark) && !tenure.lets_go(&[9; 32], mark));
    }

    #[tokio::test]
    async fn who_lets_go_waits_for_who_holds() {
        let tenure = Tenure::starting(Instant::now());
        let holding = tenure.hold(&record::canonical::cid_of(b"a")).await;
        assert!(
            tokio::time::timeout(Duration::from_millis(10), tenure.alone())
                .await
                .is_err()
        );
        drop(holding);
        let _alone = tenure.alone().await;
    }
}
