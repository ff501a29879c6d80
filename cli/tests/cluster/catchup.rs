//! A member that was away for a while is sent what it missed, and no more.

use std::time::Duration;

use tidewater_cli::{
    cluster::{Cluster, ClusterSpec, Seat},
    nbd_client::NbdClient,
};
use tidewater_proto::rpc;

use crate::{
    observe::metric,
    scene::{HEAL_LIMIT, Scene, four_servers, three_servers},
};

const VOLUME_BYTES: u64 = 128 << 20;
const SEGMENT_BYTES: u64 = 32 << 20;
const SEGMENTS: u64 = VOLUME_BYTES / SEGMENT_BYTES;
const CHUNK_BYTES: u64 = 1 << 20;
/// Small, so that it does not reach back to when the member left: then whole chunks are compared.
const JOURNAL_BYTES: u64 = 32 << 20;
/// What a log may hold that is not destaged: half an overlay, for whole chunks hardly fill the journal.
const LOG_BYTES: u64 = 64 << 20;
/// What is written meanwhile, to one chunk of each segment: more than the journals hold.
const ROUNDS: u64 = 16;
/// What may be sent beside the chunks that changed: those that were under way when the member left.
const SLACK_CHUNKS: u64 = 16;

fn chunk(number: u64, round: u64) -> Vec<u8> {
    (number ^ (round << 32)).to_le_bytes().repeat(CHUNK_BYTES as usize / 8)
}

/// Writes the first chunk of each segment.
fn write_some(nbd: &mut NbdClient, round: u64) {
    for segment in 0..SEGMENTS {
        let offset = segment * SEGMENT_BYTES;
        nbd.write(offset, &chunk(offset / CHUNK_BYTES, round), false).expect("written");
    }
}

/// All chunks are of round 0, but for the first of each segment.
fn check(nbd: &mut NbdClient, round: u64) {
    for number in 0..VOLUME_BYTES / CHUNK_BYTES {
        let first = (number * CHUNK_BYTES).is_multiple_of(SEGMENT_BYTES);
        let mut back = vec![0; CHUNK_BYTES as usize];
        nbd.read(number * CHUNK_BYTES, &mut back).expect("read");
        let expected = chunk(number, if first { round } else { 0 });
        assert!(back == expected, "chunk {number} is not of round {round}");
    }
}

/// Chunk bytes that all servers but one have sent to learners.
fn sent(cluster: &Cluster, but: Seat) -> u64 {
    let servers = cluster.seats().filter(|s| matches!(s, Seat::Chunkserver(_)) && *s != but);
    servers.map(|seat| metric(cluster, seat, "tidewater_rebuild_bytes_total") as u64).sum()
}

/// A volume full of data.
fn full(spec: ClusterSpec) -> (Scene, NbdClient) {
    let spec = ClusterSpec { metas: 1, journal_bytes: JOURNAL_BYTES, ..spec };
    let scene = Scene::start(spec, VOLUME_BYTES);
    let mut nbd = scene.nbd();
    for number in 0..VOLUME_BYTES / CHUNK_BYTES {
        nbd.write(number * CHUNK_BYTES, &chunk(number, 0), false).expect("written");
    }
    (scene, nbd)
}

#[test]
fn a_member_that_comes_back_catches_up_by_what_it_missed_only() {
    let repair_delay = Duration::from_hours(1);
    let (mut scene, mut nbd) = full(ClusterSpec { repair_delay, ..three_servers(SEGMENT_BYTES) });
    let away = Seat::Chunkserver(2);
    let before = sent(&scene.cluster, away);
    scene.cluster.kill(away).expect("killed");
    for round in 1..=ROUNDS {
        write_some(&mut nbd, round);
    }
    scene.cluster.restart(away).expect("restarted");
    scene.await_full_redundancy();
    let sent = sent(&scene.cluster, away) - before;
    let missed = SEGMENTS * CHUNK_BYTES;
    println!("{sent} bytes of chunks sent; {missed} changed of {VOLUME_BYTES}");
    assert!(sent <= missed + SLACK_CHUNKS * CHUNK_BYTES, "{sent} bytes sent for {missed}");

    // It has all of it: it leads every segment, and answers.
    let server = scene.cluster.server_run(away).expect("up").server;
    for index in 0..SEGMENTS as u32 {
        let (volume, actor) = (scene.volume, "test".to_owned());
        let request = rpc::MovePrimaryRequest { volume, index, to_server: server, actor };
        let moved = scene.cluster.block_on(scene.cluster.control().move_primary(request));
        moved.expect("moved");
    }
    let led = scene.cluster.led(scene.volume).expect("listed");
    assert_eq!(led[&away].len(), SEGMENTS as usize, "{led:?}");
    check(&mut nbd, ROUNDS);
}

/// What the counter shows where everything is sent: the test above would not notice one that stands still.
#[test]
fn a_spare_is_sent_everything() {
    let repair_delay = Duration::from_secs(1);
    let (mut scene, mut nbd) = full(ClusterSpec { repair_delay, ..four_servers(SEGMENT_BYTES) });
    let gone = Seat::Chunkserver(1);
    let server = scene.cluster.server_run(gone).expect("up").server;
    let before = sent(&scene.cluster, gone);
    let segments = scene.cluster.segments(scene.volume).expect("listed");
    let held = segments.iter().filter(|s| s.members.iter().any(|m| m.server == server)).count();
    assert!(held > 0, "three of four servers hold each of {SEGMENTS} segments");
    scene.cluster.kill(gone).expect("killed");
    write_some(&mut nbd, 1);
    scene
        .cluster
        .await_condition("spares to take over", HEAL_LIMIT, |cluster| {
            let segments = cluster.segments(scene.volume).map_err(|e| e.to_string())?;
            let whole = |s: &rpc::Segment| {
                s.members.len() == 3 && s.members.iter().all(|m| m.server != server)
            };
            if segments.iter().all(whole) { Ok(()) } else { Err(format!("{segments:?}")) }
        })
        .expect("replaced");
    let (sent, lost) = (sent(&scene.cluster, gone) - before, held as u64 * SEGMENT_BYTES);
    println!("{sent} bytes of chunks sent for {lost} lost");
    // What the primary has not destaged yet is sent as entries.
    assert!(sent + LOG_BYTES >= lost, "only {sent} of {lost} bytes sent");
    check(&mut nbd, 1);
}
