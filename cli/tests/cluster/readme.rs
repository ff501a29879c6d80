//! Every command of the README is run as it stands there. Each belongs to one of the tests below, and
//! one that belongs to none fails them.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use rand::{RngCore as _, SeedableRng as _, rngs::StdRng};
use tidewater_cli::{
    cluster::{Cluster, ClusterSpec, binary, wait_until},
    nbd_client::NbdClient,
};

use crate::{
    demo,
    markdown::{Shown, commands, page},
    tool::{can_mount, command, finish, have},
};

const LIMIT: Duration = Duration::from_mins(2);
/// What is not run: a virtual machine.
const NOT_RUN: &str = "qemu-system-x86_64";
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
    NotRun,
}

fn way(text: &str) -> Way {
    match text.split_whitespace().next().expect("a command") {
        "make" => Way::Make,
        "tidewater" if text.contains(" demo --serve ") => Way::Serve,
        "tidewater" => Way::Operator,
        NOT_RUN => Way::NotRun,
        _ => Way::BlockClient,
    }
}

fn shown(wanted: Way) -> Vec<Shown> {
    let found: Vec<_> =
        commands(&page("README.md")).into_iter().filter(|c| way(&c.text) == wanted).collect();
    assert!(!found.is_empty(), "the README shows some");
    found
}

/// A shell that finds `tidewater`, and leaves what it prints in a file.
fn shell(text: &str, folder: &Path) -> Command {
    let own = binary().expect("built");
    let own = own.parent().expect("in a folder").to_str().expect("UTF-8").to_owned();
    let path = std::env::var("PATH").unwrap_or_default();
    let said = File::options().create(true).append(true).open(folder.join("said")).expect("made");
    let mut shell = command("bash", &["-euo", "pipefail", "-c", text]);
    shell.env("PATH", format!("{own}:{path}:/usr/sbin:/sbin")).current_dir(folder);
    shell.stdout(said.try_clone().expect("copied")).stderr(said);
    shell
}

fn run_shell(mut shell: Command, text: &str, folder: &Path) {
    let status = finish(&mut shell.spawn().expect("starts"), text, LIMIT);
    let said = fs::read_to_string(folder.join("said")).expect("readable");
    assert!(status.success(), "{text}: {status}\n{said}");
}

#[test]
fn the_make_targets_of_the_readme_are_there() {
    if !have(&["make"]) {
        return;
    }
    let top = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    for Shown { text, .. } in shown(Way::Make) {
        let words: Vec<_> = text.split_whitespace().skip(1).collect();
        let dry = command("make", &[&["--dry-run"], words.as_slice()].concat())
            .current_dir(&top)
            .output()
            .expect("make runs");
        assert!(dry.status.success(), "{text}: {}", String::from_utf8_lossy(&dry.stderr));
    }
}

#[test]
fn the_program_of_the_readme_is_the_example() {
    let example = page("client/examples/hello.rs");
    assert!(page("README.md").contains(&example), "the README shows client/examples/hello.rs");
}

/// A child that does not outlive the test.
struct Background(Child);

impl Drop for Background {
    fn drop(&mut self) {
        let ended = self.0.kill().and_then(|()| self.0.wait());
        eprintln!("ended: {ended:?}");
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    listener.local_addr().expect("bound").port()
}

/// Runs the gateway on a port of its own, and writes through it: that places the first segment.
fn serve(text: &str, endpoints: &str, folder: &Path) -> Background {
    let port = free_port();
    let text = format!("exec {text} --listen 127.0.0.1:{port}");
    let child = shell(&text, folder).env("TIDEWATER_ENDPOINT", endpoints).spawn().expect("starts");
    let child = Background(child);
    let mut nbd = wait_until("the gateway", LIMIT, || {
        let server = ([127, 0, 0, 1], port).into();
        NbdClient::connect(server, "prod/db-01", LIMIT).map_err(|e| e.to_string())
    })
    .expect("it serves");
    nbd.write(0, &[1; 4096], true).expect("written");
    child
}

#[test]
fn the_readme_commands_for_operators_run() {
    if !have(&["bash"]) {
        return;
    }
    let spec = ClusterSpec { chunkservers: 3, ..ClusterSpec::default() };
    let cluster = Cluster::start(spec).expect("the cluster starts");
    let (endpoints, folder) = (cluster.endpoints().join(","), cluster.folder());
    let mut running = Vec::new();
    for Shown { text, .. } in shown(Way::Operator) {
        if text.contains(" gateway run ") {
            running.push(serve(&text, &endpoints, folder));
            continue;
        }
        let mut command = shell(&format!("exec {text}"), folder);
        command.env("TIDEWATER_ENDPOINT", &endpoints);
        if text.ends_with("--watch") {
            let mut child = Background(command.stdout(Stdio::piped()).spawn().expect("starts"));
            let mut first = String::new();
            let out = child.0.stdout.take().expect("piped");
            BufReader::new(out).read_line(&mut first).expect("a line");
            assert!(!first.is_empty(), "{text} prints what was there");
        } else {
            run_shell(command, &text, folder);
        }
    }
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
    if !have(&["bash", "qemu-img", "nbdcopy", "nbdinfo", "nbdfuse", "fio", "mkfs.ext4", "fstrim"]) {
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
    for Shown { needs_root, text } in shown(Way::BlockClient) {
        if needs_root && !mounts {
            continue;
        }
        let mut command = shell(&text, folder.path());
        command.env("URI", &served.uri);
        run_shell(command, &text, folder.path());
        if text.ends_with('&') {
            wait_until(&text, LIMIT, || match fs::metadata(folder.path().join("disk")) {
                Ok(data) if data.len() == VOLUME_BYTES => Ok(()),
                other => Err(format!("{:?}", other.map(|d| d.len()))),
            })
            .expect("the file has the volume's size");
        }
    }
    drop(undo);
    served.stop();
}
