//! What processes cost that have nothing to do: a cluster with a full volume open and no I/O.

use std::{collections::BTreeMap, thread, time::Duration};

use tidewater_cli::cluster::{Cluster, Seat};

use crate::{machine::Probe, report::Row, targets::at_most};

/// What earlier I/O left behind has been moved and compacted by then.
const SETTLE_LIMIT: Duration = Duration::from_mins(1);
/// A process is at rest that used less than this of one core.
const REST_PERCENT: f64 = 5.0;
/// Share of one core that an idle process may use.
const MOST_PERCENT: f64 = 2.0;
const LOOK: Duration = Duration::from_secs(1);

/// CPU of each process over `time`, once what was written before has settled.
///
/// # Errors
///
/// Where a process ends.
pub fn measure(cluster: &mut Cluster, time: Duration) -> anyhow::Result<Row> {
    let seats = cluster.running_by_pid();
    for _ in 0..SETTLE_LIMIT.as_secs() / LOOK.as_secs() {
        let (busiest, _) = over(cluster, &seats, LOOK)?;
        if busiest.is_none_or(|(_, percent)| percent < REST_PERCENT) {
            break;
        }
    }
    let (busiest, row) = over(cluster, &seats, time)?;
    let percent = busiest.map_or(0.0, |(_, percent)| percent);
    Ok(row.judged(format!("{MOST_PERCENT:.0} %"), at_most(percent, MOST_PERCENT)))
}

fn over(
    cluster: &mut Cluster,
    seats: &BTreeMap<u32, Seat>,
    time: Duration,
) -> anyhow::Result<(Option<(Seat, f64)>, Row)> {
    let pids: Vec<_> = seats.keys().copied().collect();
    let probe = Probe::now(&pids)?;
    thread::sleep(time);
    let used = probe.used()?;
    cluster.check_alive()?;
    let percent = |cpu: f64| 100.0 * cpu / used.time.as_secs_f64();
    let mut shares: Vec<_> =
        used.servers.iter().map(|(pid, cpu)| (seats[pid], percent(*cpu))).collect();
    shares.sort_by(|a, b| b.1.total_cmp(&a.1));
    let said: Vec<_> = shares.iter().map(|(seat, share)| format!("{seat} {share:.1}")).collect();
    let what = "CPU of an idle process, share of one core, the busiest";
    let row = Row::new(what.to_owned(), format!("{} %", said.join(", "))).beside(&used);
    Ok((shares.first().copied(), row))
}
