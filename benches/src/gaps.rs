//! What a fault did to a load, read off the times of its operations.
//!
//! Times are microseconds since the load began.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::{collections::BTreeSet, fmt};

use hdrhistogram::Histogram;

/// Longest time that is told apart, microseconds.
const TIME_US_MAX: u64 = 600_000_000;
/// Significant digits of a time.
const DIGITS: u8 = 3;

/// Operations of one kind on one segment, one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lane {
    /// Position in the volume.
    pub segment: u32,
    /// Writes, or reads.
    pub writes: bool,
}

/// An operation that completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// Where.
    pub lane: Lane,
    /// When it was asked for.
    pub issued_us: u64,
    /// When it was answered.
    pub ended_us: u64,
}

impl Done {
    /// From question to answer, microseconds.
    pub fn took_us(&self) -> u64 {
        self.ended_us - self.issued_us
    }
}

/// A process's death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Death {
    /// SIGKILL was about to be sent.
    pub killed_us: u64,
    /// The process was gone. What was asked for before may have been answered by it.
    pub gone_us: u64,
}

/// For each lane, how long after the SIGKILL the first of its operations completed that was issued
/// when the process was gone, microseconds.
///
/// # Errors
///
/// The lanes that have completed none.
pub fn resumed(
    done: &[Done],
    lanes: &BTreeSet<Lane>,
    death: Death,
) -> Result<Vec<u64>, BTreeSet<Lane>> {
    let mut missing = lanes.clone();
    let mut after: Vec<_> = done.iter().filter(|d| d.issued_us >= death.gone_us).collect();
    after.sort_by_key(|d| d.ended_us);
    let first = after.into_iter().filter(|d| missing.remove(&d.lane));
    let times = first.map(|d| d.ended_us - death.killed_us).collect();
    if missing.is_empty() { Ok(times) } else { Err(missing) }
}

/// The longest time without a completion that reaches into `from_us..to_us`.
pub fn longest_gap(done: &[Done], from_us: u64, to_us: u64) -> u64 {
    let mut ends: Vec<_> = done.iter().map(|d| d.ended_us).collect();
    ends.sort_unstable();
    let begin = ends.iter().rfind(|&&end| end <= from_us).copied().unwrap_or(from_us);
    let last = ends.iter().find(|&&end| end >= to_us).copied().unwrap_or(to_us);
    let within = ends.into_iter().filter(|&end| end > begin && end < last);
    let (longest, previous) =
        within.fold((0, begin), |(longest, previous), end| (longest.max(end - previous), end));
    longest.max(last - previous)
}

/// The operation that took longest of those that were open between `from_us` and `to_us`.
pub fn slowest(done: &[Done], from_us: u64, to_us: u64) -> Option<Done> {
    let open = done.iter().filter(|d| d.ended_us >= from_us && d.issued_us <= to_us);
    open.max_by_key(|d| d.took_us()).copied()
}

/// How times are spread.
#[derive(Clone, Debug)]
pub struct Spread(Histogram<u64>);

impl Spread {
    /// Of microseconds.
    pub fn of(times_us: impl IntoIterator<Item = u64>) -> Self {
        let mut histogram =
            Histogram::new_with_max(TIME_US_MAX, DIGITS).expect("constants are valid");
        times_us.into_iter().for_each(|time| histogram.saturating_record(time));
        Self(histogram)
    }

    /// Microseconds that a share of the times, up to 1, do not exceed.
    pub fn at(&self, share: f64) -> u64 {
        self.0.value_at_quantile(share)
    }

    /// The longest, microseconds.
    pub fn longest(&self) -> u64 {
        self.0.max()
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |us: u64| us as f64 / 1e3;
        if self.0.len() == 1 {
            return write!(f, "{:.0} ms", ms(self.0.max()));
        }
        let [p50, p99] = [0.5, 0.99].map(|share| ms(self.at(share)));
        write!(f, "p50 {p50:.0}, p99 {p99:.0}, max {:.0} ms of {}", ms(self.0.max()), self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READS: Lane = Lane { segment: 1, writes: false };
    const WRITES: Lane = Lane { segment: 1, writes: true };

    fn done(lane: Lane, issued_us: u64, ended_us: u64) -> Done {
        Done { lane, issued_us, ended_us }
    }

    #[test]
    fn io_has_resumed_when_each_lane_completes_what_was_issued_after_the_death() {
        let death = Death { killed_us: 1_000, gone_us: 1_200 };
        let lanes = BTreeSet::from([READS, WRITES]);
        let mut seen = vec![
            done(WRITES, 900, 3_000),   // open at the kill: it says nothing
            done(WRITES, 1_100, 1_190), // answered before the process was gone
            done(READS, 1_200, 1_500),
            done(READS, 1_500, 1_600),
        ];
        assert_eq!(resumed(&seen, &lanes, death), Err(BTreeSet::from([WRITES])));
        seen.push(done(WRITES, 3_000, 3_100));
        assert_eq!(resumed(&seen, &lanes, death), Ok(vec![500, 2_100]));
    }

    #[test]
    fn lanes_that_are_not_asked_about_do_not_count() {
        let death = Death { killed_us: 0, gone_us: 0 };
        let seen = [done(READS, 0, 5), done(WRITES, 0, 900)];
        assert_eq!(resumed(&seen, &BTreeSet::from([READS]), death), Ok(vec![5]));
    }

    #[test]
    fn the_longest_gap_is_between_completions_in_whatever_order_they_are_given() {
        let seen =
            [done(READS, 0, 40), done(WRITES, 0, 10), done(READS, 0, 100), done(READS, 0, 0)];
        assert_eq!(longest_gap(&seen, 0, 100), 60);
        assert_eq!(longest_gap(&seen, 5, 30), 30, "gaps that reach in count whole");
        assert_eq!(longest_gap(&seen, 0, 5), 10);
    }

    #[test]
    fn silence_up_to_the_end_is_a_gap() {
        let seen = [done(READS, 0, 10)];
        assert_eq!(longest_gap(&seen, 0, 500), 490);
        assert_eq!(longest_gap(&[], 100, 500), 400);
    }

    #[test]
    fn the_slowest_operation_counts_if_it_was_open_in_the_time() {
        let seen = [done(READS, 0, 90), done(READS, 95, 105), done(WRITES, 300, 900)];
        assert_eq!(slowest(&seen, 100, 200), Some(seen[1]));
        assert_eq!(slowest(&seen, 80, 200), Some(seen[0]));
        assert_eq!(slowest(&seen, 950, 960), None);
    }

    #[test]
    fn percentiles_of_a_hundred_times_are_those_times() {
        let spread = Spread::of((1..=100).map(|i| i * 1_000));
        let near = |got: u64, want: u64| got.abs_diff(want) <= want / 500;
        assert!(near(spread.at(0.5), 50_000), "{spread}");
        assert!(near(spread.at(0.99), 99_000), "{spread}");
        assert!(near(spread.longest(), 100_000), "{spread}");
        assert_eq!(spread.to_string(), "p50 50, p99 99, max 100 ms of 100");
        assert_eq!(Spread::of([7_400]).to_string(), "7 ms");
    }
}
