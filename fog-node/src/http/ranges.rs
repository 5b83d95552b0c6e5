//! Which part of a body is asked for (RFC 9110, 14.2): one range of bytes. Several ranges, and units that are not bytes, are
//! not understood: all of it, then.

use std::ops::Range;

use super::fault::Fault;

/// The range that is asked for, within so many bytes.
///
/// # Errors
/// 416 for a range with nothing in it.
pub fn part(asked: Option<&str>, length: u64) -> Result<Option<Range<u64>>, Fault> {
    let bounds = asked
        .and_then(|text| text.trim().strip_prefix("bytes="))
        .and_then(bounds);
    let Some(bounds) = bounds else { return Ok(None) };
    let (from, to) = match bounds {
        (Some(from), to) => (from, to.map_or(length, |to| to.saturating_add(1).min(length))),
        (None, last) => (length.saturating_sub(last.unwrap_or(0)), length),
    };
    if from < to {
        Ok(Some(from..to))
    } else {
        Err(Fault::unsatisfiable(length))
    }
}

/// `5-9`, `5-`, `-9`.
fn bounds(text: &str) -> Option<(Option<u64>, Option<u64>)> {
    let (from, to) = text.split_once('-')?;
    let number = |text: &str| match text {
        "" => Some(None),
        digits if digits.bytes().all(|b| b.is_ascii_digit()) => digits.parse().ok().map(Some),
        _ => None,
    };
    match (number(from)?, number(to)?) {
        (None, None) => None,
        (Some(from), Some(to)) if from > to => None,
        bounds => Some(bounds),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_range_of_bytes_is_understood() {
        let of = |asked: &str| part(Some(asked), 10).expect("satisfiable");
        assert_eq!(of("bytes=2-4"), Some(2..5));
        assert_eq!(of("bytes=2-"), Some(2..10));
        assert_eq!(of("bytes=-3"), Some(7..10));
        assert_eq!(of("bytes=0-99"), Some(0..10));
        assert_eq!(of(&format!("bytes=0-{}", u64::MAX)), Some(0..10));
        for whole in [
            "",
            "bytes=",
            "bytes=4-2",
            "bytes=1-2,4-5",
            "items=1-2",
            "bytes=x-2",
            "bytes=-",
        ] {
            assert_eq!(of(whole), None, "{whole}");
        }
        assert_eq!(part(None, 10).expect("satisfiable"), None);
        for nothing in ["bytes=10-", "bytes=-0"] {
            assert_eq!(part(Some(nothing), 10).expect_err(nothing).status(), 416);
        }
    }
}
