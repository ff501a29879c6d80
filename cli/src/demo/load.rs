//! The load: workers that write and read through NBD, each on blocks of its own, and check every read
//! against what was acknowledged.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::pattern::{BLOCK_BYTES, fill};
use crate::{
    failure::{Code, Failure},
    nbd_client::NbdClient,
};

/// Connections, one worker each, one request at a time.
const WORKERS: u64 = 8;
/// Blocks of each worker, spread evenly over the whole volume: every segment is written to.
const BLOCKS_PER_WORKER: u64 = 2_048;
/// Share of writes.
const WRITE_RATIO: f64 = 0.5;
/// An operation may take this long: longer than any failover, shorter than the demo.
const IO_LIMIT: Duration = Duration::from_secs(30);
/// Operations slower than this are kept with their times, to say how long a fault was felt.
const SLOW: Duration = Duration::from_millis(5);
/// Slow operations kept; a demo has some thousands.
const SLOW_MAX: usize = 200_000;

/// An operation open for longer than this makes its worker count as stalled.
const STALL_MS: u64 = 100;
/// Stands for "no operation is open".
const IDLE: u64 = u64::MAX;

/// One operation that took long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slow {
    pub(super) begun: Instant,
    pub(super) ended: Instant,
}

/// What all workers did so far.
#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    epoch: Instant,
    /// When each worker began its open operation, milliseconds since `epoch`; or `IDLE`.
    open_since_ms: Vec<AtomicU64>,
    reads: AtomicU64,
    writes: AtomicU64,
    bytes_verified: AtomicU64,
    /// Locked by a worker after a slow operation only, and by whoever reports.
    slow: Mutex<Vec<Slow>>,
    /// The first thing that went wrong.
    wrong: Mutex<Option<String>>,
}

impl Shared {
    fn new() -> Self {
        Self {
            stop: AtomicBool::new(false),
            epoch: Instant::now(),
            open_since_ms: (0..WORKERS).map(|_| AtomicU64::new(IDLE)).collect(),
            reads: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            bytes_verified: AtomicU64::new(0),
            slow: Mutex::default(),
            wrong: Mutex::default(),
        }
    }
}

/// Counts at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    pub(super) reads: u64,
    pub(super) writes: u64,
    pub(super) bytes_verified: u64,
    pub(super) wrong: Option<String>,
}

/// A running load.
#[derive(Debug)]
pub(super) struct Load {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl Load {
    /// Connects the workers and lets them go.
    pub(super) fn start(
        server: SocketAddr,
        export: &str,
        size_bytes: u64,
        seed: u64,
    ) -> Result<Self, Failure> {
        let shared = Arc::new(Shared::new());
        let blocks = size_bytes / BLOCK_BYTES as u64;
        let stride = blocks / (WORKERS * BLOCKS_PER_WORKER);
        if stride == 0 {
            return Err(Failure::new(Code::Usage, "the volume is too small for the load")
                .hint("--size 64MiB is the smallest"));
        }
        let mut workers = Vec::new();
        for id in 0..WORKERS {
            let client =
                NbdClient::connect(server, export, IO_LIMIT).map_err(anyhow::Error::from)?;
            let worker = Worker {
                client,
                seed,
                id,
                stride,
                random: StdRng::seed_from_u64(seed ^ (id << 32)),
                versions: vec![0; BLOCKS_PER_WORKER as usize],
                shared: Arc::clone(&shared),
            };
            let named = thread::Builder::new().name(format!("load-{id}"));
            workers.push(named.spawn(move || worker.run()).map_err(anyhow::Error::from)?);
        }
        Ok(Self { shared, workers })
    }

    /// Counts so far.
    pub(super) fn tally(&self) -> Tally {
        let Shared { reads, writes, bytes_verified, wrong, .. } = &*self.shared;
        Tally {
            reads: reads.load(Ordering::Relaxed),
            writes: writes.load(Ordering::Relaxed),
            bytes_verified: bytes_verified.load(Ordering::Relaxed),
            wrong: wrong.lock().expect("no panic while held").clone(),
        }
    }

    /// How long the slowest operation that was open at `moment`, or begun within `after`, went on
    /// past `moment`: how long a fault at that moment was felt.
    pub(super) fn felt(&self, moment: Instant, after: Duration) -> Duration {
        let slow = self.shared.slow.lock().expect("no panic while held");
        let touched = slow.iter().filter(|s| s.ended > moment && s.begun < moment + after);
        touched.map(|s| s.ended - s.begun.max(moment)).max().unwrap_or(SLOW)
    }

    /// Workers whose operation has been open for long.
    pub(super) fn stalled(&self) -> usize {
        let now = self.shared.epoch.elapsed().as_millis() as u64;
        let open = self.shared.open_since_ms.iter().map(|since| since.load(Ordering::Relaxed));
        open.filter(|&since| since != IDLE && now.saturating_sub(since) > STALL_MS).count()
    }

    /// Stops the workers; each reads all its blocks once more before it ends.
    pub(super) fn finish(self) -> Tally {
        self.shared.stop.store(true, Ordering::Relaxed);
        let Self { shared, workers } = self;
        for worker in workers {
            if worker.join().is_err() {
                note(&shared, || "a worker panicked".to_owned());
            }
        }
        Self { shared, workers: Vec::new() }.tally()
    }
}

fn note(shared: &Shared, what: impl FnOnce() -> String) {
    shared.wrong.lock().expect("no panic while held").get_or_insert_with(what);
}

struct Worker {
    client: NbdClient,
    seed: u64,
    id: u64,
    stride: u64,
    random: StdRng,
    /// Version of each block that was acknowledged; only this worker writes it.
    versions: Vec<u32>,
    shared: Arc<Shared>,
}

impl Worker {
    fn run(mut self) {
        while !self.shared.stop.load(Ordering::Relaxed) {
            let slot = self.random.random_range(0..self.versions.len());
            let begun = Instant::now();
            self.open(Some(begun));
            let done = if self.random.random_bool(WRITE_RATIO) {
                self.write(slot)
            } else {
                self.read(slot)
            };
            self.open(None);
            self.keep_if_slow(begun);
            if let Err(wrong) = done {
                note(&self.shared, || wrong);
                return;
            }
        }
        for slot in 0..self.versions.len() {
            // Another worker has met something wrong: that is the result.
            if self.shared.wrong.lock().expect("no panic while held").is_some() {
                return;
            }
            if let Err(wrong) = self.read(slot) {
                note(&self.shared, || format!("at the end: {wrong}"));
                return;
            }
        }
        if let Err(error) = self.client.disconnect() {
            note(&self.shared, || error.to_string());
        }
    }

    /// The volume's block behind a worker's slot.
    fn block(&self, slot: usize) -> u64 {
        (slot as u64 * WORKERS + self.id) * self.stride
    }

    fn write(&mut self, slot: usize) -> Result<(), String> {
        let (block, version) = (self.block(slot), self.versions[slot] + 1);
        let mut data = [0; BLOCK_BYTES];
        fill(&mut data, self.seed, block, version);
        self.client
            .write(block * BLOCK_BYTES as u64, &data, false)
            .map_err(|e| format!("write of block {block}: {e}"))?;
        self.versions[slot] = version;
        self.shared.writes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn read(&mut self, slot: usize) -> Result<(), String> {
        let (block, version) = (self.block(slot), self.versions[slot]);
        let (mut data, mut want) = ([0; BLOCK_BYTES], [0; BLOCK_BYTES]);
        self.client
            .read(block * BLOCK_BYTES as u64, &mut data)
            .map_err(|e| format!("read of block {block}: {e}"))?;
        fill(&mut want, self.seed, block, version);
        if data != want {
            return Err(format!(
                "block {block} is not at version {version}, which was acknowledged"
            ));
        }
        self.shared.reads.fetch_add(1, Ordering::Relaxed);
        self.shared.bytes_verified.fetch_add(BLOCK_BYTES as u64, Ordering::Relaxed);
        Ok(())
    }

    fn open(&self, since: Option<Instant>) {
        let since = since.map_or(IDLE, |at| (at - self.shared.epoch).as_millis() as u64);
        self.shared.open_since_ms[self.id as usize].store(since, Ordering::Relaxed);
    }

    fn keep_if_slow(&self, begun: Instant) {
        let ended = Instant::now();
        if ended - begun >= SLOW {
            let mut slow = self.shared.slow.lock().expect("no panic while held");
            if slow.len() < SLOW_MAX {
                slow.push(Slow { begun, ended });
            }
        }
    }
}
