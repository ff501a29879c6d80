//! Why a request was not done, as gRPC says it.

use tonic::{Code, Status, metadata::MetadataValue};

use crate::{
    placement::NoPlacement,
    state::outcome::{Applied, Rejected},
};

/// Metadata key of an answer that did nothing because the node does not lead. Names the leader, or
/// is empty where the node knows of none.
const LEADER: &str = "tidewater-leader";

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("this meta node does not lead")]
    NotLeader { leader: Option<String> },
    #[error("no quorum within {limit_ms} ms; whether it takes effect is open")]
    NoQuorum { limit_ms: u64 },
    #[error("raft: {0}")]
    Raft(String),
    #[error("not within {limit_ms} ms: {what}; it goes on")]
    Waiting { what: &'static str, limit_ms: u64 },
    #[error("this meta node stops")]
    Stopping,
    #[error(transparent)]
    Rejected(#[from] Rejected),
    #[error(transparent)]
    NoPlacement(#[from] NoPlacement),
    #[error("server belongs to cluster {claimed}, this is {actual}")]
    OtherCluster { claimed: String, actual: String },
    #[error("{field} is malformed: {reason}")]
    Invalid { field: &'static str, reason: &'static str },
    #[error("{0}")]
    Malformed(#[from] tidewater_proto::convert::Malformed),
    #[error("the attachment ended while it waited")]
    AttachmentEnded,
    #[error("apply answered with {applied:?}, which this request does not expect")]
    Unexpected { applied: Applied },
}

impl Failure {
    fn code(&self) -> Code {
        match self {
            Self::NotLeader { .. } | Self::NoQuorum { .. } | Self::Raft(_) | Self::Stopping => {
                Code::Unavailable
            }
            Self::Waiting { .. } => Code::DeadlineExceeded,
            Self::Unexpected { .. } => Code::Internal,
            Self::Rejected(rejected) => code_of(rejected),
            Self::NoPlacement(_) => Code::ResourceExhausted,
            Self::OtherCluster { .. } | Self::AttachmentEnded => Code::FailedPrecondition,
            Self::Invalid { .. } | Self::Malformed(_) => Code::InvalidArgument,
        }
    }
}

fn code_of(rejected: &Rejected) -> Code {
    match rejected {
        Rejected::UnknownServer { .. }
        | Rejected::UnknownVolume { .. }
        | Rejected::UnknownVolumeId { .. }
        | Rejected::UnknownProgram { .. }
        | Rejected::UnknownInstance { .. }
        | Rejected::UnknownSession { .. }
        | Rejected::UnknownSegment { .. } => Code::NotFound,
        Rejected::ClusterExists { .. } | Rejected::VolumeExists { .. } => Code::AlreadyExists,
        Rejected::BadSegmentBytes { .. }
        | Rejected::BadServer
        | Rejected::BadName
        | Rejected::BadSize { .. }
        | Rejected::Shrink { .. }
        | Rejected::BadReplicas { .. }
        | Rejected::BadPlacement { .. }
        | Rejected::PastEnd { .. } => Code::InvalidArgument,
        Rejected::LimitReached { .. } => Code::ResourceExhausted,
        // For the caller to try again.
        Rejected::Restoring => Code::Unavailable,
        Rejected::ServersAwaited { .. }
        | Rejected::NoCluster
        | Rejected::StoreMismatch { .. }
        | Rejected::UnknownStore { .. }
        | Rejected::ServerHoldsCopies { .. }
        | Rejected::Attached { .. }
        | Rejected::NotInTrash { .. }
        | Rejected::OtherDeletion { .. }
        | Rejected::RequestEnded
        | Rejected::NotReady
        | Rejected::StaleEpoch { .. }
        | Rejected::NotPrimary { .. }
        | Rejected::BelowFloor { .. }
        | Rejected::LastMember
        | Rejected::SetFull { .. }
        | Rejected::WrongRole { .. }
        | Rejected::ServerTaken { .. } => Code::FailedPrecondition,
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let mut status = Self::new(failure.code(), failure.to_string());
        if let Failure::NotLeader { leader } = &failure
            && let Ok(leader) = MetadataValue::try_from(leader.as_deref().unwrap_or_default())
        {
            status.metadata_mut().insert(LEADER, leader);
        }
        status
    }
}
