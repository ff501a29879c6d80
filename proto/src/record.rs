//! The segment's Raft record: who holds copies, in which epoch, under which token. Shared by the
//! metadata state, the chunkservers that obey it and the clients that route by it.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::ids::{Epoch, Position, ReplicaId, Revision, RunId, SegmentId, ServerId, Token};

/// When a write is acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Durability {
    /// When it is in the journal of every member.
    #[default]
    Sync,
    /// When it is in the memory of every member; a flush makes it durable.
    Flush,
}

/// One copy of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Member {
    /// The copy.
    pub replica: ReplicaId,
    /// Server that holds it.
    pub server: ServerId,
    /// The copy may be created empty: no primary has been active with it yet. Once false, a server
    /// without the copy has lost it.
    pub fresh: bool,
}

/// Replica-set configuration of one segment, as committed by Raft.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentRecord {
    /// Which segment.
    pub segment: SegmentId,
    /// Raft index of the last change; a receiver ignores what is older than what it has.
    pub revision: Revision,
    /// Number of this configuration.
    pub epoch: Epoch,
    /// Writes with a lower token are refused.
    pub token: Token,
    /// Copy that leads; one of `members`.
    pub primary: ReplicaId,
    /// Process run that may serve this epoch as primary.
    pub primary_run: RunId,
    /// Every committed entry is on each of these.
    pub members: Vec<Member>,
    /// Copies that follow without a vote, to be made members by the primary.
    pub learners: Vec<Member>,
    /// Copies that were members and may come back as learners; nobody writes to them.
    pub former: Vec<Member>,
    /// Copies whose ids are retired: their servers delete them.
    pub retired: Vec<Member>,
    /// The set never shrinks below this many members.
    pub floor: u8,
    /// Replication factor the set should have.
    pub replicas: u8,
    /// When writes are acknowledged.
    pub durability: Durability,
    /// Epoch and token that the primary last reported active and durable.
    pub active: Option<(Epoch, Token)>,
}

impl SegmentRecord {
    /// The leading member.
    ///
    /// # Panics
    ///
    /// If the record is malformed; `apply` and the wire conversion keep `primary` among `members`.
    pub fn primary_member(&self) -> Member {
        *self.members.iter().find(|m| m.replica == self.primary).expect("primary is a member")
    }

    /// The member with this id.
    pub fn member(&self, replica: ReplicaId) -> Option<&Member> {
        self.members.iter().find(|m| m.replica == replica)
    }

    /// Every copy the record names, with those retired.
    pub fn copies(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().chain(&self.learners).chain(&self.former).chain(&self.retired)
    }

    /// The copy on `server` that is not retired.
    pub fn copy_on(&self, server: ServerId) -> Option<&Member> {
        self.members.iter().chain(&self.learners).chain(&self.former).find(|m| m.server == server)
    }

    /// Whether the primary has reported the current epoch and token active.
    pub fn is_active(&self) -> bool {
        self.active.is_some_and(|(epoch, token)| epoch == self.epoch && token >= self.token)
    }
}

/// A copy as its server knows it, told to a metadata cluster that is being restored from a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyReport {
    /// Of which segment.
    pub segment: SegmentId,
    /// Which copy.
    pub replica: ReplicaId,
    /// Highest epoch it has promised.
    pub epoch: Epoch,
    /// Highest token it knows.
    pub token: Token,
    /// Last entry of its log, durable or not.
    pub last: Position,
    /// A copy into it is under way: it is not whole.
    pub copying: bool,
    /// Newest record that this run of its server has been told of the segment.
    pub record: Option<SegmentRecord>,
}

/// What a wrong-epoch refusal and a map lookup tell a client: enough to find the primary.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Route {
    /// Which segment.
    pub segment: SegmentId,
    /// Epoch to carry.
    pub epoch: Epoch,
    /// Server that leads.
    pub primary: ServerId,
    /// Servers of the set, the primary among them.
    pub servers: Vec<ServerId>,
}

/// Where a chunkserver listens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerAddress {
    /// The server.
    pub server: ServerId,
    /// gRPC control port.
    pub control: SocketAddr,
    /// Data plane, one listener a shard; a segment's is `segment.shard(shards.len())`.
    pub shards: Vec<SocketAddr>,
}

impl From<&SegmentRecord> for Route {
    fn from(record: &SegmentRecord) -> Self {
        Self {
            segment: record.segment,
            epoch: record.epoch,
            primary: record.primary_member().server,
            servers: record.members.iter().map(|m| m.server).collect(),
        }
    }
}

/// A change of a segment's set that a primary, an operator or the repair planner asks for. Each is
/// committed only if the record is still at the epoch the proposer saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SetChange {
    /// Take a member out of the set (it becomes former) or drop a learner. Raises the epoch.
    Remove {
        /// Copy that leaves.
        replica: ReplicaId,
    },
    /// A member whose copy is lost: out of the set, and its id retired. Raises the epoch.
    Lost {
        /// Copy that is gone.
        replica: ReplicaId,
    },
    /// Make a learner a member; only the serving primary proposes it. Raises the epoch.
    Promote {
        /// Learner that has caught up.
        replica: ReplicaId,
    },
    /// Same set, next epoch: ends a promotion whose outcome the primary no longer wants.
    Withdraw,
    /// Another member leads; the old primary stays a member. Raises the epoch.
    Handover {
        /// Member that leads from now on.
        to: ReplicaId,
    },
    /// Another member leads and the old primary leaves the set. Raises the epoch.
    Replace {
        /// Member that leads from now on.
        to: ReplicaId,
    },
}
