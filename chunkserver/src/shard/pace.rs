//! How fast chunks are read for learners: a token bucket, so that a rebuild leaves room for clients.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::VecDeque;

use tidewater_proto::{geometry::CHUNK_BYTES, ids::ReplicaId};

use crate::replica::Time;

/// A chunk that a primary wants read for a learner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) replica: ReplicaId,
    pub(super) learner: ReplicaId,
    pub(super) chunk: u32,
}

/// Chunks waiting for their turn. Bounded: each learner has a window.
#[derive(Debug)]
pub(super) struct Pace {
    bytes_per_second: u64,
    /// When the next chunk may be read.
    next: Time,
    queue: VecDeque<Wanted>,
}

impl Pace {
    pub(super) fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), next: Time(0), queue: VecDeque::new() }
    }

    pub(super) fn push(&mut self, wanted: Wanted) {
        self.queue.push_back(wanted);
    }

    /// The next chunk, if its time has come. A bucket of one chunk: idle time is not saved up.
    pub(super) fn take(&mut self, now: Time) -> Option<Wanted> {
        if now < self.next {
            return None;
        }
        let wanted = self.queue.pop_front()?;
        let micros = CHUNK_BYTES * 1_000_000 / self.bytes_per_second;
        self.next = Time(now.0 + micros);
        Some(wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_keep_the_rate() {
        let mut pace = Pace::new(10 * CHUNK_BYTES);
        for chunk in 0..100 {
            pace.push(Wanted { replica: ReplicaId(1), learner: ReplicaId(2), chunk });
        }
        let taken = (0..1_000).filter(|ms| pace.take(Time(ms * 1_000)).is_some()).count();
        assert_eq!(taken, 10, "ten chunks a second");
    }
}
