//! A volume's life by the command line, and the space it gives back at its end.

use std::time::Duration;

use rand::{RngCore as _, SeedableRng as _, rngs::StdRng};
use serde_json::Value;
use tidewater_cli::{
    cluster::{Cluster, ClusterSpec, ExportSpec, wait_until},
    nbd_client::NbdClient,
};

use crate::binary::{Ran, tidewater};

const IO_LIMIT: Duration = Duration::from_mins(1);
const CHUNK_BYTES: usize = 1 << 20;
/// Twice the journal: what is written reaches the slots.
const WRITTEN_BYTES: usize = 32 << 20;
const JOURNAL_BYTES: u64 = 16 << 20;

struct Admin {
    cluster: Cluster,
}

impl Admin {
    fn run(&self, args: &[&str]) -> Ran {
        let endpoint = self.cluster.endpoints().join(",");
        tidewater(&[args, &["--endpoint", &endpoint, "--yes"]].concat())
    }

    fn json(&self, args: &[&str]) -> Value {
        self.run(&[args, &["-o", "json"]].concat()).expect_code(0).json()
    }

    /// Sum over all devices.
    fn used_bytes(&self) -> u64 {
        let list = self.json(&["node", "list"]);
        let nodes = list["items"].as_array().expect("a list").iter();
        let devices = nodes.flat_map(|node| node["devices"].as_array().expect("a list"));
        devices.map(|device| device["usedBytes"].as_u64().expect("an integer")).sum()
    }

    fn await_used(&self, what: &str, is_so: impl Fn(u64) -> bool) {
        wait_until(what, IO_LIMIT, || match self.used_bytes() {
            bytes if is_so(bytes) => Ok(()),
            bytes => Err(format!("{bytes} bytes used")),
        })
        .expect("so it is");
    }

    /// Exports the volume for as long as `work` takes.
    fn with_export(&mut self, volume: &str, work: impl FnOnce(&Self, &mut NbdClient)) {
        let gateway = self.cluster.add_gateway(&[ExportSpec::exclusive(volume)]).expect("opened");
        let server = self.cluster.address(gateway);
        let mut nbd = NbdClient::connect(server, volume, IO_LIMIT).expect("accepts");
        work(self, &mut nbd);
        nbd.disconnect().expect("said goodbye");
        self.cluster.stop(gateway).expect("it detaches");
    }
}

fn content() -> Vec<u8> {
    let mut data = vec![0; WRITTEN_BYTES];
    StdRng::seed_from_u64(3).fill_bytes(&mut data);
    data
}

#[test]
fn a_volume_keeps_its_data_through_resize_rename_and_trash_and_purge_frees_the_space() {
    let spec = ClusterSpec {
        metas: 1,
        chunkservers: 2,
        segment_bytes: 16 << 20,
        journal_bytes: JOURNAL_BYTES,
        ..ClusterSpec::default()
    };
    let mut admin = Admin { cluster: Cluster::start(spec).expect("the cluster starts") };
    let empty = admin.used_bytes();
    let made = admin.json(&["volume", "create", "v", "--size", "64MiB", "--replicas", "2"]);
    let id = format!("v{}", made["id"]);
    let data = content();
    admin.with_export("v", |_, nbd| {
        for (i, part) in data.chunks(CHUNK_BYTES).enumerate() {
            nbd.write((i * CHUNK_BYTES) as u64, part, false).expect("written");
        }
    });
    admin.await_used("slots to be used", |bytes| bytes > empty);

    admin.run(&["volume", "resize", "v", "96MiB"]).expect_code(0);
    admin.run(&["volume", "rename", "v", "w"]).expect_code(0);
    admin.run(&["volume", "delete", "w"]).expect_code(0);
    assert!(admin.used_bytes() > empty, "the trash keeps the data");
    admin.run(&["volume", "trash", "restore", &id, "--name", "x"]).expect_code(0);
    admin.with_export("x", |admin, nbd| {
        assert_eq!(nbd.size_bytes(), 96 << 20);
        let mut back = vec![0; CHUNK_BYTES];
        for (i, part) in data.chunks(CHUNK_BYTES).enumerate() {
            nbd.read((i * CHUNK_BYTES) as u64, &mut back).expect("read");
            assert!(back == part, "chunk {i} differs");
        }
        nbd.read(95 << 20, &mut back).expect("read");
        assert!(back.iter().all(|byte| *byte == 0), "what is new reads as zeroes");
        admin.run(&["volume", "delete", "x"]).expect_code(4);
    });

    admin.run(&["volume", "delete", "x"]).expect_code(0);
    admin.run(&["volume", "trash", "purge", &id]).expect_code(0);
    admin.await_used("the space to come back", |bytes| bytes == empty);
    assert_eq!(admin.json(&["volume", "trash", "list"])["items"], Value::Array(Vec::new()));
    let gone = admin.run(&["volume", "trash", "restore", &id, "-o", "json"]).expect_code(3).error();
    assert_eq!(gone["code"], "NotFound", "{gone}");
}
