//! A reading in clinical terms: known codes, allowed units, plausible values, the time it holds for.

use crate::{
    canonical::{Digest, Domain},
    clock::Reception,
    decimal::Decimal,
    ids::ReadingId,
    reading::{Measured, MeasurementState, Reading, Reason, Refusal, Samples, TimeQuality},
    vital::{self, Sign, Unit},
};
use std::cmp::Ordering;

/// A reading's wall clock further ahead of the gateway than this is flagged, never rewritten, in milliseconds.
pub const SKEW_FLAG_MS: i64 = 300_000;

/// A reading's wall clock further behind the gateway than this is flagged, never rewritten, in milliseconds: 30 days, longer
/// than a device is expected to hold a reading back.
pub const LAG_FLAG_MS: i64 = 30 * 86_400_000;
/// A wall clock before this is flagged even if the gateway's own is as wrong: 2020-01-01T00:00:00Z, when nobody could
/// measure for us yet.
pub const WALL_MS_MIN: i64 = 1_577_836_800_000;

/// Wall clocks that can be written as a date at all, in milliseconds since 1970: the years 1 to 9998. Another one is no time
/// that anybody could look for.
const WALL_MS_WRITABLE: std::ops::RangeInclusive<i64> = -62_135_596_800_000..=253_370_764_799_999;

/// A number with its unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quantity {
    /// The number.
    pub value: Decimal,
    /// UCUM code of the unit.
    pub unit: &'static str,
}

/// Whether the value, or each sample of a block, lies in the flag range of its sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interpretation {
    /// Inside.
    Normal,
    /// Below.
    Low,
    /// Above.
    High,
    /// A block with samples below and samples above.
    Abnormal,
}

/// What was observed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// One number.
    Quantity(Quantity, Interpretation),
    /// The components of a panel.
    Components(Vec<(&'static Sign, Quantity, Interpretation)>),
    /// A block of a waveform.
    Samples(Samples, &'static str, Interpretation),
    /// The sensor had no value.
    Absent,
}

/// One clinical statement made by a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// The reading it comes from.
    pub reading: ReadingId,
    /// Which of the reading's observations, from 0.
    pub index: u16,
    /// What was measured.
    pub sign: &'static Sign,
    /// The result.
    pub value: Value,
    /// When it holds, in milliseconds since 1970.
    pub effective_ms: i64,
    /// When the gateway received it, in milliseconds since 1970.
    pub received_ms: i64,
    /// How far `effective_ms` can be trusted.
    pub time_quality: TimeQuality,
    /// The device's tick counter when it measured, in milliseconds since boot, as it was signed.
    pub up_ms: u64,
    /// The device's wall clock when it measured, in milliseconds since 1970, as it was signed; none if it has none.
    pub wall_ms: Option<i64>,
    /// Whether the sensor doubted its own measurement.
    pub questionable: bool,
}

impl PartialEq for Sign {
    fn eq(&self, other: &Self) -> bool {
        self.code == other.code
    }
}

impl Eq for Sign {}

impl Observation {
    /// Puts a reading in clinical terms; the same reading and reception give the same observations on every machine.
    ///
    /// # Errors
    /// [`Reason::UnknownCode`], [`Reason::WrongUnit`], [`Reason::Implausible`] or [`Reason::Malformed`].
    pub fn of(reading: &Reading, reception: impl Into<Reception>) -> Result<Vec<Self>, Refusal> {
        let reception = reception.into();
        if reading.wall.is_some_and(|wall| !WALL_MS_WRITABLE.contains(&wall)) {
            let detail = "wall is no time between the years 1 and 9998; a device without a clock leaves it out";
            return Err(Refusal::new(Reason::Implausible, detail));
        }
        let mut components = Vec::new();
        let mut observations: Vec<(&'static Sign, Value, bool)> = Vec::new();
        for measured in &reading.observations {
            let sign = Sign::of(&measured.code)
                .filter(|sign| !sign.units.is_empty())
                .ok_or_else(|| {
                    Refusal::new(
                        Reason::UnknownCode,
                        "a code is not among those this network knows (docs/GLOSSARY.md lists them)",
                    )
                })?;
            let value = value_of(sign, measured)?;
            let questionable = measured.state == MeasurementState::Questionable;
            match value {
                Value::Quantity(quantity, interpretation) if is_pressure(sign) => {
                    components.push((sign, quantity, interpretation, questionable));
                }
                value => observations.push((sign, value, questionable)),
            }
        }
        if !components.is_empty() {
            observations.insert(0, panel(components));
        }
        let (effective_ms, time_quality) = effective(reading, reception);
        Ok((0u16..)
            .zip(observations)
            .map(|(index, (sign, value, questionable))| Self {
                reading: reading.id(),
                index,
                sign,
                value,
                effective_ms,
                received_ms: reception.received_ms,
                time_quality,
                up_ms: reading.up_ms,
                wall_ms: reading.wall,
                questionable,
            })
            .collect())
    }

    /// The FHIR logical id: the same on every node that may read it, and no hint for one that may not.
    #[must_use]
    pub fn id(&self) -> String {
        let text = format!("{}/{}", self.reading, self.index);
        hex::encode(&Digest::of(Domain::OBSERVATION, &[text.as_bytes()]).as_bytes()[..16])
    }
}

fn is_pressure(sign: &Sign) -> bool {
    [vital::SYSTOLIC, vital::DIASTOLIC, vital::MEAN_PRESSURE].contains(&sign.code)
}

fn panel(components: Vec<(&'static Sign, Quantity, Interpretation, bool)>) -> (&'static Sign, Value, bool) {
    let sign = Sign::of(vital::BLOOD_PRESSURE_PANEL).expect("the panel is in the table of signs");
    let questionable = components.iter().any(|c| c.3);
    (
        sign,
        Value::Components(
            components
                .into_iter()
                .map(|(sign, quantity, flag, _)| (sign, quantity, flag))
                .collect(),
        ),
        questionable,
    )
}

fn value_of(sign: &'static Sign, measured: &Measured) -> Result<Value, Refusal> {
    let unit = sign.unit(&measured.unit).ok_or_else(|| {
        let allowed: Vec<_> = sign.units.iter().map(|u| u.ucum).collect();
        Refusal::new(
            Reason::WrongUnit,
            format!("{} comes in {}", sign.code, allowed.join(" or ")),
        )
    })?;
    match (&measured.value, &measured.samples, measured.state) {
        (None, None, MeasurementState::Absent) => Ok(Value::Absent),
        (Some(value), None, MeasurementState::Valid | MeasurementState::Questionable) if !sign.waveform => {
            let interpretation = interpret(sign, unit, (value.billionths(), value.billionths()))?;
            Ok(Value::Quantity(
                Quantity {
                    value: *value,
                    unit: unit.ucum,
                },
                interpretation,
            ))
        }
        (None, Some(samples), MeasurementState::Valid | MeasurementState::Questionable) if sign.waveform => {
            let extent = extent(samples).ok_or_else(|| {
                Refusal::new(
                    Reason::Malformed,
                    "a waveform block needs samples and a period above 0 ms",
                )
            })?;
            let interpretation = interpret(sign, unit, extent)?;
            Ok(Value::Samples(samples.clone(), unit.ucum, interpretation))
        }
        _ => Err(Refusal::new(
            Reason::Malformed,
            format!(
                "{} needs exactly one of value, samples or state \"absent\", and samples only for waveforms",
                sign.code
            ),
        )),
    }
}

/// The lowest and the highest value of a block, in billionths; `None` if it is no block.
fn extent(samples: &Samples) -> Option<(i128, i128)> {
    if samples.period_ms.cmp_magnitude(Decimal::whole(0)) != Ordering::Greater {
        return None;
    }
    let value = |sample: &i32| samples.origin.billionths() + samples.factor.billionths() * i128::from(*sample);
    let ends = (value(samples.data.iter().min()?), value(samples.data.iter().max()?));
    // A negative factor turns the block upside down.
    Some((ends.0.min(ends.1), ends.0.max(ends.1)))
}

fn interpret(sign: &Sign, unit: &Unit, (lowest, highest): (i128, i128)) -> Result<Interpretation, Refusal> {
    let below = |limit: Decimal| lowest < limit.billionths();
    let above = |limit: Decimal| highest > limit.billionths();
    if below(unit.plausible.0) || above(unit.plausible.1) {
        let detail = format!(
            "{} in {} lies between {} and {}",
            sign.display, unit.ucum, unit.plausible.0, unit.plausible.1
        );
        return Err(Refusal::new(Reason::Implausible, detail));
    }
    Ok(match (below(unit.flag.0), above(unit.flag.1)) {
        (true, true) => Interpretation::Abnormal,
        (true, false) => Interpretation::Low,
        (false, true) => Interpretation::High,
        (false, false) => Interpretation::Normal,
    })
}

/// The device's own clock where it says one, else its tick counter on the gateway's clock, else when the gateway received it.
/// A time far ahead of the gateway, or far behind, is marked unknown whatever the device thinks of it, and not corrected.
fn effective(reading: &Reading, Reception { received_ms, clock }: Reception) -> (i64, TimeQuality) {
    let oldest = received_ms.saturating_sub(LAG_FLAG_MS).max(WALL_MS_MIN);
    let newest = received_ms.saturating_add(SKEW_FLAG_MS);
    let is_near = |ms| (oldest..=newest).contains(&ms);
    match (reading.wall, clock) {
        (Some(wall), _) if is_near(wall) => (wall, reading.time_quality),
        (Some(wall), _) => (wall, TimeQuality::Unknown),
        (None, None) => (received_ms, TimeQuality::Relative),
        (None, Some(pair)) => match pair.time_of(reading.up_ms) {
            // What was received had been measured.
            ms if is_near(ms) => (ms.min(received_ms), TimeQuality::Corrected),
            // No pair of this start: a count may not move a reading out of sight.
            _ => (received_ms, TimeQuality::Unknown),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock::Coincidence, reading::tests::reading};

    fn measured(code: &str, value: &str, unit: &str) -> Measured {
        let value = Some(value.parse().expect("decimal"));
        Measured {
            code: code.to_owned(),
            value,
            samples: None,
            unit: unit.to_owned(),
            state: MeasurementState::Valid,
        }
    }

    fn of(observations: Vec<Measured>) -> Result<Vec<Observation>, Refusal> {
        Observation::of(
            &Reading {
                observations,
                ..reading()
            },
            1_790_000_000_000,
        )
    }

    #[test]
    fn pressures_of_one_message_are_one_panel() {
        let all = of(vec![
            measured("8480-6", "128", "mm[Hg]"),
            measured("8462-4", "82", "mm[Hg]"),
            measured("8867-4", "61", "/min"),
        ])
        .expect("good");
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].sign.code, vital::BLOOD_PRESSURE_PANEL);
        assert!(matches!(&all[0].value, Value::Components(c) if c.len() == 2));
        assert_ne!(all[0].id(), all[1].id());
    }

    #[test]
    fn an_unusual_value_is_flagged_and_an_absurd_one_refused() {
        let hot = of(vec![measured("8867-4", "220", "/min")]).expect("flagged");
        assert!(matches!(hot[0].value, Value::Quantity(_, Interpretation::High)));
        assert_eq!(
            of(vec![measured("8867-4", "9000", "/min")]).expect_err("absurd").reason,
            Reason::Implausible
        );
        assert_eq!(
            of(vec![measured("59408-5", "101", "%")]).expect_err("absurd").reason,
            Reason::Implausible
        );
    }

    #[test]
    fn a_wrong_unit_says_which_are_right() {
        let refusal = of(vec![measured("8310-5", "36.6", "K")]).expect_err("Kelvin");
        assert_eq!(refusal.reason, Reason::WrongUnit);
        assert!(refusal.detail.contains("Cel or [degF]"));
    }

    #[test]
    fn a_clock_far_ahead_is_flagged_not_rewritten() {
        let ahead = Reading {
            wall: Some(1_790_000_000_000 + SKEW_FLAG_MS + 1),
            ..reading()
        };
        let all = Observation::of(&ahead, 1_790_000_000_000).expect("good");
        assert_eq!(
            (all[0].effective_ms, all[0].time_quality),
            (1_790_000_300_001, TimeQuality::Unknown)
        );
    }

    fn clock(wall: i64, received_ms: i64) -> (i64, TimeQuality) {
        let wall = Some(wall);
        let all = Observation::of(&Reading { wall, ..reading() }, received_ms).expect("good");
        (all[0].effective_ms, all[0].time_quality)
    }

    #[test]
    fn a_clock_that_lost_its_date_is_flagged_not_rewritten() {
        let now = 1_790_000_000_000;
        assert_eq!(clock(0, now), (0, TimeQuality::Unknown));
        let (late, later) = (now - LAG_FLAG_MS, now - LAG_FLAG_MS - 1);
        assert_eq!(clock(late, now), (late, TimeQuality::Synced));
        assert_eq!(clock(later, now), (later, TimeQuality::Unknown));
        // Device and gateway both without a date agree, and are both wrong.
        assert_eq!(clock(1_000, 2_000), (1_000, TimeQuality::Unknown));
        assert_eq!(clock(1_000, i64::MIN).1, TimeQuality::Unknown);
        assert_eq!(clock(1_000, i64::MAX).1, TimeQuality::Unknown);
    }

    #[test]
    fn ticks_become_a_time_by_the_pair_that_came_with_them() {
        let now = 1_790_000_000_000;
        let timed = |up_ms, clock| {
            let reading = Reading {
                up_ms,
                wall: None,
                time_quality: TimeQuality::Relative,
                ..reading()
            };
            let reception = Reception {
                received_ms: now,
                clock,
            };
            let one = Observation::of(&reading, reception).expect("good").remove(0);
            assert_eq!(
                (one.received_ms, one.up_ms, one.wall_ms),
                (now, up_ms, None),
                "nothing is rewritten"
            );
            (one.effective_ms, one.time_quality)
        };
        let pair = |gateway_ms, up_ms| Some(Coincidence { gateway_ms, up_ms });
        assert_eq!(timed(4_000, None), (now, TimeQuality::Relative));
        assert_eq!(timed(4_000, pair(now, 64_000)), (now - 60_000, TimeQuality::Corrected));
        assert_eq!(
            timed(9_000, pair(now - 500, 8_900)),
            (now - 400, TimeQuality::Corrected)
        );
        assert_eq!(
            timed(9_000, pair(now, 8_900)),
            (now, TimeQuality::Corrected),
            "not after it was received"
        );
        for foreign in [
            pair(0, 0),
            pair(now, u64::MAX),
            pair(i64::MAX, 0),
            pair(i64::MIN, u64::MAX),
        ] {
            assert_eq!(timed(4_000, foreign), (now, TimeQuality::Unknown), "{foreign:?}");
        }
        // A wall clock goes before.
        let reception = Reception {
            received_ms: now,
            clock: pair(now, 64_000),
        };
        let one = Observation::of(&reading(), reception).expect("good").remove(0);
        assert_eq!((one.effective_ms, one.wall_ms), (now, Some(now)));
    }

    #[test]
    fn a_time_that_nobody_can_write_is_refused() {
        for wall in [i64::MIN, i64::MAX, 253_402_300_799_000, -62_135_596_800_001] {
            let reading = Reading {
                wall: Some(wall),
                ..reading()
            };
            let refusal = Observation::of(&reading, 1_790_000_000_000).expect_err("no date");
            assert_eq!(refusal.reason, Reason::Implausible, "{wall}");
        }
    }

    fn wave(origin: &str, factor: &str, data: &[i32]) -> Result<Value, Refusal> {
        let decimal = |text: &str| text.parse().expect("decimal");
        let samples = Samples {
            origin: decimal(origin),
            period_ms: Decimal::whole(4),
            factor: decimal(factor),
            data: data.to_vec(),
        };
        let block = Measured {
            value: None,
            samples: Some(samples),
            ..measured("11524-6", "0", "mV")
        };
        of(vec![block]).map(|mut all| all.remove(0).value)
    }

    fn flag(value: &Value) -> Interpretation {
        match value {
            Value::Samples(_, _, flag) => *flag,
            other => panic!("no block: {other:?}"),
        }
    }

    #[test]
    fn a_block_with_one_absurd_sample_is_refused() {
        // 1,000 mV are the limit: the last digit decides, which a float would not see.
        assert!(wave("0.000000001", "0.5", &[0, 1_999]).is_ok());
        assert!(wave("0", "0.5", &[2_000]).is_ok());
        for (origin, factor, data) in [
            ("0.000000001", "0.5", [0, 2_000]),
            ("0", "0.5", [0, 2_001]),
            ("0", "0.5", [-2_001, 0]),
            ("0", "-0.5", [0, 2_001]),
            ("1001", "0", [0, 0]),
            ("0", "999999999999999999", [i32::MIN, i32::MAX]),
        ] {
            let refusal = wave(origin, factor, &data).expect_err("absurd");
            assert_eq!(refusal.reason, Reason::Implausible, "{origin} {factor} {data:?}");
            assert!(!refusal.detail.contains("2001"), "{}", refusal.detail);
        }
    }

    #[test]
    fn no_block_is_too_large_for_exact_arithmetic() {
        let extreme = Decimal::new(i64::MIN, 0).expect("scale 0");
        let block = Samples {
            origin: extreme,
            period_ms: Decimal::whole(1),
            factor: extreme,
            data: vec![i32::MIN, i32::MAX],
        };
        let (lowest, highest) = extent(&block).expect("a block");
        assert!(lowest < 0 && highest > 0);
    }

    #[test]
    fn an_unusual_block_is_flagged() {
        let flagged = |data: &[i32]| flag(&wave("0", "0.001", data).expect("plausible"));
        assert_eq!(flagged(&[-5_000, 5_000]), Interpretation::Normal);
        assert_eq!(flagged(&[-5_001, 0]), Interpretation::Low);
        assert_eq!(flagged(&[0, 5_001]), Interpretation::High);
        assert_eq!(flagged(&[-5_001, 5_001]), Interpretation::Abnormal);
    }
}
