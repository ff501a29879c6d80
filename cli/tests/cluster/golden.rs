//! What each command prints with `-o json`: the names and kinds of its fields, as `cli/tests/golden/` has
//! them. Within v1 fields are only added: programs rely on those that are there.

use std::{
    collections::BTreeSet,
    fs,
    net::TcpStream,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};
use tidewater_cli::{
    cluster::{Cluster, ClusterSpec, ExportSpec, Seat, wait_until},
    nbd_client::NbdClient,
};
use tidewater_proto::rpc::Durability;

use crate::{
    binary::tidewater,
    scene::IO_LIMIT,
    shell::{Shell, free_port},
};

/// Set to anything, the files are written as the commands are now.
const WRITE_VARIABLE: &str = "TIDEWATER_WRITE_GOLDEN";
/// Its result is that of every command that only says it is done; it needs a cluster made from a backup.
const NOT_RUN: &str = "cluster-finish-restore";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// A document with its values replaced by their kinds; a list is shown by its first item.
fn shape(value: &Value) -> Value {
    match value {
        Value::Null => "null".into(),
        Value::Bool(_) => "bool".into(),
        Value::Number(_) => "number".into(),
        Value::String(_) => "string".into(),
        Value::Array(items) => items.first().map(shape).into_iter().collect(),
        Value::Object(fields) => {
            let shapes = fields.iter().map(|(name, value)| (name.clone(), shape(value)));
            Value::Object(shapes.collect::<Map<_, _>>())
        }
    }
}

struct Commands {
    cluster: Cluster,
    run: BTreeSet<String>,
}

impl Commands {
    /// Runs a command and compares what it prints; returns it.
    fn check(&mut self, noun_and_verb: &str, args: &[&str]) -> Value {
        self.check_at(&self.cluster.endpoints().join(","), noun_and_verb, args, 0)
    }

    fn check_at(&mut self, endpoint: &str, noun_and_verb: &str, args: &[&str], code: i32) -> Value {
        let words: Vec<_> = noun_and_verb.split(' ').collect();
        let flags = ["-o", "json", "--yes", "--endpoint", endpoint];
        let printed = tidewater(&[words.as_slice(), args, flags.as_slice()].concat())
            .expect_code(code)
            .json();
        let name = words.join("-");
        let path = folder().join(format!("{name}.json"));
        let mut now = shape(&printed);
        for pinned in ["apiVersion", "kind"] {
            now[pinned] = printed[pinned].clone();
        }
        let now = serde_json::to_string_pretty(&now).expect("serializes") + "\n";
        if std::env::var_os(WRITE_VARIABLE).is_some() {
            fs::write(&path, &now).expect("writable");
        }
        let pinned = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{name}: {e}:\n{now}"));
        assert_eq!(now, pinned, "{name}: {printed:#}");
        self.run.insert(name);
        printed
    }

    fn volumes_and_trash(&mut self) {
        self.check("volume create", &["w", "--size", "1GiB"]);
        self.check("volume resize", &["w", "2GiB"]);
        self.check("volume rename", &["w", "x"]);
        let deleted = self.check("volume delete", &["x"]);
        let id = deleted["id"].to_string();
        self.check("volume trash list", &[]);
        self.check("volume trash restore", &[&id]);
        self.check("volume delete", &["x"]);
        self.check("volume trash purge", &[&id]);
        self.check("volume list", &[]);
        self.check("volume show", &["v"]);
        self.check("volume map", &["v"]);
    }

    fn programs_and_segments(&mut self) {
        self.check("program register", &["nbd", "--instance", "1", "--host", "h1"]);
        self.check("program list", &[]);
        self.check("program show", &["nbd"]);
        self.check("program remove", &["nbd"]);
        let listed = self.check("segment list", &["v"]);
        let segment = &listed["items"][0];
        let other = segment["members"].as_array().expect("a list").iter();
        let other = other.map(|m| &m["server"]).find(|&s| *s != segment["primary"]);
        let to = other.expect("a secondary").to_string();
        self.check("segment move-primary", &["v", "0", "--to", &to]);
        let attached = self.check("attach list", &[]);
        self.check("attach detach", &[&attached["items"][0]["session"].to_string()]);
        self.check("event list", &[]);
    }

    fn nodes_and_health(&mut self, spare: &str) {
        self.check("node list", &[]);
        self.check("node show", &[spare]);
        self.check("node uncordon", &[spare]);
        self.check("node cordon", &[spare]);
        self.cluster.kill(Seat::Chunkserver(2)).expect("killed");
        let id = spare.trim_start_matches('s').parse::<u64>().expect("a number");
        let silent = |cluster: &Cluster| {
            let servers = cluster.servers().map_err(|e| e.to_string())?;
            let is_it = |s: &&tidewater_proto::rpc::Server| {
                s.address.as_ref().is_some_and(|a| a.server == id)
            };
            let alive = servers.iter().find(is_it).is_some_and(|s| s.alive);
            if alive { Err("alive".to_owned()) } else { Ok(()) }
        };
        self.cluster.await_condition("the spare to be silent", IO_LIMIT, silent).expect("it is");
        let endpoint = self.cluster.endpoints().join(",");
        self.check_at(&endpoint, "health", &[], 6);
        self.check("node remove", &[spare]);
    }

    fn members(&mut self) {
        let folder = self.cluster.folder().to_path_buf();
        let shell = Shell::new(&folder);
        let (joins, alone) = (free_port(), free_port());
        let start = |id: u64, port: u16| {
            shell.start(&format!(
                "tidewater meta run --id {id} --data-dir m{id} --listen 127.0.0.1:{port} \
                 --metrics-listen 127.0.0.1:0"
            ))
        };
        let _running = [start(7, joins), start(1, alone)];
        for port in [joins, alone] {
            let listens = || TcpStream::connect(("127.0.0.1", port)).map_err(|e| e.to_string());
            wait_until("a meta node to listen", IO_LIMIT, listens).expect("it does");
        }
        let address = format!("127.0.0.1:{alone}");
        self.check_at(&address, "cluster init", &["--node", &format!("1={address}")], 0);
        self.check("cluster info", &[]);
        self.check("cluster members", &[]);
        self.check("cluster add-member", &[&format!("7=127.0.0.1:{joins}")]);
        for to in [7, 1] {
            self.check("cluster transfer-leader", &[&to.to_string()]);
            // While it changes there may be none, so this is not compared.
            let endpoints = self.cluster.endpoints().join(",");
            let leads = || {
                let info = ["cluster", "info", "-o", "json", "--endpoint", &endpoints];
                let leader = tidewater(&info).expect_code(0).json()["leader"].clone();
                if leader == to { Ok(()) } else { Err(leader.to_string()) }
            };
            wait_until("the node to lead", IO_LIMIT, leads).expect("it does");
        }
        self.check("cluster remove-member", &["7"]);
        self.check("version", &[]);
    }
}

#[test]
fn every_command_prints_the_fields_that_programs_rely_on() {
    let spec = ClusterSpec { metas: 1, chunkservers: 3, ..ClusterSpec::default() };
    let cluster = Cluster::start(spec).expect("the cluster starts");
    // Without copies, so that it can be removed.
    let spare = cluster.server_run(Seat::Chunkserver(2)).expect("up").server;
    let spare = format!("s{spare}");
    let mut commands = Commands { cluster, run: BTreeSet::new() };
    commands.check("node cordon", &[&spare]);
    let cluster = &mut commands.cluster;
    cluster.create_volume("v", 1 << 30, 2, Durability::Sync).expect("made");
    let gateway = cluster.add_gateway(&[ExportSpec::exclusive("v")]).expect("a gateway");
    let mut nbd = NbdClient::connect(cluster.address(gateway), "v", IO_LIMIT).expect("accepts");
    nbd.write(0, &[1; 4096], true).expect("written");

    commands.volumes_and_trash();
    commands.programs_and_segments();
    commands.nodes_and_health(&spare);
    commands.members();

    let files = fs::read_dir(folder()).expect("readable").flatten().map(|entry| entry.path());
    let names = files.map(|path| path.file_stem().expect("a name").to_string_lossy().into_owned());
    let mut unused: Vec<_> = names.filter(|name| !commands.run.contains(name)).collect();
    unused.retain(|name| name != NOT_RUN);
    assert!(unused.is_empty(), "no command was run for {unused:?}");
}
