//! One shard: the thread that alone owns a subset of the server's segments. It has its own listener, its
//! own journal, and steps its replicas in line with what it reads.
//!
//! | module | noun |
//! | --- | --- |
//! | `runtime` | the shard's thread, its tasks and its turn |
//! | `replicas` | the copies it owns: made, configured, deleted |
//! | `effects` | what a copy asks for, done |
//! | `channels` | what the server tells a shard, and is told |
//! | `clients` | requests of clients |
//! | `peers` | links to the shards of other servers |
//! | `pace` | how fast learners are sent what they lack |
//! | `space` | how much can still be taken |

mod channels;
mod clients;
mod effects;
mod pace;
mod peers;
mod replicas;
mod runtime;
mod space;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, VecDeque},
    rc::{Rc, Weak},
    sync::Arc,
};

use tidewater_proto::{
    entry::Payload,
    ids::{Epoch, ReplicaId, RunId, SegmentId, ServerId, Token},
    peer::{Request, Room},
    record::{SegmentRecord, ServerAddress, SetChange},
};
use tokio::sync::Notify;

use crate::{
    clock::BootClock,
    replica::{Reason, Replica, RequestId, Time, Timing},
    store::{ChunkImage, ShardStore, Ticket},
};
use channels::Reports;
use clients::OpenRequests;
use pace::Pace;
use peers::Peers;
use space::Space;

pub(crate) use channels::{Commands, Full, REPORTS_MAX};
pub use pace::RebuildRate;
pub(crate) use peers::Hearing;

pub(crate) use runtime::{ShardStart, start};

/// What the server tells a shard.
#[derive(Debug)]
pub(crate) enum ShardCommand {
    /// A record of a segment this shard owns.
    Record(SegmentRecord),
    /// The record no longer names this server.
    Gone(SegmentId),
    /// The id of a copy of a purged volume is retired.
    Retired(SegmentId, ReplicaId),
    /// Where all servers listen.
    Servers(Vec<ServerAddress>),
}

/// What a shard tells the server.
#[derive(Debug)]
pub(crate) enum ShardReport {
    /// A primary wants its set changed.
    Propose { segment: SegmentId, epoch: Epoch, change: SetChange, reason: Reason },
    /// A primary is active.
    Active { segment: SegmentId, epoch: Epoch, token: Token },
    /// A retired copy is deleted.
    Deleted { segment: SegmentId, replica: ReplicaId },
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
    /// 1 if the shard is so low on space that it takes no new chunks.
    pub low_on_space: std::sync::atomic::AtomicU64,
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
struct Shard {
    index: usize,
    cluster: String,
    server: ServerId,
    run: RunId,
    timing: Timing,
    segment_bytes: u64,
    clock: BootClock,
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
    /// The shard itself, for the tasks it starts.
    me: Weak<RefCell<Shard>>,
    hearing: Arc<Hearing>,
    counters: Arc<ShardCounters>,
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
    fn now(&self) -> Time {
        crate::clock::Clock::now(&self.clock)
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
