//! Identifiers and counters. Newtypes, so that a server cannot be passed for a segment.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

id!(
    /// One meta node: a voter or learner of the Raft group.
    MetaId, "m"
);
id!(
    /// One chunkserver; never reused after removal.
    ServerId, "s"
);
id!(
    /// One run of a chunkserver process, drawn at random at its start. An epoch is served by one run.
    RunId, "r"
);
id!(
    /// One volume; never reused after deletion.
    VolumeId, "v"
);
id!(
    /// One copy of a segment on one chunkserver; made with the copy, never reused.
    ReplicaId, "c"
);
id!(
    /// Number of a segment's replica-set configuration; only a committed Raft command raises it.
    Epoch, "e"
);
id!(
    /// Position of an entry in a segment's log; assigned by the primary, contiguous from 1.
    Sequence, "#"
);
id!(
    /// Raised with each exclusive attachment of a volume; carried by every write.
    Token, "t"
);
id!(
    /// One open of a volume by one client; allotted by Raft, so unique in the cluster.
    SessionId, "o"
);
id!(
    /// Index of the last Raft entry that changed something; watches resume from it.
    Revision, "@"
);

impl Sequence {
    /// The next position.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl Epoch {
    /// The next configuration.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// One segment: a fixed-size piece of a volume's address space.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct SegmentId {
    /// Volume it is part of.
    pub volume: VolumeId,
    /// Offset in the volume, in segments.
    pub index: u32,
}

impl SegmentId {
    /// Which of a server's `shards` owns this segment. Clients and servers must agree on it.
    ///
    /// # Panics
    ///
    /// If `shards` is zero.
    pub fn shard(self, shards: usize) -> usize {
        let mixed = (self.volume.0 ^ u64::from(self.index).rotate_left(32))
            .wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((mixed >> 32) as usize) % shards
    }
}

impl fmt::Display for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.volume, self.index)
    }
}

/// Identity of one client operation; a retry carries the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OpId {
    /// Session that issued it.
    pub session: SessionId,
    /// Number within the session, from 1.
    pub number: u64,
}

impl fmt::Display for OpId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.session, self.number)
    }
}

/// Identity of an entry: the epoch it was first given and its sequence. Ordered by epoch, then
/// sequence, which is how activation ranks tails.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Position {
    /// Epoch the entry was first given.
    pub epoch: Epoch,
    /// Its place in the log.
    pub sequence: Sequence,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.epoch, self.sequence)
    }
}
