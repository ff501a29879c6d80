//! One shard: the thread that alone owns a subset of the server's segments. It has its own listener, its
//! own journal, and steps its replicas in line with what it reads.
//!
//! [`Shard`] itself has no thread, task, socket or clock of its own. Whoever drives it hands it frames,
//! commands and ticks, and gives it an [`Outlet`] for each connection: `runtime` does with tokio and TCP,
//! a simulator with queues in memory, a [`SimClock`](crate::SimClock) and a store on simulated disks.
//! Nothing in it is random: the run's number is given to it.
//!
//! | module | noun |
//! | --- | --- |
//! | `runtime` | the shard's thread and its tasks |
//! | `links` | the tasks that keep connections to peers up |
//! | `outlet` | the sending end of a connection |
//! | `replicas` | the copies it owns: made, configured, deleted |
//! | `effects` | what a copy asks for, done |
//! | `inspect` | what a simulator sees of it |
//! | `channels` | what the server tells a shard, and is told |
//! | `clients` | requests of clients |
//! | `peers` | links to the shards of other servers |
//! | `pace` | how fast learners are sent what they lack |
//! | `space` | how much can still be taken |
//! | `usage` | counters of who uses it |

mod channels;
mod clients;
mod effects;
mod inspect;
mod links;
mod outlet;
mod pace;
mod peers;
mod replicas;
mod runtime;
mod space;
#[cfg(test)]
mod tests;
mod usage;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    rc::Rc,
    sync::Arc,
};

use tidewater_proto::{
    entry::Payload,
    ids::{Epoch, ReplicaId, RunId, SegmentId, ServerId, Token},
    peer::{Request, Room},
    record::{CopyReport, SegmentRecord, ServerAddress, SetChange},
};
use tokio::sync::{Notify, mpsc, oneshot};

use crate::{
    clock::Clock,
    replica::{Reason, Replica, RequestId, Time, Timing},
    store::{ChunkImage, Ready, Recovered, ShardStore, Ticket},
};
use channels::Reports;
use clients::OpenRequests;
use pace::Pace;
use peers::Peers;
use space::Space;
use usage::Users;

pub use channels::REPORTS_MAX;
pub(crate) use channels::{Commands, Full};
pub use clients::Client;
pub use outlet::{Outlet, SimOutlet};
pub use pace::RebuildRate;
pub use peers::{Hearing, PeerShard};
pub use usage::{LATENCY_BOUNDS_US, OpCounts, UsageCounts, UsageTable, User};

pub(crate) use runtime::{ShardStart, start};

/// What the server tells a shard.
#[derive(Debug)]
pub enum ShardCommand {
    /// A record of a segment this shard owns.
    Record(SegmentRecord),
    /// The record no longer names this server.
    Gone(SegmentId),
    /// The id of a copy of a purged volume is retired.
    Retired(SegmentId, ReplicaId),
    /// Where all servers listen.
    Servers(Vec<ServerAddress>),
    /// A restored metadata cluster asks what copies there are.
    TellCopies(oneshot::Sender<Vec<CopyReport>>),
}

/// What a shard tells the server.
#[derive(Debug)]
pub enum ShardReport {
    /// A primary wants its set changed.
    Propose {
        /// Which segment.
        segment: SegmentId,
        /// Epoch it is meant for.
        epoch: Epoch,
        /// What is to change.
        change: SetChange,
        /// Why.
        reason: Reason,
    },
    /// A primary is active.
    Active {
        /// Which segment.
        segment: SegmentId,
        /// Epoch it serves.
        epoch: Epoch,
        /// Token that is durable.
        token: Token,
    },
    /// A retired copy is deleted.
    Deleted {
        /// Which segment.
        segment: SegmentId,
        /// Which copy.
        replica: ReplicaId,
    },
    /// A device or the journal failed for good.
    Failed,
}

/// Counters of one shard, read by the metrics endpoint.
#[derive(Debug, Default)]
pub struct ShardCounters {
    /// Client reads answered.
    pub reads: std::sync::atomic::AtomicU64,
    /// Client writes, zeroes and compares answered.
    pub writes: std::sync::atomic::AtomicU64,
    /// Client requests refused.
    pub refused: std::sync::atomic::AtomicU64,
    /// Copies held.
    pub replicas: std::sync::atomic::AtomicU64,
    /// Copies that lead.
    pub primaries: std::sync::atomic::AtomicU64,
    /// Chunk bytes sent to learners.
    pub copied_bytes: std::sync::atomic::AtomicU64,
    /// Bytes a second that learners may be sent now.
    pub rebuild_rate: std::sync::atomic::AtomicU64,
    /// Time that its thread was not waiting for anything to do, microseconds.
    pub busy_us: std::sync::atomic::AtomicU64,
    /// By program and volume.
    pub usage: Arc<UsageTable>,
    /// 1 if the shard is so low on space that it takes no new chunks.
    pub low_on_space: std::sync::atomic::AtomicU64,
}

/// Everything a shard is made of.
pub struct ShardParts {
    /// Its number in the server.
    pub index: usize,
    /// How many the server has.
    pub shards: usize,
    /// The server.
    pub server: ServerId,
    /// Random number of the process run.
    pub run: RunId,
    /// Id of the cluster; connections of another one are refused.
    pub cluster: String,
    /// Bytes of a segment.
    pub segment_bytes: u64,
    /// Durations of the replication protocol.
    pub timing: Timing,
    /// How fast learners may be sent what they lack.
    pub rebuild: RebuildRate,
    /// Where its copies are kept.
    pub store: ShardStore,
    /// Where its reports go.
    pub reports: mpsc::Sender<ShardReport>,
    /// When peers were heard.
    pub hearing: Arc<Hearing>,
    /// What the metrics show.
    pub counters: Arc<ShardCounters>,
}

/// A copy and what its driver remembers of it.
struct Owned {
    replica: Replica<Payload>,
    /// Records it has given to the journal.
    persists: u64,
    /// A copy into it that is under way.
    incoming: Option<Incoming>,
}

/// What a copy from a primary began with.
struct Incoming {
    at: tidewater_proto::ids::Position,
    live: BTreeSet<u32>,
    /// Those whose image comes.
    follow: BTreeSet<u32>,
}

/// A record in the journal's hands: its ticket, whose it is, and the copy's own count of it.
struct Journaled {
    ticket: Ticket,
    replica: ReplicaId,
    count: u64,
}

/// State of the shard; only its own thread touches it.
pub struct Shard {
    index: usize,
    cluster: String,
    server: ServerId,
    run: RunId,
    timing: Timing,
    segment_bytes: u64,
    clock: Box<dyn Clock>,
    store: ShardStore,
    owned: BTreeMap<ReplicaId, Owned>,
    /// Oldest first.
    journaled: VecDeque<Journaled>,
    by_segment: BTreeMap<SegmentId, ReplicaId>,
    records: BTreeMap<SegmentId, SegmentRecord>,
    peers: Peers,
    open: OpenRequests,
    /// Client requests that wait for room in the store, oldest first.
    stalled: VecDeque<(RequestId, Request<Payload>)>,
    stalled_bytes: usize,
    /// What an outstanding store operation is for.
    /// Copies being deleted, to be reported.
    deleting: BTreeMap<ReplicaId, SegmentId>,
    jobs: BTreeMap<u64, Job>,
    next_job: u64,
    pace: Pace,
    reports: Reports,
    /// Woken when something is to be done at the end of this turn of the loop.
    turn: Rc<Notify>,
    hearing: Arc<Hearing>,
    counters: Arc<ShardCounters>,
    users: Users,
    /// Chunkserver shards in all; each has its share of the devices.
    shards: usize,
    space: Space,
    /// What the copies were told of it.
    told_room: Room,
    /// Something was zeroed since the last round: destaging it may free space.
    zeroed: bool,
    /// Chunks from primaries that wait for space, oldest first. Bounded: each copy has a window.
    unplaced: VecDeque<(ReplicaId, ChunkImage)>,
    ticks: u64,
}

/// An operation of the store that answers later.
enum Job {
    /// A client's read.
    Read(RequestId),
    /// The block of a compare-and-write.
    Compare { replica: ReplicaId, id: RequestId, expect: Payload },
    /// A chunk for a learner.
    Chunk {
        replica: ReplicaId,
        learner: ReplicaId,
        chunk: u32,
        changed: tidewater_proto::ids::Sequence,
    },
    /// A chunk from a primary.
    Taken { replica: ReplicaId, chunk: u32 },
    /// The end of a copy.
    Ended { replica: ReplicaId, at: tidewater_proto::ids::Position },
}

impl Shard {
    /// A shard with the copies that its store found. `clock` is the lease clock.
    pub fn new(parts: ShardParts, clock: Box<dyn Clock>, recovered: Vec<Recovered>) -> Self {
        let mut shard = Self {
            index: parts.index,
            cluster: parts.cluster,
            server: parts.server,
            run: parts.run,
            timing: parts.timing,
            segment_bytes: parts.segment_bytes,
            clock,
            store: parts.store,
            owned: BTreeMap::new(),
            journaled: VecDeque::new(),
            by_segment: BTreeMap::new(),
            records: BTreeMap::new(),
            peers: Peers::default(),
            open: OpenRequests::default(),
            stalled: VecDeque::new(),
            stalled_bytes: 0,
            deleting: BTreeMap::new(),
            jobs: BTreeMap::new(),
            next_job: 0,
            pace: Pace::new(parts.rebuild),
            reports: Reports::new(parts.reports),
            turn: Rc::new(Notify::new()),
            hearing: parts.hearing,
            users: Users::new(Arc::clone(&parts.counters.usage)),
            counters: parts.counters,
            shards: parts.shards,
            space: Space::default(),
            told_room: Room::ANY,
            zeroed: false,
            unplaced: VecDeque::new(),
            ticks: 0,
        };
        for found in recovered {
            shard.recover(found);
        }
        shard.look_at_space();
        shard
    }

    /// Notified when [`end_turn`](Self::end_turn) has something to do.
    pub fn turn(&self) -> Rc<Notify> {
        Rc::clone(&self.turn)
    }

    /// Ends a turn of the loop: what was read together goes to the journal, and lease messages to the
    /// links, together.
    pub fn end_turn(&mut self) {
        self.tell_room();
        self.give_turns();
        self.send_leases();
        self.store.submit();
        if self.open.len() == 1 {
            self.store.submit_read();
            self.poll_store();
        }
    }

    /// Time passes; to be called every 25 ms or so.
    pub fn tick(&mut self) {
        self.tick_replicas();
        self.poll_store();
        self.end_turn();
    }

    /// Ready when [`poll_store`](Self::poll_store) has something to do.
    ///
    /// # Errors
    ///
    /// If the operating system refuses to tell.
    pub fn completions(&self) -> io::Result<Ready> {
        self.store.ready()
    }

    fn now(&self) -> Time {
        self.clock.now()
    }

    fn job(&mut self, job: Job) -> u64 {
        self.next_job += 1;
        self.jobs.insert(self.next_job, job);
        self.next_job
    }

    fn report(&mut self, report: ShardReport) {
        self.reports.send(report);
    }
}
