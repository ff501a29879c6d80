//! Who uses a shard: counters for each program and volume, bounded in number, gone when nobody is attached
//! and nothing was asked for a while.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tidewater_proto::ids::VolumeId;

use crate::replica::Time;

/// Users that are counted apart; more are counted together, under no name and volume 0.
const USERS_MAX: usize = 256;
/// Counters of who is detached are kept this long after the last request: longer than a scrape interval.
const KEPT: Duration = Duration::from_mins(5);

/// Upper bounds of the latency buckets, microseconds; those of the client's.
pub const LATENCY_BOUNDS_US: [u64; 14] = [
    50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 500_000, 1_000_000,
    5_000_000,
];

/// A program on a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct User {
    /// As the client says.
    pub program: String,
    /// As the client says.
    pub volume: VolumeId,
}

/// Requests of one kind.
#[derive(Debug, Default)]
pub(super) struct OpCounters {
    ops: AtomicU64,
    bytes: AtomicU64,
    micros: AtomicU64,
    /// Not cumulative; the last is for all that took longer.
    buckets: [AtomicU64; LATENCY_BOUNDS_US.len() + 1],
}

/// What [`OpCounters`] held at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpCounts {
    /// Requests answered.
    pub ops: u64,
    /// Bytes they read or wrote.
    pub bytes: u64,
    /// Time from their arrival to their answer, summed, microseconds.
    pub micros: u64,
    /// Requests that took no longer than each of [`LATENCY_BOUNDS_US`].
    pub within: [u64; LATENCY_BOUNDS_US.len()],
}

impl OpCounters {
    fn count(&self, bytes: u64, took: Duration) {
        let micros = took.as_micros() as u64;
        self.ops.fetch_add(1, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
        self.micros.fetch_add(micros, Relaxed);
        self.buckets[LATENCY_BOUNDS_US.partition_point(|bound| *bound < micros)]
            .fetch_add(1, Relaxed);
    }

    fn add_to(&self, counts: &mut OpCounts) {
        counts.ops += self.ops.load(Relaxed);
        counts.bytes += self.bytes.load(Relaxed);
        counts.micros += self.micros.load(Relaxed);
        let mut sum = 0;
        for (within, bucket) in counts.within.iter_mut().zip(&self.buckets) {
            sum += bucket.load(Relaxed);
            *within += sum;
        }
    }
}

/// Counters of one user at one shard.
#[derive(Debug, Default)]
pub(super) struct Usage {
    reads: OpCounters,
    writes: OpCounters,
}

/// A user's counts, over as many shards as were asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UsageCounts {
    /// Reads, and questions for extents.
    pub reads: OpCounts,
    /// Writes, zeroes and compares.
    pub writes: OpCounts,
}

/// Counters by user. A lock, because whoever serves metrics reads them; the shard takes it when a client
/// connects or is forgotten.
#[derive(Debug, Default)]
pub struct UsageTable(Mutex<BTreeMap<User, Arc<Usage>>>);

impl UsageTable {
    /// Adds what each user did to `counts`.
    pub fn add_to(&self, counts: &mut BTreeMap<User, UsageCounts>) {
        let table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (user, usage) in &*table {
            let sum = counts.entry(user.clone()).or_default();
            usage.reads.add_to(&mut sum.reads);
            usage.writes.add_to(&mut sum.writes);
        }
    }
}

/// What kind of request is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
}

/// The shard's side: who is attached.
#[derive(Debug)]
pub(super) struct Users {
    table: Arc<UsageTable>,
    known: BTreeMap<User, Known>,
}

#[derive(Debug)]
struct Known {
    usage: Arc<Usage>,
    connections: u32,
    used_at: Time,
}

impl Users {
    pub(super) fn new(table: Arc<UsageTable>) -> Self {
        Self { table, known: BTreeMap::new() }
    }

    /// A client of `user` has connected. Returns whom it is counted as.
    pub(super) fn connected(&mut self, user: User, now: Time) -> (User, Arc<Usage>) {
        if self.known.len() >= USERS_MAX && !self.known.contains_key(&user) {
            self.forget(now, Duration::ZERO);
        }
        let apart = self.known.len() < USERS_MAX || self.known.contains_key(&user);
        let user = if apart { user } else { User::default() };
        let table = &self.table;
        let known = self.known.entry(user.clone()).or_insert_with(|| {
            let usage = Arc::new(Usage::default());
            let mut table = table.0.lock().unwrap_or_else(PoisonError::into_inner);
            table.insert(user.clone(), Arc::clone(&usage));
            Known { usage, connections: 0, used_at: now }
        });
        known.connections += 1;
        known.used_at = now;
        (user, Arc::clone(&known.usage))
    }

    /// One of its connections has ended.
    pub(super) fn gone(&mut self, user: &User, now: Time) {
        if let Some(known) = self.known.get_mut(user) {
            known.connections = known.connections.saturating_sub(1);
            known.used_at = now;
        }
    }

    /// Forgets who has been detached for long.
    pub(super) fn sweep(&mut self, now: Time) {
        self.forget(now, KEPT);
    }

    fn forget(&mut self, now: Time, after: Duration) {
        let stays = |known: &Known| known.connections > 0 || now.since(known.used_at) < after;
        let mut table = self.table.0.lock().unwrap_or_else(PoisonError::into_inner);
        self.known.retain(|user, known| {
            let stays = stays(known);
            if !stays {
                table.remove(user);
            }
            stays
        });
    }
}

impl Usage {
    pub(super) fn count(&self, kind: Kind, bytes: u64, took: Duration) {
        match kind {
            Kind::Read => self.reads.count(bytes, took),
            Kind::Write => self.writes.count(bytes, took),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(n: u64) -> User {
        User { program: format!("p{n}"), volume: VolumeId(n) }
    }

    fn at(seconds: u64) -> Time {
        Time(seconds * 1_000_000)
    }

    fn counts(table: &UsageTable) -> BTreeMap<User, UsageCounts> {
        let mut counts = BTreeMap::new();
        table.add_to(&mut counts);
        counts
    }

    #[test]
    fn requests_are_counted_by_user_and_kind() {
        let table = Arc::new(UsageTable::default());
        let mut users = Users::new(Arc::clone(&table));
        let (_, one) = users.connected(user(1), at(0));
        let (_, same) = users.connected(user(1), at(0));
        let (_, two) = users.connected(user(2), at(0));
        one.count(Kind::Read, 4096, Duration::from_micros(50));
        same.count(Kind::Read, 512, Duration::from_micros(51));
        two.count(Kind::Write, 1024, Duration::from_secs(9));
        let counts = counts(&table);
        let reads = &counts[&user(1)].reads;
        assert_eq!((reads.ops, reads.bytes, reads.micros), (2, 4608, 101));
        assert_eq!(reads.within[..3], [1, 2, 2], "at a bound is within it");
        let writes = &counts[&user(2)].writes;
        assert_eq!((writes.ops, writes.within[LATENCY_BOUNDS_US.len() - 1]), (1, 0));
        assert_eq!(counts[&user(1)].writes, OpCounts::default());
    }

    #[test]
    fn a_user_is_forgotten_when_it_is_detached_and_idle() {
        let table = Arc::new(UsageTable::default());
        let mut users = Users::new(Arc::clone(&table));
        users.connected(user(1), at(0));
        users.connected(user(1), at(0));
        users.connected(user(2), at(0));
        users.gone(&user(1), at(10));
        users.gone(&user(2), at(10));
        users.sweep(at(9_999));
        assert_eq!(counts(&table).len(), 1, "one connection of the first is left");
        users.gone(&user(1), at(10_000));
        users.sweep(at(10_000).after(KEPT / 2));
        assert_eq!(counts(&table).len(), 1, "not for long enough");
        users.sweep(at(10_000).after(KEPT));
        assert!(counts(&table).is_empty());
    }

    /// INV-BOUND.
    #[test]
    fn more_users_than_are_counted_apart_are_counted_together() {
        let table = Arc::new(UsageTable::default());
        let mut users = Users::new(Arc::clone(&table));
        for n in 1..=USERS_MAX as u64 {
            assert_eq!(users.connected(user(n), at(0)).0, user(n));
        }
        let (as_whom, _) = users.connected(user(1_000), at(1));
        assert_eq!(as_whom, User::default());
        assert_eq!(counts(&table).len(), USERS_MAX + 1);
        // Who is detached gives way at once.
        users.gone(&user(7), at(2));
        users.gone(&as_whom, at(2));
        assert_eq!(users.connected(user(1_001), at(3)).0, user(1_001));
        assert_eq!(counts(&table).len(), USERS_MAX);
    }
}
