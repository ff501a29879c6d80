//! Without a cluster: usage, configuration and what is said when nobody answers.

use std::{fs, net::TcpListener, time::Instant};

use crate::run::tidewater;

/// Nothing listens on port 1 of this machine.
const NOBODY: [&str; 4] = ["--endpoint", "127.0.0.1:1", "--timeout", "300ms"];

#[test]
fn an_unknown_flag_is_a_usage_error() {
    let ran = tidewater(&["volume", "list", "--frobnicate"]).expect_code(2);
    assert!(ran.stdout.is_empty());
    assert!(ran.stderr.contains("--frobnicate"), "{}", ran.stderr);
}

#[test]
fn with_json_a_usage_error_is_json_too() {
    for form in [["-o", "json"].as_slice(), &["-ojson"], &["--output=json"], &["--output", "jsonl"]]
    {
        let args = [&["volume", "list", "--frobnicate"], form].concat();
        let error = tidewater(&args).expect_code(2).error();
        assert_eq!(error["code"], "Usage", "{form:?}");
    }
}

#[test]
fn when_nobody_answers_the_exit_code_is_5_and_the_hint_says_what_to_check() {
    let begun = Instant::now();
    let ran = tidewater(&[&["volume", "list"], NOBODY.as_slice()].concat()).expect_code(5);
    assert!(ran.stderr.contains("TIDEWATER_ENDPOINT"), "{}", ran.stderr);
    let json = [&["health", "-o", "json"], NOBODY.as_slice()].concat();
    let error = tidewater(&json).expect_code(5).error();
    assert_eq!(error["code"], "Unreachable");
    assert!(error["message"].is_string() && error["hint"].is_string(), "{error}");
    assert!(begun.elapsed().as_secs() < 10, "--timeout bounds the wait");
}

#[test]
fn values_are_checked_before_anybody_is_asked() {
    for args in [
        ["volume", "create", "v", "--size", "1000"].as_slice(),
        &["volume", "create", "v", "--size", "0"],
        &["volume", "create", "v", "--size", "65TiB"],
        &["volume", "create", "v", "--size", "8 parsecs"],
        &["volume", "create", "v", "--size", "1GiB", "--replicas", "6"],
        &["volume", "create", "v", "--size", "1GiB", "--replicas", "0"],
        &["volume", "create", "v"],
        &["cluster", "init", "--node", "7400"],
        &["cluster", "init", "--node", "1=a:1", "--segment-size", "3KiB"],
        &["node", "show", "nonsense"],
        &["volume", "list", "--endpoint", "nonsense"],
        &["volume", "list", "--timeout", "10"],
    ] {
        let begun = Instant::now();
        tidewater(args).expect_code(2);
        assert!(begun.elapsed().as_secs() < 5, "{args:?} asked somebody");
    }
}

#[test]
fn a_server_names_the_key_that_is_missing_unknown_or_wrong() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("tidewater.toml");
    let path = path.to_str().expect("UTF-8");
    for (server, text, named) in [
        ("meta", "", "data-dir"),
        ("meta", "data-dri = \"/x\"", "data-dri"),
        ("meta", "id = 1\ndata-dir = \"/x\"\nrepair-delay = \"soon\"", "repair-delay"),
        ("chunkserver", "", "data-dir"),
        ("chunkserver", "[[device]]\npath = \"d\"\ncapacity = \"5\"\nspeed = 1", "speed"),
        ("gateway", "", "export"),
        ("gateway", "listen = \"everywhere\"", "listen"),
    ] {
        fs::write(path, text).expect("writable");
        let ran = tidewater(&[server, "run", "--config", path]).expect_code(2);
        let said = ran.stderr.clone();
        assert!(
            said.contains(named) || server == "meta" && said.contains("id"),
            "{server}: {said}"
        );
    }
    let ran = tidewater(&["meta", "run", "--config", "/nonexistent.toml"]).expect_code(2);
    assert!(ran.stderr.contains("/nonexistent.toml"), "{}", ran.stderr);
}

#[test]
fn metrics_that_were_asked_for_and_cannot_be_served_are_an_error() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().expect("bound").to_string();
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let data = data.to_str().expect("UTF-8");
    for server in [
        ["meta", "run", "--id=1", "--listen=127.0.0.1:0", "--data-dir", data].as_slice(),
        &[
            "chunkserver",
            "run",
            "--meta=127.0.0.1:1",
            "--shard-listen=127.0.0.1:0",
            "--data-dir",
            data,
        ],
        &["gateway", "run", "--endpoint=127.0.0.1:1", "--listen=127.0.0.1:0", "--export=v"],
    ] {
        let args = [server, &["-o", "json", "--metrics-listen", &taken]].concat();
        let error = tidewater(&args).expect_code(2).error();
        let message = error["message"].as_str().expect("a text");
        assert!(message.contains("metrics-listen") && message.contains(&taken), "{error}");
    }
}

#[test]
fn the_version_is_data_in_every_form() {
    let version = env!("CARGO_PKG_VERSION");
    assert!(tidewater(&["version"]).expect_code(0).stdout.contains(version));
    let json = tidewater(&["version", "-o", "json"]).expect_code(0).json();
    assert_eq!(json["apiVersion"], "tidewater/v1");
    assert_eq!(json["kind"], "Version");
    assert_eq!(json["version"], version);
    assert_eq!(tidewater(&["version", "-o", "name"]).stdout.trim(), version);
}

#[test]
fn every_shell_gets_a_completion_script() {
    for shell in ["bash", "zsh", "fish"] {
        let ran = tidewater(&["completion", shell]).expect_code(0);
        assert!(ran.stdout.contains("move-primary"), "{shell}");
    }
}

#[test]
fn help_is_on_standard_output_and_names_every_noun() {
    let help = tidewater(&["--help"]).expect_code(0).stdout;
    for noun in ["demo", "cluster", "node", "volume", "program", "segment", "event", "health"] {
        assert!(help.contains(noun), "{noun}");
    }
}

fn has_memory_file_system() -> bool {
    let there = std::path::Path::new("/dev/shm").is_dir();
    if !there {
        assert!(std::env::var_os("TIDEWATER_REQUIRE_TOOLS").is_none(), "no /dev/shm here");
        eprintln!("skipped: no /dev/shm here");
    }
    there
}

#[test]
fn a_chunkserver_refuses_to_keep_its_journal_or_a_device_in_memory() {
    if !has_memory_file_system() {
        return;
    }
    let memory = tempfile::tempdir_in("/dev/shm").expect("a folder");
    let disk = tempfile::tempdir().expect("a folder");
    let config = disk.path().join("c.toml");
    for (data, device) in [(&memory, &disk), (&disk, &memory)] {
        let (data, device) = (data.path().join("data"), device.path().join("device"));
        let text = format!("data-dir = {data:?}\n[[device]]\npath = {device:?}\n");
        fs::write(&config, text).expect("written");
        let config = config.to_str().expect("UTF-8");
        let args =
            ["chunkserver", "run", "-o", "json", "--meta", "127.0.0.1:1", "--config", config];
        let ran = tidewater(&args).expect_code(2);
        let error = ran.error();
        assert_eq!(error["code"], "Usage");
        assert!(ran.stderr.contains("in memory") && ran.stderr.contains("/dev/shm"), "{error}");
        assert!(error["hint"].is_string(), "{error}");
    }
    let made = memory.path().join("data");
    assert!(!made.exists(), "nothing was made there");
}

#[test]
fn the_demo_refuses_a_folder_in_memory() {
    if !has_memory_file_system() {
        return;
    }
    let ran = tidewater(&["demo", "--serve", "--dir", "/dev/shm"]).expect_code(2);
    assert!(ran.stderr.contains("O_DIRECT"), "{}", ran.stderr);
    assert!(ran.stdout.is_empty(), "{}", ran.stdout);
}
