//! The finger PPG of a wearable: recorded samples in blocks of one second, and the heart rate derived from the pulses.

use record::{
    decimal::Decimal,
    reading::{Measured, MeasurementState, Samples},
};

use super::{Message, Signal, beats::Rhythm, library::Waveform, quantity_or_absent};

/// ISO/IEEE 11073 (MDC) code of the plethysmogram; LOINC has none.
pub(crate) const CODE: &str = "150452";
/// LOINC code of heart rate.
pub(crate) const HEART_RATE: &str = "8867-4";

/// A PPG sensor: what it samples each second, and the rhythm it hears in it.
#[derive(Debug)]
pub(crate) struct Sensor {
    recorded: Waveform,
    next: usize,
    pub(crate) rhythm: Rhythm,
}

impl Sensor {
    pub(crate) fn new(recorded: Waveform) -> Self {
        let rhythm = Rhythm::of_ppg(recorded.rate_hz());
        Self {
            recorded,
            next: 0,
            rhythm,
        }
    }

    /// The samples of the next second.
    pub(crate) fn second(&mut self) -> &[i32] {
        if self.next == 0 {
            // The recording starts (again): an interval across the seam would be nobody's.
            self.rhythm = Rhythm::of_ppg(self.recorded.rate_hz());
        }
        let at = self.next;
        self.next = self.recorded.after(at);
        let data = self.recorded.block(at);
        self.rhythm.hear(data);
        data
    }

    pub(crate) fn heart_rate(&self) -> Measured {
        quantity_or_absent(HEART_RATE, self.rhythm.heart_rate_per_min(), "/min")
    }
}

/// Replays a PPG.
#[derive(Debug)]
pub(crate) struct Plethysmogram {
    sensor: Sensor,
}

impl Plethysmogram {
    pub(crate) fn new(recorded: Waveform) -> Self {
        Self {
            sensor: Sensor::new(recorded),
        }
    }
}

impl Signal for Plethysmogram {
    fn step(&mut self) -> Vec<Message> {
        let period_ms = self.sensor.recorded.period_ms;
        let data = self.sensor.second().to_vec();
        let samples = Samples {
            origin: Decimal::whole(0),
            period_ms,
            factor: Decimal::whole(1),
            data,
        };
        let mut messages = vec![Message::wave(Measured {
            code: CODE.to_owned(),
            value: None,
            samples: Some(samples),
            unit: "1".to_owned(),
            state: MeasurementState::Valid,
        })];
        if self.sensor.rhythm.has_found_a_rate() {
            messages.push(Message::reading(vec![self.sensor.heart_rate()]));
        }
        messages
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Library, Stream};

    fn replay(label: &str, seconds: usize) -> (Vec<i32>, Vec<Option<i64>>) {
        let (mut samples, mut rates) = (Vec::new(), Vec::new());
        let (_, mut signal) = Library::embedded().open(label).expect("known");
        for message in (0..seconds).flat_map(|_| signal.step()) {
            let measured = &message.observations[0];
            match message.stream {
                Stream::Wave => samples.extend(measured.samples.clone().expect("a waveform").data),
                Stream::Reading | Stream::Event => rates.push(measured.value.map(|v| v.parts().0)),
            }
        }
        (samples, rates)
    }

    #[test]
    fn the_blocks_are_the_recordings() {
        for (label, seconds) in [("ppg-finger-100hz", 685), ("ppg-finger-117hz", 129)] {
            let (samples, _) = replay(label, seconds);
            assert_eq!(
                samples[..],
                Library::embedded().plethysmogram(label).expect("known").samples[..],
                "{label}"
            );
        }
    }

    #[test]
    fn the_clean_recording_gives_a_rate_nearly_every_second() {
        let (_, rates) = replay("ppg-finger-100hz", 684);
        let found: Vec<_> = rates.iter().copied().flatten().collect();
        assert!(found.len() > 660, "{} of {}", found.len(), rates.len());
        assert!(found.iter().all(|rate| (70..=120).contains(rate)), "{found:?}");
        // Counting all pulses of the eleven minutes gives 96 a minute.
        let mean = found.iter().sum::<i64>() / i64::try_from(found.len()).expect("few");
        assert!((92..=100).contains(&mean), "{mean}");
    }

    #[test]
    fn a_hand_that_moves_gives_no_rate_rather_than_a_wrong_one() {
        // In the first half minute of this recording the sensor is put on: flat lines, jumps, saturation.
        let (_, rates) = replay("ppg-finger-117hz", 128);
        let found: Vec<_> = rates.iter().copied().flatten().collect();
        assert!(found.iter().all(|rate| (40..=140).contains(rate)), "{found:?}");
        assert!(rates.iter().any(Option::is_none));
        let settled = &rates[rates.len() - 60..];
        assert!(settled.iter().flatten().count() > 55, "{settled:?}");
        assert!(
            settled.iter().flatten().all(|rate| (55..=75).contains(rate)),
            "{settled:?}"
        );
    }
}
