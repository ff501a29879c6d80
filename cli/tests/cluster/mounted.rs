//! A volume as a file system: nbdfuse makes it a file, a loop device mounts it. Needs root.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::Duration,
};

use tidewater_cli::cluster::{Seat, wait_until};

use crate::{
    scene::{Scene, VOLUME, four_servers},
    tool::{can_mount, command, file, finish, have, run, small_source_tree},
};

const VOLUME_BYTES: u64 = 512 << 20;
const LIMIT: Duration = Duration::from_mins(1);

/// A mounted file system on a loop device on a file that nbdfuse serves; undone in order.
struct Mounted {
    fuse: Child,
    exposed: PathBuf,
    point: PathBuf,
    is_in_use: bool,
}

impl Mounted {
    fn expose(folder: &Path, uri: &str) -> Self {
        let exposed = folder.join("nbd");
        let point = folder.join("mnt");
        fs::write(&exposed, "").expect("writable");
        fs::create_dir_all(&point).expect("writable");
        let fuse = command("nbdfuse", &[exposed.to_str().expect("UTF-8"), uri]);
        let mut fuse = { fuse }.stdout(Stdio::null()).spawn().expect("nbdfuse starts");
        wait_until("nbdfuse to serve", LIMIT, || match fs::metadata(&exposed) {
            Ok(data) if data.len() == VOLUME_BYTES => Ok(()),
            other => match fuse.try_wait() {
                Ok(None) => Err(format!("{:?}", other.map(|d| d.len()))),
                ended => panic!("nbdfuse ended: {ended:?}"),
            },
        })
        .expect("the file has the volume's size");
        Self { fuse, exposed, point, is_in_use: false }
    }

    fn mount(&mut self) {
        let (file, point) = (self.exposed.to_string_lossy(), self.point.to_string_lossy());
        run("mount", &["-o", "loop,discard", &file, &point]);
        self.is_in_use = true;
    }

    fn unmount(&mut self) {
        run("umount", &[&self.point.to_string_lossy()]);
        self.is_in_use = false;
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.is_in_use {
            let undone = command("umount", &["-l", &self.point.to_string_lossy()]).status();
            eprintln!("unmounted: {undone:?}");
        }
        let undone = command("umount", &["-l", &self.exposed.to_string_lossy()]).status();
        if !undone.is_ok_and(|status| status.success()) {
            eprintln!("nbdfuse's file could not be unmounted");
        }
        finish(&mut self.fuse, "nbdfuse to end", LIMIT);
    }
}

#[test]
fn a_mounted_ext4_keeps_an_untarred_tree_through_delete_trim_remount_and_a_kill() {
    if !can_mount() {
        return;
    }
    if !have(&["nbdfuse", "mkfs.ext4", "mount", "umount", "fstrim", "diff", "tar", "e2fsck"]) {
        return;
    }
    let Scene { mut cluster, gateway, .. } = Scene::start(four_servers(64 << 20), VOLUME_BYTES);
    let uri = cluster.nbd_uri(gateway, VOLUME);
    let mut mounted = Mounted::expose(cluster.folder(), &uri);
    run("mkfs.ext4", &["-q", "-F", &file(cluster.folder(), "nbd")]);

    mounted.mount();
    let point = mounted.point.clone();
    let tree = small_source_tree();
    let name = tree.file_name().expect("a folder").to_str().expect("UTF-8");
    let archive = file(cluster.folder(), "tree.tar");
    let above = tree.parent().expect("a folder").to_str().expect("UTF-8");
    run("tar", &["-C", above, "-cf", &archive, name]);
    let (kept, gone) = (file(&point, "kept"), file(&point, "gone"));
    for folder in [&kept, &gone] {
        fs::create_dir(folder).expect("made");
        run("tar", &["-C", folder, "-xf", &archive]);
    }
    cluster.kill(Seat::Chunkserver(0)).expect("killed");
    run("rm", &["-r", &gone]);
    run("fstrim", &[point.to_str().expect("UTF-8")]);
    cluster.restart(Seat::Chunkserver(0)).expect("restarted");
    mounted.unmount();

    run("e2fsck", &["-fn", &file(cluster.folder(), "nbd")]);
    mounted.mount();
    // Contents, and what else the archive has of each file: size, mode, owner, time.
    run("diff", &["-r", tree.to_str().expect("UTF-8"), &file(Path::new(&kept), name)]);
    run("tar", &["-C", &kept, "--compare", "-f", &archive]);
    assert!(!Path::new(&gone).exists(), "what was deleted is back");
    mounted.unmount();
    drop(mounted);
}
