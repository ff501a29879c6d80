//! The machine and what it does beside the load: CPU by process, work of others, steal, memory.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};

/// Ticks of `/proc` in a second: part of Linux's interface, whatever the kernel's own clock does.
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU seconds since the machine's start.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Total {
    busy: f64,
    steal: f64,
    all: f64,
}

/// What ran for how long at one moment.
#[derive(Debug)]
pub struct Probe {
    at: Instant,
    total: Total,
    own: f64,
    /// CPU seconds of children that have ended.
    ended: f64,
    servers: BTreeMap<u32, f64>,
}

/// What ran between two moments.
#[derive(Clone, Debug)]
pub struct Used {
    /// Between the moments.
    pub time: Duration,
    /// CPU seconds of each server that ran all the time.
    pub servers: BTreeMap<u32, f64>,
    /// CPU seconds of this process.
    pub own: f64,
    /// Cores that were busy.
    pub busy_cores: f64,
    /// Of these, with neither a server, nor a child that has ended, nor this process.
    pub others_cores: f64,
    /// Time taken by the hypervisor, of all cores' time.
    pub steal_percent: f64,
}

impl Probe {
    /// Looks at the machine, at this process and at `servers`.
    ///
    /// # Errors
    ///
    /// Where a server is gone.
    pub fn now(servers: &[u32]) -> anyhow::Result<Self> {
        let total = total(&read(Path::new("/proc/stat"))?)?;
        let of = |&pid: &u32| Ok((pid, cpu(&read(Path::new(&format!("/proc/{pid}/stat")))?)?));
        let servers = servers.iter().map(of).collect::<anyhow::Result<_>>()?;
        let own = read(Path::new("/proc/self/stat"))?;
        let (own, ended) = (cpu(&own)?, cpu_of_ended(&own)?);
        Ok(Self { at: Instant::now(), total, own, ended, servers })
    }

    /// What ran since then.
    ///
    /// # Errors
    ///
    /// Where a server is gone.
    pub fn used(&self) -> anyhow::Result<Used> {
        let pids: Vec<_> = self.servers.keys().copied().collect();
        self.used_by(&pids)
    }

    /// What ran since then, where `servers` are those that run now: children of this process, as
    /// those were that ran then.
    ///
    /// # Errors
    ///
    /// Where a server is gone.
    pub fn used_by(&self, servers: &[u32]) -> anyhow::Result<Used> {
        let now = Self::now(servers)?;
        let time = now.at - self.at;
        let seconds = time.as_secs_f64().max(1e-6);
        let own = now.own - self.own;
        let busy_cores = (now.total.busy - self.total.busy) / seconds;
        let known = (now.known() - self.known()) / seconds;
        let both =
            now.servers.iter().filter_map(|(pid, cpu)| Some((*pid, cpu - self.servers.get(pid)?)));
        let servers = both.collect();
        let all = (now.total.all - self.total.all).max(1e-6);
        Ok(Used {
            time,
            servers,
            own,
            busy_cores,
            others_cores: (busy_cores - known).max(0.0),
            steal_percent: 100.0 * (now.total.steal - self.total.steal) / all,
        })
    }
}

impl Probe {
    /// CPU seconds of this process and of all that it started: what ends moves from `servers` to `ended`.
    fn known(&self) -> f64 {
        self.own + self.ended + self.servers.values().sum::<f64>()
    }
}

impl Used {
    /// CPU seconds of all servers and of this process.
    pub fn cpu(&self) -> f64 {
        self.own + self.servers.values().sum::<f64>()
    }
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| path.display().to_string())
}

/// From `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal.
fn total(text: &str) -> anyhow::Result<Total> {
    let line = text.lines().next().and_then(|line| line.strip_prefix("cpu "));
    let ticks: Vec<f64> = line
        .ok_or_else(|| anyhow!("/proc/stat has no cpu line"))?
        .split_whitespace()
        .take(8)
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    let &[user, nice, system, idle, wait, hard, soft, steal] = ticks.as_slice() else {
        return Err(anyhow!("/proc/stat has {} columns", ticks.len()));
    };
    let busy = user + nice + system + hard + soft;
    let all = busy + idle + wait + steal;
    Ok(Total {
        busy: busy / TICKS_PER_SECOND,
        steal: steal / TICKS_PER_SECOND,
        all: all / TICKS_PER_SECOND,
    })
}

/// From `/proc/PID/stat`: user and system time. The command's name in brackets may hold anything.
fn cpu(text: &str) -> anyhow::Result<f64> {
    seconds_at(text, 11)
}

/// The same of its children that have ended and were waited for.
fn cpu_of_ended(text: &str) -> anyhow::Result<f64> {
    seconds_at(text, 13)
}

fn seconds_at(text: &str, column: usize) -> anyhow::Result<f64> {
    let (_, rest) = text.rsplit_once(')').ok_or_else(|| anyhow!("no name in {text:?}"))?;
    let ticks: Vec<f64> =
        rest.split_whitespace().skip(column).take(2).map(str::parse).collect::<Result<_, _>>()?;
    Ok(ticks.iter().sum::<f64>() / TICKS_PER_SECOND)
}

/// What the figures were measured on, as rows of a table.
pub fn described(folder: &Path) -> Vec<(&'static str, String)> {
    let said = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output().ok();
        let text = output.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned());
        text.filter(|text| !text.is_empty()).unwrap_or_else(|| "-".to_owned())
    };
    let line = |file: &str, key: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let value = text.lines().find_map(|l| l.strip_prefix(key)?.split_once(':'));
        value.map_or_else(|| "-".to_owned(), |(_, value)| value.trim().to_owned())
    };
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let folder = folder.to_string_lossy();
    vec![
        ("date", said("date", &["+%Y-%m-%d %H:%M"])),
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("CPU", format!("{cores} cores, {}", line("/proc/cpuinfo", "model name"))),
        ("memory", line("/proc/meminfo", "MemTotal")),
        ("disk, file system", said("findmnt", &["-n", "-o", "SOURCE,FSTYPE", "-T", &folder])),
        ("kernel", said("uname", &["-r"])),
        ("compiler", said("rustc", &["--version"])),
        ("fio", said("fio", &["--version"])),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_found_behind_any_name() {
        let stat = "42 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 250 50 7 3 20 0 1";
        let ticks = [cpu, cpu_of_ended]
            .map(|of| (of(stat).expect("valid") * TICKS_PER_SECOND).round() as u64);
        assert_eq!(ticks, [300, 10]);
        assert!(cpu("42").is_err());
    }

    #[test]
    fn the_machine_is_busy_with_all_but_idling_waiting_and_steal() {
        let found = total("cpu  1 2 3 400 50 6 7 8 9 10\ncpu0 1\n").expect("valid");
        let ticks =
            [found.busy, found.steal, found.all].map(|s| (s * TICKS_PER_SECOND).round() as u64);
        assert_eq!(ticks, [19, 8, 477]);
        assert!(total("cpu 1 2\n").is_err());
    }

    #[test]
    fn what_a_killed_child_used_is_not_the_work_of_others() {
        let mut child = Command::new("sh").args(["-c", "while :; do :; done"]).spawn().expect("sh");
        let pid = child.id();
        let probe = Probe::now(&[pid]).expect("procfs");
        while probe.used().expect("procfs").servers[&pid] < 10.0 / TICKS_PER_SECOND {
            std::thread::yield_now();
        }
        child.kill().and_then(|()| child.wait()).expect("killed");
        let now = Probe::now(&[]).expect("procfs");
        let grown =
            ((now.known() - probe.known() - now.own + probe.own) * TICKS_PER_SECOND).round();
        assert!(grown >= 10.0, "{grown} ticks");
    }

    #[test]
    fn this_process_is_seen_at_work() {
        let own = std::process::id();
        let probe = Probe::now(&[own]).expect("procfs");
        let mut work = 0_u64;
        while probe.used().expect("procfs").servers[&own] < 2.0 / TICKS_PER_SECOND {
            work = std::hint::black_box(work + 1);
        }
        let used = probe.used().expect("procfs");
        assert!(used.busy_cores > 0.0 && used.own > 0.0, "{used:?}");
    }
}
