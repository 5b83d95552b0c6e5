//! What a device measures, step by step: a recording's own values in their own order, or a generated series that says so.
//!
//! A *recording label* names the series and, by that, the kind of device that can produce it:
//!
//! | label | device | series |
//! |---|---|---|
//! | `cgm-hall-2018/<person>` | glucose sensor | recorded |
//! | `ecg-mitbih-208` | wearable with ECG | recorded; rates derived from its R peaks |
//! | `ppg-finger-100hz`, `ppg-finger-117hz` | wearable with PPG | recorded; rate derived from its pulses |
//! | `<ppg>+synthetic/oxygen-saturation[/seed]` | pulse oximeter | rate derived from the PPG; saturation generated |
//! | `synthetic/{blood-pressure,body-temperature,body-weight}[/seed]` | cuff, thermometer, scale | generated |
//!
//! The n-th message of a label is the reading with sequence number n of each start of a device, so that what a hospital
//! sees can be compared value by value with [`expected`].

mod beats;
mod blood_pressure;
mod body_temperature;
mod body_weight;
mod electrocardiogram;
mod glucose;
mod library;
mod noise;
mod oxygen_saturation;
mod plethysmogram;

use std::fmt;

use record::{
    decimal::Decimal,
    reading::{Measured, MeasurementState},
    topic::Channel,
};
use serde::{Deserialize, Serialize};

pub use library::{Library, LibraryError};

use blood_pressure::BloodPressure;
use body_temperature::BodyTemperature;
use body_weight::BodyWeight;
use electrocardiogram::Electrocardiogram;
use glucose::Glucose;
use oxygen_saturation::PulseOximetry;
use plethysmogram::Plethysmogram;

/// What stands in front of a generated series' name.
const SYNTHETIC: &str = "synthetic/";
/// What stands between a real PPG and the generated saturation.
const AND_SATURATION: &str = "+synthetic/oxygen-saturation";

/// A kind of home device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Heart rate from a real finger PPG, saturation generated.
    PulseOximeter,
    /// Generated.
    BloodPressureCuff,
    /// Generated.
    Thermometer,
    /// Real continuous glucose of one person.
    GlucoseSensor,
    /// Generated.
    Scale,
    /// Real ECG in blocks, heart rate and its variability.
    WearableEcg,
    /// Real PPG in blocks, heart rate.
    WearablePpg,
}

impl Kind {
    /// All kinds, in the order a mixed fleet is filled with them.
    pub const ALL: [Self; 7] = [
        Self::PulseOximeter,
        Self::BloodPressureCuff,
        Self::Thermometer,
        Self::GlucoseSensor,
        Self::Scale,
        Self::WearableEcg,
        Self::WearablePpg,
    ];

    /// The word for it, as in `devices.json`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PulseOximeter => "pulse-oximeter",
            Self::BloodPressureCuff => "blood-pressure-cuff",
            Self::Thermometer => "thermometer",
            Self::GlucoseSensor => "glucose-sensor",
            Self::Scale => "scale",
            Self::WearableEcg => "wearable-ecg",
            Self::WearablePpg => "wearable-ppg",
        }
    }

    /// Whether its steps are seconds of a waveform and therefore keep the recording's own pace.
    #[must_use]
    pub const fn is_waveform(self) -> bool {
        matches!(self, Self::WearableEcg | Self::WearablePpg)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which of a device's topics a message goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Single values.
    Reading,
    /// Waveform blocks; refused first when there is no room.
    Wave,
    /// Single values that somebody should see at once.
    Event,
}

impl Stream {
    /// The last level of the topic.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.channel().as_str()
    }

    /// The channel of its topics.
    #[must_use]
    pub const fn channel(self) -> Channel {
        match self {
            Self::Reading => Channel::Reading,
            Self::Wave => Channel::Wave,
            Self::Event => Channel::Event,
        }
    }

    /// The stream whose topics end so, if there is one.
    pub(crate) fn of(channel: &str) -> Option<Self> {
        [Self::Reading, Self::Wave, Self::Event]
            .into_iter()
            .find(|stream| stream.as_str() == channel)
    }
}

/// What a device says at once; becomes one signed reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Where it goes.
    pub stream: Stream,
    /// What was measured.
    pub observations: Vec<Measured>,
}

impl Message {
    fn reading(observations: Vec<Measured>) -> Self {
        Self {
            stream: Stream::Reading,
            observations,
        }
    }

    fn wave(block: Measured) -> Self {
        Self {
            stream: Stream::Wave,
            observations: vec![block],
        }
    }
}

/// A sensor. It starts at the beginning of its recording and starts again when the recording ends.
pub trait Signal: fmt::Debug + Send + Sync {
    /// The messages of the next step, at least one.
    fn step(&mut self) -> Vec<Message>;
}

/// A label that names no series.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no recording is called {label:?}; there are, e.g., {examples}")]
pub struct UnknownRecording {
    label: String,
    examples: String,
}

impl Library {
    /// The sensor that a label names, at its start, and the kind of device it is built into.
    ///
    /// # Errors
    /// [`UnknownRecording`].
    pub fn open(&self, label: &str) -> Result<(Kind, Box<dyn Signal>), UnknownRecording> {
        self.find(label).ok_or_else(|| UnknownRecording {
            label: label.chars().take(120).collect(),
            examples: Kind::ALL.map(|kind| self.recording(kind, 0)).join(", "),
        })
    }

    fn find(&self, label: &str) -> Option<(Kind, Box<dyn Signal>)> {
        if let Some(series) = label.strip_prefix(SYNTHETIC) {
            let (name, seed) = seeded(series)?;
            return match name {
                "blood-pressure" => Some((Kind::BloodPressureCuff, Box::new(BloodPressure::new(seed)))),
                "body-temperature" => Some((Kind::Thermometer, Box::new(BodyTemperature::new(seed)))),
                "body-weight" => Some((Kind::Scale, Box::new(BodyWeight::new(seed)))),
                _ => None,
            };
        }
        if let Some((ppg, seed)) = label.split_once(AND_SATURATION) {
            let seed = if seed.is_empty() {
                0
            } else {
                seed.strip_prefix('/')?.parse().ok()?
            };
            let ppg = self.plethysmogram(ppg)?.clone();
            return Some((Kind::PulseOximeter, Box::new(PulseOximetry::new(ppg, seed))));
        }
        if let Some(recorded) = self.electrocardiogram(label) {
            return Some((Kind::WearableEcg, Box::new(Electrocardiogram::new(recorded.clone()))));
        }
        if let Some(recorded) = self.plethysmogram(label) {
            return Some((Kind::WearablePpg, Box::new(Plethysmogram::new(recorded.clone()))));
        }
        let person = self.glucose(label)?;
        Some((Kind::GlucoseSensor, Box::new(Glucose::new(person.clone()))))
    }

    /// The label for the `index`-th device of a kind: another person, or another seed, as long as there is one.
    #[must_use]
    pub fn recording(&self, kind: Kind, index: usize) -> String {
        let seed = if index == 0 { String::new() } else { format!("/{index}") };
        match kind {
            Kind::PulseOximeter => format!("{}{AND_SATURATION}{seed}", self.plethysmogram_label(index)),
            Kind::BloodPressureCuff => format!("{SYNTHETIC}blood-pressure{seed}"),
            Kind::Thermometer => format!("{SYNTHETIC}body-temperature{seed}"),
            Kind::GlucoseSensor => self.glucose_label(index).to_owned(),
            Kind::Scale => format!("{SYNTHETIC}body-weight{seed}"),
            Kind::WearableEcg => self.electrocardiogram_label(index).to_owned(),
            Kind::WearablePpg => self.plethysmogram_label(index).to_owned(),
        }
    }
}

/// `name` or `name/seed`.
fn seeded(series: &str) -> Option<(&str, u64)> {
    match series.split_once('/') {
        Some((name, seed)) => Some((name, seed.parse().ok()?)),
        None => Some((series, 0)),
    }
}

/// The label of the built-in recording for the `index`-th device of a kind.
#[must_use]
pub fn default_recording(kind: Kind, index: usize) -> String {
    Library::embedded().recording(kind, index)
}

/// The messages that a built-in recording yields, in order and without end: the n-th is reading n of a device's start.
///
/// # Errors
/// [`UnknownRecording`].
pub fn expected(label: &str) -> Result<impl Iterator<Item = Message> + use<>, UnknownRecording> {
    Library::embedded().expected(label)
}

impl Library {
    /// As [`expected`], for the recordings of this library.
    ///
    /// # Errors
    /// [`UnknownRecording`].
    pub fn expected(&self, label: &str) -> Result<impl Iterator<Item = Message> + use<>, UnknownRecording> {
        let (_, mut signal) = self.open(label)?;
        Ok(std::iter::repeat_with(move || signal.step()).flatten())
    }
}

/// One number.
fn quantity(code: &str, value: Decimal, unit: &str) -> Measured {
    Measured {
        code: code.to_owned(),
        value: Some(value),
        samples: None,
        unit: unit.to_owned(),
        state: MeasurementState::Valid,
    }
}

/// One number, or the statement that the sensor had none.
fn quantity_or_absent(code: &str, value: Option<i64>, unit: &str) -> Measured {
    let state = if value.is_some() {
        MeasurementState::Valid
    } else {
        MeasurementState::Absent
    };
    Measured {
        code: code.to_owned(),
        value: value.map(Decimal::whole),
        samples: None,
        unit: unit.to_owned(),
        state,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use record::{
        ids::BootId,
        observation::Observation,
        reading::{Reading, TimeQuality, VERSION},
    };

    #[test]
    fn each_default_recording_fits_its_kind() {
        for kind in Kind::ALL {
            for index in 0..40 {
                let label = default_recording(kind, index);
                assert_eq!(Library::embedded().open(&label).expect("known").0, kind, "{label}");
            }
        }
    }

    #[test]
    fn what_is_no_label_is_refused_with_examples() {
        for bad in [
            "",
            "synthetic",
            "synthetic/unknown",
            "synthetic/blood-pressure/x",
            "ppg-finger-100hz+synthetic/x",
        ] {
            assert!(Library::embedded().open(bad).is_err(), "{bad}");
        }
        let refusal = expected("cgm-hall-2018/nobody").err().expect("unknown").to_string();
        assert!(refusal.contains("cgm-hall-2018/1636-69-001"), "{refusal}");
    }

    #[test]
    fn a_label_yields_the_same_series_each_time() {
        for kind in Kind::ALL {
            let label = default_recording(kind, 2);
            let series = || expected(&label).expect("known").take(700).collect::<Vec<_>>();
            assert_eq!(series(), series(), "{label}");
        }
    }

    #[test]
    fn seeds_tell_synthetic_people_apart() {
        let series = |label| expected(label).expect("known").take(20).collect::<Vec<_>>();
        assert_ne!(series("synthetic/blood-pressure"), series("synthetic/blood-pressure/1"));
        assert_ne!(series("synthetic/body-weight/1"), series("synthetic/body-weight/2"));
    }

    #[test]
    fn every_message_means_something_to_a_hospital() {
        for kind in Kind::ALL {
            for (seq, message) in (1..).zip(expected(&default_recording(kind, 1)).expect("known").take(1500)) {
                let reading = Reading {
                    v: VERSION,
                    device: "device-1".parse().expect("good"),
                    boot: BootId { counter: 1, random: 1 },
                    seq,
                    up_ms: seq,
                    wall: Some(1_790_000_000_000),
                    time_quality: TimeQuality::Synced,
                    observations: message.observations,
                };
                assert_eq!(Observation::of(&reading, 1_790_000_000_000).err(), None, "{kind} {seq}");
            }
        }
    }
}
