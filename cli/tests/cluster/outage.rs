//! All meta nodes dead at once: what is placed goes on.

use std::time::{Duration, Instant};

use tidewater_cli::{cluster::Seat, nbd_client::NbdClient};

use crate::scene::{Scene, VOLUME, three_servers};

const SEGMENT_BYTES: u64 = 16 << 20;
/// Segments placed before the outage; the volume has one more.
const PLACED: u64 = 4;
/// Longer than every lease, heartbeat and verdict on a silent server.
const OUTAGE: Duration = Duration::from_secs(6);
/// No operation waits that long while the metadata cluster is gone.
const IO_LIMIT: Duration = Duration::from_secs(5);

fn block(segment: u64, round: u64) -> Vec<u8> {
    (segment ^ (round << 8)).to_le_bytes().repeat(4096 / 8)
}

#[test]
fn io_on_placed_segments_goes_on_while_all_meta_nodes_are_dead() {
    let mut scene = Scene::start(three_servers(SEGMENT_BYTES), (PLACED + 1) * SEGMENT_BYTES);
    let (server, mut nbd) = (scene.server(), scene.nbd());
    for segment in 0..PLACED {
        nbd.write(segment * SEGMENT_BYTES, &block(segment, 0), false).expect("placed");
    }

    let cluster = &mut scene.cluster;
    let metas: Vec<_> = (0..cluster.spec().metas).map(Seat::Meta).collect();
    for &meta in &metas {
        cluster.kill(meta).expect("killed");
    }
    let mut during = NbdClient::connect(server, VOLUME, IO_LIMIT).expect("still accepts");
    let begun = Instant::now();
    let (mut round, mut longest) = (0, Duration::ZERO);
    while begun.elapsed() < OUTAGE {
        round += 1;
        for segment in 0..PLACED {
            let (asked, mut back) = (Instant::now(), vec![0; 4096]);
            let offset = segment * SEGMENT_BYTES;
            during.write(offset, &block(segment, round), false).expect("written without meta");
            during.read(offset, &mut back).expect("read without meta");
            longest = longest.max(asked.elapsed());
            assert_eq!(back, block(segment, round), "segment {segment}, round {round}");
        }
    }
    eprintln!("{round} rounds without a meta node, longest write and read {longest:?}");

    for &meta in &metas {
        cluster.restart(meta).expect("restarted");
    }
    cluster.await_leader().expect("a leader");
    nbd.write(PLACED * SEGMENT_BYTES, &block(PLACED, 1), false).expect("placed again");
    for segment in 0..PLACED {
        let mut back = vec![0; 4096];
        nbd.read(segment * SEGMENT_BYTES, &mut back).expect("read");
        assert_eq!(back, block(segment, round));
    }
}
