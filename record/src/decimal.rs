//! Exact decimal numbers: what a device measured is what the hospital reads, digit for digit.

use std::{cmp::Ordering, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// Digits after the point that we keep at most.
const SCALE_MAX: u8 = 9;

/// A decimal number: `mantissa` / 10^`scale`. In CBOR the pair `[mantissa, scale]`, in JSON a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Decimal {
    mantissa: i64,
    scale: u8,
}

impl Decimal {
    /// A decimal from its parts; `None` if it has more than nine digits after the point.
    #[must_use]
    pub const fn new(mantissa: i64, scale: u8) -> Option<Self> {
        if scale <= SCALE_MAX {
            Some(Self { mantissa, scale })
        } else {
            None
        }
    }

    /// A whole number.
    #[must_use]
    pub const fn whole(number: i64) -> Self {
        Self {
            mantissa: number,
            scale: 0,
        }
    }

    /// The mantissa and how many of its digits stand after the point, as a database keeps them.
    #[must_use]
    pub const fn parts(self) -> (i64, u8) {
        (self.mantissa, self.scale)
    }

    /// The number in units of 10^-9, exactly; below 2^93, so that a sum of such a number and an `i32` times another fits.
    pub(crate) fn billionths(self) -> i128 {
        i128::from(self.mantissa) * 10_i128.pow(u32::from(SCALE_MAX - self.scale))
    }
}

impl PartialOrd for Decimal {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        // 36.7 and 36.70 are equally large but not the same statement of precision, hence only a partial order.
        match self.billionths().cmp(&other.billionths()) {
            Ordering::Equal if self != other => None,
            order => Some(order),
        }
    }
}

impl Decimal {
    /// Compares magnitudes; 36.7 equals 36.70.
    #[must_use]
    pub fn cmp_magnitude(self, other: Self) -> Ordering {
        self.billionths().cmp(&other.billionths())
    }
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.scale == 0 {
            return write!(f, "{}", self.mantissa);
        }
        let power = 10_u64.pow(u32::from(self.scale));
        let (whole, rest) = (
            self.mantissa.unsigned_abs() / power,
            self.mantissa.unsigned_abs() % power,
        );
        let sign = if self.mantissa < 0 { "-" } else { "" };
        write!(f, "{sign}{whole}.{rest:0width$}", width = usize::from(self.scale))
    }
}

/// Text that is no decimal number we can keep exactly.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a decimal number of at most 18 digits, {SCALE_MAX} of them after the point")]
pub struct BadDecimal;

impl FromStr for Decimal {
    type Err = BadDecimal;

    fn from_str(text: &str) -> Result<Self, BadDecimal> {
        let (sign, digits) = text.strip_prefix('-').map_or((1, text), |rest| (-1, rest));
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let all_digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
        let ends_in_point = digits.contains('.') && fraction.is_empty();
        if whole.is_empty()
            || ends_in_point
            || !all_digits(whole)
            || !all_digits(fraction)
            || whole.len() + fraction.len() > 18
        {
            return Err(BadDecimal);
        }
        let mantissa: i64 = format!("{whole}{fraction}").parse().map_err(|_| BadDecimal)?;
        let scale = u8::try_from(fraction.len()).map_err(|_| BadDecimal)?;
        Self::new(sign * mantissa, scale).ok_or(BadDecimal)
    }
}

impl Serialize for Decimal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            // The text of the number, not a float: 36.70 stays 36.70.
            let number =
                serde_json::value::RawValue::from_string(self.to_string()).map_err(serde::ser::Error::custom)?;
            number.serialize(serializer)
        } else {
            (self.mantissa, self.scale).serialize(serializer)
        }
    }
}

/// A number as foreign encoders write it: a pair, an integer or (in CBOR) a float whose shortest text is taken.
#[derive(Deserialize)]
#[serde(untagged)]
enum Foreign {
    Pair(i64, u8),
    Integer(i64),
    Float(f64),
}

impl<'de> Deserialize<'de> for Decimal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let number = <&serde_json::value::RawValue>::deserialize(deserializer)?;
            return number.get().parse().map_err(D::Error::custom);
        }
        match Foreign::deserialize(deserializer)? {
            Foreign::Pair(mantissa, scale) => Self::new(mantissa, scale).ok_or_else(|| D::Error::custom(BadDecimal)),
            Foreign::Integer(number) => Ok(Self::whole(number)),
            Foreign::Float(number) => number.to_string().parse().map_err(D::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn precision_is_kept() {
        for text in ["36.70", "0.05", "-1.5", "97", "0"] {
            assert_eq!(text.parse::<Decimal>().expect("good").to_string(), text);
            assert_eq!(
                serde_json::to_string(&text.parse::<Decimal>().expect("good")).expect("encodes"),
                text
            );
        }
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for text in [
            "",
            ".",
            "1.",
            ".5",
            "1e3",
            "NaN",
            "+1",
            "1.0000000001",
            "12345678901234567890",
        ] {
            assert!(text.parse::<Decimal>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn text_and_cbor_agree(mantissa in -1_000_000_000i64..1_000_000_000, scale in 0u8..=9) {
            let value = Decimal::new(mantissa, scale).expect("scale <= 9");
            let bytes = crate::canonical::encode(&value);
            prop_assert_eq!(crate::canonical::decode::<Decimal>(&bytes, 64).expect("canonical"), value);
            let json = serde_json::to_string(&value).expect("encodes");
            let read: Decimal = serde_json::from_str(&json).expect("decodes");
            prop_assert_eq!(read.cmp_magnitude(value), Ordering::Equal);
        }
    }
}
