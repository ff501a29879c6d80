//! `make bench`: everything that docs/results.md shows, as tables to be copied there.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Parser;
use tidewater_benches::{
    faults, fio, idle, library, machine, plan::Plan, report::Report, scene::Scene,
};

/// Seconds of a run of a job, and of a quick one.
const SECONDS: u64 = 20;
const QUICK_SECONDS: u64 = 5;
/// Seconds of a run of a limit, where it is quick.
const QUICK_LIMIT_SECONDS: u64 = 2;
const REPEAT: u32 = 3;
const KILLS: usize = 100;
const QUICK_KILLS: usize = 5;
/// How long all meta nodes are dead.
const OUTAGE: Duration = Duration::from_mins(1);
const QUICK_OUTAGE: Duration = Duration::from_secs(10);
/// How long idle processes are looked at.
const IDLE: Duration = Duration::from_secs(30);
const QUICK_IDLE: Duration = Duration::from_secs(10);

/// Measures a cluster of release binaries on this machine.
#[derive(Debug, Parser)]
struct Args {
    /// Folder below which data go; on the disk to be measured
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Seconds of each run of a job (default 20, quick 5)
    #[arg(long)]
    seconds: Option<u64>,
    /// Runs of each job (default 3, quick 1); the median counts
    #[arg(long)]
    repeat: Option<u32>,
    /// Kills of each kind (default 100, quick 5)
    #[arg(long)]
    kills: Option<usize>,
    /// Only these, separated by commas: jobs, `nbd`, `library`, `limits`, `idle`, `memory`,
    /// `kills-primary`, `kills-secondary`, `meta-leader`, `meta-outage`
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Leave out the disk's limits
    #[arg(long)]
    no_limits: bool,
    /// Everything short, and without the sustained job: to see that it works
    #[arg(long)]
    quick: bool,
}

impl Args {
    fn either<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }

    fn seconds(&self) -> u64 {
        self.seconds.unwrap_or(self.either(SECONDS, QUICK_SECONDS))
    }

    fn repeat(&self) -> u32 {
        self.repeat.unwrap_or(self.either(REPEAT, 1))
    }
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let plan = Plan::new(&args.only, args.quick)?;
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let mut report = Report { machine: machine::described(&parent), ..Report::default() };
    let measured = measure(&args, &plan, &parent, &mut report);
    // What was measured before something failed is worth its print.
    println!("{report}");
    measured
}

fn measure(args: &Args, plan: &Plan, parent: &Path, report: &mut Report) -> anyhow::Result<()> {
    let limits = plan.limits && !args.no_limits;
    let limit = || fio::limits(parent, args.repeat(), args.quick.then_some(QUICK_LIMIT_SECONDS));
    if limits {
        report.before = limit()?;
    }
    if plan.needs_scene() {
        figures(args, plan, report)?;
    }
    if limits {
        report.after = limit()?;
    }
    if plan.faults.is_empty() {
        return Ok(());
    }
    let kills = args.kills.unwrap_or(args.either(KILLS, QUICK_KILLS));
    let outage = args.either(OUTAGE, QUICK_OUTAGE);
    let scene = faults::Scene::start(args.dir.clone())?;
    scene.play(&plan.faults, kills, outage, |rows| report.rows.extend(rows))
}

/// What is measured on a cluster with a full volume.
fn figures(args: &Args, plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    let mut scene = Scene::start(args.dir.clone())?;
    if plan.idle {
        let time = args.either(IDLE, QUICK_IDLE);
        report.rows.push(idle::measure(&mut scene.cluster, time)?);
    }
    if !plan.nbd.is_empty() {
        let seconds = Some(args.seconds());
        report.nbd = scene.fio("jobs.fio", &plan.nbd, args.repeat(), seconds)?;
    }
    if plan.sustained {
        report.nbd.extend(scene.fio("sustained.fio", &[], 1, None)?);
    }
    if plan.library.is_empty() {
        return Ok(());
    }
    let place = scene.library()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for &mix in &plan.library {
        let time = Duration::from_secs(args.seconds());
        let measured = library::measure(&place, mix, args.repeat(), time);
        report.library.push(runtime.block_on(measured)?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the page gives `make bench`, command by command.
    fn shown() -> impl Iterator<Item = &'static str> {
        let page = include_str!("../../docs/results.md");
        let commands = page.lines().filter_map(|line| line.strip_prefix("make bench"));
        commands.map(|rest| rest.trim().trim_start_matches("ARGS=").trim_matches('"'))
    }

    #[test]
    fn every_command_of_the_results_page_is_understood() {
        let mut plans = 0;
        for text in shown() {
            let words = ["tidewater-bench"].into_iter().chain(text.split_whitespace());
            let args = Args::try_parse_from(words).unwrap_or_else(|e| panic!("{text}: {e}"));
            let plan = Plan::new(&args.only, args.quick).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert!(plan.needs_scene() || !plan.faults.is_empty(), "{text} measures something");
            plans += 1;
        }
        assert!(plans > 3, "the page shows some");
    }
}
