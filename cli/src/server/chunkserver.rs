//! A chunkserver and its metrics.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    sync::{Arc, OnceLock, atomic::Ordering},
};

use tidewater_chunkserver::{
    ChunkserverConfig, ServerMetrics,
    replica::Timing,
    shard::{LATENCY_BOUNDS_US, OpCounts, RebuildRate},
    store::{DeviceConfig, LimitsConfig, StoreConfig, device::Tier},
};

use super::{
    ChunkserverVerb,
    capacity::{self, Reserved},
    file_or_default, log, stop_signal,
};
use crate::{
    config::{ChunkserverFile, DeviceFile, TierName, required},
    failure::{Code, Failure},
    file_system::check_on_disk,
    metrics::{self, Exposition, Kind},
};

/// Default control port, and the first of the shards'.
const DEFAULT_LISTEN: ([u8; 4], u16) = ([127, 0, 0, 1], 7410);
const DEFAULT_SHARD: ([u8; 4], u16) = ([127, 0, 0, 1], 7411);
/// Where metrics are unless told otherwise.
const DEFAULT_METRICS: ([u8; 4], u16) = ([127, 0, 0, 1], 7491);
/// Where the cluster is if not told.
const DEFAULT_META: &str = "127.0.0.1:7400";

pub(crate) fn run(verb: ChunkserverVerb) -> Result<(), Failure> {
    let ChunkserverVerb::Run { config, flags } = verb;
    let file = file_or_default::<ChunkserverFile>(config.as_deref())?.overridden(flags);
    let metrics_listen = file.metrics_listen;
    let config = library_config(file)?;
    log();
    // Shards have threads of their own; this one talks to the metadata cluster.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(anyhow::Error::from)?.block_on(serve(config, metrics_listen))
}

async fn serve(
    config: ChunkserverConfig,
    metrics_listen: Option<SocketAddr>,
) -> Result<(), Failure> {
    let stop = stop_signal()?;
    let figures: Arc<OnceLock<ServerMetrics>> = Arc::default();
    let shown = Arc::clone(&figures);
    let exported = metrics::serve(metrics_listen, DEFAULT_METRICS, move || text(shown.get()));
    let ready = |metrics: ServerMetrics| {
        tracing::info!("registered and serving");
        figures.get_or_init(|| metrics);
    };
    tokio::select! {
        ended = tidewater_chunkserver::run(config, ready, stop) => {
            Ok(ended.map_err(anyhow::Error::from)?)
        }
        error = exported => Err(error),
    }
}

fn library_config(file: ChunkserverFile) -> Result<ChunkserverConfig, Failure> {
    let folder = required(file.data_dir, "data-dir")?;
    check_on_disk(&folder)?;
    std::fs::create_dir_all(&folder)
        .map_err(|e| Failure::new(Code::Usage, format!("data-dir {}: {e}", folder.display())))?;
    let shards =
        if file.shard_listen.is_empty() { vec![DEFAULT_SHARD.into()] } else { file.shard_listen };
    let mut store = StoreConfig::new(&folder, shards.len());
    if let Some(size) = file.journal.size {
        store.journal_bytes = size.0;
    }
    let journal = Reserved {
        folder: folder.join("journal"),
        bytes: store.journal_bytes.saturating_mul(shards.len() as u64),
    };
    let devices = if file.device.is_empty() { vec![DeviceFile::default()] } else { file.device };
    for (i, device) in devices.into_iter().enumerate() {
        store.devices.push(library_device(device, i, &folder, &journal)?);
    }
    let (topology, rebuild) = (file.topology, RebuildRate::default());
    Ok(ChunkserverConfig {
        meta: if file.meta.is_empty() { vec![DEFAULT_META.to_owned()] } else { file.meta },
        listen: file.listen.unwrap_or_else(|| DEFAULT_LISTEN.into()),
        shard_listen: shards,
        topology: topology.into(),
        store,
        timing: Timing::default(),
        rebuild: RebuildRate {
            limit: file.rebuild_bytes_per_second.map_or(rebuild.limit, |rate| rate.0),
            floor: file.rebuild_bytes_per_second_min.map_or(rebuild.floor, |rate| rate.0),
        },
    })
}

fn library_device(
    file: DeviceFile,
    position: usize,
    folder: &Path,
    journal: &Reserved,
) -> Result<DeviceConfig, Failure> {
    let name = file.name.unwrap_or_else(|| format!("d{position}"));
    let path = if file.path.as_os_str().is_empty() { name.clone().into() } else { file.path };
    let path = folder.join(path);
    check_on_disk(&path)?;
    let capacity_bytes = match file.capacity {
        Some(capacity) => capacity.0,
        None => capacity::default_bytes(&path, journal)
            .map_err(|e| Failure::new(Code::Usage, format!("device {}: {e}", path.display())))?,
    };
    Ok(DeviceConfig {
        name,
        path,
        tier: match file.tier {
            TierName::Nvme => Tier::Nvme,
            TierName::Ssd => Tier::Ssd,
            TierName::Hdd => Tier::Hdd,
        },
        capacity_bytes,
        limits: LimitsConfig {
            iops: file.limits.iops.map(u64::from),
            bytes_per_second: file.limits.bytes_per_second.map(|rate| rate.0),
            latency_us: file.limits.added_latency.map_or(0, |span| span.0.as_micros() as u64),
        },
    })
}

fn text(metrics: Option<&ServerMetrics>) -> String {
    let mut out = Exposition::default();
    metrics::build_info(&mut out, "chunkserver");
    let Some(metrics) = metrics else { return out.finish() };
    let sum = |value: fn(&Counters) -> u64| -> f64 {
        metrics.shards.iter().map(|shard| value(shard)).sum::<u64>() as f64
    };
    let mut ops =
        out.family("tidewater_shard_ops_total", Kind::Counter, "Requests of clients answered.");
    ops.sample(&[("op", "read")], sum(|s| s.reads.load(Ordering::Relaxed)));
    ops.sample(&[("op", "write")], sum(|s| s.writes.load(Ordering::Relaxed)));
    ops.sample(&[("op", "refused")], sum(|s| s.refused.load(Ordering::Relaxed)));
    let mut replicas = out.family("tidewater_replicas", Kind::Gauge, "Copies held, by role.");
    let (held, led) =
        (sum(|s| s.replicas.load(Ordering::Relaxed)), sum(|s| s.primaries.load(Ordering::Relaxed)));
    replicas.sample(&[("role", "primary")], led).sample(&[("role", "secondary")], held - led);
    usage_text(&mut out, metrics);
    out.single(
        "tidewater_shard_busy_seconds_total",
        Kind::Counter,
        "Time that the shards' threads were not waiting for something to do.",
        sum(|s| s.busy_us.load(Ordering::Relaxed)) / 1e6,
    );
    out.single(
        "tidewater_rebuild_bytes_total",
        Kind::Counter,
        "Chunk bytes sent to copies that catch up.",
        sum(|s| s.copied_bytes.load(Ordering::Relaxed)),
    );
    out.single(
        "tidewater_rebuild_rate_bytes_per_second",
        Kind::Gauge,
        "Rate at which copies that catch up may be sent what they lack now.",
        sum(|s| s.rebuild_rate.load(Ordering::Relaxed)),
    );
    out.single(
        "tidewater_shards_low_on_space",
        Kind::Gauge,
        "Shards that take no new chunks for want of space.",
        sum(|s| s.low_on_space.load(Ordering::Relaxed)),
    );
    out.finish()
}

/// A metric's name, what it says, and its value.
type Family = (&'static str, &'static str, fn(&OpCounts) -> u64);

/// What each program does on each volume.
fn usage_text(out: &mut Exposition, metrics: &ServerMetrics) {
    let mut counts = BTreeMap::new();
    for shard in &metrics.shards {
        shard.usage.add_to(&mut counts);
    }
    let samples: Vec<_> = counts
        .iter()
        .flat_map(|(user, counts)| {
            [("read", &counts.reads), ("write", &counts.writes)]
                .map(|(op, counts)| (user.program.as_str(), user.volume.to_string(), op, counts))
        })
        .collect();
    let families: [Family; 2] = [
        ("tidewater_program_ops_total", "Requests answered, by program and volume.", |c| c.ops),
        ("tidewater_program_bytes_total", "Bytes read and written, by program and volume.", |c| {
            c.bytes
        }),
    ];
    for (name, help, value) in families {
        let mut family = out.family(name, Kind::Counter, help);
        for (program, volume, op, counts) in &samples {
            let labels = [("program", *program), ("volume", volume.as_str()), ("op", *op)];
            family.sample(&labels, value(counts) as f64);
        }
    }
    let help = "Time from the arrival of a request to its answer.";
    let mut family = out.histogram("tidewater_program_io_duration_seconds", help);
    for (program, volume, op, counts) in &samples {
        let labels = [("program", *program), ("volume", volume.as_str()), ("op", *op)];
        let bounds = LATENCY_BOUNDS_US.map(|micros| micros as f64 / 1e6);
        let within = bounds.into_iter().zip(counts.within);
        family.distribution(&labels, within, counts.ops, counts.micros as f64 / 1e6);
    }
}

type Counters = tidewater_chunkserver::shard::ShardCounters;
