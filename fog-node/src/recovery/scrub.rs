//! Everything on this node's disk read again, past all memory: chain, payloads, rows.

use std::{
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use cid::Cid;
use ledger::{block::Height, document::Payload};
use record::canonical::DAG_CBOR;
use tokio::{task::spawn_blocking, time::sleep};

use super::{
    Error, FoundBy, Kind, Open, Recovery, Rooms,
    pace::{Pace, bytes_per_s},
};
use crate::vault::{self, Vault};

/// How far a pass has come is written at most this often.
const NOTE_EVERY: Duration = Duration::from_secs(30);

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

    /// Everything is looked at, whatever cannot be mended; the first of those errors is given, and its incident stays open. A pass
    /// that was broken off goes on at the payload at which it was; one that was not past the chain begins anew.
    pub(crate) async fn scrub_once(&self) -> Result<(), Error> {
        let Rooms { chain, vault, .. } = &self.0.rooms;
        let mut first = None;
        let done = vault.scrubbed().await?;
        if done == 0 {
            keep(&mut first, self.scrub_chain().await);
        }
        keep(&mut first, vault.refresh().await.map_err(Error::from));
        let head = chain.head().height;
        let (mut open, mut noted) = (None, Instant::now());
        let mut pace = self.pace().await?;
        for height in (done + 1..=head.0).map(Height) {
            keep(&mut first, self.scrub_payloads(height, &mut pace, &mut open).await);
            keep(&mut first, self.scrub_rows(height).await);
            // What could not be mended is looked at again.
            if first.is_none() && noted.elapsed() >= NOTE_EVERY {
                keep(&mut first, vault.note_scrubbed(height.0).await.map_err(Error::from));
                noted = Instant::now();
            }
        }
        keep(&mut first, self.scrub_strays(head).await);
        keep(&mut first, vault.note_scrubbed(0).await.map_err(Error::from));
        if let Some(error) = first {
            return Err(error);
        }
        // Also what was found before the node was started again.
        let open = open.or_else(|| self.0.incidents.unmended(Kind::PayloadDamaged, vault.place()));
        if let Some(open) = open {
            self.0.incidents.mended(open, vec!["peers".to_owned()]);
        }
        Ok(())
    }

    async fn pace(&self) -> Result<Pace, Error> {
        let Rooms { chain, vault, .. } = &self.0.rooms;
        let config = &self.0.config;
        let bytes = chain.file_bytes().saturating_add(vault.bytes().await?);
        let rate = bytes_per_s(bytes, config.scrub_bytes_per_s_max, config.scrub_within_h);
        metrics::gauge!("fog_recovery_scrub_bytes_per_second").set(rate as f64);
        Ok(Pace::starting(Instant::now(), rate))
    }

    async fn scrub_chain(&self) -> Result<(), Error> {
        let (chain, mut pace) = (self.0.rooms.chain.clone(), self.pace().await?);
        let rest = move |bytes| thread::sleep(pace.rest(bytes, Instant::now()));
        let damage = spawn_blocking(move || chain.scrub(rest))
            .await
            .expect("a scrub contains panics");
        match damage {
            None => Ok(()),
            Some(damage) => self.mend_chain(FoundBy::Scrub, damage.place, damage.what).await,
        }
    }

    /// The payloads of one block. All that one scrub finds is one incident; it stays open if one of them
    /// cannot be had.
    async fn scrub_payloads(&self, height: Height, pace: &mut Pace, open: &mut Option<Open>) -> Result<(), Error> {
        let Rooms { chain, vault, .. } = &self.0.rooms;
        for Payload { cid, .. } in chain.payloads(height).await?.unwrap_or_default() {
            if let Some(payload) = vault.attend(&cid).await? {
                let bytes = bytes_read(vault, &cid, &payload).await?;
                sleep(pace.rest(bytes, Instant::now())).await;
                continue;
            }
            // One that never came is what retention looks for; one that was here is an incident.
            if vault.retained().await? >= height.0 && open.is_none() {
                let what = format!(
                    "payloads are gone or are not what their identifiers say; the first is {cid} of block {height}"
                );
                let incidents = &self.0.incidents;
                *open = Some(incidents.found(Kind::PayloadDamaged, FoundBy::Scrub, vault.place().to_owned(), what));
            }
            vault.fetch(&cid).await?;
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

/// How much was read when a payload was attended to: of a large record that is not the root's block alone, but all of it.
async fn bytes_read(vault: &Vault, cid: &Cid, payload: &Bytes) -> Result<usize, vault::Error> {
    let whole = if cid.codec() == DAG_CBOR {
        None
    } else {
        vault.object_bytes(cid).await?
    };
    Ok(whole.map_or(payload.len(), |bytes| usize::try_from(bytes).unwrap_or(usize::MAX)))
}

/// Keeps the first error.
fn keep(first: &mut Option<Error>, result: Result<(), Error>) {
    if let Err(error) = result {
        first.get_or_insert(error);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn after_a_large_record_the_rest_is_by_all_of_its_bytes() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let dir = tempfile::tempdir().expect("a folder");
        let vault = Vault::open(&vault::Config::default(), dir.path(), reqwest::Client::new())
            .await
            .expect("opens");
        for length in [1_000_usize, 1_000_000] {
            let content = futures::stream::iter([Ok(Bytes::from(vec![7; length]))]);
            let root = vault.put_object(content, u64::MAX).await.expect("kept").held.cid();
            let block = vault.attend(&root).await.expect("reads").expect("whole");
            assert_eq!(bytes_read(&vault, &root, &block).await.expect("reads"), length);
        }
        let small = vault.put("small".into()).await.expect("kept").cid();
        let payload = vault.attend(&small).await.expect("reads").expect("there");
        assert_eq!(bytes_read(&vault, &small, &payload).await.expect("reads"), 5);
    }
}
