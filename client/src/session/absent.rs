//! Segments known not to be placed, and until when that may be believed (docs/protocol.md, "Absent
//! segments").
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;

/// Ranges remembered; over it those go whose time is over, then the lowest.
const RANGES_MAX: usize = 1_024;
/// Share of a lease that the holder counts on: its clock and the granter's may differ in rate by as
/// much as is left.
const HOLDER_PERCENT: u64 = 95;

/// Microseconds of a clock that counts time asleep.
pub(crate) type BootTime = u64;

#[derive(Clone, Copy, Debug)]
struct Range {
    end: u32,
    until: BootTime,
}

/// Ranges of absent segments, by their first.
#[derive(Debug, Default)]
pub(crate) struct Absent {
    ranges: BTreeMap<u32, Range>,
}

impl Absent {
    /// Asked at `asked`, a meta node said that segments from `first` up to `end` are not placed and stay
    /// so for `lease_ms`.
    pub(crate) fn learn(&mut self, first: u32, end: u32, asked: BootTime, lease_ms: u32) {
        if lease_ms == 0 {
            return;
        }
        if self.ranges.len() >= RANGES_MAX {
            self.ranges.retain(|_, range| range.until > asked);
            if self.ranges.len() >= RANGES_MAX {
                self.ranges.pop_first();
            }
        }
        let until = asked + u64::from(lease_ms) * 1_000 * HOLDER_PERCENT / 100;
        self.ranges.insert(first, Range { end, until });
    }

    /// Whether `segment` is certainly not placed at `now`.
    pub(crate) fn contains(&self, segment: u32, now: BootTime) -> bool {
        let range = self.ranges.range(..=segment).next_back();
        range.is_some_and(|(_, range)| segment < range.end && now < range.until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absence_is_believed_within_its_range_for_less_than_its_lease() {
        let mut absent = Absent::default();
        absent.learn(5, 9, 1_000_000, 500);
        for (segment, now, expected) in [
            (5, 1_000_000, true),
            (8, 1_474_999, true),
            (8, 1_475_000, false),
            (4, 1_000_000, false),
            (9, 1_000_000, false),
        ] {
            assert_eq!(absent.contains(segment, now), expected, "{segment} at {now}");
        }
        absent.learn(5, 9, 2_000_000, 0);
        assert!(!absent.contains(5, 2_000_000), "without a lease nothing is believed");
    }

    #[test]
    fn ranges_are_bounded() {
        let mut absent = Absent::default();
        for number in 0..2 * RANGES_MAX as u32 {
            absent.learn(2 * number, 2 * number + 1, 0, 500);
            assert!(absent.contains(2 * number, 1));
        }
        assert_eq!(absent.ranges.len(), RANGES_MAX);
        absent.learn(1, 2, 1_000_000, 500);
        assert_eq!(absent.ranges.len(), 1, "the others' time is over");
    }
}
