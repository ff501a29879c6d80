//! A volume's life by the command line, and the space it gives back at its end.

use std::{collections::BTreeMap, time::Duration};

use rand::{RngCore as _, SeedableRng as _, rngs::StdRng};
use serde_json::Value;
use tidewater_cli::{
    cluster::{Cluster, ClusterSpec, DeviceSpec, ExportSpec, Seat, wait_until},
    nbd_client::{NbdClient, NbdError},
};
use tidewater_proto::rpc;

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

const ENOSPC: u32 = 28;
/// Of the server that has least.
const SMALL_BYTES: u64 = 96 << 20;
const SEGMENT_BYTES: usize = 16 << 20;
const SEGMENTS: usize = 8;

/// A chunk that says which it is and how often it was written.
fn chunk(index: usize, version: u8) -> Vec<u8> {
    let mut data = vec![version; CHUNK_BYTES];
    data[..8].copy_from_slice(&(index as u64).to_le_bytes());
    data
}

struct Filled {
    nbd: NbdClient,
    /// Version of each chunk that was written.
    chunks: BTreeMap<usize, u8>,
}

impl Filled {
    fn write(&mut self, index: usize, version: u8) -> Result<(), NbdError> {
        self.nbd.write((index * CHUNK_BYTES) as u64, &chunk(index, version), false)?;
        self.chunks.insert(index, version);
        Ok(())
    }

    /// Writes new chunks until there is no space for more; how many.
    fn fill(&mut self) -> usize {
        let new: Vec<_> = (0..SEGMENTS * SEGMENT_BYTES / CHUNK_BYTES)
            .filter(|index| !self.chunks.contains_key(index))
            .collect();
        for (written, index) in new.into_iter().enumerate() {
            match self.write(index, 1) {
                Ok(()) => {}
                Err(NbdError::Failed { errno: ENOSPC }) => return written,
                Err(error) => panic!("chunk {index}: {error}"),
            }
        }
        panic!("more fits than there is space for");
    }

    fn check(&mut self) {
        let mut back = vec![0; CHUNK_BYTES];
        for (&index, &version) in &self.chunks {
            self.nbd.read((index * CHUNK_BYTES) as u64, &mut back).expect("read");
            assert!(back == chunk(index, version), "chunk {index} differs");
        }
    }
}

#[test]
fn a_secondary_that_fills_up_refuses_new_chunks_and_nothing_else_and_recovers() {
    let small = DeviceSpec { capacity_bytes: SMALL_BYTES, ..DeviceSpec::default() };
    let spec = ClusterSpec {
        metas: 1,
        chunkservers: 2,
        segment_bytes: SEGMENT_BYTES as u64,
        journal_bytes: JOURNAL_BYTES,
        devices_of: BTreeMap::from([(1, vec![small])]),
        ..ClusterSpec::default()
    };
    let mut cluster = Cluster::start(spec).expect("the cluster starts");
    let size = (SEGMENTS * SEGMENT_BYTES) as u64;
    let volume = cluster.create_volume("v", size, 2, rpc::Durability::Sync).expect("made").id;
    let gateway = cluster.add_gateway(&[ExportSpec::exclusive("v")]).expect("a gateway");
    let nbd = NbdClient::connect(cluster.address(gateway), "v", IO_LIMIT).expect("accepts");
    let mut filled = Filled { nbd, chunks: BTreeMap::new() };
    // Segments are placed while there is space for them, and led by the server that has it.
    for segment in 0..SEGMENTS {
        filled.write(segment * SEGMENT_BYTES / CHUNK_BYTES, 1).expect("placed");
    }
    let large = cluster.server_run(Seat::Chunkserver(0)).expect("up").server;
    for segment in cluster.segments(volume).expect("listed") {
        let replica = segment.members.iter().find(|m| m.server == large).expect("on both").replica;
        if segment.primary != replica {
            let request = rpc::MovePrimaryRequest {
                volume,
                index: segment.index,
                to_server: large,
                actor: "test".to_owned(),
            };
            cluster.block_on(cluster.control().move_primary(request)).expect("moved");
        }
    }

    let written = filled.fill();
    assert!(written > 32, "only {written} chunks fitted");
    filled.check();
    let overwritten: Vec<_> = filled.chunks.keys().copied().collect();
    for index in overwritten {
        filled.write(index, 2).expect("an overwrite needs no new chunk");
    }
    filled.check();

    // A restart finds the same, and what is given back can be used again.
    cluster.restart(Seat::Chunkserver(1)).expect("it starts on its full device");
    filled.check();
    let given: Vec<_> = filled.chunks.keys().copied().take(24).collect();
    for index in &given {
        let at = (index * CHUNK_BYTES) as u64;
        filled.nbd.trim(at, CHUNK_BYTES as u32).expect("a discard needs nothing");
        filled.chunks.remove(index);
    }
    for &index in &given {
        wait_until("space to be free again", IO_LIMIT, || match filled.write(index, 3) {
            Ok(()) => Ok(()),
            Err(NbdError::Failed { errno: ENOSPC }) => Err("still full".to_owned()),
            Err(error) => panic!("chunk {index}: {error}"),
        })
        .expect("it is");
    }
    filled.check();
    cluster.check_alive().expect("nobody ended");
}
