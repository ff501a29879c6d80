//! Take-over: a second gateway fences the first in the middle of its writes.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use tidewater_cli::{
    cluster::wait_until,
    nbd_client::{NbdClient, NbdError},
};

use crate::scene::{IO_LIMIT, Scene, VOLUME, export, three_servers};

const SEGMENT_BYTES: u64 = 16 << 20;
const SEGMENTS: usize = 4;
/// Acknowledged writes before the take-over: it falls into the middle of more.
const WRITES_BEFORE: u64 = 50;
/// As in errno.h: the gateway's handle is no longer the volume's.
const ESHUTDOWN: u32 = 108;

/// What the fenced writer knows.
struct Fenced {
    nbd: NbdClient,
    /// Version acknowledged, by segment.
    acked: [u64; SEGMENTS],
    /// Segment and version of the write that failed.
    pending: (usize, u64),
    error: NbdError,
}

fn content(version: u64) -> Vec<u8> {
    version.to_le_bytes().repeat(4096 / 8)
}

fn write_until_fenced(server: SocketAddr, count: Arc<AtomicU64>) -> JoinHandle<Fenced> {
    thread::spawn(move || {
        let mut nbd = NbdClient::connect(server, VOLUME, IO_LIMIT).expect("accepts");
        let mut acked = [0; SEGMENTS];
        let mut version = 0;
        loop {
            version += 1;
            let segment = version as usize % SEGMENTS;
            let offset = segment as u64 * SEGMENT_BYTES;
            if let Err(error) = nbd.write(offset, &content(version), false) {
                return Fenced { nbd, acked, pending: (segment, version), error };
            }
            acked[segment] = version;
            count.store(version, Ordering::Relaxed);
        }
    })
}

fn versions(nbd: &mut NbdClient) -> [u64; SEGMENTS] {
    std::array::from_fn(|segment| {
        let mut data = vec![0; 4096];
        nbd.read(segment as u64 * SEGMENT_BYTES, &mut data).expect("read");
        let version = u64::from_le_bytes(data[..8].try_into().expect("8 bytes"));
        assert_eq!(data, content(version), "segment {segment} holds one write, whole");
        version
    })
}

#[test]
fn take_over_fences_the_old_gateway_in_the_middle_of_its_writes() {
    let mut scene = Scene::start(three_servers(SEGMENT_BYTES), SEGMENT_BYTES * SEGMENTS as u64);
    let count = Arc::new(AtomicU64::new(0));
    let writer = write_until_fenced(scene.server(), Arc::clone(&count));
    wait_until("writes", IO_LIMIT, || match count.load(Ordering::Relaxed) {
        enough if enough >= WRITES_BEFORE => Ok(()),
        some => Err(some.to_string()),
    })
    .expect("the old gateway writes");

    scene.gateway = scene.cluster.add_gateway(&[export()]).expect("it takes over");
    let mut nbd = scene.nbd();
    let seen = versions(&mut nbd);
    let mut fenced = writer.join().expect("no write is torn");
    let is_fenced = |error: &NbdError| matches!(error, NbdError::Failed { errno: ESHUTDOWN });
    assert!(is_fenced(&fenced.error), "{}", fenced.error);
    for (segment, &version) in seen.iter().enumerate() {
        let pending = Some(fenced.pending.1).filter(|_| fenced.pending.0 == segment);
        assert!(
            version == fenced.acked[segment] || Some(version) == pending,
            "segment {segment} is at {version}, acknowledged {:?}, under way {:?}",
            fenced.acked,
            fenced.pending
        );
    }

    for segment in 0..SEGMENTS as u64 {
        let (offset, mut data) = (segment * SEGMENT_BYTES, vec![0; 4096]);
        let error = fenced.nbd.write(offset, &content(u64::MAX), true).expect_err("fenced");
        assert!(is_fenced(&error), "{error}");
        let error = fenced.nbd.read(offset, &mut data).expect_err("fenced");
        assert!(is_fenced(&error), "{error}");
    }
    assert_eq!(versions(&mut nbd), seen, "nothing of the old gateway lands any more");
    nbd.write(0, &content(7), true).expect("the new one writes");
    assert_eq!(versions(&mut nbd)[0], 7);
}
