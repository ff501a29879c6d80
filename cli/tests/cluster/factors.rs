//! Every replication factor: written, read back with as many members dead as may be, and whole again.

use std::time::Duration;

use tidewater_cli::{
    cluster::{Cluster, ClusterSpec, ExportSpec, Seat},
    nbd_client::NbdClient,
};
use tidewater_proto::rpc::Durability;

use crate::scene::{HEAL_LIMIT, IO_LIMIT};

const SEGMENT_BYTES: u64 = 16 << 20;
const FACTORS_MAX: u32 = 5;
/// So many blocks are written, all over the one segment.
const BLOCKS: u64 = 64;

/// Members that may fail at once with service going on: a set does not shrink below two members, if it
/// should have three or more.
fn may_fail(replicas: u32) -> usize {
    match replicas {
        1 => 0,
        2 => 1,
        more => more as usize - 2,
    }
}

fn block(number: u64, round: u64) -> Vec<u8> {
    (number ^ (round << 32)).to_le_bytes().repeat(4096 / 8)
}

fn write(nbd: &mut NbdClient, round: u64) {
    for number in 0..BLOCKS {
        let offset = number * (SEGMENT_BYTES / BLOCKS);
        nbd.write(offset, &block(number, round), false).expect("written");
    }
}

fn check(nbd: &mut NbdClient, round: u64, what: &str) {
    for number in 0..BLOCKS {
        let mut back = vec![0; 4096];
        nbd.read(number * (SEGMENT_BYTES / BLOCKS), &mut back).expect("read");
        assert_eq!(back, block(number, round), "block {number}, {what}");
    }
}

/// Where the members of the volume's one segment are, the primary first.
fn members(cluster: &Cluster, volume: u64) -> Vec<Seat> {
    let segment = cluster.segments(volume).expect("listed").remove(0);
    let mut members = segment.members;
    members.sort_by_key(|m| m.replica != segment.primary);
    let seat = |server| cluster.seat_of(server).expect("answered").expect("of this cluster");
    members.into_iter().map(|m| seat(m.server)).collect()
}

#[test]
fn volumes_of_one_to_five_copies_outlive_as_many_members_as_may_fail() {
    // Nobody takes the place of a dead member: it comes back.
    let repair_delay = Duration::from_hours(1);
    let (metas, chunkservers) = (1, FACTORS_MAX as usize);
    let spec = ClusterSpec {
        metas,
        chunkservers,
        repair_delay,
        segment_bytes: SEGMENT_BYTES,
        ..ClusterSpec::default()
    };
    let mut cluster = Cluster::start(spec).expect("the cluster starts");
    for replicas in 1..=FACTORS_MAX {
        let name = format!("v{replicas}");
        let made = cluster.create_volume(&name, SEGMENT_BYTES, replicas, Durability::Sync);
        let volume = made.expect("made").id;
        let gateway = cluster.add_gateway(&[ExportSpec::exclusive(&name)]).expect("a gateway");
        let address = cluster.address(gateway);
        let mut nbd = NbdClient::connect(address, &name, IO_LIMIT).expect("accepts");
        write(&mut nbd, 1);
        let before = members(&cluster, volume);
        assert_eq!(before.len(), replicas as usize, "{before:?}");

        // The primary first, all at once.
        let dead = &before[..may_fail(replicas)];
        for &seat in dead {
            cluster.kill(seat).expect("killed");
        }
        let what = format!("{replicas} copies, {} dead", dead.len());
        check(&mut nbd, 1, &what);
        write(&mut nbd, 2);
        check(&mut nbd, 2, &what);
        let left = members(&cluster, volume);
        let mut expected: Vec<_> = before[dead.len()..].to_vec();
        expected.sort();
        let mut found = left.clone();
        found.sort();
        assert_eq!(found, expected, "{what}");

        // With all of them dead and back nothing is lost either.
        for &seat in &left {
            cluster.kill(seat).expect("killed");
        }
        for &seat in &before {
            cluster.restart(seat).expect("restarted");
        }
        check(&mut nbd, 2, &what);
        cluster.await_full_redundancy(volume, HEAL_LIMIT).expect("whole again");
        check(&mut nbd, 2, &what);
        cluster.stop(gateway).expect("stopped");
    }
}
