//! Time and the durations the protocol depends on.

use std::time::Duration;

/// A reading of the lease clock (`CLOCK_BOOTTIME`): microseconds, comparable on one machine only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub u64);

impl Time {
    /// This much later.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration.as_micros() as u64))
    }

    /// How long after `earlier`; zero if before it.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

/// Durations of the protocol; the same on every server of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Timing {
    /// How long a granter keeps its word.
    pub lease: Duration,
    /// How often leases are asked for.
    pub renew: Duration,
    /// A peer not heard for this long is silent.
    pub silence: Duration,
    /// A peer whose connection is refused for this long is silent.
    pub refused: Duration,
    /// How often an unanswered question or proposal is repeated.
    pub repeat: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(1),
            renew: Duration::from_millis(250),
            silence: Duration::from_millis(600),
            refused: Duration::from_millis(200),
            repeat: Duration::from_millis(100),
        }
    }
}

/// Percent by which two lease clocks may differ in rate; the holder deducts it.
const DRIFT_PERCENT: u32 = 5;

impl Timing {
    /// How long a holder may rely on a lease, counted from before it asked.
    #[must_use]
    pub fn holder_lease(&self) -> Duration {
        self.lease * (100 - DRIFT_PERCENT) / 100
    }
}
