//! `tidewater demo`: a cluster of real processes on this machine, under load and faults, that checks
//! every byte; with `--serve`, the cluster alone, for the reader's own programs.

mod deadline;
mod faults;
mod load;
mod pattern;
mod report;

use std::{
    path::PathBuf,
    process,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use tidewater_proto::rpc;

use crate::{
    cluster::{Cluster, ClusterSpec, DeviceSpec, ExportSpec, Seat},
    failure::{Code, Failure},
    output::line,
    server::stop_signal,
    units::{ByteSize, Span},
};
use deadline::{Deadline, Watchdog};
use report::Screen;

/// Name of the volume, and so of the export.
const VOLUME: &str = "demo";
/// Copies of each segment.
const REPLICAS: u32 = 3;
/// Size where none is asked for: many segments for the load, room for a file system to serve.
const LOAD_BYTES: u64 = 1 << 30;
const SERVE_BYTES: u64 = 8 << 30;
/// Segment size of a demo: a 1 GiB volume then has 16, spread over all servers.
const SEGMENT_BYTES: u64 = 64 << 20;
/// Longest time that the load can be told to run.
const SECONDS_MAX: Duration = Duration::from_mins(1);
/// The last fault has healed by then, or the demo has failed: what comes after takes some seconds.
const FAULTS_LIMIT: Duration = Duration::from_secs(85);
/// The demo ends within two minutes whatever happens.
const DEMO_LIMIT: Duration = Duration::from_secs(115);
/// Between two lines about the load.
const REPORT_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub(crate) struct DemoArgs {
    /// No load and no faults: print the NBD URI and serve until interrupted
    #[arg(long)]
    serve: bool,
    /// Size of the volume (default 1GiB, with --serve 8GiB)
    #[arg(long)]
    size: Option<ByteSize>,
    /// Folder below which the data go (default TMPDIR); it must be on a disk
    #[arg(long)]
    dir: Option<PathBuf>,
    /// How long the load runs at least, up to 60s; the faults may take longer
    #[arg(long, default_value = "30s", conflicts_with = "serve")]
    seconds: Span,
    /// Seed of the load
    #[arg(long, conflicts_with = "serve")]
    seed: Option<u64>,
}

pub(crate) fn run(args: &DemoArgs) -> Result<(), Failure> {
    let default = if args.serve { SERVE_BYTES } else { LOAD_BYTES };
    let size = args.size.map_or(default, |size| size.0);
    if args.serve { serve(args, size) } else { prove(args, size) }
}

fn start(
    args: &DemoArgs,
    size_bytes: u64,
    screen: &Screen,
) -> Result<(Cluster, u64, Seat), Failure> {
    let spec = ClusterSpec {
        segment_bytes: SEGMENT_BYTES,
        parent: args.dir.clone(),
        devices: vec![DeviceSpec { capacity_bytes: size_bytes * 2, ..DeviceSpec::default() }],
        repair_delay: Duration::from_mins(1),
        ..ClusterSpec::default()
    };
    let (metas, chunkservers) = (spec.metas, spec.chunkservers);
    let begun = Instant::now();
    let mut cluster = Cluster::start(spec)?;
    let leader = cluster.await_leader()?;
    screen.say(&format!(
        "started    {metas} meta nodes (leader {leader}), {chunkservers} chunkservers in {:.1} s",
        begun.elapsed().as_secs_f64()
    ));
    let volume = cluster.create_volume(VOLUME, size_bytes, REPLICAS, rpc::Durability::Sync)?;
    let gateway = cluster.add_gateway(&[ExportSpec::exclusive(VOLUME)])?;
    Ok((cluster, volume.id, gateway))
}

/// The cluster alone. Its URI is the only line on standard output.
fn serve(args: &DemoArgs, size_bytes: u64) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(anyhow::Error::from)?;
    // From here on a signal is remembered, not obeyed: whatever was started is stopped in order.
    let stop = {
        let _entered = runtime.enter();
        stop_signal()?
    };
    let screen = Screen::messages();
    screen.say("tidewater demo: a temporary cluster; its data go when it stops");
    let (mut cluster, _, gateway) = start(args, size_bytes, &screen)?;
    screen.say(&format!("folder     {}", cluster.folder().display()));
    line(&cluster.nbd_uri(gateway, VOLUME))?;
    let ended = runtime.block_on(async {
        tokio::select! {
            () = stop => Ok(()),
            ended = watch(&mut cluster) => ended,
        }
    });
    screen.say("stopping");
    drop(cluster);
    ended
}

/// Resolves when a process of the cluster ends by itself.
async fn watch(cluster: &mut Cluster) -> Result<(), Failure> {
    let mut look = tokio::time::interval(Duration::from_secs(1));
    loop {
        look.tick().await;
        cluster.check_alive()?;
    }
}

/// The cluster under load and faults.
fn prove(args: &DemoArgs, size_bytes: u64) -> Result<(), Failure> {
    let seed = args.seed.unwrap_or_else(rand::random);
    let screen = Screen::lines();
    let deadline = Deadline::after(FAULTS_LIMIT);
    let _watchdog = Watchdog::start(DEMO_LIMIT, overdue).map_err(anyhow::Error::from)?;
    screen.say("tidewater demo: a temporary cluster under load and faults; every read is checked");
    let (mut cluster, volume, gateway) = start(args, size_bytes, &screen)?;
    screen.say(&format!("folder     {}", cluster.folder().display()));
    screen.say(&format!(
        "volume     {} {}, {REPLICAS} copies of each segment, at {}   seed {seed}",
        VOLUME,
        ByteSize(size_bytes),
        cluster.nbd_uri(gateway, VOLUME)
    ));
    let load = load::Load::start(cluster.address(gateway), VOLUME, size_bytes, seed)?;
    let mut faults = Vec::new();
    let result = reporting(&load, &screen, || {
        let (cluster, load, screen) = (&mut cluster, &load, &screen);
        let mut stage = faults::Stage { cluster, volume, load, screen, deadline };
        stage.run(args.seconds.0.min(SECONDS_MAX), &mut faults)
    });
    let summary = report::Summary::new(faults, load.finish(), result.is_ok());
    summary.print(&screen);
    if summary.passed() {
        return Ok(());
    }
    cluster.keep_folder();
    let failed = || Failure::new(Code::Unhealthy, "a check failed");
    Err(result
        .err()
        .unwrap_or_else(failed)
        .hint(format!("logs of every process are in {}", cluster.folder().display())))
}

/// Says how the load does, whatever `work` waits for.
fn reporting<T>(load: &load::Load, screen: &Screen, work: impl FnOnce() -> T) -> T {
    thread::scope(|scope| {
        let (working, done) = mpsc::channel::<()>();
        scope.spawn(move || {
            while done.recv_timeout(REPORT_EVERY) == Err(RecvTimeoutError::Timeout) {
                screen.progress(&load.tally());
            }
        });
        let result = work();
        drop(working);
        result
    })
}

/// Something hangs that has no limit of its own. The kernel ends the cluster's processes with this one.
fn overdue() {
    eprintln!("error: the demo did not end within {} s", DEMO_LIMIT.as_secs());
    process::exit(Code::TimedOut.exit().into());
}
