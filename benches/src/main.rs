//! `make bench`: the disk's limits, fio's job list over NBD, the same mix through the client library,
//! and the disk's limits again.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, ensure};
use clap::Parser;
use tidewater_benches::{
    library::{self, MIXES},
    scene::{Scene, VOLUME},
};

/// Measures a cluster of release binaries on this machine.
#[derive(Debug, Parser)]
struct Args {
    /// Folder below which data go; on the disk to be measured
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Seconds of each run
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Runs of each job; the median counts
    #[arg(long, default_value_t = 3)]
    repeat: u32,
    /// Only these jobs, separated by commas
    #[arg(long, default_value = "")]
    only: String,
    /// Leave out the disk's limits
    #[arg(long)]
    no_limits: bool,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    limits(&args, &parent)?;
    let scene = Scene::start(args.dir.clone())?;
    nbd(&args, &scene)?;
    through_library(&args, scene)?;
    limits(&args, &parent)
}

/// Where the job files and the table script are.
fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("{command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

fn limits(args: &Args, parent: &Path) -> anyhow::Result<()> {
    if args.no_limits {
        return Ok(());
    }
    let folder = parent.join("tidewater-limits");
    let repeat = args.repeat.to_string();
    let measured =
        run(Command::new(here().join("limits.sh")).arg(&folder).args(["--repeat", &repeat]));
    std::fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
    measured
}

fn nbd(args: &Args, scene: &Scene) -> anyhow::Result<()> {
    let pids: Vec<_> = scene.pids()?.iter().map(u32::to_string).collect();
    let engine = format!("--engine-args=--ioengine=nbd --uri={}", scene.uri());
    let script = here().join("fio_table.py");
    run(Command::new("python3")
        .arg(script)
        .args(["--label", "nbd", &engine, "--pids", &pids.join(",")])
        .args(["--repeat", &args.repeat.to_string(), "--runtime", &args.seconds.to_string()])
        .args(["--only", &args.only]))
}

/// The gateway gives the volume up first: the library opens it for itself.
fn through_library(args: &Args, mut scene: Scene) -> anyhow::Result<()> {
    scene.cluster.stop(scene.gateway)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let endpoints = scene.cluster.endpoints().to_vec();
    println!("| library | IOPS | MB/s | p50 us | p99 us | p99.9 us |\n|---|--:|--:|--:|--:|--:|");
    for mix in MIXES {
        if !args.only.is_empty() && !args.only.split(',').any(|name| name == mix.name) {
            continue;
        }
        let time = Duration::from_secs(args.seconds);
        let done = library::run(&endpoints, VOLUME, scene.filled_bytes(), mix, time);
        println!("{}", runtime.block_on(done)?.row(&mix));
    }
    Ok(())
}
