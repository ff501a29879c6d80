//! A member that is gone for long is replaced by a spare; one that comes back first only catches up.

use std::time::Duration;

use tidewater_cli::{
    cluster::{Cluster, ClusterSpec, Seat},
    nbd_client::NbdClient,
};

use crate::scene::{HEAL_LIMIT, Scene, four_servers};

const VOLUME_BYTES: u64 = 64 << 20;
const SEGMENT_BYTES: u64 = 16 << 20;

fn start(repair_delay: Duration) -> (Cluster, u64, NbdClient) {
    let spec = ClusterSpec { repair_delay, ..four_servers(SEGMENT_BYTES) };
    let scene = Scene::start(spec, VOLUME_BYTES);
    let mut nbd = scene.nbd();
    for segment in 0..VOLUME_BYTES / SEGMENT_BYTES {
        nbd.write(segment * SEGMENT_BYTES, &[segment as u8 + 1; 4096], false).expect("written");
    }
    (scene.cluster, scene.volume, nbd)
}

fn check(nbd: &mut NbdClient) {
    let mut back = [0; 4096];
    for segment in 0..VOLUME_BYTES / SEGMENT_BYTES {
        nbd.read(segment * SEGMENT_BYTES, &mut back).expect("read");
        assert_eq!(back, [segment as u8 + 1; 4096], "segment {segment}");
    }
}

/// Servers that hold members of any segment.
fn holders(cluster: &Cluster, volume: u64) -> Vec<(u32, Vec<u64>)> {
    let segments = cluster.segments(volume).expect("listed");
    segments
        .iter()
        .map(|s| {
            let mut servers: Vec<_> = s.members.iter().map(|m| m.server).collect();
            servers.sort_unstable();
            (s.index, servers)
        })
        .collect()
}

#[test]
fn a_member_gone_for_longer_than_the_delay_is_replaced_by_a_spare() {
    let (mut cluster, volume, mut nbd) = start(Duration::from_secs(1));
    let lost = Seat::Chunkserver(1);
    let server = cluster.server_run(lost).expect("registered").server;
    cluster.kill(lost).expect("killed");
    check(&mut nbd);
    // Every segment had the server among its three of four at most; all get three others.
    cluster
        .await_condition("spares to take over", HEAL_LIMIT, |cluster| {
            let held = holders(cluster, volume);
            let whole = held.iter().all(|(_, s)| s.len() == 3 && !s.contains(&server));
            if whole { Ok(()) } else { Err(format!("{held:?}, lost {server}")) }
        })
        .expect("replaced");
    cluster.await_full_redundancy(volume, HEAL_LIMIT).expect("active");
    check(&mut nbd);
}

#[test]
fn a_member_that_comes_back_before_the_delay_is_a_member_again() {
    let (mut cluster, volume, mut nbd) = start(Duration::from_hours(1));
    let before = holders(&cluster, volume);
    let away = Seat::Chunkserver(2);
    cluster.kill(away).expect("killed");
    for segment in 0..VOLUME_BYTES / SEGMENT_BYTES {
        nbd.write(segment * SEGMENT_BYTES, &[segment as u8 + 1; 4096], false).expect("written");
    }
    cluster.restart(away).expect("restarted");
    cluster.await_full_redundancy(volume, HEAL_LIMIT).expect("whole again");
    assert_eq!(holders(&cluster, volume), before, "the same copies");
    check(&mut nbd);
}

#[test]
fn a_paused_secondary_and_a_paused_leader_do_not_stop_io() {
    let (mut cluster, volume, mut nbd) = start(Duration::from_hours(1));
    let leader = cluster.await_leader().expect("a leader");
    cluster.pause(leader).expect("paused");
    check(&mut nbd);
    cluster.resume(leader).expect("resumed");
    let silent = Seat::Chunkserver(3);
    cluster.pause(silent).expect("paused");
    for segment in 0..VOLUME_BYTES / SEGMENT_BYTES {
        nbd.write(segment * SEGMENT_BYTES, &[segment as u8 + 1; 4096], false).expect("written");
    }
    check(&mut nbd);
    cluster.resume(silent).expect("resumed");
    cluster.await_full_redundancy(volume, HEAL_LIMIT).expect("whole again");
    check(&mut nbd);
}
