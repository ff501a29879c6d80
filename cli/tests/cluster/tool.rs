//! Programs that tests drive. One that is missing skips its test, except where the environment says
//! that all must be there.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use tidewater_cli::cluster::wait_until;

/// Whether all of `programs` are installed; a missing one is reported.
pub(crate) fn have(programs: &[&str]) -> bool {
    let missing: Vec<_> = programs.iter().filter(|p| find(p).is_none()).collect();
    if missing.is_empty() {
        return true;
    }
    skip(&format!("not installed: {missing:?}; `make test` installs them as root"));
    false
}

/// Says why a test is skipped; where nothing may be skipped, it fails.
pub(crate) fn skip(why: &str) {
    let required = std::env::var_os("TIDEWATER_REQUIRE_TOOLS").is_some();
    assert!(!required, "{why}, and TIDEWATER_REQUIRE_TOOLS is set");
    eprintln!("skipped: {why}");
}

/// Whether file systems of one's own can be mounted: as root, with FUSE and loop devices.
pub(crate) fn can_mount() -> bool {
    let devices = ["/dev/fuse", "/dev/loop-control"];
    let missing: Vec<_> = devices.iter().filter(|path| !Path::new(path).exists()).collect();
    if !rustix::process::geteuid().is_root() {
        skip("mounting needs root");
    } else if !missing.is_empty() {
        skip(&format!("mounting needs {missing:?}"));
    } else {
        return true;
    }
    false
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders.map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// A command of an installed program.
pub(crate) fn command(program: &str, args: &[&str]) -> Command {
    let mut command = Command::new(find(program).expect("`have` was asked"));
    command.args(args).stdin(Stdio::null());
    command
}

/// Runs a program to its end; panics with its output if it fails. Returns standard output.
pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let output = command(program, args).output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {}\n{text}{errors}", output.status);
    text
}

/// Waits for a child; kills it after `limit`.
pub(crate) fn finish(child: &mut Child, what: &str, limit: Duration) -> ExitStatus {
    let ended = wait_until(what, limit, || match child.try_wait() {
        Ok(Some(status)) => Ok(status),
        Ok(None) => Err("running".to_owned()),
        Err(error) => Err(error.to_string()),
    });
    ended.unwrap_or_else(|error| {
        child.kill().expect("it can be killed");
        panic!("{error}");
    })
}

/// Copies files of the sources that the build has fetched to `into`, until they have at least `bytes`
/// bytes together; where there are fewer, they are copied again. Returns how many bytes there are.
pub(crate) fn gather_sources(into: &Path, bytes: u64) -> u64 {
    let tree = source_tree();
    let mut total = 0;
    for round in 0.. {
        let before = total;
        copy_until(&tree, &into.join(round.to_string()), &mut total, bytes);
        assert!(total > before, "nothing to copy in {}", tree.display());
        if total >= bytes {
            break;
        }
    }
    total
}

fn copy_until(from: &Path, to: &Path, total: &mut u64, bytes: u64) {
    fs::create_dir_all(to).expect("writable");
    let mut entries: Vec<_> = fs::read_dir(from).expect("readable").flatten().collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        if *total >= bytes {
            return;
        }
        let kind = entry.file_type().expect("known");
        let to = to.join(entry.file_name());
        if kind.is_dir() {
            copy_until(&entry.path(), &to, total, bytes);
        } else if kind.is_file() {
            *total += fs::copy(entry.path(), to).expect("copied");
        }
    }
}

/// A tree of real files: the sources of everything the build has fetched.
fn source_tree() -> PathBuf {
    let home = std::env::var_os("CARGO_HOME").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cargo"),
        PathBuf::from,
    );
    let tree = home.join("registry/src");
    assert!(tree.is_dir(), "the build has fetched sources to {}", tree.display());
    tree
}

/// A part of the above, some 40 MiB: RocksDB.
pub(crate) fn small_source_tree() -> PathBuf {
    let registries = fs::read_dir(source_tree()).expect("readable").flatten();
    let crates = registries.filter_map(|r| fs::read_dir(r.path()).ok()).flatten().flatten();
    let mut found: Vec<_> = crates
        .map(|entry| entry.path())
        .filter(|path| path.to_string_lossy().contains("/librocksdb-sys-"))
        .collect();
    found.sort();
    found.pop().expect("the build has fetched RocksDB")
}

/// A file in `folder`, as text for a command line.
pub(crate) fn file(folder: &Path, name: &str) -> String {
    folder.join(name).to_str().expect("UTF-8").to_owned()
}
