//! A small steady load through the client library: a writer and a reader on each segment, one
//! operation each at a time, with a pause between. Every completion is kept with its times.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, ensure};
use bytes::Bytes;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tidewater_client::{BlockDeviceExt as _, Cluster, Open, Volume};
use tidewater_proto::geometry::BLOCK_BYTES;
use tokio::time::MissedTickBehavior;

use crate::gaps::{Done, Lane};

/// Between two operations of a lane. The processes use a part of one core.
const PACE: Duration = Duration::from_millis(10);
/// Longer than any failover: an operation that fails ends the load.
const IO_TIMEOUT: Duration = Duration::from_mins(1);
/// Completions kept until they are taken: those of some minutes.
const KEPT_MAX: usize = 1 << 20;

struct Shared {
    begun: Instant,
    stop: AtomicBool,
    /// Locked by a lane for each completion, and by whoever takes them.
    done: Mutex<Vec<Done>>,
}

impl Shared {
    fn now_us(&self) -> u64 {
        self.begun.elapsed().as_micros() as u64
    }

    fn keep(&self, done: Done) -> anyhow::Result<()> {
        let mut kept = self.done.lock().expect("no panic while held");
        ensure!(kept.len() < KEPT_MAX, "nobody took {KEPT_MAX} completions");
        kept.push(done);
        Ok(())
    }
}

/// A running load.
pub struct Load {
    shared: Arc<Shared>,
    thread: JoinHandle<anyhow::Result<()>>,
}

impl Load {
    /// Opens the volume, writes once to each segment, and starts a thread that goes on.
    ///
    /// # Errors
    ///
    /// Where the volume cannot be opened or written.
    pub fn start(
        endpoints: &[String],
        volume: &str,
        segments: u32,
        segment_bytes: u64,
    ) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared {
            begun: Instant::now(),
            stop: AtomicBool::new(false),
            done: Mutex::default(),
        });
        let (endpoints, volume) = (endpoints.to_vec(), volume.to_owned());
        let theirs = Arc::clone(&shared);
        let (ready, started) = std::sync::mpsc::sync_channel(1);
        let work = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let volume = open(&endpoints, &volume, segments, segment_bytes).await?;
                ready.send(()).context("nobody waits for the load")?;
                go(volume, theirs, segments, segment_bytes).await
            })
        };
        let thread = thread::Builder::new().name("load".to_owned()).spawn(work)?;
        if started.recv().is_err() {
            return Err(ended(thread));
        }
        Ok(Self { shared, thread })
    }

    /// Microseconds since the load began.
    pub fn now_us(&self) -> u64 {
        self.shared.now_us()
    }

    /// What completed since the last call, in no order.
    ///
    /// # Errors
    ///
    /// Where the load has ended.
    pub fn take(&self) -> anyhow::Result<Vec<Done>> {
        ensure!(!self.thread.is_finished(), "an operation of the load failed");
        Ok(std::mem::take(&mut *self.shared.done.lock().expect("no panic while held")))
    }

    /// Ends the load and gives the volume back.
    ///
    /// # Errors
    ///
    /// The operation that failed.
    pub fn finish(self) -> anyhow::Result<()> {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the load panicked"))?
    }
}

fn ended(thread: JoinHandle<anyhow::Result<()>>) -> anyhow::Error {
    match thread.join() {
        Ok(Err(error)) => error.context("the load did not start"),
        Ok(Ok(())) | Err(_) => anyhow!("the load did not start"),
    }
}

async fn open(
    endpoints: &[String],
    volume: &str,
    segments: u32,
    segment_bytes: u64,
) -> anyhow::Result<Volume> {
    let cluster = Cluster::connect(endpoints).await?;
    let options = Open::exclusive().take_over().io_timeout(IO_TIMEOUT);
    let volume = cluster.volume(volume).open(options).await?;
    for segment in 0..u64::from(segments) {
        volume.write_at(segment * segment_bytes, vec![1; BLOCK_BYTES as usize]).await?;
    }
    Ok(volume)
}

async fn go(
    volume: Volume,
    shared: Arc<Shared>,
    segments: u32,
    segment_bytes: u64,
) -> anyhow::Result<()> {
    let lanes =
        (0..segments).flat_map(|segment| [true, false].map(|writes| Lane { segment, writes }));
    let mut running = tokio::task::JoinSet::new();
    for lane in lanes {
        running.spawn(work(volume.clone(), Arc::clone(&shared), lane, segment_bytes));
    }
    while let Some(ended) = running.join_next().await {
        ended??;
    }
    volume.close().await?;
    Ok(())
}

async fn work(
    volume: Volume,
    shared: Arc<Shared>,
    lane: Lane,
    segment_bytes: u64,
) -> anyhow::Result<()> {
    let seed = u64::from(lane.segment) << 1 | u64::from(lane.writes);
    let mut random = StdRng::seed_from_u64(seed);
    let mut data = vec![0; BLOCK_BYTES as usize];
    random.fill(&mut data[..]);
    let data = Bytes::from(data);
    let mut turn = tokio::time::interval(PACE);
    turn.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !shared.stop.load(Ordering::Relaxed) {
        turn.tick().await;
        let block = random.random_range(0..segment_bytes / BLOCK_BYTES);
        let offset = u64::from(lane.segment) * segment_bytes + block * BLOCK_BYTES;
        let issued_us = shared.now_us();
        let done = if lane.writes {
            volume.write_at(offset, data.clone()).await
        } else {
            volume.read_at(offset, BLOCK_BYTES as u32).await.map(drop)
        };
        done.with_context(|| format!("{lane:?} at {offset}"))?;
        shared.keep(Done { lane, issued_us, ended_us: shared.now_us() })?;
    }
    Ok(())
}
