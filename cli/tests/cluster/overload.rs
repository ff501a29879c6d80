//! Too many requests and too many clients: bounded, told, and no harm to the others.

use std::{net::TcpStream, time::Duration};

use tidewater_cli::{cluster::wait_until, nbd_client::NbdClient};

use crate::{
    scene::{IO_LIMIT, Scene, VOLUME, three_servers},
    tool::{have, run},
};

const SEGMENT_BYTES: u64 = 16 << 20;
/// Connections that a gateway serves at once.
const CONNECTIONS_MAX: usize = 256;
/// Requests that one client of the gateway may have open; it is not read from while it has more.
const REQUESTS_MAX: usize = 512;
const GREETED_LIMIT: Duration = Duration::from_secs(10);

#[test]
fn connections_above_the_limit_are_closed_and_those_below_go_on() {
    let scene = Scene::start(three_servers(SEGMENT_BYTES), SEGMENT_BYTES);
    let mut clients: Vec<_> = (0..CONNECTIONS_MAX).map(|_| scene.nbd()).collect();
    for _ in 0..3 {
        let refused = NbdClient::connect(scene.server(), VOLUME, GREETED_LIMIT);
        let error = refused.expect_err("one too many");
        assert!(error.to_string().starts_with("NBD connection: "), "{error}");
    }
    for (i, nbd) in clients.iter_mut().enumerate() {
        let (offset, data, mut back) = (i as u64 * 4096, [i as u8 | 1; 4096], vec![0; 4096]);
        nbd.write(offset, &data, false).expect("served");
        nbd.read(offset, &mut back).expect("served");
        assert_eq!(back, data, "client {i}");
    }
    let last = clients.pop().expect("there are many");
    last.disconnect().expect("said goodbye");
    let mut nbd = wait_until("a place", IO_LIMIT, || {
        NbdClient::connect(scene.server(), VOLUME, GREETED_LIMIT).map_err(|e| e.to_string())
    })
    .expect("the place that became free");
    nbd.write(0, &[9; 4096], true).expect("served");
}

#[test]
fn a_client_with_more_requests_than_are_let_in_is_served_in_full() {
    if !have(&["fio"]) {
        return;
    }
    let mut scene = Scene::start(three_servers(SEGMENT_BYTES), 4 * SEGMENT_BYTES);
    let mut beside = scene.nbd();
    run(
        "fio",
        &[
            "--name=flood",
            "--ioengine=nbd",
            &format!("--uri={}", scene.uri()),
            "--rw=randwrite",
            "--bs=4k",
            &format!("--iodepth={}", 8 * REQUESTS_MAX),
            &format!("--size={}", 4 * SEGMENT_BYTES),
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_state_save=0",
            "--randseed=7",
        ],
    );
    let mut back = vec![0; 4096];
    beside.read(0, &mut back).expect("others are served");
    scene.cluster.check_alive().expect("nothing ended");
}

#[test]
fn clients_that_connect_and_say_nothing_do_not_keep_others_out_for_good() {
    let scene = Scene::start(three_servers(SEGMENT_BYTES), SEGMENT_BYTES);
    let silent: Vec<_> = (0..CONNECTIONS_MAX)
        .map(|_| TcpStream::connect(scene.server()).expect("accepted"))
        .collect();
    drop(silent);
    let mut nbd = wait_until("a place", IO_LIMIT, || {
        NbdClient::connect(scene.server(), VOLUME, GREETED_LIMIT).map_err(|e| e.to_string())
    })
    .expect("those who left made room");
    nbd.write(0, &[1; 4096], true).expect("served");
}
