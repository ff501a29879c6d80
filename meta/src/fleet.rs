#![deny(clippy::disallowed_methods, clippy::disallowed_types)]
//! The chunkservers as the leader sees them: the registered ones, with what their heartbeats say.

use std::collections::BTreeMap;

use tidewater_proto::ids::ServerId;

use crate::{
    detector::{Detector, Liveness, Millis},
    placement::Candidate,
    silence::Hearing,
    state::{
        State,
        rows::{Device, ServerRow},
    },
};

/// Every registered server, and whether it is alive.
pub(crate) fn liveness(
    state: &State,
    detector: &Detector,
    now: Millis,
) -> BTreeMap<ServerId, Liveness> {
    state.servers.iter().map(|(&id, _)| (id, detector.judge(id, now))).collect()
}

/// The server's devices, as last heard.
pub(crate) fn devices<'a>(row: &'a ServerRow, detector: &'a Detector) -> &'a [Device] {
    detector
        .beat(row.id)
        .filter(|beat| !beat.devices.is_empty())
        .map_or(&row.devices, |b| &b.devices)
}

/// Servers that may take a new copy: not given up, not cordoned, with a device that works. One that is
/// merely late is not left out: a busy moment is no reason to refuse a write for want of servers.
pub(crate) fn candidates(state: &State, detector: &Detector, now: Millis) -> Vec<Candidate> {
    let fit = state
        .servers
        .iter()
        .map(|(_, row)| row)
        .filter(|row| !row.cordoned && !detector.judge(row.id, now).is_dead());
    fit.map(|row| {
        let working = devices(row, detector).iter().filter(|device| !device.failed);
        let free = working.map(|d| d.capacity_bytes.saturating_sub(d.used_bytes));
        let load = detector.beat(row.id).map_or(0.0, |beat| beat.load);
        Candidate {
            server: row.id,
            topology: row.topology.clone(),
            free_bytes: free.fold(0, u64::saturating_add),
            copies: state.index.load(row.id),
            load_percent: (load.clamp(0.0, 1.0) * 100.0) as u32,
        }
    })
    .collect()
}

/// Who hears whom, among those that are not dead.
pub(crate) fn hearing(state: &State, detector: &Detector, now: Millis) -> Hearing {
    let live = state.servers.iter().filter(|(id, _)| !detector.judge(**id, now).is_dead());
    live.filter_map(|(&id, _)| Some((id, detector.beat(id)?.hears.clone()))).collect()
}
