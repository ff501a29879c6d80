//! fio checks every block it reads against the checksum it wrote, while a chunkserver is killed.

use std::{process::Stdio, time::Duration};

use tidewater_cli::cluster::{Seat, wait_until};

use crate::{
    scene::{Scene, four_servers},
    tool::{command, finish, have},
};

const VOLUME_BYTES: u64 = 256 << 20;
const FIO_LIMIT: Duration = Duration::from_mins(2);

#[test]
fn fio_verifies_every_block_through_the_kill_and_restart_of_a_chunkserver() {
    if !have(&["fio"]) {
        return;
    }
    let mut scene = Scene::start(four_servers(32 << 20), VOLUME_BYTES);
    let mut fio = command(
        "fio",
        &[
            "--name=verify",
            "--ioengine=nbd",
            &format!("--uri={}", scene.uri()),
            "--rw=randwrite",
            "--bs=4k-64k",
            "--iodepth=16",
            &format!("--size={VOLUME_BYTES}"),
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_state_save=0",
            "--verify_backlog=512",
            "--randseed=7",
        ],
    )
    .stdout(Stdio::null())
    .spawn()
    .expect("fio starts");
    wait_until("fio to write", FIO_LIMIT, || match scene.cluster.segments(scene.volume) {
        Ok(segments) if segments.len() >= 4 => Ok(()),
        other => Err(format!("{:?} segments", other.map(|s| s.len()))),
    })
    .expect("fio writes");
    let victim = Seat::Chunkserver(0);
    scene.cluster.kill(victim).expect("killed");
    scene.cluster.restart(victim).expect("restarted");
    let status = finish(&mut fio, "fio", FIO_LIMIT);
    assert!(status.success(), "fio: {status}");
}
