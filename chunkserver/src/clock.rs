//! The lease clock.

use rustix::time::{ClockId, clock_gettime};

use crate::replica::Time;

/// Source of time for leases. It counts time asleep, so that a machine that was suspended does not
/// believe in leases that have run out.
pub trait Clock {
    /// Now.
    fn now(&self) -> Time;
}

/// `CLOCK_BOOTTIME`.
#[derive(Clone, Copy, Debug, Default)]
pub struct BootClock;

impl Clock for BootClock {
    fn now(&self) -> Time {
        let now = clock_gettime(ClockId::Boottime);
        Time(now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1_000)
    }
}

/// A clock that is set by hand.
#[derive(Debug, Default)]
pub struct SimClock(std::cell::Cell<u64>);

impl SimClock {
    /// Moves on.
    pub fn advance(&self, by: std::time::Duration) {
        self.0.set(self.0.get() + by.as_micros() as u64);
    }
}

impl Clock for SimClock {
    fn now(&self) -> Time {
        Time(self.0.get())
    }
}

/// A clock that several read.
impl<C: Clock + ?Sized> Clock for std::rc::Rc<C> {
    fn now(&self) -> Time {
        (**self).now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The contract: a later reading is never smaller, and time goes on.
    fn contract(clock: &impl Clock, mut pass: impl FnMut()) {
        let first = clock.now();
        while clock.now() == first {
            pass();
        }
        assert!(clock.now() > first);
    }

    #[test]
    fn the_boot_clock_keeps_the_contract() {
        contract(&BootClock, || {});
    }

    #[test]
    fn the_simulated_clock_keeps_the_contract() {
        let clock = SimClock::default();
        contract(&clock, || clock.advance(std::time::Duration::from_millis(1)));
    }
}
