//! Every command of the README is run as it stands there. Each belongs to one of the tests below, and
//! one that belongs to none fails them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rand::{RngCore as _, SeedableRng as _, rngs::StdRng};
use tidewater_cli::cluster::{Cluster, ClusterSpec, wait_until};

use crate::{
    demo,
    markdown::{Shown, commands, page},
    shell::{LIMIT, Shell},
    tool::{can_mount, command, have, run},
};

/// A virtual machine. There is none here: what it opens is opened by another program of its authors.
const MACHINE: &str = "qemu-system-x86_64";
const IMAGE_BYTES: usize = 16 << 20;
const VOLUME_BYTES: u64 = 8 << 30;

/// How a command is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// As a dry run: the build is running this test.
    Make,
    /// Against a cluster of the harness.
    Operator,
    /// It starts the cluster that block clients use.
    Serve,
    /// By a shell that has `$URI`.
    BlockClient,
    /// Its block device alone.
    Machine,
}

fn way(text: &str) -> Way {
    match text.split_whitespace().next().expect("a command") {
        "make" => Way::Make,
        "tidewater" if text.contains(" demo --serve ") => Way::Serve,
        "tidewater" => Way::Operator,
        MACHINE => Way::Machine,
        _ => Way::BlockClient,
    }
}

fn shown(wanted: Way) -> Vec<Shown> {
    let found: Vec<_> =
        commands(&page("README.md")).into_iter().filter(|c| way(&c.text) == wanted).collect();
    assert!(!found.is_empty(), "the README shows some");
    found
}

#[test]
fn the_make_targets_of_the_pages_are_there() {
    if !have(&["bash", "make"]) {
        return;
    }
    let top = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let results = commands(&page("docs/results.md"));
    assert!(!results.is_empty() && results.iter().all(|c| way(&c.text) == Way::Make));
    for Shown { text, .. } in shown(Way::Make).into_iter().chain(results) {
        let text = text.replacen("make ", "make --dry-run ", 1);
        let dry = command("bash", &["-c", &text]).current_dir(&top).output().expect("make runs");
        assert!(dry.status.success(), "{text}: {}", String::from_utf8_lossy(&dry.stderr));
    }
}

#[test]
fn the_program_of_the_readme_is_the_example() {
    let example = page("client/examples/hello.rs");
    assert!(page("README.md").contains(&example), "the README shows client/examples/hello.rs");
}

#[test]
fn the_readme_commands_for_operators_run() {
    if !have(&["bash"]) {
        return;
    }
    let spec = ClusterSpec { chunkservers: 3, ..ClusterSpec::default() };
    let cluster = Cluster::start(spec).expect("the cluster starts");
    let mut shell = Shell::new(cluster.folder());
    shell.set("TIDEWATER_ENDPOINT", cluster.endpoints().join(","));
    let mut running = Vec::new();
    for Shown { text, .. } in shown(Way::Operator) {
        if text.contains(" gateway run ") {
            running.push(shell.serve(&text, "prod/db-01"));
        } else if text.ends_with("--watch") {
            shell.watch(&text);
        } else {
            shell.run(&text);
        }
    }
}

/// Opens the command's `-blockdev` with qemu-io, and reads. The page names a gateway and volume of its
/// own: these are replaced.
fn open_as_the_machine_does(text: &str, uri: &str) {
    let (_, rest) = text.split_once(" -blockdev ").expect("a block device");
    let options = rest.split_whitespace().next().expect("with options");
    let (server, export) = uri.strip_prefix("nbd://").and_then(|u| u.split_once('/')).expect("URI");
    let (host, port) = server.split_once(':').expect("an address");
    let mut replaced = 0;
    let ours: Vec<_> = options
        .split(',')
        .map(|option| match option.split_once('=').expect("key and value") {
            ("server.host", _) => ("server.host", host),
            ("server.port", _) => ("server.port", port),
            ("export", _) => ("export", export),
            other => other,
        })
        .inspect(|(key, _)| replaced += usize::from(["server.port", "export"].contains(key)))
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    assert_eq!(replaced, 2, "{options} names a server and an export");
    run("qemu-io", &["--image-opts", &ours.join(","), "-c", "read 0 4k"]);
}

/// Undoes what the commands mount, also when one fails.
struct Mounts<'a>(&'a Path);

impl Drop for Mounts<'_> {
    fn drop(&mut self) {
        for point in ["mnt", "disk"] {
            let point = self.0.join(point);
            let undone = command("umount", &["-q", "-l", &point.to_string_lossy()]).status();
            eprintln!("umount {}: {undone:?}", point.display());
        }
    }
}

#[test]
fn the_readme_commands_for_block_clients_run() {
    if !have(&[
        "bash",
        "qemu-img",
        "nbdcopy",
        "nbdinfo",
        "nbdfuse",
        "fio",
        "mkfs.ext4",
        "fstrim",
        "qemu-io",
    ]) {
        return;
    }
    let mounts = can_mount();
    let serve = shown(Way::Serve);
    assert_eq!(serve[0].text, "tidewater demo --serve --size 8GiB");
    let served = demo::serve("8GiB");
    let folder = tempfile::tempdir().expect("a folder");
    let mut image = vec![0; IMAGE_BYTES];
    StdRng::seed_from_u64(5).fill_bytes(&mut image);
    fs::write(folder.path().join("disk.img"), &image).expect("written");
    let undo = Mounts(folder.path());
    let mut shell = Shell::new(folder.path());
    shell.set("URI", &*served.uri);
    for Shown { needs_root, text } in shown(Way::BlockClient) {
        if needs_root && !mounts {
            continue;
        }
        shell.run(&text);
        if text.ends_with('&') {
            wait_until(&text, LIMIT, || match fs::metadata(folder.path().join("disk")) {
                Ok(data) if data.len() == VOLUME_BYTES => Ok(()),
                other => Err(format!("{:?}", other.map(|d| d.len()))),
            })
            .expect("the file has the volume's size");
        }
    }
    drop(undo);
    for Shown { text, .. } in shown(Way::Machine) {
        open_as_the_machine_does(&text, &served.uri);
    }
    served.stop();
}
