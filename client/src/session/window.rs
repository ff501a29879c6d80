//! Numbers of a session's operations, and the lowest that is still open.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::VecDeque;

/// Numbers between the lowest open one and the next. Servers remember every applied number of it.
pub(crate) const SPAN_MAX: usize = 16_384;

/// Allots numbers from 1 on.
#[derive(Debug)]
pub struct Window {
    lowest: u64,
    /// Whether each number from `lowest` on is open; the first one is, if any.
    open: VecDeque<bool>,
}

impl Default for Window {
    fn default() -> Self {
        Self::new()
    }
}

impl Window {
    /// No number is open.
    pub fn new() -> Self {
        Self { lowest: 1, open: VecDeque::new() }
    }

    /// A new number; none while the span is full.
    pub fn open(&mut self) -> Option<u64> {
        if self.open.len() >= SPAN_MAX {
            return None;
        }
        self.open.push_back(true);
        Some(self.lowest + self.open.len() as u64 - 1)
    }

    /// The lowest number not closed; the next one if all are.
    pub fn lowest_open(&self) -> u64 {
        self.lowest
    }

    /// Closes a number: no request will carry it again. True if the span was full and is no more.
    pub fn close(&mut self, number: u64) -> bool {
        let was_full = self.open.len() >= SPAN_MAX;
        let slot = number.checked_sub(self.lowest).and_then(|i| self.open.get_mut(i as usize));
        debug_assert_eq!(slot.as_deref(), Some(&true), "number {number} is not open");
        if let Some(slot) = slot {
            *slot = false;
        }
        while self.open.front() == Some(&false) {
            self.open.pop_front();
            self.lowest += 1;
        }
        was_full && self.open.len() < SPAN_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_open_number_moves_only_over_closed_ones() {
        let mut window = Window::new();
        let numbers: Vec<_> = (0..3).map(|_| window.open().expect("room")).collect();
        assert_eq!(numbers, [1, 2, 3]);
        window.close(2);
        assert_eq!(window.lowest_open(), 1);
        window.close(1);
        assert_eq!(window.lowest_open(), 3);
        window.close(3);
        assert_eq!((window.lowest_open(), window.open()), (4, Some(4)));
    }

    #[test]
    fn one_stuck_number_bounds_the_span() {
        let mut window = Window::new();
        let stuck = window.open().expect("room");
        for _ in 1..SPAN_MAX {
            let number = window.open().expect("room");
            window.close(number);
        }
        assert_eq!(window.open(), None);
        assert!(window.close(stuck));
        assert_eq!(window.open(), Some(SPAN_MAX as u64 + 1));
    }
}
