//! Kills under a small load: how long until I/O goes on, and how long nothing completes while the
//! metadata cluster is hurt.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use anyhow::{Context, anyhow, ensure};
use tidewater_cli::cluster::{Cluster, ClusterSpec, Seat};
use tidewater_proto::rpc::Durability;

use crate::{
    gaps::{Death, Done, Lane, Spread, longest_gap, resumed, slowest},
    load::Load,
    machine::Probe,
    plan::Scenario,
    report::Row,
    targets::at_most,
};

const VOLUME: &str = "faults";
const REPLICAS: u32 = 3;
/// Many small segments, so that every server leads some.
const SEGMENT_BYTES: u64 = 64 << 20;
const SEGMENTS: u32 = 16;
/// No copy is replaced: every killed server comes back.
const REPAIR_DELAY: Duration = Duration::from_hours(1);
/// I/O that has not resumed by then will not.
const RESUME_LIMIT: Duration = Duration::from_secs(30);
/// Every copy is whole again by then.
const HEAL_LIMIT: Duration = Duration::from_mins(1);
/// Time of the load alone, for comparison.
const QUIET: Duration = Duration::from_secs(10);
/// Between two lines about a scenario, in kills.
const REPORT_EVERY: usize = 10;

const PRIMARY_RESUMES_MS: f64 = 3_000.0;
const SECONDARY_RESUMES_MS: f64 = 1_000.0;
const GAP_MS: f64 = 100.0;

/// A cluster of three chunkservers under a load on all segments of a volume.
pub struct Scene {
    cluster: Cluster,
    volume: u64,
    load: Load,
    /// What the load completed since the last fault began.
    seen: Vec<Done>,
}

impl Scene {
    /// Starts the cluster below `folder`, and the load.
    ///
    /// # Errors
    ///
    /// Where a process, the volume or the load fails.
    pub fn start(folder: Option<PathBuf>) -> anyhow::Result<Self> {
        let mut cluster = Cluster::start(ClusterSpec {
            chunkservers: 3,
            segment_bytes: SEGMENT_BYTES,
            repair_delay: REPAIR_DELAY,
            parent: folder,
            log_filter: "warn,openraft=error".to_owned(),
            ..ClusterSpec::default()
        })?;
        let size_bytes = SEGMENT_BYTES * u64::from(SEGMENTS);
        let volume = cluster.create_volume(VOLUME, size_bytes, REPLICAS, Durability::Sync)?.id;
        let load = Load::start(cluster.endpoints(), VOLUME, SEGMENTS, SEGMENT_BYTES)?;
        cluster.await_full_redundancy(volume, HEAL_LIMIT)?;
        Ok(Self { cluster, volume, load, seen: Vec::new() })
    }

    /// Plays scenarios, each of `kills` deaths or one outage of `outage`; `tell` hears of the rows of each.
    ///
    /// # Errors
    ///
    /// Where I/O does not resume, the cluster does not heal, or an operation of the load fails.
    pub fn play(
        mut self,
        scenarios: &[Scenario],
        kills: usize,
        outage: Duration,
        mut tell: impl FnMut(Vec<Row>),
    ) -> anyhow::Result<()> {
        let played = scenarios.iter().try_for_each(|&scenario| {
            tell(self.one(scenario, kills, outage).with_context(|| scenario.to_string())?);
            Ok(())
        });
        // An operation that failed is why the scenario did.
        self.load.finish().and(played)
    }

    fn one(
        &mut self,
        scenario: Scenario,
        kills: usize,
        outage: Duration,
    ) -> anyhow::Result<Vec<Row>> {
        match scenario {
            Scenario::KillsPrimary => self.kill_servers(Role::Primary, kills),
            Scenario::KillsSecondary => self.kill_servers(Role::Secondary, kills),
            Scenario::MetaLeader => self.kill_leaders(kills),
            Scenario::MetaOutage => self.kill_metas(outage),
            Scenario::Idle | Scenario::Memory => Err(anyhow!("{scenario} is not a fault")),
        }
    }

    fn kill(&mut self, seats: &[Seat]) -> anyhow::Result<Death> {
        self.seen = self.load.take()?;
        let killed_us = self.load.now_us();
        for &seat in seats {
            self.cluster.kill(seat)?;
        }
        Ok(Death { killed_us, gone_us: self.load.now_us() })
    }

    /// Until every lane completes what was issued after the death; each one's time, microseconds.
    fn await_resumed(&mut self, lanes: &BTreeSet<Lane>, death: Death) -> anyhow::Result<Vec<u64>> {
        let (load, seen) = (&self.load, &mut self.seen);
        self.cluster.await_condition("I/O to go on", RESUME_LIMIT, |_| {
            match load.take() {
                Ok(done) => seen.extend(done),
                Err(failed) => return Ok(Err(failed)),
            }
            resumed(seen, lanes, death).map(Ok).map_err(|missing| format!("waiting: {missing:?}"))
        })?
    }

    /// Until every lane completes something issued from now on.
    fn await_flow(&mut self) -> anyhow::Result<()> {
        let now_us = self.load.now_us();
        let lanes = (0..SEGMENTS).flat_map(lanes_of).collect();
        self.await_resumed(&lanes, Death { killed_us: now_us, gone_us: now_us })?;
        Ok(())
    }

    // ---------- chunkservers ----------

    fn kill_servers(&mut self, role: Role, kills: usize) -> anyhow::Result<Vec<Row>> {
        let probe = Probe::now(&self.cluster.pids())?;
        let (mut first, mut all, mut whole) = (Vec::new(), Vec::new(), Vec::new());
        for kill in 1..=kills {
            let (victim, lanes) = self.victim(role)?;
            let death = self.kill(&[victim])?;
            let times = self.await_resumed(&lanes, death).with_context(|| format!("{victim}"))?;
            first.extend(times.first());
            all.extend(times.last());
            let restarted_us = self.load.now_us();
            self.cluster.restart(victim)?;
            self.cluster.await_full_redundancy(self.volume, HEAL_LIMIT)?;
            whole.push(self.load.now_us() - restarted_us);
            self.await_flow()?;
            if kill % REPORT_EVERY == 0 || kill == kills {
                let so_far = Spread::of(all.iter().copied());
                eprintln!("{role}: kill {kill} of {kills}: resumed {so_far}");
            }
        }
        let most_ms = role.resumes_ms();
        let resumed = Spread::of(all);
        let p99_ms = resumed.at(0.99) as f64 / 1e3;
        let what = format!("I/O resumes after SIGKILL of a {role}");
        let row = |what: String, spread: &Spread| Row::new(what, spread.to_string());
        Ok(vec![
            row(format!("{what}, reads and writes of every segment, p99"), &resumed)
                .judged(format!("{most_ms:.0} ms"), at_most(p99_ms, most_ms))
                .beside(&probe.used_by(&self.cluster.pids())?),
            row(format!("{what}, the first operation"), &Spread::of(first)),
            row(format!("all copies whole after the restart of a {role}"), &Spread::of(whole)),
        ])
    }

    /// A chunkserver that has this role in some segments, and the lanes of those.
    fn victim(&self, role: Role) -> anyhow::Result<(Seat, BTreeSet<Lane>)> {
        let led = self.cluster.led(self.volume)?;
        let by_led = |(_, segments): &(&Seat, &Vec<u32>)| segments.len();
        let victim = match role {
            Role::Primary => led.iter().max_by_key(by_led),
            Role::Secondary => led.iter().min_by_key(by_led),
        };
        let (&victim, leads) = victim.ok_or_else(|| anyhow!("no chunkserver"))?;
        let concerned =
            (0..SEGMENTS).filter(|segment| leads.contains(segment) == (role == Role::Primary));
        let lanes: BTreeSet<_> = concerned.flat_map(lanes_of).collect();
        ensure!(!lanes.is_empty(), "{victim} is no {role}: {led:?}");
        Ok((victim, lanes))
    }

    // ---------- meta nodes ----------

    fn kill_leaders(&mut self, kills: usize) -> anyhow::Result<Vec<Row>> {
        let mut rows = self.quiet()?;
        let probe = Probe::now(&self.cluster.pids())?;
        let (mut gaps, mut slow) = (Vec::new(), Vec::new());
        for kill in 1..=kills {
            let victim = self.cluster.await_leader()?;
            let death = self.kill(&[victim])?;
            self.cluster.await_leader()?;
            self.cluster.restart(victim)?;
            self.cluster.await_caught_up(victim, HEAL_LIMIT)?;
            let felt = self.felt(death.killed_us)?;
            gaps.push(felt.gap_us);
            slow.push(felt);
            if kill % REPORT_EVERY == 0 || kill == kills {
                let so_far = Spread::of(gaps.iter().copied());
                eprintln!("meta leader: kill {kill} of {kills}: gaps {so_far}");
            }
        }
        let what = "around the death of the meta leader";
        rows.insert(
            0,
            gap_row(what, &Spread::of(gaps)).beside(&probe.used_by(&self.cluster.pids())?),
        );
        rows.insert(1, slow_row(what, &slow));
        Ok(rows)
    }

    fn kill_metas(&mut self, outage: Duration) -> anyhow::Result<Vec<Row>> {
        let probe = Probe::now(&self.cluster.pids())?;
        let metas: Vec<_> = (0..self.cluster.spec().metas).map(Seat::Meta).collect();
        let death = self.kill(&metas)?;
        self.run_for(outage)?;
        for &meta in &metas {
            self.cluster.restart(meta)?;
        }
        self.cluster.await_leader()?;
        let felt = self.felt(death.killed_us)?;
        let what = format!("with all meta nodes dead for {} s", outage.as_secs());
        Ok(vec![
            gap_row(&what, &Spread::of([felt.gap_us]))
                .beside(&probe.used_by(&self.cluster.pids())?),
            slow_row(&what, &[felt]),
        ])
    }

    /// The load undisturbed.
    fn quiet(&mut self) -> anyhow::Result<Vec<Row>> {
        let what = format!("of the load alone for {} s", QUIET.as_secs());
        self.seen = self.load.take()?;
        let from_us = self.load.now_us();
        self.run_for(QUIET)?;
        let felt = self.felt(from_us)?;
        let gap = Row::new(
            format!("longest gap in completions {what}"),
            Spread::of([felt.gap_us]).to_string(),
        );
        Ok(vec![gap, slow_row(&what, &[felt])])
    }

    /// Lets the load run, as long as all other processes live.
    fn run_for(&mut self, time: Duration) -> anyhow::Result<()> {
        let end_us = self.load.now_us() + time.as_micros() as u64;
        let load = &self.load;
        Ok(self.cluster.await_condition("time to pass", time * 2, |_| {
            if load.now_us() >= end_us { Ok(()) } else { Err("running".to_owned()) }
        })?)
    }

    /// Longest gap and slowest operation from a moment until now.
    fn felt(&mut self, from_us: u64) -> anyhow::Result<Felt> {
        let to_us = self.load.now_us();
        self.await_flow()?;
        let gap_us = longest_gap(&self.seen, from_us, to_us);
        let slowest = slowest(&self.seen, from_us, to_us).context("nothing completed")?;
        Ok(Felt { from_us, gap_us, slowest })
    }
}

fn lanes_of(segment: u32) -> [Lane; 2] {
    [true, false].map(|writes| Lane { segment, writes })
}

fn gap_row(what: &str, spread: &Spread) -> Row {
    let longest_ms = spread.longest() as f64 / 1e3;
    Row::new(format!("longest gap in completions {what}"), spread.to_string())
        .judged(format!("{GAP_MS:.0} ms"), at_most(longest_ms, GAP_MS))
}

/// What the load felt of something that began at `from_us`.
#[derive(Clone, Copy, Debug)]
struct Felt {
    from_us: u64,
    gap_us: u64,
    slowest: Done,
}

/// The slowest operations, and where and when the slowest of them was: a clue to what it waited for.
fn slow_row(what: &str, felt: &[Felt]) -> Row {
    let spread = Spread::of(felt.iter().map(|f| f.slowest.took_us()));
    let worst = felt.iter().max_by_key(|f| f.slowest.took_us());
    let clue = worst.map_or_else(String::new, |Felt { from_us, slowest, .. }| {
        let Lane { segment, writes } = slowest.lane;
        let kind = if writes { "write" } else { "read" };
        let begun_ms = (slowest.issued_us as f64 - *from_us as f64) / 1e3;
        format!("; a {kind} of segment {segment}, begun at {begun_ms:.0} ms")
    });
    Row::new(format!("slowest operation {what}"), format!("{spread}{clue}"))
}

/// What a killed chunkserver is for the segments that are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Primary,
    Secondary,
}

impl Role {
    fn resumes_ms(self) -> f64 {
        match self {
            Self::Primary => PRIMARY_RESUMES_MS,
            Self::Secondary => SECONDARY_RESUMES_MS,
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Primary => "primary",
            Self::Secondary => "secondary",
        })
    }
}
