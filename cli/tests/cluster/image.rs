//! A real ext4 image goes in and comes out byte for byte, while processes are killed on the way.

use std::{path::Path, process::Stdio, time::Duration};

use tidewater_cli::cluster::wait_until;

use crate::{
    scene::{Scene, four_servers},
    tool::{command, file, finish, gather_sources, have, run},
};

const IMAGE_BYTES: u64 = 384 << 20;
/// Files in the image: at least so much, and not much more.
const TREE_BYTES: u64 = 200 << 20;
const TREE_BYTES_MAX: u64 = 260 << 20;
/// Copying the image takes seconds; failovers on the way some more.
const COPY_LIMIT: Duration = Duration::from_mins(2);
const SEGMENT_BYTES: u64 = 32 << 20;

fn make_image(folder: &Path) -> String {
    let size = format!("{}K", IMAGE_BYTES >> 10);
    let (tree, image) = (file(folder, "tree"), file(folder, "source.img"));
    let bytes = gather_sources(Path::new(&tree), TREE_BYTES);
    assert!((TREE_BYTES..TREE_BYTES_MAX).contains(&bytes), "{bytes} bytes of files");
    run("mkfs.ext4", &["-q", "-F", "-b", "4096", "-i", "4096", "-d", &tree, &image, &size]);
    image
}

/// Runs a copy; once some segments are placed, kills the busiest chunkserver and then the meta leader
/// under it, and restarts both.
fn copy_under_kills(scene: &mut Scene, program: &str, args: &[&str]) {
    let mut copy = command(program, args).stdout(Stdio::null()).spawn().expect("the copy starts");
    let victim = wait_until("a primary to kill", COPY_LIMIT, || {
        let ended = copy.try_wait().expect("it can be asked");
        assert!(ended.is_none(), "{program} ended: {ended:?}");
        let busiest = scene.cluster.busiest(scene.volume).map_err(|e| e.to_string())?;
        busiest.ok_or_else(|| "no segment is placed".to_owned())
    })
    .expect("the copy writes");
    let mut kill = |scene: &mut Scene, seat| {
        scene.cluster.kill(seat).expect("killed");
        let ended = copy.try_wait().expect("it can be asked");
        assert!(ended.is_none(), "{program} had ended when {seat} was killed: {ended:?}");
    };
    kill(scene, victim);
    let leader = scene.cluster.await_leader().expect("a leader");
    kill(scene, leader);
    scene.cluster.await_leader().expect("another leader");
    scene.cluster.restart(victim).expect("restarted");
    scene.cluster.restart(leader).expect("restarted");
    let status = finish(&mut copy, program, COPY_LIMIT);
    assert!(status.success(), "{program}: {status}");
    scene.await_full_redundancy();
}

fn come_back(scene: &Scene, image: &str) {
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", image, &scene.uri()]);
    let back = file(scene.cluster.folder(), "back.img");
    run("nbdcopy", &[&scene.uri(), &back]);
    run("cmp", &[image, &back]);
    run("e2fsck", &["-fn", &back]);
}

const TOOLS: [&str; 6] = ["mkfs.ext4", "e2fsck", "nbdcopy", "nbdinfo", "qemu-img", "cmp"];

#[test]
fn an_image_goes_in_with_nbdcopy_and_comes_back_through_kills() {
    if !have(&TOOLS) {
        return;
    }
    let mut scene = Scene::start(four_servers(SEGMENT_BYTES), IMAGE_BYTES);
    let image = make_image(scene.cluster.folder());
    let uri = scene.uri();
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
    let mut scene = Scene::start(four_servers(SEGMENT_BYTES), IMAGE_BYTES);
    let image = make_image(scene.cluster.folder());
    let uri = scene.uri();
    let args = ["convert", "-n", "-W", "-f", "raw", "-O", "raw", &image, &uri];
    copy_under_kills(&mut scene, "qemu-img", &args);
    come_back(&scene, &image);
}
