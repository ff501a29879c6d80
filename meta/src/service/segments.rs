//! Segments: placement, set changes, reports.

use std::{sync::Arc, time::Duration};

use tidewater_proto::{
    ids::{Epoch, ReplicaId, SegmentId, ServerId, SessionId, Token, VolumeId},
    record::{SegmentRecord, SetChange},
    rpc,
};

use super::{failure::Failure, wire};
use crate::{
    fleet,
    live::View,
    node::Node,
    placement, silence,
    state::{
        apply::segments::is_news,
        command::{Active, ChangeSet, Command, CreateSegment},
        outcome::Rejected,
    },
};

/// For a primary to activate.
const ACTIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Servers that have just registered are given this long, in all, before a placement is refused.
const PLACE_TRIES: u32 = 20;
const PLACE_PAUSE: Duration = Duration::from_millis(100);
const LIST_DEFAULT: u32 = 4_096;
/// Segments of one reply.
const LIST_MAX: u32 = 16_384;

fn id(volume: u64, index: u32) -> SegmentId {
    SegmentId { volume: VolumeId(volume), index }
}

fn record(view: &View, segment: SegmentId) -> Result<Arc<SegmentRecord>, Failure> {
    let found = view.state.segment(segment).cloned();
    found.ok_or(Failure::Rejected(Rejected::UnknownSegment { segment }))
}

/// Places the segment if it is not yet; returns once its primary is active.
pub(super) async fn ensure(
    node: &Node,
    request: rpc::SegmentRequest,
) -> Result<rpc::Segment, Failure> {
    node.linearized().await?;
    node.check_decides()?;
    let segment = id(request.volume, request.index);
    let placed = node.live.read().state.segment(segment).is_some();
    if !placed {
        let servers = place_soon(node, segment).await?;
        create(node, CreateSegment { segment, servers }, SessionId(request.session)).await?;
    }
    active(node, segment).await
}

/// A placement under way, during which nobody is given a lease on absence in its volume.
struct Placing<'a> {
    node: &'a Node,
    volume: VolumeId,
    /// Whether it is known what became of it. Else no lease is given until another leader's term.
    settled: bool,
}

impl<'a> Placing<'a> {
    fn begin(node: &'a Node, volume: VolumeId) -> Self {
        node.absence().begin(volume);
        Self { node, volume, settled: true }
    }
}

impl Drop for Placing<'_> {
    fn drop(&mut self) {
        self.node.absence().end(self.volume, self.settled);
    }
}

/// Commits a placement once no other session may believe that there is none.
async fn create(node: &Node, args: CreateSegment, session: SessionId) -> Result<(), Failure> {
    let volume = args.segment.volume;
    let mut placing = Placing::begin(node, volume);
    loop {
        let term = node.linearized().await?;
        let wait_ms = {
            let (mut absence, now) = (node.absence(), node.now());
            absence.lead(term, now);
            absence.wait_ms(volume, session, now)
        };
        if wait_ms == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(wait_ms)).await;
    }
    placing.settled = false;
    let created = node.propose(Command::CreateSegment(args)).await;
    placing.settled = matches!(created, Ok(_) | Err(Failure::Rejected(_)));
    created.map(|_| ())
}

/// A segment's record; where there is none, a lease on that for the session that asks.
pub(super) async fn find(
    node: &Node,
    request: rpc::SegmentRequest,
) -> Result<rpc::FindSegmentReply, Failure> {
    let term = node.linearized().await?;
    node.check_decides()?;
    let segment = id(request.volume, request.index);
    // Before the look: a placement that begins after it sees the lease.
    let absent_ms = {
        let (mut absence, now) = (node.absence(), node.now());
        absence.lead(term, now);
        absence.grant(segment.volume, SessionId(request.session), now)
    };
    let view = node.live.read();
    if !view.state.volumes.contains(&segment.volume) {
        return Err(Rejected::UnknownVolumeId { id: segment.volume }.into());
    }
    let next = view.state.segments_of(segment.volume, segment.index).next();
    Ok(match next {
        Some(record) if record.segment == segment => rpc::FindSegmentReply {
            segment: Some(record.as_ref().into()),
            servers: wire::addresses_of(&view.state, std::iter::once(record.as_ref())),
            ..rpc::FindSegmentReply::default()
        },
        next => rpc::FindSegmentReply {
            absent_before: next.map_or(u32::MAX, |record| record.segment.index),
            absent_ms,
            ..rpc::FindSegmentReply::default()
        },
    })
}

/// Places the segment, waiting a little for servers that are just starting.
async fn place_soon(node: &Node, segment: SegmentId) -> Result<Vec<ServerId>, Failure> {
    for _ in 0..PLACE_TRIES {
        match place(node, segment) {
            Err(Failure::NoPlacement(_)) => tokio::time::sleep(PLACE_PAUSE).await,
            placed => return placed,
        }
    }
    place(node, segment)
}

fn place(node: &Node, segment: SegmentId) -> Result<Vec<ServerId>, Failure> {
    let view = node.live.read();
    let volume = view.state.volumes.get(&segment.volume);
    let volume = volume.ok_or(Rejected::UnknownVolumeId { id: segment.volume })?;
    let candidates = fleet::candidates(&view.state, &node.detector(), node.now());
    let need_bytes = placement::need_bytes(&view.state);
    Ok(placement::pick(&candidates, volume.replicas.into(), need_bytes)?)
}

async fn active(node: &Node, segment: SegmentId) -> Result<rpc::Segment, Failure> {
    let ready = |view: &View| match record(view, segment) {
        Ok(record) => record.is_active().then(|| Ok(record.as_ref().into())),
        Err(gone) => Some(Err(gone)),
    };
    node.wait_until(ACTIVE_TIMEOUT, "the primary activates", ready).await?
}

/// From any node, and perhaps stale, unless asked otherwise: a server's refusal corrects the reader.
pub(super) async fn list(
    node: &Node,
    request: &rpc::ListSegmentsRequest,
) -> Result<rpc::ListSegmentsReply, Failure> {
    if request.linearizable {
        node.linearized().await?;
    }
    node.check_decides()?;
    let limit = if request.limit == 0 { LIST_DEFAULT } else { request.limit.min(LIST_MAX) };
    let view = node.live.read();
    let records: Vec<_> = view
        .state
        .segments_of(VolumeId(request.volume), request.first)
        .take(limit as usize)
        .collect();
    Ok(rpc::ListSegmentsReply {
        servers: wire::addresses_of(&view.state, records.iter().map(AsRef::as_ref)),
        segments: records.into_iter().map(|record| record.as_ref().into()).collect(),
    })
}

/// A primary asks for a change of its set. Where it is refused, or another change is the right one, the
/// answer has the record as it then stands.
pub(super) async fn change_set(
    node: &Node,
    request: rpc::ChangeSetRequest,
) -> Result<rpc::ChangeSetReply, Failure> {
    use rpc::change_set_request::Change;
    node.linearized().await?;
    node.check_decides()?;
    let segment = id(request.volume, request.index);
    let current = record(&node.live.read(), segment)?;
    if request.reason.is_empty() {
        return Err(Failure::Invalid { field: "reason", reason: "none given" });
    }
    let asked = match request.change {
        Some(Change::Remove(replica)) => SetChange::Remove { replica: ReplicaId(replica) },
        Some(Change::Lost(replica)) => SetChange::Lost { replica: ReplicaId(replica) },
        Some(Change::Promote(replica)) => SetChange::Promote { replica: ReplicaId(replica) },
        Some(Change::Withdraw(_)) => SetChange::Withdraw,
        None => return Err(Failure::Invalid { field: "change", reason: "none given" }),
    };
    let change = match asked {
        SetChange::Remove { replica } => judge(node, &current, replica),
        other => other,
    };
    let by_meta = change != asked;
    let args = ChangeSet {
        segment,
        expected_epoch: Epoch(request.expected_epoch),
        change,
        proposer: Some(ServerId(request.proposer)),
        actor: if by_meta { "meta".to_owned() } else { ServerId(request.proposer).to_string() },
        reason: request.reason,
    };
    let outcome = node.propose(Command::ChangeSet(args)).await;
    let changed = match outcome {
        Ok(_) => !by_meta,
        Err(Failure::Rejected(rejected)) => {
            tracing::debug!(%segment, %rejected, "set change refused");
            false
        }
        Err(other) => return Err(other),
    };
    let now = record(&node.live.read(), segment)?;
    Ok(rpc::ChangeSetReply { segment: Some(now.as_ref().into()), changed })
}

fn judge(node: &Node, record: &SegmentRecord, silent: ReplicaId) -> SetChange {
    let view = node.live.read();
    let hearing = fleet::hearing(&view.state, &node.detector(), node.now());
    silence::judge(record, silent, &hearing)
}

pub(super) async fn report_active(
    node: &Node,
    request: rpc::ReportActiveRequest,
) -> Result<rpc::Empty, Failure> {
    node.linearized().await?;
    node.check_decides()?;
    let server = ServerId(request.server);
    let reports = request.reports.iter().map(|r| Active {
        segment: id(r.volume, r.index),
        epoch: Epoch(r.epoch),
        token: Token(r.token),
    });
    let news: Vec<_> = {
        let view = node.live.read();
        let known =
            |r: &Active| view.state.segment(r.segment).is_some_and(|c| is_news(c, server, r));
        reports.filter(known).collect()
    };
    if !news.is_empty() {
        node.propose(Command::ReportActive { server, reports: news }).await?;
    }
    Ok(rpc::Empty {})
}

pub(super) async fn report_deleted(
    node: &Node,
    request: rpc::ReportDeletedRequest,
) -> Result<rpc::Empty, Failure> {
    let server = ServerId(request.server);
    let copy = |r: &rpc::DeletedReport| (id(r.volume, r.index), ReplicaId(r.replica));
    let copies: Vec<_> = request.reports.iter().map(copy).collect();
    if !copies.is_empty() {
        node.propose(Command::ReportDeleted { server, copies }).await?;
    }
    Ok(rpc::Empty {})
}

pub(super) async fn move_primary(
    node: &Node,
    request: rpc::MovePrimaryRequest,
) -> Result<rpc::Segment, Failure> {
    node.linearized().await?;
    node.check_decides()?;
    let segment = id(request.volume, request.index);
    let current = record(&node.live.read(), segment)?;
    let server = ServerId(request.to_server);
    let member = current.members.iter().find(|m| m.server == server);
    let member = member.ok_or(Rejected::UnknownServer { server })?;
    if member.replica != current.primary {
        let actor = if request.actor.is_empty() { "operator".to_owned() } else { request.actor };
        let args = ChangeSet {
            segment,
            expected_epoch: current.epoch,
            change: SetChange::Handover { to: member.replica },
            proposer: None,
            actor,
            reason: "asked to move the primary".to_owned(),
        };
        node.propose(Command::ChangeSet(args)).await?;
    }
    active(node, segment).await
}
