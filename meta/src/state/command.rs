#![deny(clippy::disallowed_methods, clippy::disallowed_types)]
//! What the log holds. Time and random ids are arguments, drawn by the proposer; a command that
//! depends on what its proposer saw names it (epoch), so a stale one is refused by `apply`.

use std::fmt;

use serde::{Deserialize, Serialize};
use tidewater_proto::{
    ids::{Epoch, ReplicaId, Revision, RunId, SegmentId, ServerId, SessionId, Token, VolumeId},
    record::{CopyReport, Durability, SetChange},
};

use super::rows::{AttachMode, Device, Holder, Instance, Topology};

/// Who the audit trail names where the leader acts by itself.
pub(crate) const REPAIR: &str = "repair";

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Proposal {
    /// Unix milliseconds by the proposer's clock. For people: nothing is decided by it.
    pub(crate) now_ms: u64,
    pub(crate) command: Command,
}

/// A change of the state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Command {
    InitCluster { uuid: String, segment_bytes: u64 },
    RegisterServer(RegisterServer),
    UpdateServer(UpdateServer),
    RemoveServer { server: ServerId },
    CreateVolume(CreateVolume),
    ResizeVolume { name: String, size_bytes: u64 },
    RenameVolume { name: String, to: String },
    DeleteVolume { name: String, keep_ms: u64 },
    RestoreVolume { id: VolumeId, name: String },
    AgeTrash { id: VolumeId, deletion: Revision, waited_ms: u64 },
    PurgeVolume { id: VolumeId, deletion: Option<Revision> },
    RegisterProgram { name: String, instances: Vec<(String, Instance)> },
    RemoveProgram { name: String, instance: Option<String> },
    Attach(Attach),
    AttachReady { session: SessionId, token: Token },
    Detach { session: SessionId, force: bool },
    CreateSegment(CreateSegment),
    ChangeSet(ChangeSet),
    AddLearner(AddLearner),
    Retire { segment: SegmentId, replica: ReplicaId, expected_epoch: Epoch, reason: String },
    ReportActive { server: ServerId, reports: Vec<Active> },
    ReportDeleted { server: ServerId, copies: Vec<(SegmentId, ReplicaId)> },
    ReportCopies(ReportCopies),
    FinishRestore { without: Vec<ServerId> },
}

/// A chunkserver's start, or the same told again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RegisterServer {
    /// What the server believes it is; none on its first start.
    pub(crate) server: Option<ServerId>,
    /// Identity of its data folder.
    pub(crate) store: String,
    pub(crate) run: RunId,
    pub(crate) topology: Topology,
    /// gRPC control port, `host:port`.
    pub(crate) control: std::net::SocketAddr,
    /// Data plane, one listener a shard; never empty.
    pub(crate) shards: Vec<std::net::SocketAddr>,
    pub(crate) devices: Vec<Device>,
}

/// What changes of a server between its starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UpdateServer {
    pub(crate) server: ServerId,
    pub(crate) cordoned: Option<bool>,
    pub(crate) devices: Option<Vec<Device>>,
}

/// A new volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CreateVolume {
    pub(crate) name: String,
    pub(crate) size_bytes: u64,
    pub(crate) replicas: u8,
    pub(crate) durability: Durability,
}

/// A new attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attach {
    pub(crate) volume: String,
    pub(crate) mode: AttachMode,
    pub(crate) holder: Holder,
    /// Detach by force whoever conflicts.
    pub(crate) take_over: bool,
    /// Drawn by the client; empty for none.
    pub(crate) request: String,
}

/// A first placement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CreateSegment {
    pub(crate) segment: SegmentId,
    /// Chosen by placement; the first is the primary.
    pub(crate) servers: Vec<ServerId>,
}

/// A change of a segment's set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ChangeSet {
    pub(crate) segment: SegmentId,
    pub(crate) expected_epoch: Epoch,
    pub(crate) change: SetChange,
    /// The server that asks, if one does; it must hold the primary.
    pub(crate) proposer: Option<ServerId>,
    pub(crate) actor: String,
    pub(crate) reason: String,
}

/// A copy that starts to follow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AddLearner {
    pub(crate) segment: SegmentId,
    pub(crate) expected_epoch: Epoch,
    pub(crate) source: LearnerSource,
    pub(crate) reason: String,
}

/// Which copy becomes a learner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LearnerSource {
    /// One that was a member: it catches up by what it missed.
    Former(ReplicaId),
    /// A new copy on a server that has none.
    Spare(ServerId),
}

/// A primary has activated an epoch and made a token durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Active {
    pub(crate) segment: SegmentId,
    pub(crate) epoch: Epoch,
    pub(crate) token: Token,
}

/// Copies that a server holds, told to a cluster that is being restored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReportCopies {
    pub(crate) server: ServerId,
    pub(crate) run: RunId,
    pub(crate) copies: Vec<CopyReport>,
    /// Every server it has been told of.
    pub(crate) servers: Vec<ServerId>,
    /// All are told.
    pub(crate) last: bool,
}

impl Command {
    /// Whether it may change the state while a restored cluster collects: it decides nothing.
    pub(crate) fn collects(&self) -> bool {
        matches!(
            self,
            Self::RegisterServer(_)
                | Self::UpdateServer(_)
                | Self::ReportCopies(_)
                | Self::FinishRestore { .. }
        )
    }

    fn name(&self) -> &'static str {
        match self {
            Self::InitCluster { .. } => "init-cluster",
            Self::RegisterServer(_) => "register-server",
            Self::UpdateServer(_) => "update-server",
            Self::RemoveServer { .. } => "remove-server",
            Self::CreateVolume(_) => "create-volume",
            Self::ResizeVolume { .. } => "resize-volume",
            Self::RenameVolume { .. } => "rename-volume",
            Self::DeleteVolume { .. } => "delete-volume",
            Self::RestoreVolume { .. } => "restore-volume",
            Self::AgeTrash { .. } => "age-trash",
            Self::PurgeVolume { .. } => "purge-volume",
            Self::RegisterProgram { .. } => "register-program",
            Self::RemoveProgram { .. } => "remove-program",
            Self::Attach(_) => "attach",
            Self::AttachReady { .. } => "attach-ready",
            Self::Detach { .. } => "detach",
            Self::CreateSegment(_) => "create-segment",
            Self::ChangeSet(_) => "change-set",
            Self::AddLearner(_) => "add-learner",
            Self::Retire { .. } => "retire",
            Self::ReportActive { .. } => "report-active",
            Self::ReportDeleted { .. } => "report-deleted",
            Self::ReportCopies(_) => "report-copies",
            Self::FinishRestore { .. } => "finish-restore",
        }
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.command.name())
    }
}
