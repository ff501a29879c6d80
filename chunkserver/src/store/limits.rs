//! Limits a device keeps itself: an honest slow tier on a fast disk.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::Duration;

/// Longest burst that an idle device may save up.
const BURST: Duration = Duration::from_millis(50);

/// What a device may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Operations a second; none: unlimited.
    pub iops: Option<u64>,
    /// Bytes a second; none: unlimited.
    pub bytes_per_second: Option<u64>,
    /// Added to every operation.
    pub latency: Duration,
}

impl Limits {
    /// Whether there is nothing to keep.
    pub fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }
}

/// When the next operation of a device may start. Time is measured from any fixed start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bucket {
    /// When the operations so far will have been paid for.
    paid: Duration,
}

impl Bucket {
    /// Takes one operation of `bytes` at time `now`; returns how long it must wait.
    pub fn take(&mut self, limits: &Limits, now: Duration, bytes: u64) -> Duration {
        let per = |count: u64, rate: Option<u64>| {
            rate.map_or(Duration::ZERO, |rate| {
                Duration::from_nanos((count as f64 * 1e9 / rate.max(1) as f64) as u64)
            })
        };
        let cost = per(1, limits.iops).max(per(bytes, limits.bytes_per_second));
        self.paid = self.paid.max(now.saturating_sub(BURST)) + cost;
        self.paid.saturating_sub(now) + limits.latency
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_over_a_second_is_the_limit_and_a_burst() {
        let limits = Limits { iops: Some(1000), ..Limits::default() };
        let (mut bucket, mut now, mut done) = (Bucket::default(), Duration::from_secs(9), 0);
        while now < Duration::from_secs(10) {
            now += bucket.take(&limits, now, 4096);
            done += 1;
        }
        assert!((1000..=1051).contains(&done), "{done}");
    }

    #[test]
    fn bytes_and_latency_add_up() {
        let latency = Duration::from_millis(3);
        let limits = Limits { iops: None, bytes_per_second: Some(1 << 20), latency };
        let now = Duration::from_secs(1);
        let mut bucket = Bucket::default();
        let wait = bucket.take(&limits, now, 1 << 20);
        assert_eq!(wait, Duration::from_millis(1000 - 50 + 3));
        assert_eq!(Bucket::default().take(&Limits::default(), now, 1 << 20), Duration::ZERO);
    }
}
