//! What can happen to a copy, and what it asks its driver to do.

use tidewater_proto::{
    entry::Entry,
    geometry::Extent,
    ids::{Epoch, Position, ReplicaId, Sequence, Token},
    peer::{AppliedSession, Envelope, Reply, Request, Room},
    record::{SegmentRecord, SetChange},
};

/// Names a client request while it is open at this server; chosen by the driver, never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Something that happened. Every event may come late or twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<P> {
    /// The segment's Raft record as the server knows it now.
    Configure(SegmentRecord),
    /// Another copy says something.
    Message(Envelope<P>),
    /// Everything persisted up to and with this record, counted from 1 in the order asked, is durable.
    Persisted(u64),
    /// A client asks something.
    Request {
        /// For the reply.
        id: RequestId,
        /// What is asked.
        request: Request<P>,
        /// Chunks it writes to that hold no data, by what is applied.
        fresh: Vec<u32>,
    },
    /// The own server has room for so many new chunks on the way to this copy.
    Room(Room),
    /// The comparison asked for with [`Effect::Compare`] is done.
    Compared {
        /// The request.
        id: RequestId,
        /// Whether the block held what was expected.
        equal: bool,
    },
    /// The connection to this copy's server is up (again): what was sent before may be lost.
    Connected(ReplicaId),
    /// The connection to this copy's server broke and could not be made again at once.
    Refused(ReplicaId),
    /// Time passes.
    Tick,
    /// Everything up to here is in the chunks.
    Destaged(Position),
    /// Answer to [`Effect::AwaitTurn`].
    Turn {
        /// For whom.
        learner: ReplicaId,
    },
    /// Answer to [`Effect::PlanCopy`]: live chunks and their last changes as of the commit point.
    CopyPlan {
        /// For whom.
        learner: ReplicaId,
        /// Live chunks.
        chunks: Vec<(u32, Sequence)>,
    },
    /// Answer to [`Effect::ReadChunk`].
    CopyRead {
        /// For whom.
        learner: ReplicaId,
        /// Chunk within the segment.
        chunk: u32,
        /// Its last change when the reading began.
        changed: Sequence,
        /// Its content; none for a hole.
        image: Option<P>,
    },
    /// Answer to [`Effect::ReadChunk`]: it cannot be read now.
    CopyUnread {
        /// For whom.
        learner: ReplicaId,
        /// Chunk within the segment.
        chunk: u32,
    },
    /// Answer to [`Effect::TakeChunk`]: durable.
    ChunkTaken(u32),
    /// Answer to [`Effect::EndCopy`]: durable.
    CopyEnded(Position),
}

/// What the driver must make durable, in the order asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Persist<P> {
    /// An entry, and the commit point known with it.
    Entry {
        /// The entry.
        entry: Entry<P>,
        /// Commit point.
        commit: Sequence,
    },
    /// The copy takes part in nothing older than `epoch`; writes with a lower token are refused.
    Promise {
        /// Epoch.
        epoch: Epoch,
        /// Token.
        token: Token,
    },
}

/// What the driver must do. All but `Persist` may be lost with the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect<P> {
    /// Make durable; answered by [`Event::Persisted`] with the count of these.
    Persist(Persist<P>),
    /// Send to another copy.
    Send(Envelope<P>),
    /// The entry is committed: it goes into the chunks, in this order.
    Apply(Entry<P>),
    /// Answer a client.
    Reply(RequestId, Reply),
    /// Answer a client's read from what is applied now.
    Read(RequestId, Extent),
    /// Answer a client's question for extents from what is applied now.
    Extents(RequestId, Extent),
    /// Compare a block with what is applied now; answered by [`Event::Compared`].
    Compare {
        /// The request.
        id: RequestId,
        /// One block.
        extent: Extent,
        /// What is expected there.
        expect: P,
    },
    /// Ask the metadata cluster for a change of the set.
    Propose {
        /// Epoch it is meant for.
        epoch: Epoch,
        /// The change.
        change: SetChange,
        /// Why.
        reason: Reason,
    },
    /// Tell the metadata cluster that this epoch and token are active and durable.
    Active {
        /// Epoch served.
        epoch: Epoch,
        /// Token durable; every write accepted with an older one is committed.
        token: Token,
    },
    /// A piece of what a learner lacks could be sent, about a chunk; answered by [`Event::Turn`]
    /// when there is time for it.
    AwaitTurn {
        /// For whom.
        learner: ReplicaId,
    },
    /// List the live chunks; answered by [`Event::CopyPlan`].
    PlanCopy {
        /// For whom.
        learner: ReplicaId,
    },
    /// Read a chunk as it is applied now, at once; answered by [`Event::CopyRead`] or
    /// [`Event::CopyUnread`].
    ReadChunk {
        /// For whom.
        learner: ReplicaId,
        /// Chunk within the segment.
        chunk: u32,
    },
    /// A copy begins here: durably note that this copy is whole only up to `have`, and drop chunks
    /// that are not `live`.
    BeginCopy {
        /// Entries follow behind this one.
        at: Position,
        /// Where the own copy ended.
        have: Sequence,
        /// The primary's chunks.
        live: Vec<u32>,
        /// Those of them that come as images. All others are whole from the start, and what the log
        /// changes in them may be destaged.
        follow: Vec<u32>,
        /// The entry at `have` and the operations applied as of it; none if the copy was begun before
        /// and the disk knows.
        own: Option<(Position, Vec<AppliedSession>)>,
    },
    /// Store a chunk durably; answered by [`Event::ChunkTaken`].
    TakeChunk {
        /// Chunk within the segment.
        chunk: u32,
        /// Its last change.
        changed: Sequence,
        /// Commit point its content shows.
        at: Sequence,
        /// Its content; none for a hole.
        image: Option<P>,
    },
    /// Durably note that the copy is whole as of `at`; answered by [`Event::CopyEnded`].
    EndCopy {
        /// Entry the copy is whole at.
        at: Position,
        /// Applied operations as of it.
        applied: Vec<AppliedSession>,
    },
}

/// Why a primary asks for a change of its set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// The copy's server does not answer.
    Silent,
    /// The copy is lost or has forgotten entries it had acknowledged.
    CopyLost,
    /// The learner has caught up.
    CaughtUp,
}

impl Reason {
    /// For the audit trail.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::CopyLost => "copy-lost",
            Self::CaughtUp => "caught-up",
        }
    }
}
