//! The Raft node's edge: openraft's storage on RocksDB, its network on tonic.

pub(crate) mod log;
pub(crate) mod machine;
pub(crate) mod network;
pub(crate) mod restore;
pub(crate) mod service;
pub(crate) mod snapshot;
pub(crate) mod store;

#[cfg(test)]
mod suite;

use openraft::type_config::alias;

use crate::state::{command::Proposal, outcome::Outcome};

openraft::declare_raft_types!(
    /// Types of the metadata cluster's Raft.
    pub(crate) TypeConfig:
        D = Proposal,
        R = Outcome,
        Node = openraft::BasicNode,
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>,
);

pub(crate) type Entry = alias::EntryOf<TypeConfig>;
pub(crate) type LogId = alias::LogIdOf<TypeConfig>;
pub(crate) type Vote = alias::VoteOf<TypeConfig>;
pub(crate) type StoredMembership = alias::StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = alias::SnapshotMetaOf<TypeConfig>;
pub(crate) type Snapshot = alias::SnapshotOf<TypeConfig, snapshot::SnapshotData>;
pub(crate) type Raft = openraft::Raft<TypeConfig, machine::Machine>;
