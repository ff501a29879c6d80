//! What each job must reach, and the disk's limit that stands beside its figure.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt;

use crate::number::shown;

/// What a job's speed is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Operations a second.
    Iops,
    /// 10^6 bytes a second.
    MegabytesPerSecond,
}

/// How fast a job must be, in its [`Unit`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bar {
    /// This much.
    Least(f64),
    /// This much, or the share of the disk's limit where that is lower.
    LeastOrShare {
        /// In the job's unit.
        least: f64,
        /// Of the limit, up to 1.
        share: f64,
    },
    /// A share of the disk's limit.
    Share(f64),
}

/// One job and its bars.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Name in `jobs.fio` or `sustained.fio`.
    pub job: &'static str,
    /// Name in `limits.fio` of what the disk does at best when asked for the like.
    pub limit: &'static str,
    /// Of its speed and of the limit.
    pub unit: Unit,
    /// Its speed.
    pub bar: Bar,
    /// CPU seconds of servers and fio for 1,000 operations, at most.
    pub cpu_most: Option<f64>,
}

/// The job that runs for longer than the journal lasts.
pub const SUSTAINED: &str = "sustained-randwrite-4k-qd32";
const CPU_MOST: f64 = 0.080;

const fn iops(job: &'static str, limit: &'static str, least: f64) -> Target {
    Target { job, limit, unit: Unit::Iops, bar: Bar::Least(least), cpu_most: None }
}

const fn bytes(job: &'static str, limit: &'static str, bar: Bar) -> Target {
    Target { job, limit, unit: Unit::MegabytesPerSecond, bar, cpu_most: None }
}

const fn deep_writes(job: &'static str) -> Target {
    Target {
        bar: Bar::LeastOrShare { least: 22_000.0, share: 0.25 },
        cpu_most: Some(CPU_MOST),
        ..iops(job, "io_uring-4k-randwrite-qd32", 0.0)
    }
}

/// Every job of `jobs.fio` and `sustained.fio`, in the order of the tables.
pub const TARGETS: [Target; 10] = [
    iops("randwrite-4k-qd1", "psync-4k-randwrite-direct-dsync", 2_100.0),
    deep_writes("randwrite-4k-qd32"),
    deep_writes(SUSTAINED),
    iops("randread-4k-qd1-hot", "io_uring-4k-randread-qd1", 4_900.0),
    iops("randread-4k-qd1", "io_uring-4k-randread-qd1", 3_900.0),
    iops("randread-4k-qd32", "io_uring-4k-randread-qd32", 39_000.0),
    iops("mixed7030-4k-qd32", "io_uring-4k-randrw7030-qd32", 23_700.0),
    bytes("seqwrite-1m-qd8", "libaio-1m-seqwrite-qd8", Bar::Least(540.0)),
    bytes("seqread-1m-qd8", "libaio-1m-seqread-qd8", Bar::Share(0.85)),
    bytes("randwrite-128k-qd16", "io_uring-128k-randwrite-qd16", Bar::Least(320.0)),
];

/// The target of a job.
pub fn target(job: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.job == job)
}

/// Whether a figure is within its bar.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// It is.
    Met,
    /// It is this share of what is asked for.
    Missed(f64),
    /// The limit that it is compared with was not measured.
    Open,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Met => f.write_str("met"),
            Self::Missed(share) => write!(f, "missed ({share:.2})"),
            Self::Open => f.write_str("-"),
        }
    }
}

impl Target {
    /// What is asked for, given the disk's limit in the same unit.
    pub fn wanted(&self, limit: Option<f64>) -> Option<f64> {
        match self.bar {
            Bar::Least(least) => Some(least),
            Bar::LeastOrShare { least, share } => {
                Some(limit.map_or(least, |l| least.min(l * share)))
            }
            Bar::Share(share) => limit.map(|limit| limit * share),
        }
    }

    /// Judges a speed.
    pub fn judge(&self, speed: f64, limit: Option<f64>) -> Verdict {
        match self.wanted(limit) {
            None => Verdict::Open,
            Some(wanted) if speed >= wanted => Verdict::Met,
            Some(wanted) => Verdict::Missed(speed / wanted),
        }
    }

    /// Judges CPU seconds for 1,000 operations; nothing where the job has no such bar.
    pub fn judge_cpu(&self, cpu: f64) -> Option<Verdict> {
        self.cpu_most.map(|most| at_most(cpu, most))
    }
}

/// Judges what must not be exceeded.
pub fn at_most(value: f64, most: f64) -> Verdict {
    if value <= most { Verdict::Met } else { Verdict::Missed(value / most) }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.unit {
            Unit::Iops => "IOPS",
            Unit::MegabytesPerSecond => "MB/s",
        };
        match self.bar {
            Bar::Least(least) => write!(f, "{} {unit}", shown(least))?,
            Bar::LeastOrShare { least, share } => {
                write!(f, "{} {unit}, or {share} of the limit", shown(least))?;
            }
            Bar::Share(share) => write!(f, "{share} of the limit")?,
        }
        self.cpu_most.map_or(Ok(()), |most| write!(f, "; CPU {most:.3}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sections(file: &str) -> Vec<&str> {
        let names = file.lines().filter_map(|l| l.strip_prefix('[')?.strip_suffix(']'));
        names.filter(|name| *name != "global").collect()
    }

    #[test]
    fn every_job_of_the_files_has_a_target_and_every_target_a_job_and_a_limit() {
        let mut jobs = sections(include_str!("../jobs.fio"));
        jobs.extend(sections(include_str!("../sustained.fio")));
        let limits = sections(include_str!("../limits.fio"));
        for job in &jobs {
            assert!(target(job).is_some(), "{job} has no target");
        }
        for target in TARGETS {
            assert!(jobs.contains(&target.job), "{} is in no file", target.job);
            assert!(limits.contains(&target.limit), "{} is in no file", target.limit);
        }
    }

    #[test]
    fn a_slow_disk_lowers_the_bar_of_deep_writes_and_a_fast_one_does_not() {
        let target = target("randwrite-4k-qd32").expect("there");
        for (limit, wanted) in [(None, 22_000.0), (Some(40_000.0), 10_000.0), (Some(2e5), 22_000.0)]
        {
            assert_eq!(target.wanted(limit), Some(wanted), "{limit:?}");
        }
        assert_eq!(target.judge(10_000.0, Some(40_000.0)), Verdict::Met);
        assert_eq!(target.judge(11_000.0, None), Verdict::Missed(0.5));
        assert_eq!(target.judge_cpu(0.16), Some(Verdict::Missed(2.0)));
        assert_eq!(target.judge_cpu(0.08), Some(Verdict::Met));
    }

    #[test]
    fn a_share_of_the_limit_is_open_without_one() {
        let target = target("seqread-1m-qd8").expect("there");
        assert_eq!(target.judge(900.0, None), Verdict::Open);
        assert_eq!(target.judge(850.0, Some(1_000.0)), Verdict::Met);
        assert_eq!(target.judge(425.0, Some(1_000.0)), Verdict::Missed(0.5));
    }

    #[test]
    fn targets_are_said_in_words() {
        let words = |job| target(job).expect("there").to_string();
        assert_eq!(words("randwrite-4k-qd1"), "2,100 IOPS");
        assert_eq!(words("seqread-1m-qd8"), "0.85 of the limit");
        assert_eq!(words(SUSTAINED), "22,000 IOPS, or 0.25 of the limit; CPU 0.080");
    }
}
