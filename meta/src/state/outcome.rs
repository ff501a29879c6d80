#![deny(clippy::disallowed_methods, clippy::disallowed_types)]
//! What applying a command came to.

use serde::{Deserialize, Serialize};
use tidewater_proto::ids::{Epoch, ReplicaId, SegmentId, ServerId, SessionId, VolumeId};

/// Answer to a command.
pub(crate) type Outcome = Result<Applied, Rejected>;

/// What a command did; details are in the state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Applied {
    /// It changed the state.
    Done,
    /// The state was as asked for already.
    Unchanged,
    Server(ServerId),
    Volume(VolumeId),
    Session(SessionId),
}

/// Why a command changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Rejected {
    #[error("the cluster is not initialised")]
    NoCluster,
    #[error("the cluster is initialised already, as {uuid}")]
    ClusterExists { uuid: String },
    #[error("the cluster is being restored and waits for its chunkservers")]
    Restoring,
    #[error("{missing} chunkservers have yet to tell what they hold")]
    ServersAwaited { missing: usize },
    #[error("segments of {segment_bytes} bytes: must be a multiple of 1 MiB, at most 1 GiB")]
    BadSegmentBytes { segment_bytes: u64 },

    #[error("no server {server}")]
    UnknownServer { server: ServerId },
    #[error("data folder belongs to {owner}, not to {claimed}")]
    StoreMismatch { owner: ServerId, claimed: ServerId },
    #[error("{server} is not known with this data folder; it may have been removed")]
    UnknownStore { server: ServerId },
    #[error("server has no shards or no data folder identity")]
    BadServer,
    #[error("{server} still holds {copies} copies")]
    ServerHoldsCopies { server: ServerId, copies: u32 },

    #[error("no volume {name:?}")]
    UnknownVolume { name: String },
    #[error("no volume {id}")]
    UnknownVolumeId { id: VolumeId },
    #[error("volume {name:?} exists")]
    VolumeExists { name: String },
    #[error("a name has 1 to 255 bytes and no control characters")]
    BadName,
    #[error("size {size_bytes} bytes: must be a positive multiple of 4096, at most 64 TiB")]
    BadSize { size_bytes: u64 },
    #[error("volume has {size_bytes} bytes; it can only grow")]
    Shrink { size_bytes: u64 },
    #[error("{replicas} replicas: must be 1 to 5")]
    BadReplicas { replicas: u8 },
    #[error(
        "volume is attached in session {session} by program {program:?}, instance {instance:?}, \
         host {host:?}"
    )]
    Attached { session: SessionId, program: String, instance: String, host: String },
    #[error("volume {id} is not in the trash")]
    NotInTrash { id: VolumeId },
    #[error("volume {id} was restored and deleted again")]
    OtherDeletion { id: VolumeId },
    #[error("limit reached: {limit} {what}")]
    LimitReached { what: Limit, limit: usize },

    #[error("no program {name:?}")]
    UnknownProgram { name: String },
    #[error("program {name:?} has no instance {instance:?}")]
    UnknownInstance { name: String, instance: String },
    #[error("no session {session}")]
    UnknownSession { session: SessionId },
    #[error("the attachment of this request has ended")]
    RequestEnded,
    #[error("some primary has not acknowledged the token")]
    NotReady,

    #[error("no segment {segment}")]
    UnknownSegment { segment: SegmentId },
    #[error("segment {segment} is past the end of the volume, which has {segments}")]
    PastEnd { segment: SegmentId, segments: u32 },
    #[error("segment takes {wanted} distinct known servers")]
    BadPlacement { wanted: u8 },
    #[error("segment is at {actual}, not {expected}")]
    StaleEpoch { expected: Epoch, actual: Epoch },
    #[error("{server} does not hold the primary")]
    NotPrimary { server: ServerId },
    #[error("set would shrink below {floor} members")]
    BelowFloor { floor: u8 },
    #[error("no other member is left")]
    LastMember,
    #[error("set has {members} members already")]
    SetFull { members: usize },
    #[error("copy {replica} is not in the state this change needs")]
    WrongRole { replica: ReplicaId },
    #[error("{server} has a copy already")]
    ServerTaken { server: ServerId },
}

/// What there can be only so many of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Limit {
    Servers,
    Volumes,
    Programs,
    Instances,
    Attachments,
    Learners,
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Servers => "servers",
            Self::Volumes => "volumes",
            Self::Programs => "programs",
            Self::Instances => "instances of a program",
            Self::Attachments => "attachments of a volume",
            Self::Learners => "learners of a segment",
        })
    }
}
