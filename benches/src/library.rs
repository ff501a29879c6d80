//! A random mix through the client library, as a program would use it: many requests in flight on
//! one volume.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::anyhow;
use hdrhistogram::Histogram;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tidewater_client::{BlockDeviceExt, Cluster, Open, Volume};

/// Highest latency that is told apart, microseconds.
const LATENCY_US_MAX: u64 = 60_000_000;
/// Significant digits of a latency.
const LATENCY_DIGITS: u8 = 3;

/// One job: what fio's job of the same name does.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    /// Its name in tables.
    pub name: &'static str,
    /// Bytes of each request.
    pub block_bytes: u32,
    /// Requests in flight.
    pub depth: usize,
    /// Share of reads.
    pub read_ratio: f64,
}

/// The jobs whose figures docs/results.md shows for the library.
pub const MIXES: [Mix; 5] = [
    Mix { name: "randwrite-4k-qd1", block_bytes: 4096, depth: 1, read_ratio: 0.0 },
    Mix { name: "randwrite-4k-qd32", block_bytes: 4096, depth: 32, read_ratio: 0.0 },
    Mix { name: "randread-4k-qd1", block_bytes: 4096, depth: 1, read_ratio: 1.0 },
    Mix { name: "randread-4k-qd32", block_bytes: 4096, depth: 32, read_ratio: 1.0 },
    Mix { name: "mixed7030-4k-qd32", block_bytes: 4096, depth: 32, read_ratio: 0.7 },
];

/// What a job did.
#[derive(Debug)]
pub struct Figures {
    /// Operations.
    pub operations: u64,
    /// How long it ran.
    pub time: Duration,
    /// Latency of each, microseconds.
    pub latency_us: Histogram<u64>,
}

impl Figures {
    /// One line of a Markdown table.
    pub fn row(&self, mix: &Mix) -> String {
        let per_second = self.operations as f64 / self.time.as_secs_f64();
        let at = |q: f64| self.latency_us.value_at_quantile(q);
        format!(
            "| {} | {per_second:.0} | {:.1} | {} | {} | {} |",
            mix.name,
            per_second * f64::from(mix.block_bytes) / 1e6,
            at(0.5),
            at(0.99),
            at(0.999)
        )
    }
}

/// Runs `mix` on the first `span_bytes` of the volume for `time`.
///
/// # Errors
///
/// The first request that fails.
pub async fn run(
    endpoints: &[String],
    volume: &str,
    span_bytes: u64,
    mix: Mix,
    time: Duration,
) -> anyhow::Result<Figures> {
    let cluster = Cluster::connect(endpoints).await?;
    let volume = Arc::new(cluster.volume(volume).open(Open::exclusive().take_over()).await?);
    let begun = Instant::now();
    let workers: Vec<_> = (0..mix.depth as u64)
        .map(|id| tokio::spawn(work(Arc::clone(&volume), span_bytes, mix, begun + time, id)))
        .collect();
    let mut all = histogram();
    for worker in workers {
        all.add(worker.await??)?;
    }
    let time = begun.elapsed();
    let volume = Arc::try_unwrap(volume).map_err(|_| anyhow!("a worker kept the volume"))?;
    volume.close().await?;
    Ok(Figures { operations: all.len(), time, latency_us: all })
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_max(LATENCY_US_MAX, LATENCY_DIGITS).expect("constants are valid")
}

async fn work(
    volume: Arc<Volume>,
    span_bytes: u64,
    mix: Mix,
    until: Instant,
    id: u64,
) -> anyhow::Result<Histogram<u64>> {
    let mut random = StdRng::seed_from_u64(id);
    let mut data = vec![0; mix.block_bytes as usize];
    random.fill(&mut data[..]);
    let data = bytes::Bytes::from(data);
    let blocks = span_bytes / u64::from(mix.block_bytes);
    let mut latency_us = histogram();
    loop {
        let offset = random.random_range(0..blocks) * u64::from(mix.block_bytes);
        let read = random.random_bool(mix.read_ratio);
        let begun = Instant::now();
        if begun >= until {
            return Ok(latency_us);
        }
        if read {
            volume.read_at(offset, mix.block_bytes).await?;
        } else {
            volume.write_at(offset, data.clone()).await?;
        }
        latency_us.saturating_record(begun.elapsed().as_micros() as u64);
    }
}
