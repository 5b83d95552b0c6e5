//! How bundles leave the queue: final with a receipt, or set aside; and how long the final ones took.

use super::{
    super::{
        Final, Why,
        batch::Times,
        now_ms,
        refused::Refused,
        store::{Changes, SetAside, Ticket},
    },
    TIMED_MAX, Writer,
};

/// What the uplink has found out about bundles, as far as it is not written yet.
#[derive(Debug, Default)]
pub(super) struct Notes {
    pub(super) finals: Vec<Final>,
    pub(super) refused: Vec<(u64, Why)>,
}

impl Writer {
    pub(super) fn release(
        &mut self,
        finals: &[Final],
        refused: Vec<(u64, Why)>,
        changes: &mut Changes,
    ) -> Result<(), redb::Error> {
        for done in finals {
            let Some(ticket) = self
                .store
                .ticket(done.order)?
                .filter(|t| t.bundle == done.receipt.bundle())
            else {
                continue;
            };
            if self.drop_from_queue(&ticket, changes) {
                self.counters.final_bundles += 1;
                self.counters.final_readings += u64::from(ticket.readings);
                self.record_latencies(done);
            }
        }
        for (order, why) in refused {
            let (Some(ticket), Some(submission)) = (self.store.ticket(order)?, self.store.submission(order)?) else {
                continue;
            };
            if self.drop_from_queue(&ticket, changes) {
                self.set_aside(ticket, why, submission, changes);
            }
        }
        Ok(())
    }

    fn set_aside(&mut self, ticket: Ticket, why: Why, submission: Vec<u8>, changes: &mut Changes) {
        if why == Why::Damaged {
            self.counters.damaged_bundles += 1;
            metrics::counter!("gateway_outbox_damaged_total").increment(1);
        } else {
            self.counters.refused_bundles += 1;
        }
        self.take_times(ticket.order);
        let aside = SetAside {
            ticket,
            reason: why.sentence(),
            at_ms: now_ms(),
            submission: submission.into(),
        };
        self.aside.add(Refused::of(&aside));
        changes.set_aside.push(aside);
    }

    /// Whether it was still queued: two notes about one bundle in one commit count once.
    fn drop_from_queue(&mut self, ticket: &Ticket, changes: &mut Changes) -> bool {
        if changes.gone.contains(&ticket.order) {
            return false;
        }
        changes.gone.push(ticket.order);
        self.spooled.remove(ticket);
        true
    }

    pub(super) fn remember_times(&mut self, order: u64, times: Vec<Times>) {
        self.timed += times.len();
        self.times.insert(order, times);
        while self.timed > TIMED_MAX
            && let Some((_, forgotten)) = self.times.pop_first()
        {
            self.timed -= forgotten.len();
        }
    }

    fn take_times(&mut self, order: u64) -> Vec<Times> {
        let times = self.times.remove(&order).unwrap_or_default();
        self.timed -= times.len();
        times
    }

    fn record_latencies(&mut self, done: &Final) {
        for (wall_ms, received_ms) in self.take_times(done.order) {
            self.received_to_final.add(received_ms, done.verified_ms);
            if let Some(wall_ms) = wall_ms {
                self.publish_to_final.add(wall_ms, done.verified_ms);
                let seconds = done.verified_ms.saturating_sub(wall_ms).max(0) as f64 / 1_000.0;
                let lane = if done.was_new { "new" } else { "backlog" };
                metrics::histogram!("gateway_outbox_publish_to_final_seconds", "lane" => lane).record(seconds);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::{Config, Newest, QuarantineConfig, SPOOL, store::Store, tests::Home};
    use tokio::sync::watch;

    #[tokio::test]
    async fn a_bundle_that_is_set_aside_keeps_no_times() {
        let home = Home::open();
        home.spool(&home.oximeter, 1).await;
        home.outbox.stop().await;
        let store = Store::open(&home.folder.path().join(SPOOL), 1 << 20, &home.sealer).expect("opens");
        let parts = (Config::default(), QuarantineConfig::default(), home.folder.path());
        let mut writer =
            Writer::load(store, parts, home.sealer.clone(), watch::channel(Newest::default()).0).expect("loads");
        writer.remember_times(0, vec![(None, 1), (None, 2)]);
        writer
            .release(&[], vec![(0, Why::Damaged)], &mut Changes::default())
            .expect("reads");
        assert_eq!((writer.timed, writer.times.len()), (0, 0));
        assert!(writer.aside.bytes() > 0);
        writer.remember_times(1, vec![(None, 1); TIMED_MAX - 1]);
        writer.remember_times(2, vec![(None, 2)]);
        assert_eq!(writer.times.len(), 2);
        writer.remember_times(3, vec![(None, 3)]);
        assert_eq!(
            (writer.timed, writer.times.keys().copied().collect::<Vec<_>>()),
            (2, vec![2, 3]),
            "what waits longest is timed no more"
        );
    }
}
