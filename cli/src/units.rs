//! Sizes and durations as people write them: "8GiB", "64MiB", "5ms", "24h".
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, de};

/// A number of bytes, read from "4096", "512B", "64MiB" or "1.5GiB".
///
/// Only binary units: a block device is never a round number of anything else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// A span of time, read from "250us", "5ms", "3s", "10m", "24h" or "7d".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// Why a text is no [`ByteSize`] or [`Span`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadUnit {
    /// It does not start with a number.
    #[error("expected a number with a unit, such as {example}")]
    NoNumber {
        /// A valid text.
        example: &'static str,
    },
    /// The unit is not one of the known ones.
    #[error("unknown unit: use one of {known}")]
    Unknown {
        /// The units there are.
        known: &'static str,
    },
    /// More than 64 bits hold, or a fraction of a byte.
    #[error("the value is out of range or not a whole number of its smallest unit")]
    Range,
}

const SIZES: [(&str, u64); 6] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1), ("", 1)];
const SPANS_US: [(&str, u64); 6] = [
    ("us", 1),
    ("ms", 1_000),
    ("s", 1_000_000),
    ("m", 60_000_000),
    ("h", 3_600_000_000),
    ("d", 86_400_000_000),
];

/// Digits after the point that are read; enough for any size in GiB that people write.
const FRACTION_DIGITS_MAX: usize = 6;

/// Splits "1.5GiB" into (15, 10, "GiB"): the number is 15 tenths.
fn split<'a>(text: &'a str, example: &'static str) -> Result<(u128, u128, &'a str), BadUnit> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.contains('.') {
        return Err(BadUnit::NoNumber { example });
    }
    if fraction.len() > FRACTION_DIGITS_MAX {
        return Err(BadUnit::Range);
    }
    let digits = format!("{whole}{fraction}");
    let value = digits.parse().map_err(|_| BadUnit::Range)?;
    Ok((value, 10_u128.pow(fraction.len() as u32), unit.trim()))
}

fn scale(value: u128, divisor: u128, unit: u64) -> Result<u64, BadUnit> {
    let product = value.checked_mul(u128::from(unit)).ok_or(BadUnit::Range)?;
    if !product.is_multiple_of(divisor) {
        return Err(BadUnit::Range);
    }
    u64::try_from(product / divisor).map_err(|_| BadUnit::Range)
}

impl FromStr for ByteSize {
    type Err = BadUnit;

    fn from_str(text: &str) -> Result<Self, BadUnit> {
        let (value, divisor, unit) = split(text, "64MiB")?;
        let known = SIZES.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit));
        let &(_, bytes) = known.ok_or(BadUnit::Unknown { known: "B, KiB, MiB, GiB, TiB" })?;
        scale(value, divisor, bytes).map(Self)
    }
}

impl FromStr for Span {
    type Err = BadUnit;

    fn from_str(text: &str) -> Result<Self, BadUnit> {
        let (value, divisor, unit) = split(text, "5ms")?;
        let known = SPANS_US.iter().find(|(name, _)| *name == unit);
        let &(_, us) = known.ok_or(BadUnit::Unknown { known: "us, ms, s, m, h, d" })?;
        scale(value, divisor, us).map(|us| Self(Duration::from_micros(us)))
    }
}

/// Shortest exact text: the largest unit that divides the value, else one decimal, rounded down.
impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fitting = SIZES[..4].iter().find(|(_, unit)| self.0 >= *unit);
        let Some((name, unit)) = fitting else { return write!(f, "{}B", self.0) };
        let (whole, rest) = (self.0 / unit, self.0 % unit);
        if rest == 0 {
            return write!(f, "{whole}{name}");
        }
        let tenths = u128::from(rest) * 10 / u128::from(*unit);
        write!(f, "{whole}.{tenths}{name}")
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let us = self.0.as_micros();
        let exact = SPANS_US.iter().rev().find(|(_, unit)| us.is_multiple_of(u128::from(*unit)));
        let (name, unit) = exact.unwrap_or(&SPANS_US[0]);
        write!(f, "{}{name}", us / u128::from(*unit))
    }
}

macro_rules! text_serde {
    ($name:ident) => {
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(from)?;
                text.parse().map_err(de::Error::custom)
            }
        }
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(&self.exact())
            }
        }
    };
}
text_serde!(ByteSize);
text_serde!(Span);

impl ByteSize {
    fn exact(self) -> String {
        let unit = SIZES[..5].iter().find(|(_, unit)| self.0.is_multiple_of(*unit));
        let (name, unit) = unit.expect("one divides everything");
        if self.0 == 0 { "0B".to_owned() } else { format!("{}{name}", self.0 / unit) }
    }
}

impl Span {
    fn exact(self) -> Self {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_binary_units_and_fractions_must_be_whole_bytes() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("512B", 512),
            ("64MiB", 64 << 20),
            ("1.5GiB", 3 << 29),
            ("8 GiB", 8 << 30),
            ("64tib", 64 << 40),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for text in ["", "GiB", "1.1B", "8GB", "-1", "1.2.3MiB", "99999999TiB", "1e3"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn spans_need_a_unit() {
        assert_eq!("5ms".parse(), Ok(Span(Duration::from_millis(5))));
        assert_eq!("1.5s".parse(), Ok(Span(Duration::from_millis(1500))));
        assert_eq!("24h".parse(), Ok(Span(Duration::from_hours(24))));
        assert!("5".parse::<Span>().is_err(), "a bare number has no unit");
        assert!("5 weeks".parse::<Span>().is_err());
    }

    #[test]
    fn what_is_written_to_a_config_file_is_read_back_exactly() {
        for bytes in [0, 1, 511, 4096, 4097, (1 << 30) + 512, 3 << 29, u64::MAX] {
            let text = ByteSize(bytes).exact();
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for us in [1, 999, 1000, 1_500_000, 60_000_000, 86_400_000_000] {
            let span = Span(Duration::from_micros(us));
            assert_eq!(span.to_string().parse(), Ok(span), "{span}");
        }
    }

    #[test]
    fn a_table_shows_sizes_with_at_most_one_decimal() {
        assert_eq!(ByteSize(1 << 30).to_string(), "1GiB");
        assert_eq!(ByteSize(3 << 29).to_string(), "1.5GiB");
        assert_eq!(ByteSize(1000).to_string(), "1000B");
        assert_eq!(ByteSize((1 << 40) - 1).to_string(), "1023.9GiB");
    }
}
