//! How fast learners are sent what they lack: a token bucket whose rate falls while clients are busy, so
//! that a rebuild leaves room for them, and rises again when they are not.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::{collections::VecDeque, time::Duration};

use tidewater_proto::{geometry::CHUNK_BYTES, ids::ReplicaId};

use crate::replica::Time;

/// How often the rate is set.
const INTERVAL: Duration = Duration::from_millis(100);
/// The rate rises by this part of the limit at a time, so that a client that pauses is not overrun.
const RISES: u64 = 10;
/// What a client's request counts for besides its bytes.
const REQUEST_BYTES: u64 = 16 << 10;
/// A byte of a client takes the place of so many of a rebuild: each is written on every member.
const YIELD: u64 = 2;
/// As many requests open at once say that clients wait.
const OPEN_BUSY: usize = 64;
/// Time that may be saved up: two ticks, for turns are taken no oftener when nothing else happens.
const SAVED: Duration = Duration::from_millis(50);

/// Bounds of the rate, bytes a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RebuildRate {
    /// While clients are idle.
    pub limit: u64,
    /// However busy clients are.
    pub floor: u64,
}

impl Default for RebuildRate {
    fn default() -> Self {
        Self { limit: 200 << 20, floor: 20 << 20 }
    }
}

/// A learner that waits for its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) replica: ReplicaId,
    pub(super) learner: ReplicaId,
}

/// What clients did since the rate was set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Clients {
    /// Requests that came.
    pub(super) requests: u64,
    /// Bytes they wrote or read.
    pub(super) bytes: u64,
}

/// Learners waiting for their turn, one entry each.
#[derive(Debug)]
pub(super) struct Pace {
    bounds: RebuildRate,
    rate: u64,
    set_at: Time,
    clients: Clients,
    /// When the turns so far are paid for.
    paid: Time,
    queue: VecDeque<Wanted>,
}

impl Pace {
    pub(super) fn new(bounds: RebuildRate) -> Self {
        let limit = bounds.limit.max(1);
        let bounds = RebuildRate { limit, floor: bounds.floor.clamp(1, limit) };
        Self {
            bounds,
            rate: limit,
            set_at: Time(0),
            clients: Clients::default(),
            paid: Time(0),
            queue: VecDeque::new(),
        }
    }

    /// Bytes a second now.
    pub(super) fn rate(&self) -> u64 {
        self.rate
    }

    /// A client's request came.
    pub(super) fn client(&mut self, bytes: u64) {
        self.clients.requests += 1;
        self.clients.bytes += bytes;
    }

    /// Sets the rate by what clients did since it was set last; `open` requests wait for an answer now.
    pub(super) fn adjust(&mut self, now: Time, open: usize) {
        let passed = now.since(self.set_at).as_micros() as u64;
        if u128::from(passed) < INTERVAL.as_micros() {
            return;
        }
        self.set_at = now;
        let Clients { requests, bytes } = std::mem::take(&mut self.clients);
        let done = (bytes + requests * REQUEST_BYTES).saturating_mul(1_000_000) / passed;
        let RebuildRate { limit, floor } = self.bounds;
        let left = if open >= OPEN_BUSY { 0 } else { limit.saturating_sub(done * YIELD) };
        let risen = self.rate + (limit / RISES).max(1);
        self.rate = left.clamp(floor, limit).min(risen);
    }

    pub(super) fn push(&mut self, wanted: Wanted) {
        self.queue.push_back(wanted);
    }

    /// Whose turn it is, if its time has come. A turn is worth a chunk.
    pub(super) fn take(&mut self, now: Time) -> Option<Wanted> {
        if now < self.paid {
            return None;
        }
        let wanted = self.queue.pop_front()?;
        let saved = Time(now.0.saturating_sub(SAVED.as_micros() as u64));
        let micros = CHUNK_BYTES * 1_000_000 / self.rate;
        self.paid = Time(self.paid.max(saved).0 + micros);
        Some(wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const BOUNDS: RebuildRate = RebuildRate { limit: 200 * MIB, floor: 20 * MIB };
    const WANTED: Wanted = Wanted { replica: ReplicaId(1), learner: ReplicaId(2) };

    fn ms(n: u64) -> Time {
        Time(n * 1_000)
    }

    /// Rates after each of some tenths of a second, in each of which clients do so many requests of so
    /// many bytes.
    fn rates(pace: &mut Pace, tenths: usize, requests: u64, bytes: u64) -> Vec<u64> {
        let rate = |_| {
            for _ in 0..requests {
                pace.client(bytes);
            }
            pace.adjust(pace.set_at.after(INTERVAL), 0);
            pace.rate() / MIB
        };
        (0..tenths).map(rate).collect()
    }

    fn taken(pace: &mut Pace, from: u64, upto: u64, step: u64) -> u64 {
        let mut taken = 0;
        for at in (from..upto).step_by(step as usize) {
            while pace.take(ms(at)).is_some() {
                pace.push(WANTED);
                taken += 1;
            }
        }
        taken
    }

    #[test]
    fn turns_keep_the_rate_however_seldom_they_are_asked_for() {
        for step in [1, 5, 25] {
            let mut pace = Pace::new(RebuildRate { limit: 40 * MIB, floor: 1 });
            pace.push(WANTED);
            let taken = taken(&mut pace, 10_000, 20_000, step);
            assert!((400..=403).contains(&taken), "{taken} chunks in ten seconds, every {step} ms");
        }
    }

    #[test]
    fn idle_time_is_not_saved_up() {
        let mut pace = Pace::new(RebuildRate { limit: 10 * MIB, floor: 1 });
        pace.push(WANTED);
        assert_eq!(taken(&mut pace, 0, 1, 1), 1);
        assert_eq!(taken(&mut pace, 60_000, 60_001, 1), 1, "a minute later");
    }

    #[test]
    fn the_rate_falls_to_the_floor_at_once_and_rises_to_the_limit_in_a_second() {
        let mut pace = Pace::new(BOUNDS);
        assert_eq!(rates(&mut pace, 3, 0, 0), [200, 200, 200]);
        // 100 MiB a second in large requests take as much again from the rebuild.
        assert_eq!(rates(&mut pace, 2, 10, MIB), [20, 20]);
        assert_eq!(rates(&mut pace, 10, 0, 0), [40, 60, 80, 100, 120, 140, 160, 180, 200, 200]);
    }

    #[test]
    fn a_little_work_costs_a_little_and_small_requests_count_too() {
        let mut pace = Pace::new(BOUNDS);
        assert_eq!(rates(&mut pace, 1, 2, MIB), [159]);
        let mut pace = Pace::new(BOUNDS);
        assert_eq!(rates(&mut pace, 1, 600, 4096), [20], "6,000 requests a second");
    }

    #[test]
    fn clients_that_wait_bring_the_rate_to_the_floor() {
        let mut pace = Pace::new(BOUNDS);
        pace.adjust(ms(1_000), OPEN_BUSY);
        assert_eq!(pace.rate(), BOUNDS.floor);
    }

    #[test]
    fn a_floor_above_the_limit_is_the_limit() {
        let mut pace = Pace::new(RebuildRate { limit: 5 * MIB, floor: 50 * MIB });
        pace.adjust(ms(1_000), OPEN_BUSY);
        assert_eq!(pace.rate(), 5 * MIB);
    }
}
