//! Faults a fleet can be told to have: what real devices do wrong, each for a fraction of its readings; none by default.

use std::fmt;

use record::reading::Reading;
use serde::{Deserialize, Serialize};

/// A unit that no sign we know comes in: cubits.
const WRONG_UNIT: &str = "[cub]";

/// How often which fault strikes, as fractions of all readings; at most one strikes a reading.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Measured and numbered but never sent: a gap.
    pub drops: f64,
    /// Sent twice, byte for byte.
    pub repeats: f64,
    /// Overtaken by the next reading.
    pub reorder: f64,
    /// With a wall clock that is wrong by `wrong_clock_offset_ms` and does not know it.
    pub wrong_clock: f64,
    /// How wrong that clock is, in milliseconds; above zero it runs ahead.
    pub wrong_clock_offset_ms: i64,
    /// In a unit that the sign does not come in.
    pub wrong_unit: f64,
    /// Signed with a key that is not the device's.
    pub wrong_key: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            drops: 0.0,
            repeats: 0.0,
            reorder: 0.0,
            wrong_clock: 0.0,
            wrong_clock_offset_ms: 24 * 60 * 60 * 1_000,
            wrong_unit: 0.0,
            wrong_key: 0.0,
        }
    }
}

/// What strikes a reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Drop,
    Repeat,
    Reorder,
    WrongClock { offset_ms: i64 },
    WrongUnit,
    WrongKey,
}

/// The faults of a fleet, with fractions that make sense.
#[derive(Clone, Debug)]
pub(crate) struct Faults {
    /// Each with the upper end of its part of 0..1.
    ends: Vec<(f64, Fault)>,
}

/// Fractions that make no sense.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BadFractions;

impl fmt::Display for BadFractions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[fault] each fraction must lie between 0 and 1, and all of them together too")
    }
}

impl Config {
    /// The faults with these fractions.
    pub(crate) fn faults(&self) -> Result<Faults, BadFractions> {
        let fractions = [
            (self.drops, Fault::Drop),
            (self.repeats, Fault::Repeat),
            (self.reorder, Fault::Reorder),
            (
                self.wrong_clock,
                Fault::WrongClock {
                    offset_ms: self.wrong_clock_offset_ms,
                },
            ),
            (self.wrong_unit, Fault::WrongUnit),
            (self.wrong_key, Fault::WrongKey),
        ];
        let (mut ends, mut end) = (Vec::new(), 0.0);
        for (fraction, fault) in fractions {
            if !(0.0..=1.0).contains(&fraction) {
                return Err(BadFractions);
            }
            end += fraction;
            if fraction > 0.0 {
                ends.push((end, fault));
            }
        }
        // A little more than one is rounding, not a mistake.
        if end > 1.000_001 {
            Err(BadFractions)
        } else {
            Ok(Faults { ends })
        }
    }
}

impl Faults {
    /// What strikes the next reading, given a random number from 0 to 1.
    pub(crate) fn strike(&self, chance: f64) -> Option<Fault> {
        self.ends.iter().find(|(end, _)| chance < *end).map(|(_, fault)| *fault)
    }
}

/// Spoils what the reading says; the faults of delivery leave it as it is.
pub(crate) fn spoil(reading: &mut Reading, fault: Option<Fault>) {
    match fault {
        Some(Fault::WrongClock { offset_ms }) => reading.wall = reading.wall.map(|wall| wall.saturating_add(offset_ms)),
        Some(Fault::WrongUnit) => {
            reading
                .observations
                .iter_mut()
                .for_each(|measured| WRONG_UNIT.clone_into(&mut measured.unit));
        }
        Some(Fault::Drop | Fault::Repeat | Fault::Reorder | Fault::WrongKey) | None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_strikes_by_default() {
        let faults = Config::default().faults().expect("good");
        assert!((0..1_000).all(|n| faults.strike(f64::from(n) / 1_000.0).is_none()));
    }

    #[test]
    fn each_strikes_as_often_as_it_is_told() {
        let config = Config {
            drops: 0.1,
            wrong_unit: 0.2,
            wrong_key: 0.3,
            ..Config::default()
        };
        let faults = config.faults().expect("good");
        let struck: Vec<_> = (0..1_000)
            .map(|n| faults.strike(f64::from(n) / 1_000.0 + 0.000_5))
            .collect();
        let count = |fault| struck.iter().filter(|s| **s == fault).count();
        assert_eq!(count(Some(Fault::Drop)), 100);
        assert_eq!(count(Some(Fault::WrongUnit)), 200);
        assert_eq!(count(Some(Fault::WrongKey)), 300);
        assert_eq!(count(None), 400);
    }

    #[test]
    fn fractions_that_make_no_sense_are_refused() {
        for config in [
            Config {
                drops: -0.1,
                ..Config::default()
            },
            Config {
                drops: f64::NAN,
                ..Config::default()
            },
            Config {
                drops: 0.6,
                repeats: 0.6,
                ..Config::default()
            },
        ] {
            assert!(config.faults().is_err(), "{config:?}");
        }
    }
}
