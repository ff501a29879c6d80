//! fio's jobs: run by `fio_table.py`, whose JSON is read back, and put together over the repeats.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, ensure};
use serde::Deserialize;

use crate::number::median;

/// Where the job files and the scripts are.
pub fn files() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// One run of one job, as `fio_table.py` writes it. Latencies in microseconds.
#[derive(Clone, Debug, Deserialize)]
struct Run {
    job: String,
    iops: f64,
    mbps: f64,
    ios: f64,
    read: Option<Side>,
    write: Option<Side>,
    cpu_srv: f64,
    cpu_fio: f64,
    busy_cores: f64,
    others: f64,
    steal_pct: f64,
    peak_mib: f64,
    disk_written: f64,
}

#[derive(Clone, Copy, Debug, Deserialize)]
struct Side {
    ios: f64,
    p50: f64,
    p99: f64,
    p999: f64,
}

#[derive(Debug, Deserialize)]
struct Results {
    runs: Vec<Run>,
}

/// A job over its repeats: medians, unless said otherwise.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Job {
    /// Name in the job file.
    pub name: String,
    /// Operations a second.
    pub iops: f64,
    /// Slowest and fastest run.
    pub iops_range: (f64, f64),
    /// 10^6 bytes a second.
    pub mbps: f64,
    /// p50, p99 and p99.9 of reads and then of writes, microseconds; of those that there are.
    pub latency_us: Vec<[f64; 3]>,
    /// CPU seconds of the servers for 1,000 operations.
    pub cpu_servers: f64,
    /// CPU seconds of fio for 1,000 operations.
    pub cpu_fio: f64,
    /// Busy cores of the machine.
    pub busy_cores: f64,
    /// Of these, cores of neither fio nor servers.
    pub others_cores: f64,
    /// Time taken by the hypervisor, of all cores' time; the worst run.
    pub steal_percent: f64,
    /// Highest memory of one watched process in any run, MiB.
    pub peak_mib: f64,
    /// KiB that the disk wrote for each write.
    pub disk_kib_per_write: Option<f64>,
}

impl Job {
    /// CPU seconds of servers and fio for 1,000 operations.
    pub fn cpu(&self) -> f64 {
        self.cpu_servers + self.cpu_fio
    }
}

/// Puts runs together by job, in the order in which the jobs first ran.
///
/// # Errors
///
/// What is not the JSON of `fio_table.py`.
pub fn parse(json: &str) -> serde_json::Result<Vec<Job>> {
    let Results { runs } = serde_json::from_str(json)?;
    let mut names: Vec<&str> = Vec::new();
    for run in &runs {
        if !names.contains(&run.job.as_str()) {
            names.push(&run.job);
        }
    }
    let of = |name: &str| runs.iter().filter(|run| run.job == name).collect::<Vec<_>>();
    Ok(names.into_iter().map(|name| together(name, &of(name))).collect())
}

fn together(name: &str, runs: &[&Run]) -> Job {
    let middle = |value: fn(&Run) -> f64| median(runs.iter().map(|run| value(run)));
    let most = |value: fn(&Run) -> f64| runs.iter().map(|run| value(run)).fold(0.0, f64::max);
    let sides: [fn(&Run) -> Option<Side>; 2] = [|run| run.read, |run| run.write];
    let latency_us = sides.into_iter().filter_map(|side| {
        let sides: Vec<_> = runs.iter().filter_map(|run| side(run)).collect();
        let at = |quantile: fn(&Side) -> f64| median(sides.iter().map(quantile));
        (!sides.is_empty()).then(|| [at(|s| s.p50), at(|s| s.p99), at(|s| s.p999)])
    });
    let written: Vec<_> = runs
        .iter()
        .filter_map(|run| run.write.map(|write| run.disk_written / 1024.0 / write.ios.max(1.0)))
        .collect();
    Job {
        name: name.to_owned(),
        iops: middle(|run| run.iops),
        iops_range: (
            runs.iter().map(|run| run.iops).fold(f64::INFINITY, f64::min),
            most(|run| run.iops),
        ),
        mbps: middle(|run| run.mbps),
        latency_us: latency_us.collect(),
        cpu_servers: middle(|run| 1e3 * run.cpu_srv / run.ios.max(1.0)),
        cpu_fio: middle(|run| 1e3 * run.cpu_fio / run.ios.max(1.0)),
        busy_cores: middle(|run| run.busy_cores),
        others_cores: middle(|run| run.others),
        steal_percent: most(|run| run.steal_pct),
        peak_mib: most(|run| run.peak_mib),
        disk_kib_per_write: (!written.is_empty()).then(|| median(written)),
    }
}

/// A call of `fio_table.py`.
#[derive(Clone, Debug)]
pub struct Call<'a> {
    /// For its messages.
    pub label: &'a str,
    /// A file of [`files`].
    pub jobs: &'a str,
    /// Some of its jobs; all where empty.
    pub only: Vec<&'a str>,
    /// fio's options that name engine and target.
    pub engine: String,
    /// Runs of each job.
    pub repeat: u32,
    /// Seconds of each run; as the file says where left out.
    pub seconds: Option<u64>,
    /// Servers whose CPU counts.
    pub servers: Vec<u32>,
    /// Those of them whose highest memory is watched.
    pub watched: Vec<u32>,
}

impl Call<'_> {
    /// Runs the jobs; keeps the raw results in `out`.
    ///
    /// # Errors
    ///
    /// Where the script, fio or a job fails.
    pub fn run(&self, out: &Path) -> anyhow::Result<Vec<Job>> {
        let list = |pids: &[u32]| pids.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        let mut command = Command::new("python3");
        command
            .arg(files().join("fio_table.py"))
            .args(["--label", self.label, "--tries", "1", "--quiet-wait", "10"])
            .arg(format!("--engine-args={}", self.engine))
            .arg("--jobs")
            .arg(files().join(self.jobs))
            .args(["--only", &self.only.join(","), "--repeat", &self.repeat.to_string()])
            .args(["--runtime", &self.seconds.unwrap_or(0).to_string()])
            .args(["--pids", &list(&self.servers), "--peak-pids", &list(&self.watched)])
            .arg("--out")
            .arg(out);
        run(&mut command)?;
        let json = fs::read_to_string(out).with_context(|| out.display().to_string())?;
        parse(&json).with_context(|| out.display().to_string())
    }
}

/// Runs a command whose table on standard output is not wanted.
fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command.stdout(Stdio::null()).status();
    let status = status.with_context(|| format!("{command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

/// What the disk under `parent` does at best; the files for it are removed again.
///
/// # Errors
///
/// As [`Call::run`].
pub fn limits(parent: &Path, repeat: u32, seconds: Option<u64>) -> anyhow::Result<Vec<Job>> {
    let folder = parent.join("tidewater-limits");
    let measured = measure_limits(&folder, repeat, seconds);
    fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
    measured
}

fn measure_limits(folder: &PathBuf, repeat: u32, seconds: Option<u64>) -> anyhow::Result<Vec<Job>> {
    let out = folder.join("limits.json");
    run(Command::new(files().join("limits.sh"))
        .arg(folder)
        .args(["--repeat", &repeat.to_string(), "--tries", "1", "--quiet-wait", "10"])
        .args(["--runtime", &seconds.unwrap_or(0).to_string()])
        .arg("--out")
        .arg(&out))?;
    Ok(parse(&fs::read_to_string(&out)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(job: &str, iops: u32, peak: u32) -> String {
        let side =
            r#"{"iops":1,"mbps":1,"ios":1000,"p50":200.5,"p99":900.0,"p999":2000.0,"mean":1}"#;
        format!(
            r#"{{"job":"{job}","wall":5.0,"read":null,"write":{side},"iops":{iops},"mbps":4.0,
            "ios":1000,"cpu_srv":0.08,"cpu_fio":0.02,"busy_cores":1.5,"steal_pct":0.5,
            "rss_mib":9.0,"peak_mib":{peak},"disk_read":0,"disk_written":26624000,
            "disk_flushes":0,"others":0.25,"repeat":0}}"#
        )
    }

    #[test]
    fn repeats_of_a_job_become_medians_and_the_highest_memory() {
        let runs =
            [run("b", 100, 300), run("a", 7, 1), run("b", 300, 512), run("b", 200, 400)].join(",");
        let jobs = parse(&format!(r#"{{"label":"x","runs":[{runs}]}}"#)).expect("valid");
        let names: Vec<_> = jobs.iter().map(|job| job.name.as_str()).collect();
        assert_eq!(names, ["b", "a"], "in the order of their first runs");
        let want = Job {
            name: "b".to_owned(),
            iops: 200.0,
            iops_range: (100.0, 300.0),
            mbps: 4.0,
            latency_us: vec![[200.5, 900.0, 2000.0]],
            cpu_servers: 0.08,
            cpu_fio: 0.02,
            busy_cores: 1.5,
            others_cores: 0.25,
            steal_percent: 0.5,
            peak_mib: 512.0,
            disk_kib_per_write: Some(26.0),
        };
        assert_eq!(jobs[0], want);
    }

    #[test]
    fn what_is_no_result_is_refused() {
        assert!(parse("{}").is_err());
        assert!(parse(r#"{"runs":[{"job":"x"}]}"#).is_err());
    }
}
