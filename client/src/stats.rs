//! Counters and latencies of one attached volume.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use hdrhistogram::Histogram;

use crate::device::Io;

/// Longest latency that is told apart; longer ones count as this.
const LATENCY_MAX_US: u64 = 120_000_000;
/// Two digits: a percentile is right to one part in a hundred.
const DIGITS: u8 = 2;

/// Kinds of operation that are counted apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Op {
    /// Reads.
    Read,
    /// Writes, and compares.
    Write,
    /// Zeroes and discards.
    Zero,
    /// Flushes.
    Flush,
    /// Questions for extents.
    Extents,
}

impl Op {
    /// All kinds.
    pub const ALL: [Self; 5] = [Self::Read, Self::Write, Self::Zero, Self::Flush, Self::Extents];

    /// Name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Zero => "zero",
            Self::Flush => "flush",
            Self::Extents => "extents",
        }
    }

    pub(crate) fn of(io: &Io) -> Self {
        match io {
            Io::Read { .. } => Self::Read,
            Io::Write { .. } | Io::CompareWrite { .. } => Self::Write,
            Io::WriteZeroes { .. } => Self::Zero,
            Io::Flush => Self::Flush,
            Io::Extents { .. } => Self::Extents,
        }
    }
}

struct OpStats {
    errors: AtomicU64,
    bytes: AtomicU64,
    /// A lock, because the histogram is read by whoever serves metrics; held for nanoseconds.
    latency_us: Mutex<Histogram<u64>>,
}

/// Counters and latencies of one volume; written by its session, read by anyone.
pub struct VolumeStats {
    ops: [OpStats; Op::ALL.len()],
    retries: AtomicU64,
}

/// Figures of one kind of operation, at one moment.
#[derive(Clone, Debug)]
pub struct OpSnapshot {
    /// Kind.
    pub op: Op,
    /// Operations that succeeded.
    pub count: u64,
    /// Operations that failed.
    pub errors: u64,
    /// Bytes of those that succeeded.
    pub bytes: u64,
    /// Latencies in microseconds of those that succeeded.
    pub latency_us: Histogram<u64>,
}

impl Default for VolumeStats {
    fn default() -> Self {
        let histogram =
            || Histogram::new_with_max(LATENCY_MAX_US, DIGITS).expect("bounds are valid");
        let ops = Op::ALL.map(|_| OpStats {
            errors: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            latency_us: Mutex::new(histogram()),
        });
        Self { ops, retries: AtomicU64::new(0) }
    }
}

impl VolumeStats {
    /// An operation ended.
    pub(crate) fn record(&self, op: Op, bytes: u64, took: Duration, succeeded: bool) {
        let stats = &self.ops[op as usize];
        if !succeeded {
            stats.errors.fetch_add(1, Ordering::Relaxed);
            return;
        }
        stats.bytes.fetch_add(bytes, Ordering::Relaxed);
        let mut latency = stats.latency_us.lock().unwrap_or_else(PoisonError::into_inner);
        latency.saturating_record(took.as_micros() as u64);
    }

    /// A request was sent again.
    pub(crate) fn retried(&self, times: u32) {
        if times > 0 {
            self.retries.fetch_add(times.into(), Ordering::Relaxed);
        }
    }

    /// Requests that were sent again so far.
    pub fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    /// All figures now.
    pub fn snapshot(&self) -> Vec<OpSnapshot> {
        let snapshot = |op: Op| {
            let stats = &self.ops[op as usize];
            let latency_us =
                stats.latency_us.lock().unwrap_or_else(PoisonError::into_inner).clone();
            OpSnapshot {
                op,
                count: latency_us.len(),
                errors: stats.errors.load(Ordering::Relaxed),
                bytes: stats.bytes.load(Ordering::Relaxed),
                latency_us,
            }
        };
        Op::ALL.map(snapshot).into()
    }
}
