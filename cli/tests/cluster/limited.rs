//! A device that is limited to so many operations a second keeps that in a running cluster.

use std::time::{Duration, Instant};

use tidewater_cli::{
    cluster::{Cluster, ClusterSpec, DeviceSpec, ExportSpec, Seat},
    nbd_client::NbdClient,
};
use tidewater_proto::rpc::{Durability, Tier};

use crate::scene::{HEAL_LIMIT, IO_LIMIT, VOLUME};

const CHUNK_BYTES: u64 = 1 << 20;
/// More than the journal and the memory in front of the device hold.
const CHUNKS: u64 = 192;
const JOURNAL_BYTES: u64 = 32 << 20;
const BLOCK: usize = 4096;
const IOPS: u32 = 100;
/// Read from the device in one round; each is in a chunk of its own, so it takes an operation of its own.
const READS: u64 = 64;
/// What an idle device may save up.
const BURST: Duration = Duration::from_millis(50);

fn byte(chunk: u64) -> u8 {
    chunk as u8 + 1
}

/// Reads a block that was not read before of each of the oldest chunks; how long that took.
fn read_round(nbd: &mut NbdClient, round: u64) -> Duration {
    let begun = Instant::now();
    for chunk in 0..READS {
        let mut back = [0; BLOCK];
        let offset = chunk * CHUNK_BYTES + round * BLOCK as u64 % CHUNK_BYTES;
        nbd.read(offset, &mut back).expect("read");
        assert_eq!(back, [byte(chunk); BLOCK], "chunk {chunk}, round {round}");
    }
    begun.elapsed()
}

#[test]
fn reads_from_a_limited_device_come_no_faster_than_it_may() {
    let slow = DeviceSpec { tier: Tier::Hdd, iops: Some(IOPS), ..DeviceSpec::default() };
    let spec = ClusterSpec {
        metas: 1,
        chunkservers: 1,
        journal_bytes: JOURNAL_BYTES,
        segment_bytes: CHUNKS * CHUNK_BYTES,
        devices_of: [(0, vec![slow])].into(),
        ..ClusterSpec::default()
    };
    let mut cluster = Cluster::start(spec).expect("the cluster starts");
    let size_bytes = CHUNKS * CHUNK_BYTES;
    cluster.create_volume(VOLUME, size_bytes, 1, Durability::Sync).expect("made");
    let gateway = cluster.add_gateway(&[ExportSpec::exclusive(VOLUME)]).expect("a gateway");
    let address = cluster.address(gateway);
    let mut nbd = NbdClient::connect(address, VOLUME, IO_LIMIT).expect("accepts");
    for chunk in 0..CHUNKS {
        let data = vec![byte(chunk); CHUNK_BYTES as usize];
        nbd.write(chunk * CHUNK_BYTES, &data, false).expect("written");
    }
    // What is in memory does not come from the device.
    cluster.restart(Seat::Chunkserver(0)).expect("restarted");
    let least = (Duration::from_secs(1) * READS as u32 / IOPS).saturating_sub(BURST);
    // The first read waits until the server leads again; that is not the device's time.
    read_round(&mut nbd, 0);
    let mut round = 0;
    let took = cluster.await_condition("reads at the device's pace", HEAL_LIMIT, |_| {
        round += 1;
        let took = read_round(&mut nbd, round);
        if took >= least { Ok(took) } else { Err(format!("{took:?} for {READS} reads")) }
    });
    println!("{READS} reads took {:?}, at least {least:?}", took.expect("the limit is kept"));
}
