//! A pulse oximeter: the heart rate from a real finger PPG; the saturation generated, since no real series was found.

use record::decimal::Decimal;

use super::{
    Message, Signal,
    library::Waveform,
    noise::{Noise, Walk},
    plethysmogram::Sensor,
    quantity,
};

/// LOINC code of oxygen saturation.
const CODE: &str = "2708-6";
/// How long it looks for the pulse before it says that there is none.
const WARM_UP_SECONDS_MAX: u32 = 60;
/// Seconds between two short desaturations, as they occur in sleep.
const DIP_EVERY: u32 = 180;
/// How long one lasts, in seconds.
const DIP_LENGTH: u32 = 15;
/// How deep it is, in percent points.
const DIP_DEPTH: i64 = 6;

/// Heart rate and saturation, once a second of the PPG.
#[derive(Debug)]
pub(crate) struct PulseOximetry {
    sensor: Sensor,
    noise: Noise,
    tenths: Walk,
    second: u32,
}

impl PulseOximetry {
    pub(crate) fn new(ppg: Waveform, seed: u64) -> Self {
        let mut noise = Noise::new(4, seed);
        let tenths = Walk::around(noise.between(960, 980), 3);
        Self {
            sensor: Sensor::new(ppg),
            noise,
            tenths,
            second: 0,
        }
    }

    fn saturation(&mut self) -> i64 {
        self.second = (self.second + 1) % DIP_EVERY;
        let dip = if self.second >= DIP_EVERY - DIP_LENGTH {
            DIP_DEPTH
        } else {
            0
        };
        (self.tenths.next(&mut self.noise) / 10 - dip).clamp(70, 100)
    }
}

impl Signal for PulseOximetry {
    fn step(&mut self) -> Vec<Message> {
        // Like the real thing it shows nothing until it has found the pulse; later, a lost pulse is said to be absent.
        for _ in 0..WARM_UP_SECONDS_MAX {
            self.sensor.second();
            if self.sensor.rhythm.has_found_a_rate() {
                break;
            }
        }
        let saturation = quantity(CODE, Decimal::whole(self.saturation()), "%");
        vec![Message::reading(vec![self.sensor.heart_rate(), saturation])]
    }
}

#[cfg(test)]
mod tests {
    use super::super::Library;

    #[test]
    fn each_reading_has_a_rate_and_a_plausible_saturation() {
        let label = "ppg-finger-100hz+synthetic/oxygen-saturation/3";
        for message in Library::embedded().expected(label).expect("known").take(1_000) {
            let [rate, saturation] = &message.observations[..] else {
                panic!("two values")
            };
            assert!(rate.value.is_none_or(|v| (70..=120).contains(&v.parts().0)), "{rate:?}");
            let saturation = saturation.value.expect("always generated").parts().0;
            assert!((85..=100).contains(&saturation), "{saturation}");
        }
    }
}
