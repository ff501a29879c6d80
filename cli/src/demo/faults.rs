//! What is done to the cluster while the load runs: kills, and waiting until all is well again.

use std::time::{Duration, Instant};

use super::{deadline::Deadline, load::Load, report::Screen};
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
/// A fault takes less, as a rule: with less time left none is begun.
const FAULT_TIME: Duration = Duration::from_secs(25);
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

/// What faults are done to, and by when they must have healed.
pub(super) struct Stage<'a> {
    pub(super) cluster: &'a mut Cluster,
    pub(super) volume: u64,
    pub(super) load: &'a Load,
    pub(super) screen: &'a Screen,
    pub(super) deadline: Deadline,
}

impl Stage<'_> {
    /// Kills a chunkserver that leads segments, then the meta leader, then a chunkserver again, until the
    /// time is over; each is restarted and awaited. What was done is in `faults` also after a failure.
    pub(super) fn run(
        &mut self,
        at_least: Duration,
        faults: &mut Vec<Fault>,
    ) -> Result<(), Failure> {
        let end = Instant::now() + at_least;
        self.quiet()?;
        faults.push(self.kill_primary()?);
        self.quiet()?;
        faults.push(self.kill_leader()?);
        self.quiet()?;
        while Instant::now() < end && self.deadline.left() > FAULT_TIME {
            faults.push(self.kill_primary()?);
            self.quiet()?;
        }
        Ok(())
    }

    /// Lets the load run.
    fn quiet(&mut self) -> Result<(), Failure> {
        let (load, end) = (self.load, Instant::now() + QUIET);
        self.cluster.await_condition("the load", QUIET * 2, |_| {
            let over = load.tally().wrong.is_some() || Instant::now() >= end;
            if over { Ok(()) } else { Err("running".to_owned()) }
        })?;
        check(load)
    }

    fn kill_primary(&mut self) -> Result<Fault, Failure> {
        let none = || Failure::new(Code::Unhealthy, "no segment has a primary");
        let victim = self.cluster.busiest(self.volume)?.ok_or_else(none)?;
        let killed = self.kill(victim)?;
        let restarted = self.restart(victim)?;
        self.cluster.await_full_redundancy(self.volume, self.deadline.within(HEAL_LIMIT))?;
        self.ended(victim, "chunkserver", killed, restarted)
    }

    fn kill_leader(&mut self) -> Result<Fault, Failure> {
        let victim = self.cluster.await_leader()?;
        let killed = self.kill(victim)?;
        let leader = self.cluster.await_leader()?;
        self.screen.say(&format!("leader     {leader}"));
        let restarted = self.restart(victim)?;
        self.cluster.await_caught_up(victim, self.deadline.within(HEAL_LIMIT))?;
        self.ended(victim, "meta leader", killed, restarted)
    }

    /// SIGKILL, then until every worker's operations complete again.
    fn kill(&mut self, victim: Seat) -> Result<Instant, Failure> {
        self.screen.say(&format!("kill -9    {victim}"));
        let load = self.load;
        let before = load.tally();
        let killed = Instant::now();
        self.cluster.kill(victim)?;
        let limit = self.deadline.within(RESUME_LIMIT);
        self.cluster.await_condition("I/O to go on", limit, |_| {
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

    fn restart(&mut self, victim: Seat) -> Result<Instant, Failure> {
        self.screen.say(&format!("restart    {victim}"));
        let restarted = Instant::now();
        self.cluster.restart(victim)?;
        Ok(restarted)
    }

    fn ended(
        &self,
        victim: Seat,
        role: &str,
        killed: Instant,
        restarted: Instant,
    ) -> Result<Fault, Failure> {
        check(self.load)?;
        let fault = Fault {
            what: format!("{victim} ({role})"),
            felt: self.load.felt(killed, RESUME_LIMIT),
            healed: restarted.elapsed(),
        };
        self.screen.say(&format!(
            "healed     {victim}: I/O resumed after {:.0} ms, whole again {:.1} s after its restart",
            fault.felt.as_secs_f64() * 1e3,
            fault.healed.as_secs_f64()
        ));
        Ok(fault)
    }
}

fn check(load: &Load) -> Result<(), Failure> {
    load.tally().wrong.map_or(Ok(()), |wrong| {
        Err(Failure::new(Code::Unhealthy, format!("the load met something wrong: {wrong}")))
    })
}
