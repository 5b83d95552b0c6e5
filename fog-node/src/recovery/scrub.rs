//! Everything on this node's disk read again, past all memory: chain, payloads, rows.

use std::{
    thread,
    time::{Duration, Instant},
};

use ledger::block::Height;
use tokio::{task::spawn_blocking, time::sleep};

use super::{Error, FoundBy, Kind, Open, Recovery, Rooms, pace::Pace};

impl Recovery {
    pub(super) async fn scrub(&self) {
        loop {
            sleep(Duration::from_millis(self.0.config.scrub_every_ms)).await;
            let started = Instant::now();
            match self.scrub_once().await {
                Ok(()) => metrics::histogram!("fog_recovery_scrub_seconds").record(started.elapsed()),
                Err(error) => tracing::warn!(%error, "the scrub could not look at everything, or not mend it now"),
            }
        }
    }

    /// Everything is looked at, whatever cannot be mended; the first of those errors is given, and its incident stays open.
    async fn scrub_once(&self) -> Result<(), Error> {
        let mut first = None;
        keep(&mut first, self.scrub_chain().await);
        keep(&mut first, self.0.rooms.vault.refresh().await.map_err(Error::from));
        let head = self.0.rooms.chain.head().height;
        let mut open = None;
        let mut pace = self.pace();
        for height in (1..=head.0).map(Height) {
            keep(&mut first, self.scrub_payloads(height, &mut pace, &mut open).await);
            keep(&mut first, self.scrub_rows(height).await);
        }
        keep(&mut first, self.scrub_strays(head).await);
        match (first, open) {
            (Some(error), _) => Err(error),
            (None, Some(open)) => {
                self.0.incidents.mended(open, vec!["peers".to_owned()]);
                Ok(())
            }
            (None, None) => Ok(()),
        }
    }

    fn pace(&self) -> Pace {
        Pace::starting(Instant::now(), self.0.config.scrub_bytes_per_s_max)
    }

    async fn scrub_chain(&self) -> Result<(), Error> {
        let (chain, mut pace) = (self.0.rooms.chain.clone(), self.pace());
        let rest = move |bytes| thread::sleep(pace.rest(bytes, Instant::now()));
        let damage = spawn_blocking(move || chain.scrub(rest))
            .await
            .expect("a scrub contains panics");
        match damage {
            None => Ok(()),
            Some(damage) => self.mend_chain(FoundBy::Scrub, damage.place, damage.what).await,
        }
    }

    /// The payloads of the bundles of one block. All that one scrub finds is one incident; it stays open if one of them
    /// cannot be had.
    async fn scrub_payloads(&self, height: Height, pace: &mut Pace, open: &mut Option<Open>) -> Result<(), Error> {
        let Rooms { chain, vault, .. } = &self.0.rooms;
        for commitment in chain.commitments(height).await?.unwrap_or_default() {
            if let Some(payload) = vault.attend(&commitment.cid).await? {
                sleep(pace.rest(payload.len(), Instant::now())).await;
                continue;
            }
            // One that never came is what retention looks for; one that was here is an incident.
            if vault.retained().await? >= height.0 && open.is_none() {
                let what = format!(
                    "payloads are gone or are not what their identifiers say; the first is {} of block {height}",
                    commitment.cid
                );
                let incidents = &self.0.incidents;
                *open = Some(incidents.found(Kind::PayloadDamaged, FoundBy::Scrub, vault.place().to_owned(), what));
            }
            vault.fetch(&commitment.cid).await?;
        }
        Ok(())
    }

    /// The rows of one block.
    async fn scrub_rows(&self, height: Height) -> Result<(), Error> {
        let altered = self.0.rooms.projection.verify(height).await?;
        if altered > 0 {
            self.record_rows(
                height,
                &format!("{altered} rows of block {height} were not what was projected"),
            );
        }
        Ok(())
    }

    /// Rows that belong to no block.
    async fn scrub_strays(&self, head: Height) -> Result<(), Error> {
        let removed = self.0.rooms.projection.remove_strays(head).await?;
        if removed > 0 {
            self.record_rows(head, &format!("{removed} rows belonged to no block"));
        }
        Ok(())
    }

    fn record_rows(&self, height: Height, what: &str) {
        let incidents = &self.0.incidents;
        let open = incidents.found(
            Kind::IndexAltered,
            FoundBy::Scrub,
            format!("the index, block {height}"),
            what.to_owned(),
        );
        incidents.mended(open, vec!["this node".to_owned()]);
    }
}

/// Keeps the first error.
fn keep(first: &mut Option<Error>, result: Result<(), Error>) {
    if let Err(error) = result {
        first.get_or_insert(error);
    }
}
