//! The outbox as the uplink reads it: a place for each lane, and what waits stays on the disk.
//!
//! Everything before the place of the live lane that is not under way is backlog: what was sealed too long ago when the live
//! lane came to it, what devices hand in of days before, and all that a start finds. Each lane reads forwards, so that each
//! device's readings leave in the order in which they were taken, but for alarms and what is new, which go before.

use std::{collections::HashSet, num::NonZeroU32, time::Duration};

use super::{Error, pace::Pace};
use crate::outbox::{Outbox, Ticket, Urgency, now_ms};

/// Tickets read at a time, at least.
const PAGE_MIN: usize = 64;

/// What waits.
#[derive(Debug)]
pub(super) struct Lanes {
    outbox: Outbox,
    backlog_after: Duration,
    /// How fast the backlog may start.
    pub(super) pace: Pace,
    /// The place of the next alarm.
    alarms: u64,
    /// The place of the next new bundle.
    live: u64,
    /// The place of the next bundle of the backlog, never after the one of the live lane.
    backlog: u64,
    /// Bundles that were handed out and are still in the queue.
    under_way: HashSet<u64>,
}

impl Lanes {
    pub(super) fn of(outbox: Outbox, backlog_after: Duration, backlog_per_s_max: NonZeroU32) -> Self {
        Self {
            outbox,
            backlog_after,
            pace: Pace::of(backlog_per_s_max),
            alarms: 0,
            live: 0,
            backlog: 0,
            under_way: HashSet::new(),
        }
    }

    /// Whether some of the queue may be backlog.
    pub(super) const fn has_backlog(&self) -> bool {
        self.backlog < self.live
    }

    /// A bundle has left the queue, or will at once.
    pub(super) fn landed(&mut self, order: u64) {
        self.under_way.remove(&order);
    }

    /// The next alarms, the oldest first.
    pub(super) async fn alarms(&mut self, limit: usize) -> Result<Vec<Ticket>, Error> {
        if limit == 0 || self.alarms >= self.outbox.newest().borrow().next_alarm {
            return Ok(Vec::new());
        }
        let from = self.alarms;
        let mut found = self.read(move |outbox| outbox.alarms(from, limit)).await?;
        match found.last() {
            Some(last) => self.alarms = last.order + 1,
            None => self.alarms = self.outbox.newest().borrow().next_alarm,
        }
        found.retain(|ticket| self.under_way.insert(ticket.order));
        Ok(found)
    }

    /// The next new bundles, the oldest first; what is not new is passed, and is backlog then.
    pub(super) async fn live(&mut self, limit: usize) -> Result<Vec<Ticket>, Error> {
        let (begin, page_max) = (self.live, limit.max(PAGE_MIN));
        let (mut found, mut passed) = (Vec::new(), false);
        while found.len() < limit && self.live < self.outbox.newest().borrow().next {
            let from = self.live;
            let page = self.read(move |outbox| outbox.tickets(from, page_max)).await?;
            let since_ms = self.new_since_ms();
            match page.first() {
                None => self.live = self.outbox.newest().borrow().next.max(from),
                Some(first) if !is_new(first, since_ms) => {
                    let next = self.read(move |outbox| outbox.first_since(from, since_ms)).await?;
                    (self.live, passed) = (next.max(first.order + 1), true);
                }
                Some(_) => {
                    for ticket in page.into_iter().take_while(|ticket| is_new(ticket, since_ms)) {
                        if found.len() == limit {
                            break;
                        }
                        self.live = ticket.order + 1;
                        match ticket.urgency {
                            Urgency::Alarm => {}
                            Urgency::Backfill => passed = true,
                            Urgency::Live if self.under_way.insert(ticket.order) => found.push(ticket),
                            Urgency::Live => {}
                        }
                    }
                }
            }
        }
        if self.backlog == begin && !passed {
            self.backlog = self.live;
        }
        Ok(found)
    }

    /// The next bundles of the backlog, the oldest first, as many as may start now.
    pub(super) async fn backlog(&mut self, limit: usize) -> Result<Vec<Ticket>, Error> {
        let limit = limit.min(self.pace.allows());
        let page_max = limit.max(PAGE_MIN);
        let mut found = Vec::new();
        while found.len() < limit && self.has_backlog() {
            let (from, end) = (self.backlog, self.live);
            let page = self.read(move |outbox| outbox.tickets(from, page_max)).await?;
            if page.first().is_none_or(|first| first.order >= end) {
                self.backlog = end;
            }
            for ticket in page.into_iter().take_while(|ticket| ticket.order < end) {
                if found.len() == limit {
                    break;
                }
                self.backlog = ticket.order + 1;
                // Alarms have a lane of their own, which has come to them or will.
                if ticket.urgency != Urgency::Alarm && self.under_way.insert(ticket.order) {
                    found.push(ticket);
                }
            }
        }
        self.pace.started(found.len());
        Ok(found)
    }

    fn new_since_ms(&self) -> i64 {
        let after_ms = i64::try_from(self.backlog_after.as_millis()).unwrap_or(i64::MAX);
        now_ms().saturating_sub(after_ms)
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Outbox) -> Result<T, redb::Error> + Send + 'static,
    ) -> Result<T, Error> {
        let outbox = self.outbox.clone();
        Ok(tokio::task::spawn_blocking(move || read(&outbox)).await??)
    }
}

/// Whether it was sealed since a time; of what was spooled before that was kept nobody knows.
fn is_new(ticket: &Ticket, since_ms: i64) -> bool {
    ticket.sealed_ms.is_some_and(|at| at >= since_ms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::{Measurement, tests::Home};

    const DAY: Duration = Duration::from_secs(86_400);

    fn lanes(home: &Home, backlog_after: Duration) -> Lanes {
        let fast = NonZeroU32::new(1_000_000).expect("not zero");
        Lanes::of(home.outbox.clone(), backlog_after, fast)
    }

    async fn spool(home: &Home, seqs: std::ops::RangeInclusive<u64>, urgency: Urgency) {
        for seq in seqs {
            let measurement = home.oximeter.measurement(seq, 97);
            let taken = home.outbox.append(Measurement { urgency, ..measurement }).await;
            assert!(taken.is_ok());
        }
    }

    fn orders(tickets: &[Ticket]) -> Vec<u64> {
        tickets.iter().map(|ticket| ticket.order).collect()
    }

    #[tokio::test]
    async fn each_bundle_is_handed_out_once_by_the_lane_it_belongs_to() {
        let home = Home::open();
        spool(&home, 1..=3, Urgency::Backfill).await;
        spool(&home, 4..=5, Urgency::Live).await;
        spool(&home, 6..=6, Urgency::Alarm).await;
        spool(&home, 7..=7, Urgency::Live).await;
        let mut lanes = lanes(&home, DAY);
        assert_eq!(orders(&lanes.alarms(10).await.expect("reads")), [5]);
        assert_eq!(orders(&lanes.live(2).await.expect("reads")), [3, 4]);
        assert_eq!(orders(&lanes.live(10).await.expect("reads")), [6]);
        assert!(lanes.has_backlog());
        assert_eq!(orders(&lanes.backlog(2).await.expect("reads")), [0, 1]);
        assert_eq!(orders(&lanes.backlog(10).await.expect("reads")), [2]);
        assert!(!lanes.has_backlog());
        for found in [lanes.alarms(9).await, lanes.live(9).await, lanes.backlog(9).await] {
            assert_eq!(found.expect("reads"), []);
        }
        spool(&home, 8..=8, Urgency::Live).await;
        assert_eq!(orders(&lanes.live(9).await.expect("reads")), [7]);
        assert!(!lanes.has_backlog(), "what is new alone makes none");
    }

    #[tokio::test]
    async fn what_has_waited_too_long_is_backlog_and_what_came_after_it_is_not() {
        let home = Home::open();
        spool(&home, 1..=200, Urgency::Live).await;
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        spool(&home, 201..=202, Urgency::Live).await;
        let mut lanes = lanes(&home, Duration::from_secs(1));
        assert_eq!(orders(&lanes.live(10).await.expect("reads")), [200, 201]);
        let mut drained = Vec::new();
        while lanes.has_backlog() {
            drained.extend(orders(&lanes.backlog(33).await.expect("reads")));
        }
        assert_eq!(drained, (0..200).collect::<Vec<_>>(), "in order, each once");
    }

    #[tokio::test]
    async fn the_backlog_starts_no_faster_than_it_may() {
        let home = Home::open();
        spool(&home, 1..=60, Urgency::Backfill).await;
        let mut lanes = Lanes::of(home.outbox.clone(), DAY, NonZeroU32::new(100).expect("not zero"));
        assert_eq!(lanes.live(10).await.expect("reads"), []);
        let begin = std::time::Instant::now();
        let mut started = 0;
        for _ in 0..5 {
            started += lanes.backlog(60).await.expect("reads").len();
        }
        let most = usize::try_from(begin.elapsed().as_millis() / 10).expect("short") + 12;
        assert!((1..=most).contains(&started), "{started} of at most {most}");
    }
}
