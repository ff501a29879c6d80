//! With a cluster of one meta node and no chunkservers: what can be done without placing anything.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::net::UnixStream,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tidewater_cli::cluster::{Cluster, ClusterSpec, PARENT_VARIABLE, wait_until};

use crate::run::{Ran, tidewater};

const LIMIT: Duration = Duration::from_secs(30);

struct Admin {
    cluster: Cluster,
}

impl Admin {
    fn start() -> Self {
        let spec = ClusterSpec { metas: 1, chunkservers: 0, ..ClusterSpec::default() };
        Self { cluster: Cluster::start(spec).expect("one meta node starts") }
    }

    fn run(&self, args: &[&str]) -> Ran {
        let endpoint = self.cluster.endpoints().join(",");
        tidewater(&[args, &["--endpoint", &endpoint]].concat())
    }

    fn json(&self, args: &[&str]) -> Value {
        self.run(&[args, &["-o", "json"]].concat()).expect_code(0).json()
    }
}

#[test]
fn cluster_volumes_live_in_json_as_the_contract_says() {
    let admin = Admin::start();
    let made = admin.json(&["volume", "create", "prod/db-01", "--size", "64TiB"]);
    assert_eq!(made["apiVersion"], "tidewater/v1");
    assert_eq!(made["kind"], "Volume");
    assert_eq!(made["sizeBytes"], 64_u64 << 40);
    assert_eq!(made["replicas"], 3);
    assert_eq!(made["durability"], "sync");
    let created = made["created"].as_str().expect("a time");
    assert!(created.parse::<jiff::Timestamp>().is_ok(), "{created} is RFC 3339");

    let list = admin.json(&["volume", "list"]);
    assert_eq!(list["kind"], "VolumeList");
    assert_eq!(list["items"].as_array().map(Vec::len), Some(1));
    assert_eq!(list["items"][0]["name"], "prod/db-01");
    assert_eq!(admin.run(&["volume", "list", "-o", "name"]).stdout, "prod/db-01\n");

    let table = admin.run(&["volume", "list"]).expect_code(0).stdout;
    assert!(table.starts_with("NAME"), "{table}");
    assert!(table.contains("64TiB"), "{table}");
    let exact = admin.run(&["volume", "list", "--bytes", "--no-headers"]).stdout;
    assert!(exact.contains("70368744177664") && !exact.contains("NAME"), "{exact}");
}

#[test]
fn cluster_volume_verbs_end_with_typed_codes() {
    let admin = Admin::start();
    admin.run(&["volume", "create", "v", "--size", "1GiB"]).expect_code(0);
    admin.run(&["volume", "create", "v", "--size", "1GiB"]).expect_code(4);
    admin.run(&["volume", "show", "w"]).expect_code(3);
    let error = admin.run(&["volume", "show", "w", "-o", "json"]).expect_code(3).error();
    assert_eq!(error["code"], "NotFound");
    admin.run(&["volume", "resize", "v", "2GiB"]).expect_code(0);
    assert_eq!(admin.json(&["volume", "show", "v"])["sizeBytes"], 2_u64 << 30);
    let shrunk = admin.run(&["volume", "resize", "v", "1GiB"]);
    assert!([2, 4].contains(&shrunk.code), "a volume never shrinks: {}", shrunk.stderr);
    admin.run(&["volume", "rename", "v", "w"]).expect_code(0);
    admin.run(&["volume", "show", "v"]).expect_code(3);
    admin.run(&["node", "show", "s9"]).expect_code(3);
    admin.run(&["program", "show", "nobody"]).expect_code(3);
}

#[test]
fn cluster_deleting_needs_a_yes_and_can_be_undone_until_purged() {
    let admin = Admin::start();
    admin.run(&["volume", "create", "v", "--size", "1GiB"]).expect_code(0);
    let refused = admin.run(&["volume", "delete", "v"]).expect_code(1);
    assert!(refused.stderr.contains("--yes"), "{}", refused.stderr);
    admin.run(&["volume", "show", "v"]).expect_code(0);

    admin.run(&["volume", "delete", "v", "--yes"]).expect_code(0);
    admin.run(&["volume", "show", "v"]).expect_code(3);
    let trash = admin.json(&["volume", "trash", "list"]);
    let item = &trash["items"][0];
    assert_eq!(item["name"], "v");
    assert!(item["deleted"].is_string() && item["purge"].is_string(), "{item}");
    let id = item["id"].to_string();
    admin.run(&["volume", "trash", "restore", &id]).expect_code(0);
    admin.run(&["volume", "show", "v"]).expect_code(0);

    admin.run(&["volume", "delete", "v", "--yes"]).expect_code(0);
    admin.run(&["volume", "trash", "purge", &id]).expect_code(1);
    admin.run(&["volume", "trash", "purge", &id, "--yes"]).expect_code(0);
    admin.run(&["volume", "trash", "restore", &id]).expect_code(3);
}

/// A gateway that does not outlive the test.
struct Gateway(Child);

impl Gateway {
    fn start(admin: &Admin, args: &[&str]) -> Self {
        Self::on(admin, &[&["--listen", "127.0.0.1:0"], args].concat())
    }

    /// On the sockets that `args` name.
    fn on(admin: &Admin, args: &[&str]) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_tidewater"))
            .args(["gateway", "run", "--metrics-listen", "127.0.0.1:0"])
            .args(args)
            .args(["--endpoint", &admin.cluster.endpoints().join(",")])
            .env(PARENT_VARIABLE, std::process::id().to_string())
            .stdin(Stdio::null())
            .spawn();
        Self(child.expect("the binary runs"))
    }

    /// The attachments, once there are so many.
    fn attached(&mut self, admin: &Admin, count: usize) -> Vec<Value> {
        let found = wait_until("the gateway to attach", LIMIT, || {
            assert_eq!(self.0.try_wait().expect("it can be asked"), None, "the gateway ended");
            let list = admin.json(&["attach", "list"])["items"].clone();
            let list = list.as_array().cloned().unwrap_or_default();
            let ready = list.iter().filter(|a| a["ready"] == true).count();
            if ready == count { Ok(list) } else { Err(format!("{list:?}")) }
        });
        found.expect("attached")
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let ended = self.0.kill().and_then(|()| self.0.wait());
        eprintln!("ended: {ended:?}");
    }
}

#[test]
fn cluster_a_gateway_tells_where_it_is_with_its_attachments() {
    let admin = Admin::start();
    admin.run(&["volume", "create", "v", "--size", "1GiB"]).expect_code(0);
    admin.run(&["program", "register", "db"]).expect_code(0);
    let config = admin.cluster.folder().join("gateway.toml");
    // A flag counts for more than the file.
    let text = "[topology]\nregion = \"north\"\nzone = \"z0\"\nrack = \"k1\"\n\
                [[export]]\nvolume = \"v\"\nprogram = \"db\"\ninstance = \"7\"\n";
    fs::write(&config, text).expect("written");
    let config = config.to_str().expect("UTF-8");
    let mut gateway = Gateway::start(&admin, &["--config", config, "--zone", "z1", "--host", "h1"]);
    let attached = gateway.attached(&admin, 1);
    let topology = serde_json::json!({
        "region": "north", "zone": "z1", "rack": "k1", "host": "h1"
    });
    assert_eq!(attached[0]["topology"], topology);
    assert_eq!((&attached[0]["program"], &attached[0]["instance"]), (&"db".into(), &"7".into()));

    let shown = admin.json(&["program", "show", "db"]);
    assert_eq!(shown["attachments"][0]["volume"], "v");
    assert_eq!(shown["attachments"][0]["topology"], topology);
    for table in [["program", "show", "db"], ["attach", "list", "v"]] {
        let text = admin.run(&table).expect_code(0).stdout;
        assert!(text.contains("north/z1/k1/h1"), "{table:?}:\n{text}");
    }
}

#[test]
fn cluster_each_export_is_opened_for_its_own_program() {
    let admin = Admin::start();
    for volume in ["a", "b", "c"] {
        admin.run(&["volume", "create", volume, "--size", "1GiB"]).expect_code(0);
    }
    let exports = ["--export=a,program=web,instance=2", "--export=b,mode=shared", "--export=c"];
    let flags = ["--program=db", "--instance=9", "--mode=read-only"];
    let mut gateway = Gateway::start(&admin, &[exports, flags].concat());
    let holder = |a: &Value| {
        let text = |key: &str| a[key].as_str().expect("a text").to_owned();
        (text("volume"), text("program"), text("instance"), text("mode"))
    };
    let mut found: Vec<_> = gateway.attached(&admin, 3).iter().map(holder).collect();
    found.sort();
    let wanted =
        [("a", "web", "2", "read-only"), ("b", "db", "9", "shared"), ("c", "db", "9", "read-only")];
    let wanted = wanted.map(|(v, p, i, m)| (v.into(), p.into(), i.into(), m.into()));
    assert_eq!(found, wanted);
}

#[test]
fn cluster_a_gateway_serves_on_a_unix_socket_and_takes_it_away_at_its_end() {
    const EXPORT_NAME: u32 = 1;
    const READ: u16 = 0;
    let admin = Admin::start();
    admin.run(&["volume", "create", "v", "--size", "1GiB"]).expect_code(0);
    let path = admin.cluster.folder().join("nbd.sock");
    let mut gateway =
        Gateway::on(&admin, &["--unix", path.to_str().expect("UTF-8"), "--export", "v"]);
    gateway.attached(&admin, 1);
    let mut socket = UnixStream::connect(&path).expect("it listens");
    socket.set_read_timeout(Some(LIMIT)).expect("settable");
    let mut greeting = [0; 18];
    socket.read_exact(&mut greeting).expect("a greeting");
    assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");

    let mut choice = 3_u32.to_be_bytes().to_vec();
    choice.extend(b"IHAVEOPT");
    choice.extend(EXPORT_NAME.to_be_bytes());
    choice.extend(1_u32.to_be_bytes());
    choice.extend(b"v");
    socket.write_all(&choice).expect("sent");
    let mut export = [0; 10];
    socket.read_exact(&mut export).expect("size and flags");
    assert_eq!(export[..8], (1_u64 << 30).to_be_bytes());

    let mut request = 0x2560_9513_u32.to_be_bytes().to_vec();
    request.extend(0_u16.to_be_bytes());
    request.extend(READ.to_be_bytes());
    request.extend(b"cookie..");
    request.extend(0_u64.to_be_bytes());
    request.extend(512_u32.to_be_bytes());
    socket.write_all(&request).expect("sent");
    let mut reply = [1; 16 + 512];
    socket.read_exact(&mut reply).expect("a reply");
    assert_eq!((&reply[4..8], &reply[8..16]), ([0; 4].as_slice(), b"cookie..".as_slice()));
    assert!(reply[16..].iter().all(|&byte| byte == 0), "a volume never written reads as zeroes");
    drop(socket);

    kill_process(Pid::from_child(&gateway.0), Signal::TERM).expect("it runs");
    let ended = wait_until("the gateway to end", LIMIT, || match gateway.0.try_wait() {
        Ok(Some(status)) => Ok(status),
        other => Err(format!("{other:?}")),
    });
    assert!(ended.expect("it ends").success());
    assert!(!path.exists(), "the socket's file is left behind");
}

/// Hands what clients say to a server, and drops what it answers.
fn deaf_proxy(server: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    let server = server.to_owned();
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(mut to) = TcpStream::connect(&server) else { continue };
            let mut client = client;
            thread::spawn(move || io::copy(&mut client, &mut to));
        }
    });
    address
}

#[test]
fn cluster_a_name_that_an_unanswered_try_may_have_taken_is_exit_code_9() {
    let admin = Admin::start();
    let meta = admin.cluster.endpoints()[0].clone();
    let endpoints = format!("{},{meta}", deaf_proxy(&meta));
    let args = ["volume", "create", "v", "--size", "1GiB", "-o", "json", "--endpoint", &endpoints];
    let error = tidewater(&args).expect_code(9).error();
    assert_eq!(error["code"], "TimedOut");
    assert!(error["hint"].is_string(), "{error}");
    // The hint is right: it was this very command.
    assert_eq!(admin.json(&["volume", "show", "v"])["sizeBytes"], 1_u64 << 30);
}

#[test]
fn cluster_programs_and_events_are_listed() {
    let admin = Admin::start();
    let args = ["program", "register", "db", "--instance", "1", "--host", "h1", "--rack", "r1"];
    admin.run(&args).expect_code(0);
    let shown = admin.json(&["program", "show", "db"]);
    assert_eq!(shown["instances"][0]["host"], "h1");
    assert_eq!(shown["instances"][0]["topology"]["rack"], "r1");
    admin.run(&["program", "remove", "db", "--yes"]).expect_code(0);
    admin.run(&["program", "show", "db"]).expect_code(3);

    admin.run(&["volume", "create", "v", "--size", "1GiB"]).expect_code(0);
    let events = admin.json(&["event", "list"]);
    assert_eq!(events["kind"], "EventList");
    let events = events["items"].as_array().expect("a list");
    assert!(!events.is_empty());
    let last = events.last().expect("not empty")["revision"].to_string();
    let none = admin.json(&["event", "list", "--after", &last]);
    assert_eq!(none["items"].as_array().map(Vec::len), Some(0), "nothing after the last");
}

#[test]
fn cluster_info_members_and_health_describe_the_meta_node() {
    let admin = Admin::start();
    let info = admin.json(&["cluster", "info"]);
    assert_eq!(info["leader"], 1);
    assert_eq!(info["segmentBytes"], admin.cluster.spec().segment_bytes);
    let members = admin.json(&["cluster", "members"]);
    assert_eq!(members["items"][0]["leader"], true);
    assert_eq!(admin.run(&["health"]).expect_code(0).stdout, "OK\n");
    let again = ["cluster", "init", "--node", "1=127.0.0.1:7400"];
    assert_ne!(admin.run(&again).code, 0, "a cluster is made once");
}

#[test]
fn cluster_commands_go_on_after_the_meta_node_was_killed_and_restarted() {
    let mut admin = Admin::start();
    admin.run(&["volume", "create", "kept", "--size", "1GiB"]).expect_code(0);
    let meta = tidewater_cli::cluster::Seat::Meta(0);
    admin.cluster.kill(meta).expect("killed");
    admin.run(&["volume", "list", "--timeout", "500ms"]).expect_code(5);
    admin.cluster.restart(meta).expect("restarted");
    assert_eq!(admin.json(&["volume", "show", "kept"])["sizeBytes"], 1_u64 << 30);
}
