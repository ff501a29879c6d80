//! Disks that are full: of a whole cluster's devices, under a meta node, under a chunkserver. What was
//! acknowledged stays, what was refused did not happen, and room makes it work again.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{ErrorKind, Write as _},
    path::PathBuf,
    thread,
};

use rand::{Rng as _, RngCore as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use tidewater_cli::{
    cluster::{Cluster, ClusterSpec, DeviceSpec, Seat, wait_until},
    nbd_client::{NbdClient, NbdError},
};
use tidewater_proto::rpc;

use crate::{
    scene::{HEAL_LIMIT, IO_LIMIT, Scene, VOLUME, three_servers},
    tool::{can_mount, command, file, have, run},
};

const SEGMENT_BYTES: u64 = 16 << 20;
const CHUNK_BYTES: u64 = 1 << 20;
const JOURNAL_BYTES: u64 = 32 << 20;
/// As in errno.h.
const ENOSPC: u32 = 28;

// ---------- a full cluster ----------

/// Twice what the devices can take.
const VOLUME_BYTES: u64 = 512 << 20;
const DEVICE_BYTES: u64 = 256 << 20;
const WRITERS: u64 = 4;

fn chunk(seed: u64, index: u64) -> Vec<u8> {
    let mut data = vec![0; CHUNK_BYTES as usize];
    StdRng::seed_from_u64(seed ^ (index << 16)).fill_bytes(&mut data);
    data
}

/// What one writer was told.
struct Told {
    acknowledged: BTreeSet<u64>,
    refused: u64,
}

/// Writes chunks in a random order until one is refused.
fn write_until_full(nbd: &mut NbdClient, seed: u64, mut chunks: Vec<u64>) -> Told {
    chunks.shuffle(&mut StdRng::seed_from_u64(seed));
    let mut acknowledged = BTreeSet::new();
    for index in chunks {
        match nbd.write(index * CHUNK_BYTES, &chunk(seed, index), false) {
            Ok(()) => acknowledged.insert(index),
            Err(NbdError::Failed { errno: ENOSPC }) => {
                return Told { acknowledged, refused: index };
            }
            Err(error) => panic!("seed {seed}, chunk {index}: {error}"),
        };
    }
    panic!("seed {seed}: more was taken than there is room for");
}

fn check(nbd: &mut NbdClient, seed: u64, told: &Told) {
    let mut data = vec![0; CHUNK_BYTES as usize];
    for &index in &told.acknowledged {
        nbd.read(index * CHUNK_BYTES, &mut data).expect("readable");
        assert!(data == chunk(seed, index), "seed {seed}: chunk {index} was acknowledged");
    }
    nbd.read(told.refused * CHUNK_BYTES, &mut data).expect("readable");
    assert!(data.iter().all(|b| *b == 0), "seed {seed}: chunk {} was refused", told.refused);
}

#[test]
fn full_devices_refuse_writes_keep_what_they_acknowledged_and_take_more_when_there_is_room() {
    let seed: u64 = rand::rng().random_range(0..1 << 32);
    eprintln!("seed {seed}");
    let spec = ClusterSpec {
        metas: 1,
        journal_bytes: JOURNAL_BYTES,
        devices: vec![DeviceSpec { capacity_bytes: DEVICE_BYTES, ..DeviceSpec::default() }],
        ..three_servers(SEGMENT_BYTES)
    };
    let mut scene = Scene::start(spec, VOLUME_BYTES);
    let mut nbd = scene.nbd();
    // Every segment is placed while there is room: what is refused later is refused by the servers.
    for segment in 0..VOLUME_BYTES / SEGMENT_BYTES {
        nbd.write(segment * SEGMENT_BYTES, &[1; 4096], false).expect("placed");
        nbd.trim(segment * SEGMENT_BYTES, CHUNK_BYTES as u32).expect("trimmed");
    }
    let server = scene.server();
    let writers = (0..WRITERS).map(|id| {
        let chunks = (0..VOLUME_BYTES / CHUNK_BYTES).filter(|i| i % WRITERS == id).collect();
        thread::spawn(move || {
            let mut nbd = NbdClient::connect(server, VOLUME, IO_LIMIT).expect("accepts");
            write_until_full(&mut nbd, seed, chunks)
        })
    });
    let writers: Vec<_> = writers.collect();
    let told: Vec<_> = writers.into_iter().map(|w| w.join().expect("no write fails")).collect();
    scene.cluster.check_alive().unwrap_or_else(|e| panic!("seed {seed}: a full server ended: {e}"));
    for told in &told {
        check(&mut nbd, seed, told);
    }

    // Room for what was refused, and more.
    for index in &told[0].acknowledged {
        nbd.trim(index * CHUNK_BYTES, CHUNK_BYTES as u32).expect("trimmed");
    }
    let later = told[0].refused;
    wait_until("room", IO_LIMIT, || {
        nbd.write(later * CHUNK_BYTES, &chunk(seed, later), true).map_err(|e| e.to_string())
    })
    .unwrap_or_else(|e| panic!("seed {seed}: {e}"));

    scene.cluster.kill_all().expect("killed");
    scene.cluster.start_all().expect("started");
    let mut nbd = scene.nbd();
    for told in &told[1..] {
        check(&mut nbd, seed, told);
    }
    let mut data = vec![0; CHUNK_BYTES as usize];
    nbd.read(later * CHUNK_BYTES, &mut data).expect("readable");
    assert!(data == chunk(seed, later), "seed {seed}: what was taken at last is there");
}

// ---------- a full file system ----------

/// What a meta node needs to start, and a little more.
const META_BYTES_LEFT: u64 = 12 << 20;
/// Written in all, four times the journal.
const CHUNKS: u64 = 128;

/// A file system of its own in the place of a process's data folder; undone when dropped.
struct SmallDisk {
    point: PathBuf,
}

impl SmallDisk {
    /// Moves the folder of a process that does not run onto a file system of this size.
    fn under(cluster: &Cluster, seat: Seat, size: &str) -> Self {
        let point = cluster.folder().join(seat.to_string());
        let image = file(cluster.folder(), "small.img");
        let (data, folder) = (format!("{}/.", point.display()), file(cluster.folder(), "moved"));
        run("truncate", &["-s", size, &image]);
        run("mkfs.ext4", &["-q", "-F", "-m", "0", &image]);
        run("cp", &["-a", &data, &folder]);
        run("mount", &["-o", "loop", &image, &point.to_string_lossy()]);
        run("cp", &["-a", &format!("{folder}/."), &point.to_string_lossy()]);
        Self { point }
    }

    /// Takes all the room that is left.
    fn fill(&self) {
        let mut filler = File::create(self.filler()).expect("made");
        let zeros = vec![0; 64 << 10];
        let full = (0..).find_map(|_| filler.write_all(&zeros).and_then(|()| filler.flush()).err());
        let error = full.expect("it is finite");
        assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
        run("sync", &["-f", &self.point.to_string_lossy()]);
    }

    /// Gives some of it back.
    fn leave(&self, bytes: u64) {
        let filler = File::options().write(true).open(self.filler()).expect("there");
        let taken = filler.metadata().expect("readable").len();
        filler.set_len(taken - bytes).expect("shortened");
    }

    fn make_room(&self) {
        fs::remove_file(self.filler()).expect("removed");
    }

    fn filler(&self) -> PathBuf {
        self.point.join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let undone = command("umount", &["-l", &self.point.to_string_lossy()]).status();
        eprintln!("unmounted {}: {undone:?}", self.point.display());
    }
}

fn can_run() -> bool {
    can_mount() && have(&["truncate", "mkfs.ext4", "cp", "mount", "umount", "sync"])
}

/// Does something again and again until the process has ended by itself; how it ended.
fn await_end(cluster: &mut Cluster, seat: Seat, mut load: impl FnMut(&Cluster)) -> String {
    let ended = wait_until(&format!("{seat} to stop"), HEAL_LIMIT, || {
        load(cluster);
        match cluster.check_alive() {
            Err(ended) => Ok(ended.to_string()),
            Ok(()) => Err("all run".to_owned()),
        }
    });
    let said = ended.expect("it stops");
    assert!(said.starts_with(&seat.to_string()), "{said}");
    cluster.kill(seat).expect("it has ended");
    said
}

/// A registration that takes some hundred KiB of a meta node's disk.
fn large_program(number: u64) -> rpc::RegisterProgramRequest {
    let instance = |i: u64| rpc::Instance { id: format!("{i:0250}"), ..rpc::Instance::default() };
    rpc::RegisterProgramRequest {
        name: format!("p{number}"),
        instances: (0..1_000).map(instance).collect(),
    }
}

#[test]
fn a_meta_node_on_a_full_disk_stops_and_the_others_go_on() {
    if !can_run() {
        return;
    }
    let mut scene = Scene::start(three_servers(SEGMENT_BYTES), 4 * SEGMENT_BYTES);
    let leader = scene.cluster.await_leader().expect("a leader");
    let hurt = (0..3).map(Seat::Meta).find(|seat| *seat != leader).expect("a follower");
    scene.cluster.stop(hurt).expect("stopped");
    let disk = SmallDisk::under(&scene.cluster, hurt, "96M");
    disk.fill();
    disk.leave(META_BYTES_LEFT);
    scene.cluster.restart(hurt).expect("it runs on the small disk");
    let mut made = 0;
    let said = await_end(&mut scene.cluster, hurt, |cluster| {
        made += 1;
        let registered = cluster.control().register_program(large_program(made));
        cluster.block_on(registered).expect("the others take it");
    });
    assert!(said.to_lowercase().contains("space"), "it says why: {said}");

    scene.cluster.await_leader().expect("the others go on");
    let mut nbd = scene.nbd();
    nbd.write(3 * SEGMENT_BYTES, &[7; 4096], true).expect("placed without it");
    disk.make_room();
    scene.cluster.restart(hurt).expect("it runs again");
    scene.cluster.await_caught_up(hurt, HEAL_LIMIT).expect("and follows");
    drop(scene);
    drop(disk);
}

#[test]
fn a_chunkserver_on_a_full_disk_stops_and_io_goes_on() {
    if !can_run() {
        return;
    }
    let spec = ClusterSpec { journal_bytes: JOURNAL_BYTES, ..three_servers(SEGMENT_BYTES) };
    let mut scene = Scene::start(spec, CHUNKS * CHUNK_BYTES);
    let mut nbd = scene.nbd();
    for segment in 0..CHUNKS * CHUNK_BYTES / SEGMENT_BYTES {
        nbd.write(segment * SEGMENT_BYTES, &[1; 4096], false).expect("placed, while all are there");
    }
    let hurt = Seat::Chunkserver(1);
    scene.cluster.stop(hurt).expect("stopped");
    let disk = SmallDisk::under(&scene.cluster, hurt, "512M");
    scene.cluster.restart(hurt).expect("it runs on the small disk");
    scene.await_full_redundancy();
    disk.fill();
    let seed = 11;
    for index in 0..CHUNKS {
        nbd.write(index * CHUNK_BYTES, &chunk(seed, index), false).expect("taken by the others");
    }
    let said = await_end(&mut scene.cluster, hurt, |_| ());
    assert!(said.to_lowercase().contains("space"), "it says why: {said}");
    let mut data = vec![0; CHUNK_BYTES as usize];
    for index in 0..CHUNKS {
        nbd.read(index * CHUNK_BYTES, &mut data).expect("readable");
        assert!(data == chunk(seed, index), "chunk {index}");
    }
    disk.make_room();
    scene.cluster.restart(hurt).expect("it runs again");
    scene.await_full_redundancy();
    drop(scene);
    drop(disk);
}
