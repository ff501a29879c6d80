//! `tidewater-jepsen`: runs a cluster under load and faults, and says whether what clients saw is right.
//! Exit code 0: valid; 1: invalid; 2: unknown, or the harness failed.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;
use tidewater_jepsen::{
    checker::Rank,
    nemesis::Nemesis,
    report,
    run::{RunSpec, run},
    workload::Workload,
};

/// Fault testing of Tidewater
#[derive(Debug, Parser)]
#[command(version)]
enum Args {
    /// Run a workload under a nemesis and judge its history
    Run(Run),
}

#[derive(Debug, clap::Args)]
struct Run {
    /// What clients do
    #[arg(long, value_enum, default_value = "registers")]
    workload: Workload,
    /// What is done to the cluster
    #[arg(long, value_enum, default_value = "kills")]
    nemesis: Nemesis,
    /// How long
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Fixes the faults and what clients choose; drawn and printed where left out
    #[arg(long)]
    seed: Option<u64>,
    /// Leave the processes' folders and logs behind whatever the verdict
    #[arg(long)]
    keep: bool,
    /// Folder for the history and the report; on a disk. Default: a new one below TMPDIR
    #[arg(long)]
    dir: Option<PathBuf>,
}

fn main() -> ExitCode {
    let Args::Run(args) = Args::parse();
    let seed = args.seed.unwrap_or_else(|| u64::from(rand::random::<u32>()));
    let fresh = || std::env::temp_dir().join(format!("tidewater-jepsen-{seed}"));
    let spec = RunSpec {
        workload: args.workload,
        nemesis: args.nemesis,
        length: Duration::from_secs(args.seconds),
        seed,
        folder: args.dir.unwrap_or_else(fresh),
        keep: args.keep,
    };
    match run(&spec) {
        Ok(outcome) => {
            print!("{}", report::summary(&spec, &outcome));
            match outcome.rank() {
                Rank::Valid => ExitCode::SUCCESS,
                Rank::Invalid => ExitCode::from(1),
                Rank::Unknown => ExitCode::from(2),
            }
        }
        Err(error) => {
            eprintln!("error: {error:#} (seed {seed})");
            ExitCode::from(2)
        }
    }
}
