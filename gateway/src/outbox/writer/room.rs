//! What the writer does about room: whom it refuses, and which notes wait for the disk.

use std::mem;

use super::{Batch, Measurement, NOTES_MAX, Shortage, Urgency, Writer};

impl Writer {
    /// All bytes that count towards the marks, with so many more.
    pub(super) fn bytes_with(&self, more_bytes: u64) -> u64 {
        self.spooled.bytes + self.aside.bytes() + more_bytes
    }

    pub(super) fn full(&mut self, more_bytes: u64) -> Option<Shortage> {
        self.space.refuses(self.bytes_with(more_bytes))
    }

    /// Looks at the marks anew: who leaves makes room, and perhaps nobody asks for any for long.
    pub(super) fn look_for_room(&mut self) {
        let bytes = self.bytes_with(0);
        self.space.refuses(bytes);
        self.space.refuses_a_wave(bytes);
    }

    pub(super) fn takes(&mut self, measurement: &Measurement, more_bytes: u64) -> bool {
        let bytes = self.bytes_with(more_bytes);
        if measurement.urgency == Urgency::Alarm {
            return self.space.refuses(bytes).is_none() || self.space.bears_an_alarm(bytes);
        }
        if measurement.is_wave && self.space.refuses_a_wave(bytes).is_some() {
            return false;
        }
        self.space.refuses(bytes).is_none()
    }

    pub(super) fn has_notes(&self) -> bool {
        self.notes.finals.len() + self.notes.refused.len() > 0
    }

    /// Keeps notes back while the disk is so full that a commit might fail: nobody waits for them.
    pub(super) fn hold_notes(&mut self, batch: &mut Batch) {
        self.notes.finals.append(&mut batch.finals);
        self.notes.refused.append(&mut batch.refused);
        if batch.writes() || (self.has_notes() && self.space.bears_a_commit()) {
            mem::swap(&mut batch.finals, &mut self.notes.finals);
            mem::swap(&mut batch.refused, &mut self.notes.refused);
        }
        self.notes.finals.truncate(NOTES_MAX);
        self.notes.refused.truncate(NOTES_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::{Config, Newest, QuarantineConfig, SPOOL, request::Request, store::Store, tests::Home};
    use metrics_exporter_prometheus::PrometheusBuilder;
    use std::sync::mpsc;
    use tokio::sync::{oneshot, watch};

    #[tokio::test]
    async fn the_metric_of_refused_waveforms_falls_when_there_is_room_though_none_comes() {
        let config = Config {
            bytes_max: 64_000,
            waves_percent: 1,
            ..Config::default()
        };
        let home = Home::with(config.clone());
        home.spool(&home.oximeter, 1).await;
        let done = home.done(0);
        home.outbox.stop().await;
        let store = Store::open(&home.folder.path().join(SPOOL), 1 << 20, &home.sealer).expect("opens");
        let parts = (config, QuarantineConfig::default(), home.folder.path());
        let recorder = PrometheusBuilder::new().build_recorder();
        let shown = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            let announce = watch::channel(Newest::default()).0;
            let mut writer = Writer::load(store, parts, home.sealer.clone(), announce).expect("loads");
            let wave = Measurement {
                is_wave: true,
                ..home.oximeter.measurement(2, 97)
            };
            assert!(!writer.takes(&wave, 0));
            assert!(shown.render().contains("gateway_outbox_waves_refused 1"));
            let (requests, inbox) = mpsc::sync_channel(2);
            requests.send(Request::Forget(vec![done])).expect("fits");
            requests.send(Request::Stop(oneshot::channel().0)).expect("fits");
            writer.run(&inbox);
        });
        assert!(shown.render().contains("gateway_outbox_waves_refused 0"));
    }
}
