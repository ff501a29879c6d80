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
        let sum = |of: fn(&Device) -> u64| {
            let working = devices(row, detector).iter().filter(|device| !device.failed);
            working.map(of).fold(0, u64::saturating_add)
        };
        let (capacity, used) = (sum(|d| d.capacity_bytes), sum(|d| d.used_bytes));
        let load = detector.beat(row.id).map_or(0.0, |beat| beat.load);
        Candidate {
            server: row.id,
            topology: row.topology.clone(),
            free_bytes: sum(|d| d.capacity_bytes.saturating_sub(d.used_bytes)),
            used_percent: (used as f64 / capacity.max(1) as f64 * 100.0) as u32,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{detector::Beat, testing::World};

    #[test]
    fn a_candidate_is_as_busy_and_as_full_as_its_last_heartbeat_says() {
        let world = World::new(2);
        let mut detector = Detector::new(1_000, 0);
        let of = |load: f64, used_bytes: u64| {
            let registered = &world.state.servers.get(&ServerId(1)).expect("registered").devices[0];
            let works = Device { capacity_bytes: 1_000, used_bytes, ..registered.clone() };
            let failed = Device { failed: true, ..works.clone() };
            Beat { devices: vec![works, failed], load, ..Beat::default() }
        };
        for (load, used_bytes, expected) in
            [(0.5, 300, (50, 30, 700)), (7.0, 1_000, (100, 100, 0)), (f64::NAN, 0, (0, 0, 1_000))]
        {
            detector.heard(ServerId(1), 10, of(load, used_bytes));
            let candidates = candidates(&world.state, &detector, 20);
            let c = &candidates[0];
            assert_eq!((c.load_percent, c.used_percent, c.free_bytes), expected);
            assert_eq!(candidates[1].load_percent, 0, "not heard yet");
        }
    }
}
