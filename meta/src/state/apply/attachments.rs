#![deny(clippy::disallowed_methods, clippy::disallowed_types)]
//! Attachments and fencing tokens (INV-FENCE).
//!
//! | event | token |
//! | --- | --- |
//! | exclusive attach | raised |
//! | shared attach, the last writer was exclusive | raised |
//! | forced detach, or an attach that takes over | raised |
//! | any other attach or detach | kept |
//!
//! Readers go with every mode; an exclusive attachment excludes other writers. Those who stay when
//! the token is raised are given the new one.

use tidewater_proto::ids::{SessionId, Token, VolumeId};

use super::{Step, events::Note, volumes};
use crate::state::{
    State,
    command::Attach,
    outcome::{Applied, Limit, Outcome, Rejected},
    rows::{AttachMode, AttachState, AttachmentRow, EventKind},
};

const ATTACHMENTS_MAX: usize = 1024;
/// Ended requests remembered a volume.
const ENDED_MAX: usize = 32;
const REQUEST_BYTES_MAX: usize = 255;

/// The refusal that names who holds the volume.
pub(super) fn held_by(held: &AttachmentRow) -> Rejected {
    Rejected::Attached {
        session: held.session,
        program: held.holder.program.clone(),
        instance: held.holder.instance.clone(),
        host: held.holder.host.clone(),
    }
}

fn conflict(a: AttachMode, b: AttachMode) -> bool {
    let reads = |mode| mode == AttachMode::ReadOnly;
    !reads(a) && !reads(b) && (a == AttachMode::Exclusive || b == AttachMode::Exclusive)
}

pub(super) fn attach(step: &mut Step<'_>, args: &Attach) -> Outcome {
    let volume = volumes::named(step.state, &args.volume)?;
    if args.request.len() > REQUEST_BYTES_MAX {
        return Err(Rejected::BadName);
    }
    if let Some(&session) = step.state.index.requests.get(&args.request) {
        return Ok(Applied::Session(session));
    }
    if !args.request.is_empty() && volume.ended.contains(&args.request) {
        return Err(Rejected::RequestEnded);
    }
    let held: Vec<_> = step.state.attachments_of(volume.id).cloned().collect();
    let (conflicting, staying): (Vec<_>, Vec<_>) =
        held.into_iter().partition(|a| conflict(a.mode, args.mode));
    if let Some(first) = conflicting.first().filter(|_| !args.take_over) {
        return Err(held_by(first));
    }
    if staying.len() >= ATTACHMENTS_MAX {
        return Err(Rejected::LimitReached { what: Limit::Attachments, limit: ATTACHMENTS_MAX });
    }
    for old in &conflicting {
        end(step, old, "taken over");
    }
    let raise = match args.mode {
        AttachMode::Exclusive => true,
        AttachMode::Shared => volume.exclusive_last || !conflicting.is_empty(),
        AttachMode::ReadOnly => false,
    };
    if raise {
        raise_token(step, volume.id);
    }
    Ok(Applied::Session(begin(step, volume.id, args)))
}

/// Makes the attachment's row, with the volume's token.
fn begin(step: &mut Step<'_>, id: VolumeId, args: &Attach) -> SessionId {
    let session = SessionId(step.draw(|c| &mut c.session));
    let token = step.state.volumes.get_mut(&id).map_or(Token(0), |volume| {
        if args.mode != AttachMode::ReadOnly {
            volume.exclusive_last = args.mode == AttachMode::Exclusive;
        }
        volume.token
    });
    let ready = is_fenced(step.state, id, token);
    let row = AttachmentRow {
        session,
        volume: id,
        mode: args.mode,
        holder: args.holder.clone(),
        token,
        state: if ready { AttachState::Ready } else { AttachState::Fencing },
        request: args.request.clone(),
        created_ms: step.now_ms,
    };
    let detail = format!("{session} {:?} {token}", args.mode).to_lowercase();
    step.event(EventKind::Attached, note(&row, &args.volume, "", detail));
    if !args.request.is_empty() {
        step.state.index.requests.insert(args.request.clone(), session);
    }
    if !ready {
        step.state.index.fencing.insert(session);
    }
    step.state.attachments.insert(session, row);
    session
}

fn note<'a>(row: &'a AttachmentRow, volume: &str, reason: &'a str, detail: String) -> Note<'a> {
    let actor = if row.holder.program.is_empty() { "client" } else { &row.holder.program };
    Note { actor, reason, subject: volume.to_owned(), detail }
}

/// Whether every placed segment's primary has acknowledged `token` in the current epoch.
pub(crate) fn is_fenced(state: &State, volume: VolumeId, token: Token) -> bool {
    let first = tidewater_proto::ids::SegmentId { volume, index: 0 };
    let last = tidewater_proto::ids::SegmentId { volume, index: u32::MAX };
    // A settled segment is active with the volume's token.
    state
        .index
        .unsettled
        .range(first..=last)
        .filter_map(|&segment| state.segment(segment))
        .all(|record| record.is_active() && record.active.is_some_and(|(_, acked)| acked >= token))
}

pub(super) fn ready(step: &mut Step<'_>, session: SessionId, token: Token) -> Outcome {
    let Some(row) = step.state.attachments.get(&session) else {
        return Err(Rejected::UnknownSession { session });
    };
    if row.state == AttachState::Ready {
        return Ok(Applied::Unchanged);
    }
    // The token may have been raised again since this was proposed.
    if row.token != token || !is_fenced(step.state, row.volume, row.token) {
        return Err(Rejected::NotReady);
    }
    if let Some(row) = step.state.attachments.get_mut(&session) {
        row.state = AttachState::Ready;
    }
    step.state.index.fencing.remove(&session);
    Ok(Applied::Session(session))
}

pub(super) fn detach(step: &mut Step<'_>, session: SessionId, force: bool) -> Outcome {
    let Some(row) = step.state.attachments.get(&session).cloned() else {
        return Err(Rejected::UnknownSession { session });
    };
    end(step, &row, if force { "forced" } else { "detached" });
    if force {
        raise_token(step, row.volume);
    }
    Ok(Applied::Done)
}

fn end(step: &mut Step<'_>, row: &AttachmentRow, reason: &str) {
    step.state.attachments.remove(&row.session);
    step.state.index.fencing.remove(&row.session);
    if !row.request.is_empty() {
        step.state.index.requests.remove(&row.request);
    }
    let mut name = String::new();
    if let Some(volume) = step.state.volumes.get_mut(&row.volume) {
        name.clone_from(&volume.name);
        if !row.request.is_empty() {
            volume.ended.push(row.request.clone());
            let surplus = volume.ended.len().saturating_sub(ENDED_MAX);
            volume.ended.drain(..surplus);
        }
    }
    step.event(EventKind::Detached, note(row, &name, reason, row.session.to_string()));
}

/// The next token, in the volume, in its segments' records and for those who stay.
fn raise_token(step: &mut Step<'_>, id: VolumeId) {
    let Some(volume) = step.state.volumes.get_mut(&id) else { return };
    volume.token.0 += 1;
    let token = volume.token;
    let sessions: Vec<_> = step.state.attachments_of(id).map(|a| a.session).collect();
    for session in sessions {
        if let Some(row) = step.state.attachments.get_mut(&session) {
            row.token = token;
        }
    }
    let records: Vec<_> = step.state.segments_of(id, 0).cloned().collect();
    for record in records {
        let mut record = record.as_ref().clone();
        record.token = token;
        record.revision = step.revision;
        step.state.put_segment(record);
    }
}
