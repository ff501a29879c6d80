//! A volume of durability `flush`: what was flushed, or written with FUA, outlives everything.

use tidewater_cli::nbd_client::NbdClient;
use tidewater_proto::rpc;

use crate::scene::{Scene, three_servers};

const SEGMENT_BYTES: u64 = 16 << 20;
const VOLUME_BYTES: u64 = 4 * SEGMENT_BYTES;
/// Blocks written, spread over all segments.
const BLOCKS: u64 = 64;

fn offset(block: u64) -> u64 {
    block * (VOLUME_BYTES / BLOCKS)
}

fn read(nbd: &mut NbdClient, block: u64) -> Vec<u8> {
    let mut data = vec![0; 4096];
    nbd.read(offset(block), &mut data).expect("read");
    data
}

#[test]
fn what_was_flushed_on_a_flush_volume_survives_a_kill_of_the_whole_cluster() {
    let spec = three_servers(SEGMENT_BYTES);
    let mut scene = Scene::with_durability(spec, VOLUME_BYTES, rpc::Durability::Flush);
    let mut nbd = scene.nbd();
    for block in 0..BLOCKS {
        nbd.write(offset(block), &[block as u8 + 1; 4096], false).expect("written");
        assert_eq!(read(&mut nbd, block)[0], block as u8 + 1, "acknowledged, so readable");
    }
    nbd.flush().expect("flushed");
    nbd.write(offset(1), &[201; 4096], true).expect("written through");
    nbd.write(offset(2), &[202; 4096], false).expect("written");

    scene.cluster.kill_all().expect("killed");
    scene.cluster.start_all().expect("started");
    let mut nbd = scene.nbd();
    for block in (0..BLOCKS).filter(|block| *block > 2) {
        assert_eq!(read(&mut nbd, block), [block as u8 + 1; 4096], "block {block} was flushed");
    }
    assert_eq!(read(&mut nbd, 0), [1; 4096], "flushed");
    assert_eq!(read(&mut nbd, 1), [201; 4096], "written with FUA");
    let late = read(&mut nbd, 2);
    assert!(late == [3; 4096] || late == [202; 4096], "whole, or not at all: {}", late[0]);
    nbd.write(offset(2), &[9; 4096], true).expect("goes on");
    assert_eq!(read(&mut nbd, 2), [9; 4096]);
}
