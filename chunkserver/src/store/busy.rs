//! How long a device was busy: time in which at least one operation was under way.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// A lock, because threads of all shards use the device; held for a few instructions.
#[derive(Debug, Default)]
pub(crate) struct BusyTime(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    under_way: u32,
    since: Option<Instant>,
    total: Duration,
}

/// An operation under way for as long as this lives.
pub(crate) struct Operation<'a>(&'a BusyTime);

impl BusyTime {
    pub(crate) fn begin(&self) -> Operation<'_> {
        self.enter();
        Operation(self)
    }

    /// An operation is under way until [`leave`](Self::leave).
    pub(crate) fn enter(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.under_way += 1;
        if state.under_way == 1 {
            state.since = Some(Instant::now());
        }
    }

    /// One that entered has ended.
    pub(crate) fn leave(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.under_way -= 1;
        if state.under_way == 0 {
            let spent = state.since.take().map_or(Duration::ZERO, |since| since.elapsed());
            state.total += spent;
        }
    }

    /// In all, the present operation included.
    pub(crate) fn total(&self) -> Duration {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.total + state.since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

impl Drop for Operation<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_counts_once_however_many_operations_are_under_way() {
        let busy = BusyTime::default();
        assert_eq!(busy.total(), Duration::ZERO);
        let before = Instant::now();
        let (first, second) = (busy.begin(), busy.begin());
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(2) {}
        drop(first);
        assert!(busy.total() >= Duration::from_millis(2), "the second is under way");
        drop(second);
        let total = busy.total();
        assert!(total >= Duration::from_millis(2) && total <= before.elapsed());
        assert_eq!(busy.total(), total, "idle time does not count");
    }
}
