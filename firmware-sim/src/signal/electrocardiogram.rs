//! The ECG of a wearable: recorded samples in blocks of one second, and the rates that the device derives from them.

use record::{
    decimal::Decimal,
    reading::{Measured, MeasurementState, Samples},
};

use super::{Message, Signal, beats::Rhythm, library::Waveform, plethysmogram::HEART_RATE, quantity_or_absent};

/// LOINC code of the ECG.
pub(crate) const CODE: &str = "11524-6";
/// LOINC code of the standard deviation of the R-R intervals.
const VARIABILITY: &str = "80404-7";

/// Replays an ECG.
#[derive(Debug)]
pub(crate) struct Electrocardiogram {
    recorded: Waveform,
    next: usize,
    rhythm: Rhythm,
}

impl Electrocardiogram {
    pub(crate) fn new(recorded: Waveform) -> Self {
        let rhythm = Rhythm::of_ecg(recorded.rate_hz());
        Self {
            recorded,
            next: 0,
            rhythm,
        }
    }

    /// The block as SampledData: with origin -5.12 mV and 0.005 mV a step, value = (adc - 1024) / 200 exactly.
    fn block(&self, data: &[i32]) -> Measured {
        let samples = Samples {
            origin: Decimal::new(-512, 2).expect("two digits are among the nine a decimal keeps"),
            period_ms: self.recorded.period_ms,
            factor: Decimal::new(5, 3).expect("three digits are among the nine a decimal keeps"),
            data: data.to_vec(),
        };
        Measured {
            code: CODE.to_owned(),
            value: None,
            samples: Some(samples),
            unit: "mV".to_owned(),
            state: MeasurementState::Valid,
        }
    }
}

impl Signal for Electrocardiogram {
    fn step(&mut self) -> Vec<Message> {
        if self.next == 0 {
            // The recording starts (again): an interval across the seam would be nobody's.
            self.rhythm = Rhythm::of_ecg(self.recorded.rate_hz());
        }
        let data = self.recorded.block(self.next);
        self.rhythm.hear(data);
        let mut messages = vec![Message::wave(self.block(data))];
        if self.rhythm.has_found_a_rate() {
            messages.push(Message::reading(vec![
                quantity_or_absent(HEART_RATE, self.rhythm.heart_rate_per_min(), "/min"),
                quantity_or_absent(VARIABILITY, self.rhythm.variability_ms(), "ms"),
            ]));
        }
        self.next = self.recorded.after(self.next);
        messages
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Library, Stream};
    use super::*;

    fn exactly_nanovolt(samples: &Samples, sample: i32) -> i64 {
        let nano = |decimal: Decimal| {
            let (mantissa, scale) = decimal.parts();
            mantissa * 10_i64.pow(6 - u32::from(scale))
        };
        nano(samples.origin) + nano(samples.factor) * i64::from(sample)
    }

    #[test]
    fn the_blocks_are_the_recording_and_their_millivolts_are_exact() {
        let library = Library::embedded();
        let recorded = library.electrocardiogram("ecg-mitbih-208").expect("known");
        let blocks = library
            .expected("ecg-mitbih-208")
            .expect("known")
            .filter(|m| m.stream == Stream::Wave)
            .take(300);
        let mut replayed = Vec::new();
        for block in blocks {
            let samples = block.observations[0].samples.clone().expect("a waveform");
            assert_eq!(samples.data.len(), 360);
            for &adc in &samples.data {
                // In nanovolts, (adc - 1024) / 200 mV is (adc - 1024) * 5000.
                assert_eq!(exactly_nanovolt(&samples, adc), (i64::from(adc) - 1024) * 5000);
            }
            replayed.extend(samples.data);
        }
        assert_eq!(replayed.len(), 108_000);
        assert_eq!(replayed[..], recorded.samples[..]);
    }

    #[test]
    fn the_rates_are_those_of_the_recording() {
        let rates: Vec<_> = Library::embedded()
            .expected("ecg-mitbih-208")
            .expect("known")
            .take(590)
            .filter(|m| m.stream == Stream::Reading)
            .map(|m| [0, 1].map(|at: usize| m.observations[at].value.map(|v| v.parts().0)))
            .collect();
        assert!(rates.len() > 285, "{}", rates.len());
        let heart: Vec<_> = rates.iter().filter_map(|r| r[0]).collect();
        // Record 208 has 2955 beats in 30 minutes: 98.5 a minute. The electrode is off for a few seconds of these five.
        assert!(
            heart.len() > 275 && heart.iter().all(|rate| (80..=135).contains(rate)),
            "{heart:?}"
        );
        let mean = heart.iter().sum::<i64>() / i64::try_from(heart.len()).expect("few");
        assert!((98..=110).contains(&mean), "{mean}");
        let variability: Vec<_> = rates.iter().filter_map(|r| r[1]).collect();
        assert!(
            variability.len() > 240 && variability.iter().all(|ms| (5..=150).contains(ms)),
            "{variability:?}"
        );
    }
}
