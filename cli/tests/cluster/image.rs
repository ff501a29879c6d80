//! A real ext4 image goes in and comes out byte for byte, while processes are killed on the way.

use std::{process::Stdio, time::Duration};

use tidewater_cli::cluster::{Cluster, ClusterSpec, ExportSpec, Seat, wait_until};
use tidewater_proto::rpc;

use crate::tool::{command, file, finish, have, run, source_tree};

const IMAGE_BYTES: u64 = 384 << 20;
/// Copying the image takes seconds; failovers on the way some more.
const COPY_LIMIT: Duration = Duration::from_mins(2);
/// Redundancy is back some seconds after a restart.
const HEAL_LIMIT: Duration = Duration::from_mins(1);

struct Scene {
    cluster: Cluster,
    gateway: Seat,
    volume: u64,
    uri: String,
}

fn start() -> Scene {
    let spec = ClusterSpec { segment_bytes: 32 << 20, ..ClusterSpec::default() };
    let mut cluster = Cluster::start(spec).expect("the cluster starts");
    let volume = cluster
        .create_volume("image", IMAGE_BYTES, 3, rpc::Durability::Sync)
        .expect("the volume is made")
        .id;
    let gateway = cluster.add_gateway(&[ExportSpec::exclusive("image")]).expect("a gateway");
    let uri = cluster.nbd_uri(gateway, "image");
    Scene { cluster, gateway, volume, uri }
}

fn make_image(path: &str) {
    let size = format!("{}K", IMAGE_BYTES >> 10);
    let tree = source_tree();
    let tree = tree.to_str().expect("UTF-8");
    run("mkfs.ext4", &["-q", "-F", "-b", "4096", "-i", "4096", "-d", tree, path, &size]);
}

/// The chunkserver that leads most segments of the volume.
fn busiest(scene: &Scene) -> Option<Seat> {
    let segments = scene.cluster.segments(scene.volume).ok()?;
    let primaries = segments
        .iter()
        .filter_map(|s| s.members.iter().find(|m| m.replica == s.primary).map(|m| m.server));
    let mut counts = std::collections::BTreeMap::<u64, usize>::new();
    primaries.for_each(|server| *counts.entry(server).or_default() += 1);
    let (&server, _) = counts.iter().max_by_key(|(_, count)| **count)?;
    scene.cluster.seat_of(server).ok().flatten()
}

/// Runs a copy; once some segments are placed, kills the busiest chunkserver and then the meta leader
/// under it, and restarts both.
fn copy_under_kills(scene: &mut Scene, program: &str, args: &[&str]) {
    let mut copy = command(program, args).stdout(Stdio::null()).spawn().expect("the copy starts");
    let victim = wait_until("a primary to kill", COPY_LIMIT, || {
        let ended = copy.try_wait().expect("it can be asked");
        assert!(ended.is_none(), "{program} ended: {ended:?}");
        busiest(scene).ok_or_else(|| "no segment is placed".to_owned())
    })
    .expect("the copy writes");
    scene.cluster.kill(victim).expect("killed");
    let leader = scene.cluster.await_leader().expect("a leader");
    scene.cluster.kill(leader).expect("killed");
    scene.cluster.await_leader().expect("another leader");
    scene.cluster.restart(victim).expect("restarted");
    scene.cluster.restart(leader).expect("restarted");
    let status = finish(&mut copy, program, COPY_LIMIT);
    assert!(status.success(), "{program}: {status}");
    scene.cluster.await_full_redundancy(scene.volume, HEAL_LIMIT).expect("whole again");
}

fn come_back(scene: &Scene, image: &str) {
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", image, &scene.uri]);
    let back = file(scene.cluster.folder(), "back.img");
    run("nbdcopy", &[&scene.uri, &back]);
    run("cmp", &[image, &back]);
    run("e2fsck", &["-fn", &back]);
}

const TOOLS: [&str; 6] = ["mkfs.ext4", "e2fsck", "nbdcopy", "nbdinfo", "qemu-img", "cmp"];

#[test]
fn an_image_goes_in_with_nbdcopy_and_comes_back_through_kills() {
    if !have(&TOOLS) {
        return;
    }
    let mut scene = start();
    let image = file(scene.cluster.folder(), "source.img");
    make_image(&image);
    let uri = scene.uri.clone();
    copy_under_kills(&mut scene, "nbdcopy", &["--flush", &image, &uri]);
    come_back(&scene, &image);
    let info = run("nbdinfo", &["--size", &uri]);
    assert_eq!(info.trim(), IMAGE_BYTES.to_string());
    scene.cluster.stop(scene.gateway).expect("the gateway ends cleanly");
}

#[test]
fn an_image_goes_in_with_qemu_img_and_comes_back_through_kills() {
    if !have(&TOOLS) {
        return;
    }
    let mut scene = start();
    let image = file(scene.cluster.folder(), "source.img");
    make_image(&image);
    let uri = scene.uri.clone();
    let args = ["convert", "-n", "-W", "-f", "raw", "-O", "raw", &image, &uri];
    copy_under_kills(&mut scene, "qemu-img", &args);
    come_back(&scene, &image);
}
