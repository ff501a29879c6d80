//! Numbers as tables show them.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

/// Three significant digits below 100, else whole with separators: `0.25`, `44.6`, `10,896`.
pub fn shown(value: f64) -> String {
    match value {
        v if v >= 99.95 => grouped(v.round() as u64),
        v if v >= 9.995 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// The middle value, or the mean of the two in the middle; 0 of none.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut sorted: Vec<_> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Ordering;

    use super::*;

    #[test]
    fn numbers_have_separators_and_no_more_digits_than_they_deserve() {
        let cases = [
            (0.249, "0.25"),
            (9.999, "10.0"),
            (44.62, "44.6"),
            (99.96, "100"),
            (999.6, "1,000"),
            (10_896.2, "10,896"),
            (1_234_567.0, "1,234,567"),
        ];
        for (value, text) in cases {
            assert_eq!(shown(value), text);
        }
    }

    #[test]
    fn the_median_is_the_middle_one() {
        for (values, middle) in [([3.0, 1.0, 2.0].as_slice(), 2.0), (&[4.0, 1.0], 2.5), (&[], 0.0)]
        {
            assert_eq!(median(values.iter().copied()).total_cmp(&middle), Ordering::Equal);
        }
    }
}
