//! What is under way and what starts next: each lane has a share of the flights that the others cannot take.
//!
//! With `n` flights: alarms have a quarter more of their own; another try of what was laid by may be a quarter. What is new
//! goes before the backlog, and each leaves the other an eighth, so that neither ever starves; whatever is free beyond that is
//! for who asks, since flights land all the time and the next place goes to what is new.

use std::{collections::BTreeMap, time::Duration};

use tokio::{
    sync::watch,
    task::{JoinError, JoinSet},
    time::{Instant, sleep_until},
};

use super::{
    Error,
    flight::{Bundle, Flight, Landing},
    lanes::Lanes,
    node,
};
use crate::outbox::{Final, Ticket};

/// Bundles laid by, at most; beyond it nothing new is started until some are gone. They are ten megabytes of memory then, and
/// about what an outbox of `bytes_max` holds.
const LAID_BY_MAX: usize = 100_000;

/// Why a bundle flies now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    Alarm,
    Live,
    Backlog,
    /// It was laid by.
    Again,
}

impl Lane {
    const ALL: [(Self, &'static str); 4] = [
        (Self::Alarm, "alarm"),
        (Self::Live, "live"),
        (Self::Backlog, "backlog"),
        (Self::Again, "again"),
    ];
}

/// How many flights each lane has.
#[derive(Debug)]
struct Shares {
    max: usize,
    flying: [usize; 4],
}

impl Shares {
    const fn of(max: usize) -> Self {
        Self { max, flying: [0; 4] }
    }

    fn total(&self) -> usize {
        self.flying.iter().sum()
    }

    /// How many more may start in a lane, while some wait in the backlog or not.
    fn room(&self, lane: Lane, backlog_waits: bool) -> usize {
        let quarter = (self.max / 4).max(1);
        let room = self.max.saturating_sub(self.total());
        let own = self.flying[lane as usize];
        // Of a single flight nothing can be left to others.
        let left = (self.max / 8).max(1).min(self.max.saturating_sub(1));
        match lane {
            // Also of alarms there may be too many: what is left to the others is not theirs.
            Lane::Alarm => (self.max + quarter)
                .saturating_sub(self.total())
                .min((self.max / 2 + quarter).saturating_sub(own)),
            Lane::Again => room.min(quarter.saturating_sub(own)),
            Lane::Backlog => room.min((self.max - left).saturating_sub(own)),
            Lane::Live if backlog_waits => {
                room.saturating_sub(left.saturating_sub(self.flying[Lane::Backlog as usize]))
            }
            Lane::Live => room,
        }
    }
}

/// What is under way, and what waits for another try.
#[derive(Debug)]
pub(super) struct Traffic {
    flight: Flight,
    lanes: Lanes,
    shares: Shares,
    /// First and longest pause before another try.
    lay_by: (Duration, Duration),
    flights: JoinSet<(Lane, u64, Landing)>,
    /// Bundles that no node was ready for, by the time of their next try and their place in the queue.
    laid_by: BTreeMap<(Instant, u64), Bundle>,
}

impl Traffic {
    pub(super) fn new(flight: Flight, lanes: Lanes, in_flight_max: usize, lay_by: (Duration, Duration)) -> Self {
        Self {
            flight,
            lanes,
            shares: Shares::of(in_flight_max),
            lay_by,
            flights: JoinSet::new(),
            laid_by: BTreeMap::new(),
        }
    }

    pub(super) async fn run(mut self, announce: watch::Sender<usize>) -> Result<(), Error> {
        let mut newest = self.flight.outbox.newest();
        loop {
            newest.mark_unchanged();
            self.start_what_may().await?;
            announce.send_replace(self.flights.len());
            self.gauge();
            let has_room = self.shares.room(Lane::Alarm, false) > 0;
            let soonest = self.soonest();
            tokio::select! {
                Some(landed) = self.flights.join_next() => self.settle(landed).await?,
                changed = newest.changed(), if has_room => {
                    if changed.is_err() {
                        return Ok(()); // the outbox has stopped
                    }
                }
                () = sleep_until(soonest.unwrap_or_else(Instant::now)), if soonest.is_some() => {}
            }
        }
    }

    /// When something may start that may not now, though there is room for it.
    fn soonest(&self) -> Option<Instant> {
        let again = self.laid_by.keys().next().map(|(at, _)| *at);
        let again = again.filter(|_| self.shares.room(Lane::Again, true) > 0);
        let backlog = (self.lanes.has_backlog() && self.room(Lane::Backlog) > 0).then(|| self.lanes.pace.next());
        again.into_iter().chain(backlog).min()
    }

    /// How many new bundles of a lane may start; with too many laid by the rest stays in the queue on the disk.
    fn room(&self, lane: Lane) -> usize {
        let room = self.shares.room(lane, self.lanes.has_backlog());
        room.min(LAID_BY_MAX.saturating_sub(self.laid_by.len()))
    }

    async fn start_what_may(&mut self) -> Result<(), Error> {
        let alarms = self.lanes.alarms(self.room(Lane::Alarm)).await?;
        self.start_all(Lane::Alarm, alarms);
        while self.shares.room(Lane::Again, true) > 0
            && let Some(soonest) = self.laid_by.first_entry().filter(|due| due.key().0 <= Instant::now())
        {
            let bundle = soonest.remove();
            self.start(Lane::Again, bundle);
        }
        let live = self.lanes.live(self.room(Lane::Live)).await?;
        self.start_all(Lane::Live, live);
        let backlog = self.lanes.backlog(self.room(Lane::Backlog)).await?;
        self.start_all(Lane::Backlog, backlog);
        Ok(())
    }

    fn start_all(&mut self, lane: Lane, tickets: Vec<Ticket>) {
        for ticket in tickets {
            self.start(lane, Bundle::new(ticket));
        }
    }

    fn start(&mut self, lane: Lane, bundle: Bundle) {
        self.shares.flying[lane as usize] += 1;
        let (flight, order) = (self.flight.clone(), bundle.ticket.order);
        self.flights
            .spawn(async move { (lane, order, flight.fly(bundle).await) });
    }

    fn lay_by(&mut self, bundle: Bundle) {
        let pause = node::growing(self.lay_by, bundle.laid_by.saturating_sub(1));
        self.laid_by
            .insert((Instant::now() + pause, bundle.ticket.order), bundle);
    }

    /// Takes this landing and all that are ready, so that one commit forgets them together.
    async fn settle(&mut self, landed: Result<(Lane, u64, Landing), JoinError>) -> Result<(), Error> {
        let outbox = self.flight.outbox.clone();
        let mut finals: Vec<Final> = Vec::new();
        let mut next = Some(landed);
        while let Some(landed) = next {
            let (lane, order, landing) = landed?;
            self.shares.flying[lane as usize] -= 1;
            if !matches!(landing, Landing::LaidBy(_)) {
                self.lanes.landed(order);
            }
            match landing {
                Landing::Final(done) => finals.push(Final {
                    was_new: matches!(lane, Lane::Alarm | Lane::Live),
                    ..*done
                }),
                Landing::LaidBy(bundle) => self.lay_by(bundle),
                Landing::SetAside { order, why } => outbox.set_aside(order, why).await,
                Landing::Gone => {}
                Landing::Failed(error) => return Err(error.into()),
            }
            next = self.flights.try_join_next();
        }
        if !finals.is_empty() {
            metrics::counter!("gateway_uplink_bundles_final_total").increment(finals.len() as u64);
            outbox.forget(finals).await;
        }
        Ok(())
    }

    fn gauge(&self) {
        metrics::gauge!("gateway_uplink_bundles_laid_by").set(self.laid_by.len() as f64);
        for (lane, name) in Lane::ALL {
            metrics::gauge!("gateway_uplink_flights", "lane" => name).set(self.shares.flying[lane as usize] as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_lane_takes_what_is_left_to_another() {
        let mut shares = Shares::of(32);
        shares.flying[Lane::Backlog as usize] = shares.room(Lane::Backlog, true);
        assert_eq!((shares.total(), shares.room(Lane::Live, true)), (28, 4));
        shares.flying[Lane::Again as usize] = shares.room(Lane::Again, true);
        assert_eq!((shares.total(), shares.room(Lane::Live, true)), (32, 0));
        assert_eq!(shares.room(Lane::Alarm, true), 8, "alarms have flights of their own");
        let mut shares = Shares::of(32);
        shares.flying[Lane::Live as usize] = shares.room(Lane::Live, true);
        assert_eq!((shares.total(), shares.room(Lane::Backlog, true)), (28, 4));
        assert_eq!(shares.room(Lane::Live, false), 4, "without a backlog all of it");
        for max in 1..8 {
            let shares = Shares::of(max);
            for (lane, _) in Lane::ALL {
                assert!(shares.room(lane, true) > 0, "{lane:?} of {max}");
            }
        }
    }
}
