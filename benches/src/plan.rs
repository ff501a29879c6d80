//! What a run measures.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt;

use crate::{
    library::{MIXES, Mix},
    targets::{SUSTAINED, TARGETS},
};

/// The names that stand for more than one measurement.
const LIMITS: &str = "limits";
const NBD: &str = "nbd";
const LIBRARY: &str = "library";

/// What is measured beside the speed of jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// CPU of processes that have nothing to do.
    Idle,
    /// Memory of a chunkserver under the jobs that write.
    Memory,
    /// Kills of a chunkserver that leads segments.
    KillsPrimary,
    /// Kills of a chunkserver that leads none.
    KillsSecondary,
    /// Kills of the meta leader.
    MetaLeader,
    /// All meta nodes dead for a while.
    MetaOutage,
}

impl Scenario {
    const ALL: [Self; 6] = [
        Self::Idle,
        Self::Memory,
        Self::KillsPrimary,
        Self::KillsSecondary,
        Self::MetaLeader,
        Self::MetaOutage,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Memory => "memory",
            Self::KillsPrimary => "kills-primary",
            Self::KillsSecondary => "kills-secondary",
            Self::MetaLeader => "meta-leader",
            Self::MetaOutage => "meta-outage",
        }
    }

    /// Whether something is killed.
    fn is_fault(self) -> bool {
        !matches!(self, Self::Idle | Self::Memory)
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that stands for nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nothing is called {name:?}; there are {known}")]
pub struct UnknownName {
    name: String,
    known: String,
}

/// What a run measures, in order.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The disk's limits, before and after.
    pub limits: bool,
    /// Jobs over NBD, the sustained one excepted.
    pub nbd: Vec<&'static str>,
    /// The sustained job.
    pub sustained: bool,
    /// Mixes through the client library.
    pub library: Vec<Mix>,
    /// Whether idle processes are looked at.
    pub idle: bool,
    /// Faults.
    pub faults: Vec<Scenario>,
}

impl Plan {
    /// All that `only` names, or everything where it names nothing; `quick` leaves out what takes
    /// minutes unless it is named.
    ///
    /// # Errors
    ///
    /// [`UnknownName`].
    pub fn new(only: &[String], quick: bool) -> Result<Self, UnknownName> {
        if let Some(name) = only.iter().find(|name| !known().contains(&name.as_str())) {
            return Err(UnknownName { name: name.clone(), known: known().join(", ") });
        }
        let named = |name: &str| only.iter().any(|n| n == name);
        let wanted = |name: &str| only.is_empty() || named(name);
        let jobs = TARGETS.iter().map(|target| target.job).filter(|job| *job != SUSTAINED);
        let is_write = |job: &str| job.contains("write") || job.contains("mixed");
        let nbd: Vec<_> = jobs
            .filter(|job| wanted(job) || named(NBD) || named("memory") && is_write(job))
            .collect();
        let sustained = named(SUSTAINED) || only.is_empty() && !quick;
        let mixes = MIXES.into_iter().filter(|mix| wanted(mix.name) || named(LIBRARY));
        let faults = Scenario::ALL.into_iter().filter(|s| s.is_fault() && wanted(s.name()));
        Ok(Self {
            limits: named(LIMITS) || !nbd.is_empty() || sustained,
            nbd,
            sustained,
            library: mixes.collect(),
            idle: wanted(Scenario::Idle.name()),
            faults: faults.collect(),
        })
    }

    /// Whether a cluster with a full volume is needed.
    pub fn needs_scene(&self) -> bool {
        self.idle || self.sustained || !self.nbd.is_empty() || !self.library.is_empty()
    }
}

/// Every name that can be asked for.
fn known() -> Vec<&'static str> {
    let jobs = TARGETS.iter().map(|target| target.job);
    let scenarios = Scenario::ALL.into_iter().map(Scenario::name);
    [LIMITS, NBD, LIBRARY].into_iter().chain(jobs).chain(scenarios).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(only: &[&str], quick: bool) -> Plan {
        let only: Vec<_> = only.iter().map(|name| (*name).to_owned()).collect();
        Plan::new(&only, quick).expect("known names")
    }

    #[test]
    fn without_names_everything_is_measured() {
        let all = plan(&[], false);
        assert!(all.limits && all.sustained && all.idle && all.needs_scene());
        assert_eq!(all.nbd.len(), TARGETS.len() - 1);
        assert_eq!(all.library.len(), MIXES.len());
        assert_eq!(all.faults.len(), 4);
        assert!(!plan(&[], true).sustained, "a quick run leaves it out");
        assert!(plan(&[SUSTAINED], true).sustained, "unless it is named");
    }

    #[test]
    fn a_fault_alone_needs_neither_the_limits_nor_a_full_volume() {
        let one = plan(&["kills-primary"], false);
        assert_eq!(one.faults, [Scenario::KillsPrimary]);
        assert!(!one.limits && !one.needs_scene());
    }

    #[test]
    fn a_job_is_measured_over_nbd_and_through_the_library_with_its_limit() {
        let one = plan(&["randwrite-4k-qd1"], false);
        assert_eq!(one.nbd, ["randwrite-4k-qd1"]);
        assert_eq!(one.library.len(), 1);
        assert!(one.limits && one.faults.is_empty() && !one.idle);
        assert!(plan(&["library"], false).nbd.is_empty());
    }

    #[test]
    fn memory_is_that_of_every_job_that_writes() {
        let jobs = plan(&["memory"], false).nbd;
        assert!(jobs.contains(&"seqwrite-1m-qd8") && jobs.contains(&"mixed7030-4k-qd32"));
        assert!(!jobs.contains(&"seqread-1m-qd8"));
    }

    #[test]
    fn a_name_that_stands_for_nothing_is_told_with_those_that_do() {
        let error = Plan::new(&["randwrite".to_owned()], false).expect_err("unknown");
        assert!(error.to_string().contains("kills-secondary"), "{error}");
    }
}
