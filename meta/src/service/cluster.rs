//! The cluster and its meta nodes.

use std::{collections::BTreeMap, collections::BTreeSet, time::Duration};

use openraft::{
    BasicNode, ChangeMembers,
    async_runtime::watch::WatchReceiver,
    errors::{InitializeError, RaftError},
};
use tidewater_proto::{geometry::SEGMENT_BYTES, ids::ServerId, rpc};

use super::failure::Failure;
use crate::{
    node::Node,
    state::{
        State, apply::restore::awaited, command::Command, outcome::Rejected, rows::RestoreRow,
    },
};

/// For a new node to catch up, from a snapshot if need be.
const JOIN_TIMEOUT: Duration = Duration::from_mins(2);
/// For the first leader of a new cluster.
const ELECT_TIMEOUT: Duration = Duration::from_secs(10);
const EVENTS_DEFAULT: u32 = 1_000;

pub(super) fn status(node: &Node) -> rpc::StatusReply {
    let metrics = node.raft.metrics().borrow_watched().clone();
    let members = metrics.membership_config.membership();
    let voters: BTreeSet<u64> = members.voter_ids().collect();
    let leader = metrics.current_leader;
    let matched = |id: u64| {
        let replicated = metrics.replication.as_ref().and_then(|r| r.get(&id)?.as_ref());
        let own = if id == node.id { metrics.last_log_index } else { None };
        replicated.map(|log_id| log_id.index).or(own).unwrap_or_default()
    };
    let nodes = members.nodes().map(|(&id, basic)| rpc::MetaNode {
        id,
        address: basic.addr.clone(),
        voter: voters.contains(&id),
        leader: leader == Some(id),
        matched: matched(id),
    });
    let view = node.live.read();
    let cluster = view.state.cluster();
    rpc::StatusReply {
        cluster: cluster.map_or_else(String::new, |c| c.uuid.clone()),
        segment_bytes: cluster.map_or(0, |c| c.segment_bytes),
        node: node.id,
        leader,
        leader_address: leader
            .and_then(|id| members.get_node(&id))
            .map_or_else(String::new, |basic| basic.addr.clone()),
        term: metrics.current_term,
        applied: view.revision().0,
        nodes: nodes.collect(),
        state_hash: format!("{:016x}", view.state.hash()),
        restore: view.state.restoring().map(|row| restore_status(&view.state, row)),
    }
}

fn restore_status(state: &State, row: &RestoreRow) -> rpc::RestoreStatus {
    rpc::RestoreStatus {
        servers: row.servers,
        reported: row.reported.keys().map(|server| server.0).collect(),
        awaited: awaited(state, row).into_iter().map(|server| server.0).collect(),
    }
}

/// The restored cluster goes on without servers that are gone for good.
pub(super) async fn finish_restore(
    node: &Node,
    request: rpc::FinishRestoreRequest,
) -> Result<rpc::Empty, Failure> {
    let without = request.without.into_iter().map(ServerId).collect();
    node.propose(Command::FinishRestore { without }).await?;
    Ok(rpc::Empty {})
}

/// Makes the Raft group, unless an earlier try has, and then the cluster.
pub(super) async fn init(
    node: &Node,
    request: rpc::InitClusterRequest,
) -> Result<rpc::InitClusterReply, Failure> {
    let mut voters = BTreeMap::new();
    for voter in &request.nodes {
        if voter.id == 0 || voter.address.is_empty() {
            let reason = "every node has an id from 1 and an address";
            return Err(Failure::Invalid { field: "nodes", reason });
        }
        voters.insert(voter.id, BasicNode { addr: voter.address.clone() });
    }
    if !voters.contains_key(&node.id) || voters.len() != request.nodes.len() {
        let reason = "must be distinct and have the node that is asked among them";
        return Err(Failure::Invalid { field: "nodes", reason });
    }
    match node.commit(node.raft.initialize(voters)).await? {
        Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
        Err(error) => return Err(Failure::Raft(error.to_string())),
    }
    wait_for_leader(node).await?;
    if let Some(cluster) = node.live.read().state.cluster() {
        return Err(Rejected::ClusterExists { uuid: cluster.uuid.clone() }.into());
    }
    let segment_bytes =
        if request.segment_bytes == 0 { SEGMENT_BYTES } else { request.segment_bytes };
    let uuid = uuid::Uuid::new_v4().to_string();
    node.propose(Command::InitCluster { uuid: uuid.clone(), segment_bytes }).await?;
    Ok(rpc::InitClusterReply { cluster: uuid })
}

async fn wait_for_leader(node: &Node) -> Result<(), Failure> {
    let wait = node.raft.wait(Some(ELECT_TIMEOUT));
    let id = node.id;
    let elected = wait.metrics(
        |metrics| metrics.state.is_leader() || metrics.current_leader.is_some_and(|l| l != id),
        "a leader is elected",
    );
    tokio::select! {
        elected = elected => elected
            .map(|_| ())
            .map_err(|_| Failure::NoQuorum { limit_ms: ELECT_TIMEOUT.as_millis() as u64 }),
        () = node.closing.cancelled() => Err(Failure::Stopping),
    }
}

/// The new node catches up as a learner first, so that the quorum never waits for it.
pub(super) async fn add_node(
    node: &Node,
    request: rpc::AddMetaNodeRequest,
) -> Result<rpc::Empty, Failure> {
    if request.id == 0 || request.address.is_empty() {
        let reason = "a node has an id from 1 and an address";
        return Err(Failure::Invalid { field: "id", reason });
    }
    node.check_leads()?;
    let basic = BasicNode { addr: request.address };
    let added = Box::pin(node.raft.add_learner(request.id, basic, true));
    node.reconfigure(JOIN_TIMEOUT, added).await?;
    let change = ChangeMembers::AddVoterIds(BTreeSet::from([request.id]));
    let changed = Box::pin(node.raft.change_membership(change, false));
    node.reconfigure(JOIN_TIMEOUT, changed).await?;
    tracing::info!(node = request.id, "meta node added");
    Ok(rpc::Empty {})
}

pub(super) async fn remove_node(
    node: &Node,
    request: rpc::RemoveMetaNodeRequest,
) -> Result<rpc::Empty, Failure> {
    node.check_leads()?;
    let ids = BTreeSet::from([request.id]);
    let voter = node.raft.voter_ids().any(|id| id == request.id);
    let change =
        if voter { ChangeMembers::RemoveVoters(ids) } else { ChangeMembers::RemoveNodes(ids) };
    let changed = Box::pin(node.raft.change_membership(change, false));
    node.reconfigure(JOIN_TIMEOUT, changed).await?;
    tracing::info!(node = request.id, "meta node removed");
    Ok(rpc::Empty {})
}

pub(super) async fn transfer_leader(
    node: &Node,
    request: rpc::TransferLeaderRequest,
) -> Result<rpc::Empty, Failure> {
    node.check_leads()?;
    if !node.raft.voter_ids().any(|id| id == request.to) {
        return Err(Failure::Invalid { field: "to", reason: "no such voter" });
    }
    let asked = node.commit(node.raft.trigger().transfer_leader(request.to)).await?;
    asked.map(|()| rpc::Empty {}).map_err(|error| Failure::Raft(error.to_string()))
}

/// Events after a revision, oldest first. Those of one revision are never split.
pub(super) async fn events(
    node: &Node,
    request: rpc::ListEventsRequest,
) -> Result<rpc::ListEventsReply, Failure> {
    node.linearized().await?;
    let limit = if request.limit == 0 { EVENTS_DEFAULT } else { request.limit } as usize;
    let view = node.live.read();
    let mut events = Vec::new();
    let mut last = 0;
    let after = view.state.events.iter().filter(|(_, e)| e.revision > request.after_revision);
    for (_, row) in after {
        if events.len() >= limit && row.revision != last {
            break;
        }
        last = row.revision;
        events.push(super::wire::event(row));
    }
    Ok(rpc::ListEventsReply { events })
}
