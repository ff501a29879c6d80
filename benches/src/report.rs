//! The tables that a run prints: Markdown, to be copied into docs/results.md.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt;

use crate::{
    fio::Job,
    library::Figures,
    machine::Used,
    number::shown,
    targets::{Target, Unit, Verdict, at_most, target},
};

/// Memory of a chunkserver under load, MiB.
const MEMORY_MOST_MIB: f64 = 512.0;

/// A figure that is no job's speed.
#[derive(Clone, Debug)]
pub struct Row {
    what: String,
    measured: String,
    target: Option<(String, Verdict)>,
    beside: String,
}

impl Row {
    /// A figure without a target.
    pub fn new(what: String, measured: String) -> Self {
        Self { what, measured, target: None, beside: "-".to_owned() }
    }

    /// Against this target.
    #[must_use]
    pub fn judged(self, target: String, verdict: Verdict) -> Self {
        Self { target: Some((target, verdict)), ..self }
    }

    /// With what else the machine did meanwhile.
    #[must_use]
    pub fn beside(self, used: &Used) -> Self {
        let beside = format!("{:.2}, {:.1} %", used.others_cores, used.steal_percent);
        Self { beside, ..self }
    }
}

/// What a run found; parts that were not measured are left out of the print.
#[derive(Debug, Default)]
pub struct Report {
    /// Rows about the machine.
    pub machine: Vec<(&'static str, String)>,
    /// The disk's limits before the jobs.
    pub before: Vec<Job>,
    /// The disk's limits after them.
    pub after: Vec<Job>,
    /// Jobs over NBD.
    pub nbd: Vec<Job>,
    /// Mixes through the library.
    pub library: Vec<Figures>,
    /// Idle, memory, faults.
    pub rows: Vec<Row>,
}

impl Report {
    /// The limit beside a job: the mean of before and after, in the job's unit.
    fn limit(&self, target: &Target) -> Option<f64> {
        let found = [&self.before, &self.after].into_iter();
        let values: Vec<_> = found
            .filter_map(|jobs| jobs.iter().find(|job| job.name == target.limit))
            .map(|job| speed(job, target.unit))
            .collect();
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    }

    /// The memory of the largest chunkserver, over all jobs.
    fn memory(&self) -> Option<Row> {
        let largest = self.nbd.iter().max_by(|a, b| a.peak_mib.total_cmp(&b.peak_mib))?;
        let measured = format!("{} MiB under {}", shown(largest.peak_mib), largest.name);
        let row = Row::new("memory of a chunkserver under load, the peak".to_owned(), measured);
        let verdict = at_most(largest.peak_mib, MEMORY_MOST_MIB);
        Some(row.judged(format!("{MEMORY_MOST_MIB:.0} MiB"), verdict))
    }

    fn rows(&self) -> Vec<Row> {
        self.memory().into_iter().chain(self.rows.iter().cloned()).collect()
    }

    /// Each figure that is not within its bar: what, measured, target, share.
    fn missed(&self) -> Vec<[String; 4]> {
        let mut missed = Vec::new();
        for job in &self.nbd {
            let Some(target) = target(&job.name) else { continue };
            let speed = speed(job, target.unit);
            let speed = (shown(speed), target.judge(speed, self.limit(target)));
            let cpu = target
                .judge_cpu(job.cpu())
                .map(|verdict| (format!("CPU {:.3}", job.cpu()), verdict));
            for (measured, verdict) in [Some(speed), cpu].into_iter().flatten() {
                if let Verdict::Missed(share) = verdict {
                    let share = format!("{share:.2}");
                    missed.push([job.name.clone(), measured, target.to_string(), share]);
                }
            }
        }
        for row in self.rows() {
            if let Some((target, Verdict::Missed(share))) = row.target {
                missed.push([row.what, row.measured, target, format!("{share:.2}")]);
            }
        }
        missed
    }

    fn print_limits(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let jobs = if self.before.is_empty() { &self.after } else { &self.before };
        if jobs.is_empty() {
            return Ok(());
        }
        writeln!(f, "\n## Limits of the disk, before and after\n")?;
        writeln!(f, "| limit | IOPS before | IOPS after | MB/s before | MB/s after |")?;
        writeln!(f, "| --- | --: | --: | --: | --: |")?;
        for job in jobs {
            let cell = |jobs: &[Job], value: fn(&Job) -> f64| {
                let found = jobs.iter().find(|other| other.name == job.name);
                found.map_or_else(|| "-".to_owned(), |job| shown(value(job)))
            };
            writeln!(
                f,
                "| {} | {} | {} | {} | {} |",
                job.name,
                cell(&self.before, |job| job.iops),
                cell(&self.after, |job| job.iops),
                cell(&self.before, |job| job.mbps),
                cell(&self.after, |job| job.mbps)
            )?;
        }
        Ok(())
    }

    fn print_nbd(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nbd.is_empty() {
            return Ok(());
        }
        writeln!(f, "\n## NBD\n")?;
        writeln!(
            f,
            "| job | IOPS | min-max | MB/s | p50 us | p99 us | p99.9 us | CPU s / 1,000 operations \
             (servers + fio) | busy cores (of it others) | steal % | peak memory of a chunkserver MiB | \
             disk KiB per write | ratio to limit | limit | target | verdict |"
        )?;
        writeln!(
            f,
            "| --- | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: | --- | --- | \
             --- |"
        )?;
        for job in &self.nbd {
            self.print_job(f, job)?;
        }
        Ok(())
    }

    fn print_job(&self, f: &mut fmt::Formatter<'_>, job: &Job) -> fmt::Result {
        let latency = |which: usize| {
            job.latency_us.iter().map(|side| shown(side[which])).collect::<Vec<_>>().join(" / ")
        };
        write!(
            f,
            "| {} | {} | {}-{} | {} | {} | {} | {} | {:.3} ({:.3} + {:.3}) | {:.2} ({:.2}) | {:.1} | {} | \
             {} ",
            job.name,
            shown(job.iops),
            shown(job.iops_range.0),
            shown(job.iops_range.1),
            shown(job.mbps),
            latency(0),
            latency(1),
            latency(2),
            job.cpu(),
            job.cpu_servers,
            job.cpu_fio,
            job.busy_cores,
            job.others_cores,
            job.steal_percent,
            shown(job.peak_mib),
            job.disk_kib_per_write.map_or_else(|| "-".to_owned(), shown)
        )?;
        let Some(target) = target(&job.name) else {
            return writeln!(f, "| - | - | - | - |");
        };
        let (speed, limit) = (speed(job, target.unit), self.limit(target));
        let ratio = limit.map_or_else(|| "-".to_owned(), |limit| shown(speed / limit));
        let cpu = target.judge_cpu(job.cpu()).map_or_else(String::new, |v| format!("; CPU {v}"));
        writeln!(
            f,
            "| {ratio} | {} | {target} | {}{cpu} |",
            target.limit,
            target.judge(speed, limit)
        )
    }

    fn print_library(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.library.is_empty() {
            return Ok(());
        }
        writeln!(f, "\n## Client library\n")?;
        writeln!(
            f,
            "| job | IOPS | min-max | MB/s | p50 us | p99 us | p99.9 us | CPU s / 1,000 operations | \
             others, steal |"
        )?;
        writeln!(f, "| --- | --: | --: | --: | --: | --: | --: | --: | --: |")?;
        self.library.iter().try_for_each(|figures| writeln!(f, "{}", figures.row()))
    }

    fn print_rows(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = self.rows();
        if rows.is_empty() {
            return Ok(());
        }
        writeln!(f, "\n## Idle, memory, failover\n")?;
        writeln!(f, "| figure | measured | target | verdict | others (cores), steal |")?;
        writeln!(f, "| --- | --- | --: | --- | --: |")?;
        for row in rows {
            let (target, verdict) = match &row.target {
                Some((target, verdict)) => (target.as_str(), verdict.to_string()),
                None => ("-", "-".to_owned()),
            };
            let Row { what, measured, beside, .. } = &row;
            writeln!(f, "| {what} | {measured} | {target} | {verdict} | {beside} |")?;
        }
        Ok(())
    }
}

fn speed(job: &Job, unit: Unit) -> f64 {
    match unit {
        Unit::Iops => job.iops,
        Unit::MegabytesPerSecond => job.mbps,
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "## Machine\n\n| | |\n| --- | --- |")?;
        for (what, value) in &self.machine {
            writeln!(f, "| {what} | {value} |")?;
        }
        self.print_limits(f)?;
        self.print_nbd(f)?;
        self.print_library(f)?;
        self.print_rows(f)?;
        let missed = self.missed();
        if missed.is_empty() {
            return Ok(());
        }
        writeln!(f, "\n## Where a target is missed\n")?;
        writeln!(f, "| figure | measured | target | share of it |\n| --- | --- | --- | --: |")?;
        missed.iter().try_for_each(|cells| writeln!(f, "| {} |", cells.join(" | ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(name: &str, iops: f64, mbps: f64) -> Job {
        Job { name: name.to_owned(), iops, iops_range: (iops, iops), mbps, ..Job::default() }
    }

    fn report() -> Report {
        Report {
            before: vec![
                job("io_uring-4k-randwrite-qd32", 30_000.0, 120.0),
                job("libaio-1m-seqread-qd8", 1_000.0, 1_000.0),
            ],
            after: vec![job("io_uring-4k-randwrite-qd32", 50_000.0, 200.0)],
            nbd: vec![
                Job {
                    peak_mib: 300.0,
                    cpu_servers: 0.1,
                    ..job("randwrite-4k-qd32", 12_000.0, 48.0)
                },
                Job { peak_mib: 700.0, ..job("seqread-1m-qd8", 500.0, 500.0) },
            ],
            rows: vec![
                Row::new("gap".to_owned(), "p99 200 ms".to_owned())
                    .judged("100 ms".to_owned(), Verdict::Missed(2.0)),
            ],
            ..Report::default()
        }
    }

    #[test]
    fn a_figure_stands_beside_the_mean_of_the_limit_before_and_after() {
        let text = report().to_string();
        let row = text.lines().find(|l| l.starts_with("| randwrite-4k-qd32 ")).expect("there");
        let end = "| 0.30 | io_uring-4k-randwrite-qd32 | 22,000 IOPS, or 0.25 of the limit; CPU 0.080 \
                   | met; CPU missed (1.25) |";
        assert!(row.ends_with(end), "{row}");
        assert!(
            text.contains("| io_uring-4k-randwrite-qd32 | 30,000 | 50,000 | 120 | 200 |"),
            "{text}"
        );
        assert!(text.contains("| libaio-1m-seqread-qd8 | 1,000 | - | 1,000 | - |"), "{text}");
    }

    #[test]
    fn every_row_has_as_many_cells_as_its_heading() {
        let text = report().to_string();
        let mut cells = None;
        for line in text.lines() {
            let here = line.starts_with('|').then(|| line.matches('|').count());
            if let (Some(heading), Some(here)) = (cells, here) {
                assert_eq!(here, heading, "{line}");
            }
            cells = here;
        }
    }

    #[test]
    fn what_is_missed_is_listed_with_the_share_that_was_reached() {
        let text = report().to_string();
        let (_, missed) = text.split_once("## Where a target is missed").expect("there");
        for row in [
            "| randwrite-4k-qd32 | CPU 0.100 | 22,000 IOPS, or 0.25 of the limit; CPU 0.080 | 1.25 |",
            "| seqread-1m-qd8 | 500 | 0.85 of the limit | 0.59 |",
            "| memory of a chunkserver under load, the peak | 700 MiB under seqread-1m-qd8 | 512 MiB | 1.37 |",
            "| gap | p99 200 ms | 100 ms | 2.00 |",
        ] {
            assert!(missed.contains(row), "{row} is not in\n{missed}");
        }
        assert_eq!(missed.lines().filter(|l| l.starts_with("| ")).count(), 6, "{missed}");
    }

    #[test]
    fn what_was_not_measured_is_left_out() {
        let text = Report::default().to_string();
        assert!(!text.contains("NBD") && !text.contains("Limits") && !text.contains("missed"));
    }
}
