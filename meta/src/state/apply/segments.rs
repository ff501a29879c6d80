#![deny(clippy::disallowed_methods, clippy::disallowed_types)]
//! Segments: placement, set changes, learners, reports.

use std::{collections::BTreeSet, sync::Arc};

use tidewater_proto::{
    ids::{Epoch, ReplicaId, SegmentId, ServerId},
    record::{Member, SegmentRecord, SetChange},
};

use super::{Step, events::Note, servers::run_of, sets};
use crate::state::{
    State,
    command::{Active, AddLearner, ChangeSet, CreateSegment, LearnerSource},
    outcome::{Applied, Limit, Outcome, Rejected},
    rows::{EventKind, VolumeRow},
    table::RetiredKey,
};

/// Learners of one segment at a time.
const LEARNERS_MAX: usize = 2;

/// Segments that cover `volume`.
pub(crate) fn segments_of(volume: &VolumeRow, segment_bytes: u64) -> u32 {
    volume.size_bytes.div_ceil(segment_bytes) as u32
}

fn record(state: &State, segment: SegmentId) -> Result<&Arc<SegmentRecord>, Rejected> {
    state.segment(segment).ok_or(Rejected::UnknownSegment { segment })
}

/// The record, if it is still at the epoch that the proposer saw.
fn record_at(
    state: &State,
    segment: SegmentId,
    expected: Epoch,
) -> Result<SegmentRecord, Rejected> {
    let record = record(state, segment)?;
    if record.epoch != expected {
        return Err(Rejected::StaleEpoch { expected, actual: record.epoch });
    }
    Ok(record.as_ref().clone())
}

/// A segment's first placement; nothing if it is placed already.
pub(super) fn create(step: &mut Step<'_>, args: &CreateSegment) -> Outcome {
    let segment = args.segment;
    if step.state.segment(segment).is_some() {
        return Ok(Applied::Unchanged);
    }
    let id = segment.volume;
    let volume = step.state.volumes.get(&id).filter(|v| v.trashed.is_none());
    let volume = volume.ok_or(Rejected::UnknownVolumeId { id })?.clone();
    let segment_bytes = step.state.cluster().ok_or(Rejected::NoCluster)?.segment_bytes;
    let segments = segments_of(&volume, segment_bytes);
    if segment.index >= segments {
        return Err(Rejected::PastEnd { segment, segments });
    }
    let distinct: BTreeSet<_> = args.servers.iter().collect();
    let known = distinct.iter().all(|server| step.state.servers.contains(server));
    if !known
        || distinct.len() != usize::from(volume.replicas)
        || args.servers.len() != distinct.len()
    {
        return Err(Rejected::BadPlacement { wanted: volume.replicas });
    }
    let members: Vec<_> = args.servers.iter().map(|&server| new_copy(step, server)).collect();
    let record = SegmentRecord {
        segment,
        revision: step.revision,
        epoch: Epoch(1),
        token: volume.token,
        primary: members[0].replica,
        primary_run: run_of(step.state, members[0].server),
        members,
        learners: Vec::new(),
        former: Vec::new(),
        retired: Vec::new(),
        floor: sets::floor(volume.replicas),
        replicas: volume.replicas,
        durability: volume.durability,
        active: None,
    };
    note(step, EventKind::SegmentPlaced, &record, "meta", "first use", servers_of(&record));
    step.state.put_segment(record);
    Ok(Applied::Done)
}

fn new_copy(step: &mut Step<'_>, server: ServerId) -> Member {
    Member { replica: ReplicaId(step.draw(|c| &mut c.replica)), server, fresh: true }
}

fn servers_of(record: &SegmentRecord) -> String {
    let servers: Vec<_> = record.members.iter().map(|m| m.server.to_string()).collect();
    format!("{} primary {} of {}", record.epoch, record.primary_member().server, servers.join(" "))
}

fn note(
    step: &mut Step<'_>,
    kind: EventKind,
    record: &SegmentRecord,
    actor: &str,
    reason: &str,
    detail: String,
) {
    step.event(kind, Note { actor, reason, subject: record.segment.to_string(), detail });
}

/// Commits a set change if the record is still at the epoch that the proposer saw (INV-EPOCH).
pub(super) fn change_set(step: &mut Step<'_>, args: &ChangeSet) -> Outcome {
    let before = record_at(step.state, args.segment, args.expected_epoch)?;
    let primary = before.primary_member().server;
    if let Some(server) = args.proposer.filter(|&server| server != primary) {
        return Err(Rejected::NotPrimary { server });
    }
    // Only the serving primary knows that a learner has everything committed (docs/protocol.md, rule 8).
    let by_primary = matches!(args.change, SetChange::Promote { .. } | SetChange::Withdraw);
    if by_primary && args.proposer.is_none() {
        return Err(Rejected::NotPrimary { server: ServerId(0) });
    }
    let index = &step.state.index;
    let successor = |m: &Member| (index.load(m.server).primaries, m.server);
    let mut record = sets::change(&before, args.change, successor)?;
    record.primary_run = run_of(step.state, record.primary_member().server);
    record.revision = step.revision;
    let detail = servers_of(&record);
    note(step, sets::kind(args.change), &record, &args.actor, &args.reason, detail);
    step.state.put_segment(record);
    Ok(Applied::Done)
}

/// A former member, or a new copy on a server without one, starts to follow. Keeps the epoch.
pub(super) fn add_learner(step: &mut Step<'_>, args: &AddLearner) -> Outcome {
    let mut record = record_at(step.state, args.segment, args.expected_epoch)?;
    if record.learners.len() >= LEARNERS_MAX {
        return Err(Rejected::LimitReached { what: Limit::Learners, limit: LEARNERS_MAX });
    }
    let learner = match args.source {
        LearnerSource::Former(replica) => sets::take(&mut record.former, replica)?,
        LearnerSource::Spare(server) => {
            if !step.state.servers.contains(&server) {
                return Err(Rejected::UnknownServer { server });
            }
            if record.copies().any(|copy| copy.server == server) {
                return Err(Rejected::ServerTaken { server });
            }
            new_copy(step, server)
        }
    };
    record.learners.push(learner);
    record.revision = step.revision;
    let detail = format!("{} on {}", learner.replica, learner.server);
    note(step, EventKind::LearnerAdded, &record, "meta", &args.reason, detail);
    step.state.put_segment(record);
    Ok(Applied::Done)
}

/// A former member or a learner is given up: its server deletes it. Keeps the epoch.
pub(super) fn retire(
    step: &mut Step<'_>,
    segment: SegmentId,
    replica: ReplicaId,
    expected_epoch: Epoch,
    reason: &str,
) -> Outcome {
    let mut record = record_at(step.state, segment, expected_epoch)?;
    let copy = sets::take(&mut record.former, replica)
        .or_else(|_| sets::take(&mut record.learners, replica))?;
    record.retired.push(copy);
    record.revision = step.revision;
    let detail = format!("{} on {}", copy.replica, copy.server);
    note(step, EventKind::CopyRetired, &record, "meta", reason, detail);
    step.state.put_segment(record);
    Ok(Applied::Done)
}

/// Whether `report` tells the record something.
pub(crate) fn is_news(record: &SegmentRecord, server: ServerId, report: &Active) -> bool {
    let current = report.epoch == record.epoch && record.primary_member().server == server;
    current && record.active.is_none_or(|acked| acked < (report.epoch, report.token))
}

pub(super) fn report_active(step: &mut Step<'_>, server: ServerId, reports: &[Active]) -> Applied {
    let mut applied = Applied::Unchanged;
    for report in reports {
        let Some(record) = step.state.segment(report.segment) else { continue };
        if !is_news(record, server, report) {
            continue;
        }
        let mut record = record.as_ref().clone();
        record.active = Some((report.epoch, report.token));
        // Activation asked every member, so each has its copy.
        for member in &mut record.members {
            member.fresh = false;
        }
        record.revision = step.revision;
        step.state.put_segment(record);
        applied = Applied::Done;
    }
    applied
}

pub(super) fn report_deleted(
    step: &mut Step<'_>,
    server: ServerId,
    copies: &[(SegmentId, ReplicaId)],
) -> Applied {
    let mut applied = Applied::Unchanged;
    for &(segment, replica) in copies {
        let key = RetiredKey { server, segment, replica };
        let purged = step.state.retired.remove(&key).is_some();
        let deleted = step
            .state
            .segment(segment)
            .filter(|r| r.retired.iter().any(|c| c.replica == replica && c.server == server))
            .cloned();
        if let Some(record) = &deleted {
            let mut record = record.as_ref().clone();
            record.retired.retain(|copy| copy.replica != replica);
            record.revision = step.revision;
            step.state.put_segment(record);
        }
        if purged || deleted.is_some() {
            applied = Applied::Done;
        }
    }
    applied
}
