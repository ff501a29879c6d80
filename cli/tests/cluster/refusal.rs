//! What is refused end to end, with the exit code and the words of docs/operations.md; nothing is
//! changed by the refusal.

use std::{fs, path::PathBuf, process::Stdio, time::Duration};

use tidewater_cli::cluster::{Cluster, ClusterSpec, ExportSpec, Seat, binary};
use tidewater_client::MetaCode;
use tidewater_proto::rpc;

use crate::tool::finish;

/// A server that is going to refuse its start has done so by then.
const REFUSE_LIMIT: Duration = Duration::from_secs(30);
const SERVER: Seat = Seat::Chunkserver(0);

fn start() -> Cluster {
    let spec = ClusterSpec { metas: 1, chunkservers: 1, ..ClusterSpec::default() };
    Cluster::start(spec).expect("the cluster starts")
}

fn config(cluster: &Cluster, seat: Seat) -> String {
    let path: PathBuf = cluster.folder().join(format!("{seat}.toml"));
    path.to_str().expect("UTF-8").to_owned()
}

/// Runs `tidewater` with `args`, which is refused with this exit code; returns what it said.
fn refused(code: i32, args: &[&str]) -> String {
    let mut child = std::process::Command::new(binary().expect("built"))
        .args(args)
        .env_remove("TIDEWATER_ENDPOINT")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let status = finish(&mut child, &format!("{args:?} to be refused"), REFUSE_LIMIT);
    let said = std::io::read_to_string(child.stderr.take().expect("piped")).expect("UTF-8");
    assert_eq!(status.code(), Some(code), "{args:?}: {said}");
    said
}

fn assert_says(said: &str, words: &str) {
    assert!(said.contains(words), "{words:?} is not in: {said}");
}

#[test]
fn a_second_server_on_a_data_folder_is_refused_and_the_first_goes_on() {
    let mut cluster = start();
    for (server, seat) in [("chunkserver", SERVER), ("meta", Seat::Meta(0))] {
        let second = config(&cluster, seat);
        let metrics = ["--metrics-listen", "127.0.0.1:0"];
        let said =
            refused(1, &[[server, "run", "--config", &second].as_slice(), &metrics].concat());
        assert_says(&said, "in use by another process");
    }
    cluster.check_alive().expect("both first ones run");
    assert!(cluster.server(SERVER).expect("registered").alive);
}

#[test]
fn a_chunkserver_of_another_cluster_is_refused_and_still_welcome_at_home() {
    let mut home = start();
    let other = start();
    let before = home.server_run(SERVER).expect("registered").server;
    home.stop(SERVER).expect("stopped");
    let meta = &other.endpoints()[0];
    let said =
        refused(1, &["chunkserver", "run", "--config", &config(&home, SERVER), "--meta", meta]);
    assert_says(&said, "belongs to cluster");
    assert_eq!(other.servers().expect("listed").len(), 1, "it is not registered there");
    home.restart(SERVER).expect("nothing in its folder has changed");
    assert_eq!(home.server_run(SERVER).expect("registered").server, before);
}

#[test]
fn a_data_folder_of_another_format_is_refused_and_left_as_it_is() {
    let mut cluster = start();
    cluster.stop(SERVER).expect("stopped");
    let path = cluster.folder().join(SERVER.to_string()).join("identity.json");
    let ours = fs::read_to_string(&path).expect("readable");
    let theirs = ours.replacen("\"format\": 1", "\"format\": 9", 1);
    assert_ne!(ours, theirs, "the version is in the file");
    fs::write(&path, &theirs).expect("writable");
    let said = refused(1, &["chunkserver", "run", "--config", &config(&cluster, SERVER)]);
    assert_says(&said, "identity.json");
    assert_says(&said, "format 1");
    assert_eq!(fs::read_to_string(&path).expect("readable"), theirs, "left as it was");
    fs::write(&path, &ours).expect("writable");
    cluster.restart(SERVER).expect("the data were not touched");
}

#[test]
fn an_unknown_key_in_the_file_of_a_working_server_is_refused_by_name() {
    let mut cluster = start();
    cluster.stop(SERVER).expect("stopped");
    let path = config(&cluster, SERVER);
    let good = fs::read_to_string(&path).expect("readable");
    fs::write(&path, format!("repair-dealy = \"1s\"\n{good}")).expect("writable");
    let said = refused(2, &["chunkserver", "run", "--config", &path]);
    assert_says(&said, "repair-dealy");
    fs::write(&path, good).expect("writable");
    cluster.restart(SERVER).expect("runs again");
}

#[test]
fn an_unknown_or_attached_volume_is_not_exported() {
    let mut cluster = start();
    cluster.create_volume("v", 64 << 20, 1, rpc::Durability::Sync).expect("made");
    cluster.add_gateway(&[ExportSpec::exclusive("v")]).expect("a gateway");
    let meta = cluster.endpoints()[0].clone();
    let export = |code, volume| {
        let listen = ["--endpoint", &meta, "--listen", "127.0.0.1:0"];
        refused(code, &[["gateway", "run", "--export", volume].as_slice(), &listen].concat())
    };
    assert_says(&export(3, "nosuch"), "nosuch");
    assert_says(&export(4, "v"), "program \"nbd\", instance \"1\"");
}

#[test]
fn a_size_that_is_no_multiple_of_a_block_is_refused_by_the_command_and_by_meta() {
    let cluster = start();
    let meta = &cluster.endpoints()[0];
    let said = refused(2, &["volume", "create", "v", "--size", "5000", "--endpoint", meta]);
    assert_says(&said, "multiple of 4KiB");
    let error = cluster.create_volume("v", 5000, 1, rpc::Durability::Sync).expect_err("refused");
    assert_eq!(error.code, MetaCode::Invalid, "{error}");
    cluster.create_volume("v", 4096, 1, rpc::Durability::Sync).expect("the name is free");
    let said = refused(2, &["volume", "resize", "v", "5000", "--endpoint", meta]);
    assert_says(&said, "multiple of 4KiB");
}
