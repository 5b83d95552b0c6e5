//! Faults a fleet can be told to have: what real devices do wrong, each for a fraction of its readings; none by default.
//!
//! | fault | what the gateway must do |
//! | --- | --- |
//! | `drops` | report the number as missing, and ask for it in vain |
//! | `forgets` | ask for the number, and take it |
//! | `repeats`, `replays`, `reorder` | acknowledge, and keep one |
//! | `wrong_clock` | acknowledge, and mark the time |
//! | `wrong_unit` | refuse (0x99), and not miss the number |
//! | `wrong_key` | refuse (0x87); it cannot believe the number, so that is missing |
//! | `giants` | refuse (0x99) without reading it; the number is missing |
//! | `misdirected`, `flipped` | refuse (0x87): sealed for another gateway, device or channel, or altered; the number is missing |
//! | `truncated` | refuse (0x99): no sealed message any more; the number is missing |
//! | `unsealed` | refuse (0x99), where seals are required; the number is missing |
//!
//! Another outcome is counted as `unexpected`.

use std::fmt;

use record::{
    reading::{READING_BYTES_MAX, Reading, SignedReading},
    signature::SigningKey,
};
use serde::{Deserialize, Serialize};

/// A unit that no sign we know comes in: cubits.
const WRONG_UNIT: &str = "[cub]";

/// How often which fault strikes, as fractions of all readings; at most one strikes a reading.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Measured and numbered but never sent: a gap.
    pub drops: f64,
    /// Measured, numbered, kept, and not sent before the gateway asks for it.
    pub forgets: f64,
    /// Sent twice, byte for byte.
    pub repeats: f64,
    /// Sent once more after it was acknowledged, byte for byte.
    pub replays: f64,
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
    /// With more bytes than a message may have.
    pub giants: f64,
    /// Sealed for another gateway, device or channel than it is published for.
    pub misdirected: f64,
    /// Sealed, and cut off on the way.
    pub truncated: f64,
    /// Sealed, and a bit of it changed on the way.
    pub flipped: f64,
    /// In the clear, though the others are sealed: for a gateway that requires seals.
    pub unsealed: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            drops: 0.0,
            forgets: 0.0,
            repeats: 0.0,
            replays: 0.0,
            reorder: 0.0,
            wrong_clock: 0.0,
            wrong_clock_offset_ms: 24 * 60 * 60 * 1_000,
            wrong_unit: 0.0,
            wrong_key: 0.0,
            giants: 0.0,
            misdirected: 0.0,
            truncated: 0.0,
            flipped: 0.0,
            unsealed: 0.0,
        }
    }
}

/// What strikes a reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Drop,
    Forget,
    Repeat,
    Replay,
    Reorder,
    WrongClock { offset_ms: i64 },
    WrongUnit,
    WrongKey,
    Giant,
    Misdirected,
    Truncated,
    Flipped,
    Unsealed,
}

impl Fault {
    /// Whether the gateway must refuse the reading, rather than take it.
    pub(crate) const fn must_be_refused(self) -> bool {
        matches!(self, Self::WrongUnit | Self::WrongKey) || self.hides_number()
    }

    /// Whether the gateway cannot read the number.
    pub(crate) const fn hides_number(self) -> bool {
        matches!(self, Self::Giant | Self::Unsealed) || self.is_of_sealing()
    }

    /// Whether it spoils a seal.
    const fn is_of_sealing(self) -> bool {
        matches!(self, Self::Misdirected | Self::Truncated | Self::Flipped)
    }
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
            (self.forgets, Fault::Forget),
            (self.repeats, Fault::Repeat),
            (self.replays, Fault::Replay),
            (self.reorder, Fault::Reorder),
            (
                self.wrong_clock,
                Fault::WrongClock {
                    offset_ms: self.wrong_clock_offset_ms,
                },
            ),
            (self.wrong_unit, Fault::WrongUnit),
            (self.wrong_key, Fault::WrongKey),
            (self.giants, Fault::Giant),
            (self.misdirected, Fault::Misdirected),
            (self.truncated, Fault::Truncated),
            (self.flipped, Fault::Flipped),
            (self.unsealed, Fault::Unsealed),
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
    /// Whether one of them needs a seal to spoil.
    pub(crate) fn spoil_seals(&self) -> bool {
        let spoils = |fault: Fault| fault.is_of_sealing() || fault == Fault::Unsealed;
        self.ends.iter().any(|(_, fault)| spoils(*fault))
    }

    /// What strikes the next reading, given a random number from 0 to 1.
    pub(crate) fn strike(&self, chance: f64) -> Option<Fault> {
        self.ends.iter().find(|(end, _)| chance < *end).map(|(_, fault)| *fault)
    }
}

/// Spoils what the reading says, and signs it; the faults of delivery leave it as it is.
pub(crate) fn sign(mut reading: Reading, key: &SigningKey, fault: Option<Fault>) -> Vec<u8> {
    match fault {
        Some(Fault::WrongClock { offset_ms }) => reading.wall = reading.wall.map(|wall| wall.saturating_add(offset_ms)),
        Some(Fault::WrongUnit) => {
            reading
                .observations
                .iter_mut()
                .for_each(|measured| WRONG_UNIT.clone_into(&mut measured.unit));
        }
        Some(Fault::WrongKey) => return bytes(&reading.sign(&SigningKey::random())),
        Some(Fault::Giant) => {
            // Space around the JSON form is nobody's; without it the message would be good.
            let mut giant = bytes(&reading.sign_json(key));
            giant.resize(READING_BYTES_MAX + 1, b' ');
            return giant;
        }
        // Those of delivery, and those of sealing.
        _ => {}
    }
    bytes(&reading.sign(key))
}

fn bytes(signed: &SignedReading) -> Vec<u8> {
    signed.as_bytes().to_vec()
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
