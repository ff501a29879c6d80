//! What replicas of one segment say to each other. Rules: docs/protocol.md.

use crate::{
    entry::{Entry, Payload},
    geometry::Extent,
    ids::{Epoch, OpId, Position, ReplicaId, SegmentId, Sequence, SessionId, Token},
    record::Route,
};

/// A message between two copies of a segment.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Envelope<P> {
    /// Which segment.
    pub segment: SegmentId,
    /// Copy that sends.
    pub from: ReplicaId,
    /// Copy it is for.
    pub to: ReplicaId,
    /// Epoch the sender is in.
    pub epoch: Epoch,
    /// What it says.
    pub message: PeerMessage<P>,
}

/// Body of an [`Envelope`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PeerMessage<P> {
    /// A primary, or a former one, to another copy.
    Primary(FromPrimary<P>),
    /// Another copy to a primary.
    Answer(ToPrimary<P>),
}

/// What a primary says to a member or learner.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FromPrimary<P> {
    /// The next entry, behind `previous`.
    Append {
        /// Entry before this one in the primary's log.
        previous: Position,
        /// The entry.
        entry: Entry<P>,
        /// The primary's commit point.
        commit: Sequence,
    },
    /// The log up to `last` should be there, and the commit point. Sent when idle and after a
    /// reconnection.
    Commit {
        /// Last entry of the primary's log.
        last: Position,
        /// The primary's commit point.
        commit: Sequence,
    },
    /// A new primary: what do you hold? Answered once no older lease can be alive.
    Query,
    /// A new primary to the member with the longest tail: send your entries from here on.
    Fetch {
        /// First sequence wanted.
        from: Sequence,
    },
    /// Asks for a lease.
    LeaseAsk {
        /// Number of the request.
        number: u64,
    },
    /// A former primary gives the leases up to this number back.
    LeaseReturn {
        /// Number of the highest request given back.
        number: u64,
    },
    /// A copy begins. Entries behind `at` come as `Append`, the chunks in `follow` as `CopyChunk`; chunks
    /// not in `live` are dropped. An entry that only changes chunks whose image is yet to be read comes
    /// as [`Change::Activate`](crate::entry::Change::Activate): the image shows it.
    CopyBegin {
        /// The primary's commit point.
        at: Position,
        /// Where the learner's own copy ended, as it said.
        have: Sequence,
        /// Chunks that hold data at the primary.
        live: Vec<u32>,
        /// Those of them that changed since `have`.
        follow: Vec<u32>,
    },
    /// One chunk.
    CopyChunk {
        /// Chunk within the segment.
        chunk: u32,
        /// Last change of the chunk.
        changed: Sequence,
        /// Commit point its content shows.
        at: Sequence,
        /// Which blocks are written, and their bytes and checksums; none if the chunk is a hole.
        image: Option<P>,
    },
    /// All chunks are sent. The state is whole as of `at`.
    CopyEnd {
        /// Entry the copy is consistent at.
        at: Position,
        /// Operations applied so far, by session: a function of the log up to `at`.
        applied: Vec<AppliedSession>,
    },
}

/// What a primary is answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ToPrimary<P> {
    /// To `Append` and `Commit`: what the sender holds contiguously.
    Appended {
        /// In memory up to here.
        received: Sequence,
        /// In the journal up to here.
        durable: Sequence,
        /// What may follow behind `received`.
        room: Room,
        /// Set while the copy is being filled: where it ended before. What it has received says nothing of
        /// what is below.
        filling: Option<Sequence>,
    },
    /// To an `Append` or `Commit` that does not fit: a gap, or another entry at `previous`.
    Mismatch {
        /// Last entry the sender holds.
        last: Position,
        /// Commit point the sender knows.
        commit: Sequence,
    },
    /// To `Query`.
    Answer {
        /// Last entry held durably.
        last: Position,
        /// Commit point known.
        commit: Sequence,
    },
    /// To `Fetch`: one entry of the tail.
    Tail {
        /// The entry.
        entry: Entry<P>,
        /// Last entry of the sender's log.
        last: Position,
    },
    /// The receiver of a message has a newer epoch; it is in the envelope.
    Stale,
    /// The receiver of a message has lost that copy, or never had it.
    Lost,
    /// The lease numbered so is given.
    LeaseGrant {
        /// Number of the request.
        number: u64,
    },
    /// A learner holds everything up to `have`: what changed since is to be copied to it.
    CopyAsk {
        /// Where the learner's own copy ends.
        have: Sequence,
    },
    /// That chunk is durable here.
    CopyTaken {
        /// Chunk within the segment.
        chunk: u32,
    },
    /// The end of the copy is durable here.
    CopyEnded {
        /// As in `CopyEnd`.
        at: Position,
    },
}

/// How many chunks without data may be given data by entries that are under way to a copy. A chunk that
/// is given data takes space for good, so this is how a server that is low on space is not overrun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Room(pub u32);

impl Room {
    /// None: the server is low on space.
    pub const NONE: Self = Self(0);
    /// As many as there are.
    pub const ANY: Self = Self(u32::MAX);
}

impl<P> From<FromPrimary<P>> for PeerMessage<P> {
    fn from(message: FromPrimary<P>) -> Self {
        Self::Primary(message)
    }
}

impl<P> From<ToPrimary<P>> for PeerMessage<P> {
    fn from(message: ToPrimary<P>) -> Self {
        Self::Answer(message)
    }
}

/// The applied operations of one session, as of some sequence.
#[derive(
    Clone,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct AppliedSession {
    /// Session.
    pub session: SessionId,
    /// Token of its last operation.
    pub token: Token,
    /// Numbers below are forgotten.
    pub lowest_open: u64,
    /// Numbers applied, with the entry that applied each.
    pub applied: Vec<(u64, Position)>,
}

/// A request of a client to a segment's primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request<P> {
    /// Which segment.
    pub segment: SegmentId,
    /// Epoch the client believes in.
    pub epoch: Epoch,
    /// Token of the client's attachment.
    pub token: Token,
    /// Identity of the operation; reads and flushes have one too, which is not remembered.
    pub op: OpId,
    /// The session's lowest open number.
    pub lowest_open: u64,
    /// What to do.
    pub action: Action<P>,
}

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action<P> {
    /// Bytes of `extent`.
    Read {
        /// Where.
        extent: Extent,
    },
    /// Replace bytes.
    Write {
        /// Where.
        extent: Extent,
        /// What.
        data: P,
    },
    /// Replace by zeroes.
    Zero {
        /// Where.
        extent: Extent,
        /// Whether space may be given back.
        discard: bool,
    },
    /// Replace one block if it has the expected checksum and bytes.
    Compare {
        /// One whole block.
        extent: Extent,
        /// What must be there.
        expect: P,
        /// What replaces it.
        data: P,
    },
    /// Answered once `acked` is committed; `Lost` if the log did not keep it.
    Flush {
        /// Highest (epoch, sequence) acknowledged to this client.
        acked: Position,
    },
    /// Which chunks hold data.
    Extents {
        /// Where.
        extent: Extent,
    },
}

/// Answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Written, zeroed, compared equal and written, or flushed. The position is the entry's, or the
    /// commit point for a flush.
    Done(Position),
    /// Bytes and checksums of a read.
    Data(Payload),
    /// The block holds other bytes; nothing was written.
    Differs,
    /// Runs of (bytes, holds data) that cover the extent asked for.
    Extents(Vec<(u32, bool)>),
    /// Not done.
    Refused(Refusal),
}

/// Why a server did not do what was asked. All but `Lost` and `Failed` mean that this try was not
/// applied; none says anything about an earlier try of the same operation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The segment is in another epoch, or led by another server; the record says which.
    #[error("segment is at epoch {}, led by {}", .0.epoch, .0.primary)]
    WrongEpoch(Route),
    /// The server has no copy that leads this segment and knows no better.
    #[error("server does not lead this segment")]
    NotPrimary,
    /// A newer exclusive attachment exists.
    #[error("fenced: the volume was attached again with token {0}")]
    Fenced(Token),
    /// The operation's number is below the session's lowest open one.
    #[error("operation is older than the session remembers")]
    Old,
    /// Too much is queued; try again after a pause.
    #[error("server is busy")]
    Busy,
    /// The payload does not match its checksums.
    #[error("payload does not match its checksum")]
    BadSum,
    /// Malformed or out of range.
    #[error("request is malformed or out of range")]
    Invalid,
    /// No space for the write.
    #[error("no space left on the server's devices")]
    NoSpace,
    /// Stored bytes do not match their checksum, and no good copy was found.
    #[error("stored data does not match its checksum")]
    Corrupt,
    /// The log did not keep an acknowledged write (durability `flush` only).
    #[error("an acknowledged write was lost before it was flushed")]
    Lost,
    /// The device failed; whether the operation takes effect is open.
    #[error("device failed")]
    Failed,
}

/// A peer message as it goes over the wire.
pub type Wire = Envelope<Payload>;
