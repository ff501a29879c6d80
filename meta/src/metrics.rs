//! Figures of a node, for monitoring.

use openraft::async_runtime::watch::WatchReceiver;

use crate::{detector::Liveness, node::Node};

/// A node's figures at one moment. Those of servers are the leader's alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MetaMetrics {
    /// Raft term.
    pub term: u64,
    /// Index of the last entry of the log.
    pub last_log: u64,
    /// Index of the last entry applied.
    pub applied: u64,
    /// Leader that this node knows.
    pub leader: Option<u64>,
    /// Whether that is this node.
    pub is_leader: bool,
    /// Index that the current snapshot reaches to.
    pub snapshot: u64,
    /// Registered chunkservers.
    pub servers: u64,
    /// Of those, heard from in time; none where this node does not lead.
    pub servers_alive: Option<u64>,
    /// Volumes outside the trash.
    pub volumes: u64,
    /// Volumes in the trash.
    pub volumes_trashed: u64,
    /// Attachments.
    pub attachments: u64,
    /// Placed segments.
    pub segments: u64,
    /// Of those, with fewer members than they should have.
    pub segments_degraded: u64,
    /// Of those, whose primary has not activated the current epoch and token.
    pub segments_inactive: u64,
    /// Copies that catch up.
    pub learners: u64,
    /// Copies of purged segments that are yet to be deleted.
    pub copies_retired: u64,
}

impl MetaMetrics {
    pub(crate) fn of(node: &Node) -> Self {
        let raft = node.raft.metrics().borrow_watched().clone();
        let is_leader = raft.state.is_leader();
        let now = node.now();
        let view = node.live.read();
        let state = &view.state;
        let alive = |detector: &crate::detector::Detector| {
            let judged = state.servers.iter().map(|(&id, _)| detector.judge(id, now));
            judged.filter(|liveness| *liveness == Liveness::Alive).count() as u64
        };
        let unsettled = || state.index.unsettled.iter().filter_map(|&s| state.segment(s));
        let trashed = state.volumes.iter().filter(|(_, v)| v.trashed.is_some()).count();
        Self {
            term: raft.current_term,
            last_log: raft.last_log_index.unwrap_or_default(),
            applied: view.revision().0,
            leader: raft.current_leader,
            is_leader,
            snapshot: raft.snapshot.map_or(0, |log_id| log_id.index),
            servers: state.servers.len() as u64,
            servers_alive: is_leader.then(|| alive(&node.detector())),
            volumes: (state.volumes.len() - trashed) as u64,
            volumes_trashed: trashed as u64,
            attachments: state.attachments.len() as u64,
            segments: state.segment_count() as u64,
            segments_degraded: unsettled()
                .filter(|r| r.members.len() < usize::from(r.replicas))
                .count() as u64,
            segments_inactive: unsettled().filter(|r| !r.is_active()).count() as u64,
            learners: unsettled().map(|r| r.learners.len() as u64).sum(),
            copies_retired: state.retired.len() as u64,
        }
    }
}
