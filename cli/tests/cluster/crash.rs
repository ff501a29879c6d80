//! The whole cluster is killed with SIGKILL in the middle of writes, again and again: every
//! acknowledged write is there, and a write that was not acknowledged is there whole or not at all.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use tidewater_cli::{
    cluster::wait_until,
    nbd_client::{NbdClient, NbdError},
};

use crate::scene::{IO_LIMIT, Scene, VOLUME, three_servers};

const ROUNDS: u32 = 20;
const WRITERS: u64 = 4;
const BLOCKS_PER_WRITER: u64 = 64;
const BLOCK_BYTES: usize = 4096;
const VOLUME_BYTES: u64 = 64 << 20;
/// Acknowledged writes before the kill: the kill falls into the middle of more.
const WRITES_PER_ROUND: u64 = 300;

/// What one writer knows of its blocks.
#[derive(Clone)]
struct Writer {
    id: u64,
    random: StdRng,
    /// Version acknowledged, and the one that was under way at the kill.
    blocks: Vec<(u64, Option<u64>)>,
    next: u64,
}

fn content(writer: u64, block: u64, version: u64) -> Vec<u8> {
    let mut random = StdRng::seed_from_u64((writer << 48) ^ (block << 32) ^ version);
    let mut data = vec![0; BLOCK_BYTES];
    if version > 0 {
        random.fill(&mut data[..]);
    }
    data
}

impl Writer {
    fn new(id: u64, seed: u64) -> Self {
        let random = StdRng::seed_from_u64(seed ^ id);
        Self { id, random, blocks: vec![(0, None); BLOCKS_PER_WRITER as usize], next: 1 }
    }

    /// Blocks of all writers are interleaved over the volume, so every segment has some of each.
    fn offset(&self, block: u64) -> u64 {
        let stride = VOLUME_BYTES / (WRITERS * BLOCKS_PER_WRITER);
        (block * WRITERS + self.id) * stride
    }

    /// Reads every block: it must hold the version acknowledged or the one under way at the kill.
    fn check(&mut self, nbd: &mut NbdClient, round: u32) -> Result<(), NbdError> {
        for block in 0..BLOCKS_PER_WRITER {
            let mut data = vec![0; BLOCK_BYTES];
            nbd.read(self.offset(block), &mut data)?;
            let (acked, pending) = self.blocks[block as usize];
            let found = [Some(acked), pending].into_iter().flatten();
            let held = found.into_iter().find(|&version| data == content(self.id, block, version));
            let writer = self.id;
            let held = held.unwrap_or_else(|| {
                panic!(
                    "round {round}: writer {writer} block {block}: not at {acked} or {pending:?}"
                )
            });
            self.blocks[block as usize] = (held, None);
        }
        Ok(())
    }

    fn write_until_killed(&mut self, nbd: &mut NbdClient, acknowledged: &AtomicU64) {
        loop {
            let block = self.random.random_range(0..BLOCKS_PER_WRITER);
            let version = self.next;
            self.next += 1;
            self.blocks[block as usize].1 = Some(version);
            if nbd.write(self.offset(block), &content(self.id, block, version), false).is_err() {
                return;
            }
            self.blocks[block as usize] = (version, None);
            acknowledged.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn go(
    mut writer: Writer,
    server: SocketAddr,
    round: u32,
    count: &Arc<AtomicU64>,
) -> JoinHandle<Writer> {
    let count = Arc::clone(count);
    thread::spawn(move || {
        let mut nbd = NbdClient::connect(server, VOLUME, IO_LIMIT).expect("accepts");
        writer.check(&mut nbd, round).expect("readable");
        writer.write_until_killed(&mut nbd, &count);
        writer
    })
}

#[test]
fn every_acknowledged_write_survives_twenty_kills_of_the_whole_cluster() {
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    let mut scene = Scene::start(three_servers(16 << 20), VOLUME_BYTES);
    let server = scene.server();
    let mut writers: Vec<_> = (0..WRITERS).map(|id| Writer::new(id, seed)).collect();
    for round in 0..ROUNDS {
        let count = Arc::new(AtomicU64::new(0));
        let running: Vec<_> =
            writers.drain(..).map(|writer| go(writer, server, round, &count)).collect();
        wait_until("writes", IO_LIMIT, || match count.load(Ordering::Relaxed) {
            enough if enough >= WRITES_PER_ROUND => Ok(()),
            some if running.iter().any(JoinHandle::is_finished) => {
                Err(format!("{some}; a writer has ended"))
            }
            some => Err(some.to_string()),
        })
        .unwrap_or_else(|e| panic!("seed {seed}, round {round}: {e}"));
        scene.cluster.kill_all().expect("killed");
        writers.extend(running.into_iter().map(|w| w.join().expect("no check failed")));
        let started = scene.cluster.start_all();
        started.unwrap_or_else(|e| panic!("seed {seed}, round {round}: {e}"));
    }
    let mut nbd = scene.nbd();
    for mut writer in writers {
        writer.check(&mut nbd, ROUNDS).expect("readable");
    }
}
