//! What the writer tells of itself, and what it hears of devices beside their readings: the counters of those without a clock.

use std::time::Instant;

use super::{
    super::{Gap, Report, now_ms, quarantine::Summary, request::CounterState},
    Writer,
};

/// Starts of devices with gaps that are told at a time.
const GAPS_SHOWN_MAX: usize = 1_000;
/// What was received longer ago, in milliseconds, has waited: the gateway's clock may have been set meanwhile. Less than the
/// steps of the clock that are noticed, so that none goes unnoticed between receiving and looking.
const WAITED_MS: i64 = 1_000;

impl Writer {
    /// What devices may be asked for: nothing while room runs short, since what is missing then may be what was refused.
    pub(super) fn recent_gaps(&mut self) -> Vec<Gap> {
        let bytes = self.bytes_with(0);
        if self.space.refuses_a_wave(bytes).is_some() {
            return Vec::new();
        }
        self.sequences.recent_gaps(GAPS_SHOWN_MAX)
    }

    pub(super) fn hear(&mut self, state: CounterState) {
        if !self.has_waited(state.pair.gateway_ms) {
            self.sequences.state(state.device, state.boot, (state.pair, state.way));
        }
    }

    /// Whether a message says nothing of its device's counter any more. What is known of counters is forgotten if the clock was set.
    pub(super) fn has_waited(&mut self, received_ms: i64) -> bool {
        let now_ms = now_ms();
        if self.steady.was_set(Instant::now(), now_ms) {
            self.sequences.forget_clocks();
        }
        !(0..=WAITED_MS).contains(&now_ms.saturating_sub(received_ms))
    }

    pub(super) fn report(&mut self) -> Report {
        Report {
            full: self.full(0),
            waves_refused: self.space.refuses_a_wave(self.bytes_with(0)),
            counters: self.counters.clone(),
            spooled_bundles: self.spooled.bundles,
            spooled_readings: self.spooled.readings,
            spooled_bytes: self.spooled.bytes,
            refused_bytes: self.aside.bytes(),
            refused: self.aside.recent(),
            quarantined: Summary {
                total: self.counters.quarantined.values().sum(),
                by_reason: self.counters.quarantined.clone(),
                recent: self.quarantine.recent(),
            },
            gaps: self.sequences.gaps(GAPS_SHOWN_MAX),
            publish_to_final: self.publish_to_final.percentiles(),
            received_to_final: self.received_to_final.percentiles(),
        }
    }
}
