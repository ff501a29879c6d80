#![deny(clippy::disallowed_methods, clippy::disallowed_types)]
//! Volumes: create, grow, rename, trash, purge.

use tidewater_proto::{
    geometry::{BLOCK_BYTES, VOLUME_BYTES_MAX},
    ids::{Revision, Token, VolumeId},
};

use super::{Step, events::Note};
use crate::state::{
    State,
    command::{CreateVolume, REPAIR},
    outcome::{Applied, Limit, Outcome, Rejected},
    rows::{EventKind, RetiredRow, Trashed, VolumeRow},
    table::RetiredKey,
};

const NAME_BYTES_MAX: usize = 255;
const REPLICAS_MAX: u8 = 5;
const VOLUMES_MAX: usize = 100_000;

pub(super) fn is_name(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.chars().any(char::is_control)
}

fn check_size(size_bytes: u64) -> Result<(), Rejected> {
    let valid =
        size_bytes.is_multiple_of(BLOCK_BYTES) && (1..=VOLUME_BYTES_MAX).contains(&size_bytes);
    if valid { Ok(()) } else { Err(Rejected::BadSize { size_bytes }) }
}

fn check_free_name(state: &State, name: &str) -> Result<(), Rejected> {
    if !is_name(name) {
        return Err(Rejected::BadName);
    }
    if state.index.names.contains_key(name) {
        return Err(Rejected::VolumeExists { name: name.to_owned() });
    }
    Ok(())
}

/// The volume outside the trash that has this name.
pub(super) fn named(state: &State, name: &str) -> Result<VolumeRow, Rejected> {
    state
        .volume_named(name)
        .cloned()
        .ok_or_else(|| Rejected::UnknownVolume { name: name.to_owned() })
}

fn note(volume: &VolumeRow, detail: String) -> Note<'static> {
    Note { actor: "operator", reason: "", subject: volume.name.clone(), detail }
}

pub(super) fn create(step: &mut Step<'_>, args: &CreateVolume) -> Outcome {
    check_free_name(step.state, &args.name)?;
    check_size(args.size_bytes)?;
    if !(1..=REPLICAS_MAX).contains(&args.replicas) {
        return Err(Rejected::BadReplicas { replicas: args.replicas });
    }
    if step.state.volumes.len() >= VOLUMES_MAX {
        return Err(Rejected::LimitReached { what: Limit::Volumes, limit: VOLUMES_MAX });
    }
    let id = VolumeId(step.draw(|c| &mut c.volume));
    let volume = VolumeRow {
        id,
        name: args.name.clone(),
        size_bytes: args.size_bytes,
        replicas: args.replicas,
        durability: args.durability,
        token: Token(0),
        created_ms: step.now_ms,
        trashed: None,
        exclusive_last: false,
        ended: Vec::new(),
    };
    let detail = format!("{id}, {} bytes, {} replicas", args.size_bytes, args.replicas);
    step.event(EventKind::VolumeCreated, note(&volume, detail));
    step.state.index.names.insert(args.name.clone(), id);
    step.state.volumes.insert(id, volume);
    Ok(Applied::Volume(id))
}

pub(super) fn resize(step: &mut Step<'_>, name: &str, size_bytes: u64) -> Outcome {
    check_size(size_bytes)?;
    let mut volume = named(step.state, name)?;
    if size_bytes < volume.size_bytes {
        return Err(Rejected::Shrink { size_bytes: volume.size_bytes });
    }
    let id = volume.id;
    volume.size_bytes = size_bytes;
    step.event(EventKind::VolumeResized, note(&volume, format!("{size_bytes} bytes")));
    step.state.volumes.insert(id, volume);
    Ok(Applied::Volume(id))
}

pub(super) fn rename(step: &mut Step<'_>, name: &str, to: &str) -> Outcome {
    let mut volume = named(step.state, name)?;
    check_free_name(step.state, to)?;
    let id = volume.id;
    step.event(EventKind::VolumeRenamed, note(&volume, format!("to {to:?}")));
    step.state.index.names.remove(name);
    step.state.index.names.insert(to.to_owned(), id);
    to.clone_into(&mut volume.name);
    step.state.volumes.insert(id, volume);
    Ok(Applied::Volume(id))
}

pub(super) fn delete(step: &mut Step<'_>, name: &str, keep_ms: u64) -> Outcome {
    let mut volume = named(step.state, name)?;
    let id = volume.id;
    if let Some(held) = step.state.attachments_of(id).next() {
        return Err(super::attachments::held_by(held));
    }
    let purge_ms = step.now_ms.saturating_add(keep_ms);
    let (deleted_ms, deletion) = (step.now_ms, step.revision);
    volume.trashed = Some(Trashed { deleted_ms, purge_ms, deletion, waited_ms: 0 });
    step.event(EventKind::VolumeDeleted, note(&volume, id.to_string()));
    step.state.index.names.remove(name);
    step.state.index.trashed.insert(id);
    step.state.volumes.insert(id, volume);
    Ok(Applied::Volume(id))
}

fn trashed(state: &State, id: VolumeId) -> Result<(VolumeRow, Trashed), Rejected> {
    let volume = state.volumes.get(&id).ok_or(Rejected::UnknownVolumeId { id })?;
    let stay = volume.trashed.ok_or(Rejected::NotInTrash { id })?;
    Ok((volume.clone(), stay))
}

/// The volume in that stay in the trash, not in a later one.
fn trashed_since(
    state: &State,
    id: VolumeId,
    deletion: Revision,
) -> Result<(VolumeRow, Trashed), Rejected> {
    let (volume, stay) = trashed(state, id)?;
    if stay.deletion != deletion {
        return Err(Rejected::OtherDeletion { id });
    }
    Ok((volume, stay))
}

/// Records how much of a volume's time in the trash has passed: the next leader counts on from there.
pub(super) fn age(
    step: &mut Step<'_>,
    id: VolumeId,
    deletion: Revision,
    waited_ms: u64,
) -> Outcome {
    let (mut volume, stay) = trashed_since(step.state, id, deletion)?;
    if waited_ms <= stay.waited_ms {
        return Ok(Applied::Unchanged);
    }
    volume.trashed = Some(Trashed { waited_ms, ..stay });
    step.state.volumes.insert(id, volume);
    Ok(Applied::Done)
}

/// Takes a volume out of the trash, under a new name unless that is empty.
pub(super) fn restore(step: &mut Step<'_>, id: VolumeId, name: &str) -> Outcome {
    let (mut volume, _) = trashed(step.state, id)?;
    if !name.is_empty() {
        name.clone_into(&mut volume.name);
    }
    check_free_name(step.state, &volume.name)?;
    volume.trashed = None;
    step.state.index.trashed.remove(&id);
    step.event(EventKind::VolumeRestored, note(&volume, id.to_string()));
    step.state.index.names.insert(volume.name.clone(), id);
    step.state.volumes.insert(id, volume);
    Ok(Applied::Volume(id))
}

/// Ends a volume in the trash: its records go, its copies are retired. With `deletion` only if it has
/// been there since then.
pub(super) fn purge(step: &mut Step<'_>, id: VolumeId, deletion: Option<Revision>) -> Outcome {
    let ((volume, _), actor, reason) = match deletion {
        Some(deletion) => {
            (trashed_since(step.state, id, deletion)?, REPAIR, "its time in the trash is over")
        }
        None => (trashed(step.state, id)?, "operator", "asked to purge"),
    };
    let segments: Vec<_> = step.state.segments_of(id, 0).map(|r| r.segment).collect();
    for &segment in &segments {
        let Some(record) = step.state.remove_segment(segment) else { continue };
        for copy in record.copies() {
            let key = RetiredKey { server: copy.server, segment, replica: copy.replica };
            step.state.retired.insert(key, RetiredRow { retired_ms: step.now_ms });
        }
    }
    let detail = format!("{id}, {} segments", segments.len());
    step.event(EventKind::VolumePurged, Note { actor, reason, ..note(&volume, detail) });
    step.state.index.trashed.remove(&id);
    step.state.volumes.remove(&id);
    Ok(Applied::Done)
}
