//! How busy the server is: a share from 0 to 1, for placement.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::{collections::VecDeque, time::Duration};

use crate::replica::Time;

/// The share is over this time.
const WINDOW: Duration = Duration::from_secs(5);

/// Time that each was busy since it started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Busy {
    /// The shards' threads.
    pub(crate) threads: Vec<Duration>,
    /// The devices.
    pub(crate) devices: Vec<Duration>,
}

/// Readings of the last seconds. Bounded by how often it is asked.
#[derive(Debug, Default)]
pub(crate) struct LoadMeter {
    readings: VecDeque<(Time, Busy)>,
}

impl LoadMeter {
    /// Takes a reading and returns the busy share over the last seconds: the mean of the threads' or that
    /// of the devices', whichever is higher. 0 until there are two readings.
    pub(crate) fn read(&mut self, now: Time, busy: Busy) -> f64 {
        self.readings.push_back((now, busy));
        // The oldest is the last one at or before the window's start.
        while self.readings.get(1).is_some_and(|(at, _)| now.since(*at) >= WINDOW) {
            self.readings.pop_front();
        }
        let (Some((from, before)), Some((_, after))) =
            (self.readings.front(), self.readings.back())
        else {
            return 0.0;
        };
        let passed = now.since(*from);
        let threads = mean_share(&before.threads, &after.threads, passed);
        threads.max(mean_share(&before.devices, &after.devices, passed))
    }
}

fn mean_share(before: &[Duration], after: &[Duration], passed: Duration) -> f64 {
    if passed.is_zero() || after.is_empty() {
        return 0.0;
    }
    let share = |(before, after): (&Duration, &Duration)| {
        (after.saturating_sub(*before).as_secs_f64() / passed.as_secs_f64()).min(1.0)
    };
    before.iter().zip(after).map(share).sum::<f64>() / after.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads every 200 ms while threads and devices are busy for these parts of the time.
    fn load(
        meter: &mut LoadMeter,
        from: u64,
        seconds: u64,
        threads: &[f64],
        devices: &[f64],
    ) -> f64 {
        let mut last = 0.0;
        for step in 1..=seconds * 5 {
            let spent = Duration::from_millis(step * 200);
            let of = |shares: &[f64]| shares.iter().map(|share| spent.mul_f64(*share)).collect();
            let busy = Busy { threads: of(threads), devices: of(devices) };
            last = meter.read(Time((from + step * 200) * 1_000), busy);
        }
        last
    }

    fn close(found: f64, want: f64) {
        assert!((found - want).abs() < 0.001, "{found}, not {want}");
    }

    #[test]
    fn the_higher_of_threads_and_devices_counts_each_as_a_mean() {
        close(load(&mut LoadMeter::default(), 0, 10, &[0.0, 0.0], &[0.0]), 0.0);
        close(load(&mut LoadMeter::default(), 0, 10, &[1.0, 0.2], &[0.1]), 0.6);
        close(load(&mut LoadMeter::default(), 0, 10, &[0.1, 0.1], &[0.9, 0.5]), 0.7);
        // A thread that was waited for can look busier than time has passed.
        close(load(&mut LoadMeter::default(), 0, 10, &[1.5], &[]), 1.0);
    }

    #[test]
    fn what_was_seconds_ago_does_not_count() {
        let mut meter = LoadMeter::default();
        close(load(&mut meter, 0, 10, &[0.8], &[]), 0.8);
        let idle = Busy { threads: vec![Duration::from_secs(8)], devices: Vec::new() };
        let later = |seconds: u64| Time(10_000_000 + seconds * 1_000_000);
        let after_two = meter.read(later(2), idle.clone());
        assert!(after_two > 0.4 && after_two < 0.6, "{after_two}");
        for seconds in 3..=8 {
            meter.read(later(seconds), idle.clone());
        }
        close(meter.read(later(9), idle), 0.0);
    }

    #[test]
    fn one_reading_says_nothing() {
        let busy = Busy { threads: vec![Duration::from_secs(3)], devices: Vec::new() };
        close(LoadMeter::default().read(Time(0), busy), 0.0);
    }
}
