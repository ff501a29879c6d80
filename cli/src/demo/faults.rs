//! What is done to the cluster while the load runs: kills, and waiting until all is well again.

use std::time::{Duration, Instant};

use super::{load::Load, report::Screen};
use crate::{
    cluster::{Cluster, Seat},
    failure::{Code, Failure},
};

/// Load before the first fault and after each one.
const QUIET: Duration = Duration::from_secs(3);
/// All I/O must be served again by then.
const RESUME_LIMIT: Duration = Duration::from_secs(20);
/// Every copy must be whole again by then, on a busy machine.
const HEAL_LIMIT: Duration = Duration::from_secs(40);
/// Between two lines about the load.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// Operations that must complete before I/O counts as resumed: several for each worker.
const RESUMED_OPERATIONS: u64 = 200;

/// A fault and what came of it.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    pub(super) what: String,
    /// Longest time any operation went on after the kill.
    pub(super) felt: Duration,
    /// From the restart to full redundancy, or to a voter again.
    pub(super) healed: Duration,
}

/// Kills a chunkserver that leads segments, then the meta leader, then a chunkserver again, until the
/// time is over; each is restarted and awaited.
pub(super) fn run(
    cluster: &mut Cluster,
    volume: u64,
    load: &Load,
    screen: &Screen,
    at_least: Duration,
) -> Result<Vec<Fault>, Failure> {
    let end = Instant::now() + at_least;
    let mut faults = Vec::new();
    quiet(cluster, load, screen, QUIET)?;
    faults.push(kill_primary(cluster, volume, load, screen)?);
    quiet(cluster, load, screen, QUIET)?;
    faults.push(kill_leader(cluster, load, screen)?);
    quiet(cluster, load, screen, QUIET)?;
    while Instant::now() < end {
        faults.push(kill_primary(cluster, volume, load, screen)?);
        quiet(cluster, load, screen, QUIET)?;
    }
    Ok(faults)
}

/// Lets the load run, and says how it does.
fn quiet(
    cluster: &mut Cluster,
    load: &Load,
    screen: &Screen,
    time: Duration,
) -> Result<(), Failure> {
    let end = Instant::now() + time;
    let mut next = Instant::now() + REPORT_EVERY;
    cluster.await_condition("the load", time * 2, |_| {
        if load.tally().wrong.is_some() || Instant::now() >= end {
            return Ok(());
        }
        if Instant::now() >= next {
            next += REPORT_EVERY;
            screen.progress(&load.tally());
        }
        Err("running".to_owned())
    })?;
    check(load)
}

fn check(load: &Load) -> Result<(), Failure> {
    load.tally().wrong.map_or(Ok(()), |wrong| {
        Err(Failure::new(Code::Unhealthy, format!("the load met something wrong: {wrong}")))
    })
}

fn kill_primary(
    cluster: &mut Cluster,
    volume: u64,
    load: &Load,
    screen: &Screen,
) -> Result<Fault, Failure> {
    let none = || Failure::new(Code::Unhealthy, "no segment has a primary");
    let victim = cluster.busiest(volume)?.ok_or_else(none)?;
    let killed = kill(cluster, victim, load, screen)?;
    let restarted = Instant::now();
    cluster.restart(victim)?;
    cluster.await_full_redundancy(volume, HEAL_LIMIT)?;
    ended(victim, "chunkserver", killed, restarted, load, screen)
}

fn kill_leader(cluster: &mut Cluster, load: &Load, screen: &Screen) -> Result<Fault, Failure> {
    let victim = cluster.await_leader()?;
    let killed = kill(cluster, victim, load, screen)?;
    let leader = cluster.await_leader()?;
    screen.say(&format!("leader     {leader}"));
    let restarted = Instant::now();
    cluster.restart(victim)?;
    cluster.await_caught_up(victim, HEAL_LIMIT)?;
    ended(victim, "meta leader", killed, restarted, load, screen)
}

/// SIGKILL, then until every worker's operations complete again.
fn kill(
    cluster: &mut Cluster,
    victim: Seat,
    load: &Load,
    screen: &Screen,
) -> Result<Instant, Failure> {
    screen.say(&format!("kill -9    {victim}"));
    let before = load.tally();
    let killed = Instant::now();
    cluster.kill(victim)?;
    cluster.await_condition("I/O to go on", RESUME_LIMIT, |_| {
        let now = load.tally();
        let done = now.reads + now.writes - before.reads - before.writes;
        if now.wrong.is_some() || load.stalled() == 0 && done >= RESUMED_OPERATIONS {
            return Ok(());
        }
        Err(format!("{done} operations since, {} workers wait", load.stalled()))
    })?;
    check(load)?;
    Ok(killed)
}

fn ended(
    victim: Seat,
    role: &str,
    killed: Instant,
    restarted: Instant,
    load: &Load,
    screen: &Screen,
) -> Result<Fault, Failure> {
    check(load)?;
    let fault = Fault {
        what: format!("{victim} ({role})"),
        felt: load.felt(killed, RESUME_LIMIT),
        healed: restarted.elapsed(),
    };
    screen.say(&format!(
        "healed     {victim}: I/O resumed after {:.0} ms, whole again {:.1} s after its restart",
        fault.felt.as_secs_f64() * 1e3,
        fault.healed.as_secs_f64()
    ));
    Ok(fault)
}
