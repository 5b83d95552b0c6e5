//! FHIR dates in searches: a prefix and a date of any precision become a span of time.

use jiff::{
    Timestamp, ToSpan as _,
    civil::{Date, DateTime},
    tz::{Offset, TimeZone},
};

use crate::index::DateRange;

/// The times that a search value such as `ge2026-09-21` or `2026-09` lets through.
///
/// # Errors
/// A sentence that says what to write.
pub fn parse(text: &str) -> Result<DateRange, String> {
    let (prefix, date) = match text.find(|c: char| !c.is_ascii_alphabetic()) {
        Some(at) => text.split_at(at),
        None => (text, ""),
    };
    let DateRange { from_ms, to_ms } = span(date).ok_or_else(|| {
        "a date is written 2026, 2026-09, 2026-09-21 or 2026-09-21T14:00:00Z, after one of eq, gt, lt, ge, le, sa, eb".to_owned()
    })?;
    Ok(match prefix {
        "" | "eq" => DateRange { from_ms, to_ms },
        "ge" => DateRange {
            from_ms,
            to_ms: i64::MAX,
        },
        "le" => DateRange {
            from_ms: i64::MIN,
            to_ms,
        },
        // What we search has millisecond precision: after the whole day means after its last millisecond.
        "gt" | "sa" => DateRange {
            from_ms: to_ms,
            to_ms: i64::MAX,
        },
        "lt" | "eb" => DateRange {
            from_ms: i64::MIN,
            to_ms: from_ms,
        },
        _ => {
            return Err(format!(
                "the date prefix {prefix:?} is not supported; use eq, gt, lt, ge, le, sa or eb"
            ));
        }
    })
}

/// The span that a date of partial precision names.
fn span(text: &str) -> Option<DateRange> {
    // In a query string a plus sign that was not escaped arrives as a space.
    let text = text.replace(' ', "+");
    let Some((date, time)) = text.split_once('T') else {
        return days(&text);
    };
    let date = full_date(date)?;
    let (time, offset) = zone(time)?;
    let (clock, nanoseconds, length_ms) = clock(time)?;
    let start = DateTime::from_parts(
        date,
        jiff::civil::Time::new(clock[0], clock[1], clock[2], nanoseconds).ok()?,
    );
    let start = start
        .to_zoned(TimeZone::fixed(offset))
        .ok()?
        .timestamp()
        .as_millisecond();
    Some(DateRange {
        from_ms: start,
        to_ms: start.checked_add(length_ms)?,
    })
}

/// `2026`, `2026-09` or `2026-09-21`, in UTC.
fn days(text: &str) -> Option<DateRange> {
    let parts: Vec<_> = text.split('-').collect();
    let year = number(parts.first()?, 4)?;
    let (first, after) = match parts[1..] {
        [] => {
            let first = Date::new(year, 1, 1).ok()?;
            (first, first.checked_add(1.year()).ok()?)
        }
        [month] => {
            let first = Date::new(year, i8::try_from(number(month, 2)?).ok()?, 1).ok()?;
            (first, first.checked_add(1.month()).ok()?)
        }
        _ => {
            let first = full_date(text)?;
            (first, first.tomorrow().ok()?)
        }
    };
    Some(DateRange {
        from_ms: midnight(first)?,
        to_ms: midnight(after)?,
    })
}

fn full_date(text: &str) -> Option<Date> {
    let parts: Vec<_> = text.split('-').collect();
    let [year, month, day] = parts[..] else { return None };
    Date::new(
        number(year, 4)?,
        i8::try_from(number(month, 2)?).ok()?,
        i8::try_from(number(day, 2)?).ok()?,
    )
    .ok()
}

fn midnight(date: Date) -> Option<i64> {
    date.to_zoned(TimeZone::UTC)
        .ok()
        .map(|at| Timestamp::from(at).as_millisecond())
}

/// Splits `Z` or `+02:00` off; a time without a zone is taken as UTC.
fn zone(text: &str) -> Option<(&str, Offset)> {
    if let Some(time) = text.strip_suffix('Z') {
        return Some((time, Offset::UTC));
    }
    let Some(at) = text.find(['+', '-']) else {
        return Some((text, Offset::UTC));
    };
    let (time, zone) = text.split_at(at);
    let (hours, minutes) = zone[1..].split_once(':')?;
    let (hours, minutes) = (number(hours, 2)?, number(minutes, 2)?);
    if hours > 14 || minutes > 59 {
        return None;
    }
    let seconds = i32::from(hours) * 3_600 + i32::from(minutes) * 60;
    Some((
        time,
        Offset::from_seconds(if zone.starts_with('-') { -seconds } else { seconds }).ok()?,
    ))
}

/// `14:00`, `14:00:00` or `14:00:00.123`: hour, minute, second; nanoseconds; how many milliseconds it stands for.
fn clock(text: &str) -> Option<([i8; 3], i32, i64)> {
    let two = |text: &str| i8::try_from(number(text, 2)?).ok();
    let parts: Vec<_> = text.split(':').collect();
    match parts[..] {
        [hour, minute] => Some(([two(hour)?, two(minute)?, 0], 0, 60_000)),
        [hour, minute, second] => {
            let (second, fraction) = second
                .split_once('.')
                .map_or((second, None), |(second, rest)| (second, Some(rest)));
            let clock = [two(hour)?, two(minute)?, two(second)?];
            let Some(fraction) = fraction else {
                return Some((clock, 0, 1_000));
            };
            let digits = fraction.len();
            if !(1..=9).contains(&digits) || !fraction.bytes().all(|b| b.is_ascii_digit()) {
                return None;
            }
            // Milliseconds are as fine as we keep time.
            let milliseconds: i32 = format!("{fraction:0<3}")[..3].parse().ok()?;
            let length_ms = [100, 10, 1][digits.min(3) - 1];
            Some((clock, milliseconds * 1_000_000, length_ms))
        }
        _ => None,
    }
}

/// A number of exactly this many digits.
fn number(text: &str, digits: usize) -> Option<i16> {
    let right = text.len() == digits && text.bytes().all(|b| b.is_ascii_digit());
    if right { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ms(text: &str) -> i64 {
        text.parse::<Timestamp>().expect("a timestamp").as_millisecond()
    }

    fn between(from: &str, to: &str) -> DateRange {
        DateRange {
            from_ms: ms(from),
            to_ms: ms(to),
        }
    }

    #[test]
    fn each_precision_names_its_span() {
        for (text, from, to) in [
            ("2026", "2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z"),
            ("2026-02", "2026-02-01T00:00:00Z", "2026-03-01T00:00:00Z"),
            ("eq2024-02-29", "2024-02-29T00:00:00Z", "2024-03-01T00:00:00Z"),
            ("2026-09-21T14:05", "2026-09-21T14:05:00Z", "2026-09-21T14:06:00Z"),
            ("2026-09-21T14:05:06Z", "2026-09-21T14:05:06Z", "2026-09-21T14:05:07Z"),
            (
                "2026-09-21T14:05:06+02:00",
                "2026-09-21T12:05:06Z",
                "2026-09-21T12:05:07Z",
            ),
            (
                "2026-09-21T14:05:06 02:00",
                "2026-09-21T12:05:06Z",
                "2026-09-21T12:05:07Z",
            ),
            (
                "2026-09-21T14:05:06.12-05:30",
                "2026-09-21T19:35:06.120Z",
                "2026-09-21T19:35:06.130Z",
            ),
            (
                "2026-09-21T14:05:06.123456Z",
                "2026-09-21T14:05:06.123Z",
                "2026-09-21T14:05:06.124Z",
            ),
        ] {
            assert_eq!(parse(text), Ok(between(from, to)), "{text}");
        }
    }

    #[test]
    fn a_prefix_opens_one_side() {
        let day = between("2026-09-21T00:00:00Z", "2026-09-22T00:00:00Z");
        assert_eq!(parse("ge2026-09-21"), Ok(DateRange { to_ms: i64::MAX, ..day }));
        assert_eq!(
            parse("gt2026-09-21"),
            Ok(DateRange {
                from_ms: day.to_ms,
                to_ms: i64::MAX
            })
        );
        assert_eq!(
            parse("le2026-09-21"),
            Ok(DateRange {
                from_ms: i64::MIN,
                ..day
            })
        );
        assert_eq!(
            parse("lt2026-09-21"),
            Ok(DateRange {
                from_ms: i64::MIN,
                to_ms: day.from_ms
            })
        );
    }

    #[test]
    fn what_is_no_date_is_refused() {
        for bad in [
            "",
            "ge",
            "26",
            "2026-13",
            "2026-02-30",
            "2026-9-1",
            "2026-09-21T25:00Z",
            "2026-09-21T14",
            "xx2026",
            "ne2026",
            "2026-09-21T14:05:06.Z",
            "2026-09-21T14:05:06+2",
            "2026-09-21T14:05:06+15:00",
            "-2026",
            "9999-12-31-01",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn noise_never_panics(text in ".{0,40}") {
            let _refused = parse(&text);
        }

        #[test]
        fn an_instant_lies_in_its_own_millisecond(at in -60_000_000_000_000i64..250_000_000_000_000) {
            let text = record::fhir::instant(at);
            if text.len() == 24 {
                prop_assert_eq!(parse(&text), Ok(DateRange { from_ms: at, to_ms: at + 1 }));
            }
        }
    }
}
