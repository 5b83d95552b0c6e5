//! The signs we know: their codes, UCUM units, the range that is flagged and the limits a body or sensor cannot exceed.
//!
//! Sources: HL7 FHIR R4 vital-signs profiles; gematik value sets for glucose; HL7 physical activity guide for steps. The
//! flag range becomes `Observation.interpretation` and never loses a reading; a value outside the plausible limits is what
//! the wire cannot mean and goes to quarantine.

use crate::decimal::Decimal;

/// Who gave out a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeSystem {
    /// LOINC.
    Loinc,
    /// ISO/IEEE 11073-10101 (MDC), for what LOINC does not name.
    Mdc,
}

impl CodeSystem {
    /// The system's URI in FHIR.
    #[must_use]
    pub const fn uri(self) -> &'static str {
        match self {
            Self::Loinc => "http://loinc.org",
            Self::Mdc => "urn:iso:std:iso:11073:10101",
        }
    }
}

/// The FHIR category an observation is filed under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// FHIR R4 vital-signs profile.
    VitalSigns,
    /// Glucose and the like.
    Laboratory,
    /// Waveforms.
    Procedure,
    /// Steps, sleep.
    Activity,
}

impl Class {
    /// The code in `http://terminology.hl7.org/CodeSystem/observation-category`.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::VitalSigns => "vital-signs",
            Self::Laboratory => "laboratory",
            Self::Procedure => "procedure",
            Self::Activity => "activity",
        }
    }
}

/// A unit a sign may come in, with the flagged range and the plausible limits in that unit.
#[derive(Debug)]
pub struct Unit {
    /// UCUM code, as on the wire and in FHIR.
    pub ucum: &'static str,
    /// Below or above this the observation is flagged.
    pub flag: (Decimal, Decimal),
    /// Below or above this the message is quarantined.
    pub plausible: (Decimal, Decimal),
}

/// A sign we know.
#[derive(Debug)]
pub struct Sign {
    /// Who gave out the code.
    pub system: CodeSystem,
    /// The code.
    pub code: &'static str,
    /// A second LOINC code that FHIR's profile asks for.
    pub also: Option<(&'static str, &'static str)>,
    /// The name people read.
    pub display: &'static str,
    /// Where FHIR files it.
    pub class: Class,
    /// The units it may come in, the usual one first.
    pub units: &'static [Unit],
    /// Whether it is a block of samples.
    pub waveform: bool,
}

impl Sign {
    /// The sign with this code (or the profile's second code).
    #[must_use]
    pub fn of(code: &str) -> Option<&'static Self> {
        SIGNS
            .iter()
            .find(|sign| sign.code == code || sign.also.is_some_and(|(also, _)| also == code))
    }

    /// The unit with this UCUM code, if the sign may come in it.
    #[must_use]
    pub fn unit(&self, ucum: &str) -> Option<&'static Unit> {
        self.units.iter().find(|unit| unit.ucum == ucum)
    }
}

/// LOINC code of the blood pressure panel: systolic and diastolic of one message become its components.
pub const BLOOD_PRESSURE_PANEL: &str = "85354-9";
/// LOINC code of systolic pressure.
pub const SYSTOLIC: &str = "8480-6";
/// LOINC code of diastolic pressure.
pub const DIASTOLIC: &str = "8462-4";
/// LOINC code of mean pressure.
pub const MEAN_PRESSURE: &str = "8478-0";

const fn d(number: i64) -> Decimal {
    Decimal::whole(number)
}

const fn tenths(number: i64) -> Decimal {
    match Decimal::new(number, 1) {
        Some(decimal) => decimal,
        None => Decimal::whole(0),
    }
}

const fn unit(ucum: &'static str, flag: (i64, i64), plausible: (i64, i64)) -> Unit {
    Unit {
        ucum,
        flag: (d(flag.0), d(flag.1)),
        plausible: (d(plausible.0), d(plausible.1)),
    }
}

const fn sign(code: &'static str, display: &'static str, class: Class, units: &'static [Unit]) -> Sign {
    Sign {
        system: CodeSystem::Loinc,
        code,
        also: None,
        display,
        class,
        units,
        waveform: false,
    }
}

/// All signs we know.
pub static SIGNS: &[Sign] = &[
    sign(
        "8867-4",
        "Heart rate",
        Class::VitalSigns,
        &[unit("/min", (30, 200), (0, 350))],
    ),
    Sign {
        system: CodeSystem::Loinc,
        code: "2708-6",
        also: Some(("59408-5", "Oxygen saturation in Arterial blood by Pulse oximetry")),
        display: "Oxygen saturation in Arterial blood",
        class: Class::VitalSigns,
        units: &[unit("%", (70, 100), (0, 100))],
        waveform: false,
    },
    sign(
        "85354-9",
        "Blood pressure panel with all children optional",
        Class::VitalSigns,
        &[],
    ),
    sign(
        "8480-6",
        "Systolic blood pressure",
        Class::VitalSigns,
        &[unit("mm[Hg]", (70, 250), (20, 350))],
    ),
    sign(
        "8462-4",
        "Diastolic blood pressure",
        Class::VitalSigns,
        &[unit("mm[Hg]", (40, 150), (10, 250))],
    ),
    sign(
        "8478-0",
        "Mean blood pressure",
        Class::VitalSigns,
        &[unit("mm[Hg]", (50, 180), (10, 300))],
    ),
    sign(
        "8310-5",
        "Body temperature",
        Class::VitalSigns,
        &[unit("Cel", (30, 45), (15, 50)), unit("[degF]", (86, 113), (59, 122))],
    ),
    sign(
        "9279-1",
        "Respiratory rate",
        Class::VitalSigns,
        &[unit("/min", (4, 60), (0, 150))],
    ),
    sign(
        "41653-7",
        "Glucose [Mass/volume] in Capillary blood by Glucometer",
        Class::Laboratory,
        &[unit("mg/dL", (20, 600), (0, 2000))],
    ),
    sign(
        "14743-9",
        "Glucose [Moles/volume] in Capillary blood by Glucometer",
        Class::Laboratory,
        &[Unit {
            ucum: "mmol/L",
            flag: (tenths(11), tenths(333)),
            plausible: (d(0), d(111)),
        }],
    ),
    sign(
        "99504-3",
        "Glucose [Mass/volume] in Interstitial fluid",
        Class::Laboratory,
        &[unit("mg/dL", (40, 400), (0, 2000))],
    ),
    sign(
        "105272-9",
        "Glucose [Moles/volume] in Interstitial fluid",
        Class::Laboratory,
        &[Unit {
            ucum: "mmol/L",
            flag: (tenths(22), tenths(222)),
            plausible: (d(0), d(111)),
        }],
    ),
    sign(
        "29463-7",
        "Body weight",
        Class::VitalSigns,
        &[
            unit("kg", (20, 500), (0, 700)),
            unit("g", (20_000, 500_000), (0, 700_000)),
            unit("[lb_av]", (44, 1_102), (0, 1_543)),
        ],
    ),
    sign(
        "41950-7",
        "Number of steps in 24 hour Measured",
        Class::Activity,
        &[unit("{steps}/d", (0, 100_000), (0, 1_000_000))],
    ),
    sign(
        "55423-8",
        "Number of steps in unspecified time Pedometer",
        Class::Activity,
        &[unit("1", (0, 100_000), (0, 1_000_000))],
    ),
    sign(
        "80404-7",
        "R-R interval.standard deviation (Heart rate variability)",
        Class::VitalSigns,
        &[unit("ms", (5, 300), (0, 5_000))],
    ),
    Sign {
        system: CodeSystem::Loinc,
        code: "11524-6",
        also: None,
        display: "EKG study",
        class: Class::Procedure,
        units: &[unit("mV", (-5, 5), (-1_000, 1_000))],
        waveform: true,
    },
    Sign {
        system: CodeSystem::Mdc,
        code: "150452",
        also: None,
        display: "Pulse oximetry plethysmogram",
        class: Class::Procedure,
        units: &[unit("1", (-1_000_000, 1_000_000), (-1_000_000_000, 1_000_000_000))],
        waveform: true,
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::{cmp::Ordering, collections::HashSet};

    #[test]
    fn every_code_is_listed_once() {
        let mut seen = HashSet::new();
        for sign in SIGNS {
            assert!(seen.insert(sign.code), "{}", sign.code);
        }
    }

    #[test]
    fn the_flag_range_lies_within_the_plausible_limits() {
        for (sign, unit) in SIGNS.iter().flat_map(|s| s.units.iter().map(move |u| (s, u))) {
            assert_ne!(
                unit.plausible.0.cmp_magnitude(unit.flag.0),
                Ordering::Greater,
                "{}",
                sign.code
            );
            assert_ne!(
                unit.flag.1.cmp_magnitude(unit.plausible.1),
                Ordering::Greater,
                "{}",
                sign.code
            );
        }
    }
}
