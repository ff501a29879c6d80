//! The demo, as the README tells people to run it.

use std::{
    fs,
    io::{BufRead, BufReader, Lines},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tidewater_cli::{cluster::wait_until, nbd_client::NbdClient};

use crate::tool::finish;

const START_LIMIT: Duration = Duration::from_mins(1);
/// Generous: a killed process ends only when the disk has taken what was on the way to it.
const STOP_LIMIT: Duration = Duration::from_mins(1);
/// It ends by then, whatever it is told.
const DEMO_LIMIT: Duration = Duration::from_mins(2);

/// How the line begins that tells of the load once all is up.
const LOAD: &str = " load  ";

/// A demo that serves; killed when dropped.
pub(crate) struct Served {
    child: Child,
    pub(crate) uri: String,
    folder: tempfile::TempDir,
}

impl Served {
    /// Has it stop and remove everything.
    pub(crate) fn stop(mut self) {
        signal(&self.child, Signal::TERM);
        let status = finish(&mut self.child, "the demo to stop", STOP_LIMIT);
        assert!(status.success(), "{status}");
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            eprintln!("cannot end the demo: {error}");
        }
    }
}

pub(crate) fn serve(size: &str) -> Served {
    let folder = tempfile::tempdir().expect("a folder");
    let mut child = Command::new(env!("CARGO_BIN_EXE_tidewater"))
        .args(["demo", "--serve", "--size", size, "--dir"])
        .arg(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let mut uri = String::new();
    let mut out = BufReader::new(child.stdout.take().expect("piped"));
    out.read_line(&mut uri).expect("a line");
    Served { child, uri: uri.trim_end().to_owned(), folder }
}

fn client(uri: &str) -> NbdClient {
    let rest = uri.strip_prefix("nbd://").expect("an NBD URI");
    let (address, export) = rest.split_once('/').expect("with an export");
    NbdClient::connect(address.parse().expect("an address"), export, START_LIMIT).expect("accepts")
}

/// Processes whose command line names a path below `folder`.
fn processes_of(folder: &Path) -> Vec<String> {
    let folder = folder.to_string_lossy().into_owned();
    let entries = fs::read_dir("/proc").expect("procfs").flatten();
    let lines = entries.filter_map(|e| fs::read(e.path().join("cmdline")).ok());
    let lines = lines.map(|l| String::from_utf8_lossy(&l).replace('\0', " "));
    lines.filter(|l| l.contains(&folder) && l.contains(" run ")).collect()
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).expect("it runs");
}

#[test]
fn serve_prints_a_uri_that_accepts_io_and_a_signal_removes_everything() {
    for stop in [Signal::TERM, Signal::INT] {
        let mut served = serve("8GiB");
        let mut nbd = client(&served.uri);
        assert_eq!(nbd.size_bytes(), 8 << 30);
        let mut back = [0; 4096];
        nbd.write(1 << 30, &[7; 4096], true).expect("written");
        nbd.read(1 << 30, &mut back).expect("read");
        assert_eq!(back, [7; 4096]);
        nbd.disconnect().expect("said goodbye");

        signal(&served.child, stop);
        let status = finish(&mut served.child, "the demo to stop", STOP_LIMIT);
        assert!(status.success(), "{stop:?}: {status}");
        let left = fs::read_dir(served.folder.path()).expect("readable").count();
        assert_eq!(left, 0, "its folder is gone");
        assert_eq!(processes_of(served.folder.path()), Vec::<String>::new());
    }
}

#[test]
fn a_killed_harness_leaves_no_process_behind() {
    let mut served = serve("1GiB");
    assert!(!processes_of(served.folder.path()).is_empty(), "the cluster's processes are seen");
    served.child.kill().expect("killed");
    served.child.wait().expect("gone");
    wait_until("its children to be gone", STOP_LIMIT, || {
        let left = processes_of(served.folder.path());
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .expect("the kernel ends them");
}

/// A demo under load and faults, whose lines are read as they come; killed when dropped.
struct Proving {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    _folder: tempfile::TempDir,
}

impl Proving {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut child = Command::new(env!("CARGO_BIN_EXE_tidewater"))
            .args(["demo", "--seconds", "10s", "--dir"])
            .arg(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        Self { child, lines, _folder: folder }
    }

    /// The next line that has `part` in it.
    fn line(&mut self, part: &str) -> String {
        let found = self.lines.by_ref().map_while(Result::ok).find(|line| line.contains(part));
        found.unwrap_or_else(|| panic!("no line with {part:?}"))
    }
}

impl Drop for Proving {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            eprintln!("cannot end the demo: {error}");
        }
    }
}

#[test]
fn the_demo_fails_when_it_reads_a_wrong_byte() {
    const MIB: usize = 1 << 20;
    let mut demo = Proving::start();
    let line = demo.line("nbd://");
    let uri = line.split_whitespace().find(|word| word.starts_with("nbd://")).expect("an URI");
    let mut behind_its_back = client(uri);
    demo.line(LOAD);
    // It may find the first wrong byte and end before the last is written.
    let written = (0..64_u64)
        .take_while(|piece| {
            behind_its_back.write(piece * MIB as u64, &vec![0xa5; MIB], false).is_ok()
        })
        .count();
    assert!(written > 0, "nothing was written behind its back");
    let verdict = demo.line("data check");
    assert!(verdict.contains("data check FAIL: block "), "{verdict}");
    let status = finish(&mut demo.child, "the demo to end", STOP_LIMIT);
    assert_eq!(status.code(), Some(6), "{verdict}");
}

#[test]
fn the_demo_ends_in_time_with_an_error_when_no_chunkserver_answers() {
    let mut demo = Proving::start();
    let begun = Instant::now();
    demo.line(LOAD);
    let pids = chunkservers_of(demo.child.id());
    assert_eq!(pids.len(), 4);
    for &pid in &pids {
        kill_process(pid, Signal::STOP).expect("it runs");
    }
    let verdict = demo.line("data check");
    let status = finish(&mut demo.child, "the demo to end", DEMO_LIMIT);
    assert!(begun.elapsed() < DEMO_LIMIT, "took {:?}", begun.elapsed());
    assert!(verdict.contains("data check FAIL"), "{verdict}");
    assert!(!status.success(), "{status}");
}

/// Chunkservers that a process started.
fn chunkservers_of(parent: u32) -> Vec<Pid> {
    let parent = format!("PPid:\t{parent}");
    let entries = fs::read_dir("/proc").expect("procfs").flatten().map(|entry| entry.path());
    let ours = entries.filter(|path| {
        let read = |name| fs::read_to_string(path.join(name)).unwrap_or_default();
        read("status").lines().any(|line| line == parent)
            && read("cmdline").contains("chunkserver\0")
    });
    let pid = |path: PathBuf| path.file_name()?.to_str()?.parse().ok().and_then(Pid::from_raw);
    ours.filter_map(pid).collect()
}

#[test]
fn the_demo_passes_its_checks_within_two_minutes() {
    let folder = tempfile::tempdir().expect("a folder");
    let begun = Instant::now();
    let output = Command::new(env!("CARGO_BIN_EXE_tidewater"))
        .args(["demo", "--seconds", "10s", "--dir"])
        .arg(folder.path())
        .stdin(Stdio::null())
        .output()
        .expect("the binary runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{text}{errors}", output.status);
    assert!(begun.elapsed() < DEMO_LIMIT, "took {:?}\n{text}", begun.elapsed());
    for part in
        ["kill -9    chunkserver", "kill -9    meta", "data check PASS", "I/O resumed after"]
    {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    let (_, from_kill) = text.split_once("kill -9    chunkserver").expect("a kill");
    let (healing, _) = from_kill.split_once("healed ").expect("it heals");
    assert!(healing.contains("load  "), "nothing is said while it heals:\n{text}");
}
