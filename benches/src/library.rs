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

use crate::{
    machine::{Probe, Used},
    number::{median, shown},
};

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

/// What one run of a job did.
#[derive(Debug)]
struct Run {
    operations: u64,
    /// Latency of each, microseconds.
    latency_us: Histogram<u64>,
    used: Used,
}

impl Run {
    fn iops(&self) -> f64 {
        self.operations as f64 / self.used.time.as_secs_f64()
    }
}

/// What a job did in all its runs.
#[derive(Debug)]
pub struct Figures {
    mix: Mix,
    runs: Vec<Run>,
}

impl Figures {
    /// One line of a Markdown table: the medians of the runs, and percentiles over all operations.
    pub fn row(&self) -> String {
        let of = |value: fn(&Run) -> f64| self.runs.iter().map(value).collect::<Vec<_>>();
        let iops = of(Run::iops);
        let middle = median(iops.iter().copied());
        let (least, most) =
            iops.iter().fold((f64::INFINITY, 0.0_f64), |(a, b), &v| (a.min(v), b.max(v)));
        let mut all = histogram();
        for run in &self.runs {
            all.add(&run.latency_us).expect("one range");
        }
        let [p50, p99, p999] =
            [0.5, 0.99, 0.999].map(|share| shown(all.value_at_quantile(share) as f64));
        format!(
            "| {} | {} | {}-{} | {} | {p50} | {p99} | {p999} | {:.3} | {:.2}, {:.1} % |",
            self.mix.name,
            shown(middle),
            shown(least),
            shown(most),
            shown(middle * f64::from(self.mix.block_bytes) / 1e6),
            median(of(|run| 1e3 * run.used.cpu() / run.operations.max(1) as f64)),
            median(of(|run| run.used.others_cores)),
            of(|run| run.used.steal_percent).into_iter().fold(0.0, f64::max)
        )
    }
}

/// Where a mix runs.
#[derive(Clone, Debug)]
pub struct Place {
    /// Meta nodes.
    pub endpoints: Vec<String>,
    /// The volume.
    pub volume: &'static str,
    /// The first bytes of it, which the mix stays in.
    pub span_bytes: u64,
    /// Processes whose CPU counts.
    pub servers: Vec<u32>,
}

/// Runs `mix` `repeat` times for `time`.
///
/// # Errors
///
/// The first request that fails.
pub async fn measure(
    place: &Place,
    mix: Mix,
    repeat: u32,
    time: Duration,
) -> anyhow::Result<Figures> {
    let mut runs = Vec::new();
    for _ in 0..repeat {
        let run = run(place, mix, time).await?;
        eprintln!("library {}: {} IOPS", mix.name, shown(run.iops()));
        runs.push(run);
    }
    Ok(Figures { mix, runs })
}

async fn run(place: &Place, mix: Mix, time: Duration) -> anyhow::Result<Run> {
    let cluster = Cluster::connect(&place.endpoints).await?;
    let options = Open::exclusive().take_over();
    let volume = Arc::new(cluster.volume(place.volume).open(options).await?);
    let probe = Probe::now(&place.servers)?;
    let until = Instant::now() + time;
    let workers: Vec<_> = (0..mix.depth as u64)
        .map(|id| tokio::spawn(work(Arc::clone(&volume), place.span_bytes, mix, until, id)))
        .collect();
    let mut latency_us = histogram();
    for worker in workers {
        latency_us.add(worker.await??)?;
    }
    let used = probe.used()?;
    let volume = Arc::try_unwrap(volume).map_err(|_| anyhow!("a worker kept the volume"))?;
    volume.close().await?;
    Ok(Run { operations: latency_us.len(), latency_us, used })
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
