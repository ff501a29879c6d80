#![deny(clippy::disallowed_methods, clippy::disallowed_types)]
//! Rows of the state's tables. Stored as JSON: a field added later needs a serde default.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use tidewater_proto::{
    ids::{Revision, RunId, ServerId, SessionId, Token, VolumeId},
    record::{CopyReport, Durability, ServerAddress},
};

/// The cluster's constants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ClusterRow {
    pub(crate) uuid: String,
    pub(crate) segment_bytes: u64,
    pub(crate) created_ms: u64,
}

/// Ids given so far; none is given twice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counters {
    pub(crate) server: u64,
    pub(crate) volume: u64,
    pub(crate) replica: u64,
    pub(crate) session: u64,
    pub(crate) event: u64,
}

/// Where something runs; empty where unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Topology {
    pub(crate) region: String,
    pub(crate) zone: String,
    pub(crate) rack: String,
    pub(crate) host: String,
}

/// Speed class of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Tier {
    Nvme,
    Ssd,
    Hdd,
}

/// One directory, file or disk of a chunkserver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Device {
    pub(crate) name: String,
    pub(crate) tier: Tier,
    pub(crate) capacity_bytes: u64,
    pub(crate) used_bytes: u64,
    pub(crate) failed: bool,
}

/// A chunkserver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ServerRow {
    pub(crate) id: ServerId,
    /// Identity of its data folder.
    pub(crate) store: String,
    pub(crate) run: RunId,
    pub(crate) topology: Topology,
    pub(crate) address: ServerAddress,
    pub(crate) devices: Vec<Device>,
    /// Takes no new copies.
    pub(crate) cordoned: bool,
}

/// A volume's stay in the trash. Its end is decided by durations that leaders have counted, each by its
/// own monotonic clock; the two times are for people, by the clock of the one that took the delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Trashed {
    pub(crate) deleted_ms: u64,
    /// `deleted_ms` and how long it is kept.
    pub(crate) purge_ms: u64,
    /// Where the log has the delete: one that follows a restore begins another stay.
    #[serde(default)]
    pub(crate) deletion: Revision,
    /// How much of its time has passed, as far as leaders have recorded it.
    #[serde(default)]
    pub(crate) waited_ms: u64,
}

impl Trashed {
    /// How long the volume is kept.
    pub(crate) fn keep_ms(&self) -> u64 {
        self.purge_ms.saturating_sub(self.deleted_ms)
    }
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VolumeRow {
    pub(crate) id: VolumeId,
    pub(crate) name: String,
    pub(crate) size_bytes: u64,
    pub(crate) replicas: u8,
    pub(crate) durability: Durability,
    pub(crate) token: Token,
    pub(crate) created_ms: u64,
    pub(crate) trashed: Option<Trashed>,
    /// The last writer to attach was exclusive: the next shared one raises the token.
    pub(crate) exclusive_last: bool,
    /// Requests whose attachment has ended, newest last; a late copy of one must not attach again.
    pub(crate) ended: Vec<String>,
}

/// How a volume is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum AttachMode {
    Exclusive,
    Shared,
    ReadOnly,
}

/// Who attaches.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Holder {
    pub(crate) program: String,
    pub(crate) instance: String,
    pub(crate) host: String,
    pub(crate) topology: Topology,
}

/// `Fencing -> Ready`, once every segment's primary has acknowledged the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum AttachState {
    Fencing,
    Ready,
}

/// One open of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AttachmentRow {
    pub(crate) session: SessionId,
    pub(crate) volume: VolumeId,
    pub(crate) mode: AttachMode,
    pub(crate) holder: Holder,
    pub(crate) token: Token,
    pub(crate) state: AttachState,
    /// Drawn by the client; empty if it drew none.
    pub(crate) request: String,
    pub(crate) created_ms: u64,
}

/// A running copy of a program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Instance {
    pub(crate) host: String,
    pub(crate) topology: Topology,
}

/// Who uses volumes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProgramRow {
    pub(crate) created_ms: u64,
    pub(crate) instances: BTreeMap<String, Instance>,
}

/// A copy of a purged segment whose server has not yet reported it deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RetiredRow {
    pub(crate) retired_ms: u64,
}

/// A cluster that was made from a backup and does not serve yet: who has told what they hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RestoreRow {
    /// Chunkservers the cluster has, as the operator said.
    pub(crate) servers: u32,
    /// Those that have told all, and the run that did.
    pub(crate) reported: BTreeMap<ServerId, RunId>,
    /// Servers that these know of.
    pub(crate) named: BTreeSet<ServerId>,
}

/// A copy as its server has told it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CopyRow {
    pub(crate) server: ServerId,
    pub(crate) copy: CopyReport,
}

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum EventKind {
    ClusterCreated,
    ClusterRestored,
    ServerRegistered,
    ServerRestarted,
    ServerCordoned,
    ServerUncordoned,
    ServerRemoved,
    DeviceChanged,
    VolumeCreated,
    VolumeResized,
    VolumeRenamed,
    VolumeDeleted,
    VolumeRestored,
    VolumePurged,
    Attached,
    Detached,
    SegmentPlaced,
    MemberRemoved,
    MemberLost,
    MemberPromoted,
    PromotionWithdrawn,
    PrimaryMoved,
    PrimaryReplaced,
    LearnerAdded,
    CopyRetired,
}

/// One line of the audit trail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EventRow {
    pub(crate) revision: u64,
    pub(crate) time_ms: u64,
    pub(crate) kind: EventKind,
    pub(crate) actor: String,
    pub(crate) reason: String,
    pub(crate) subject: String,
    pub(crate) detail: String,
}

impl EventKind {
    /// The kind as written in listings.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ClusterCreated => "cluster-created",
            Self::ClusterRestored => "cluster-restored",
            Self::ServerRegistered => "server-registered",
            Self::ServerRestarted => "server-restarted",
            Self::ServerCordoned => "server-cordoned",
            Self::ServerUncordoned => "server-uncordoned",
            Self::ServerRemoved => "server-removed",
            Self::DeviceChanged => "device-changed",
            Self::VolumeCreated => "volume-created",
            Self::VolumeResized => "volume-resized",
            Self::VolumeRenamed => "volume-renamed",
            Self::VolumeDeleted => "volume-deleted",
            Self::VolumeRestored => "volume-restored",
            Self::VolumePurged => "volume-purged",
            Self::Attached => "attached",
            Self::Detached => "detached",
            Self::SegmentPlaced => "segment-placed",
            Self::MemberRemoved => "member-removed",
            Self::MemberLost => "member-lost",
            Self::MemberPromoted => "member-promoted",
            Self::PromotionWithdrawn => "promotion-withdrawn",
            Self::PrimaryMoved => "primary-moved",
            Self::PrimaryReplaced => "primary-replaced",
            Self::LearnerAdded => "learner-added",
            Self::CopyRetired => "copy-retired",
        }
    }
}
