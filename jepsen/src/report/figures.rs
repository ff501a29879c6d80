//! Numbers of a run, counted from its history.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;

use crate::history::{Event, Kind, Op, Process};

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum End {
    Ok,
    Failed,
    Unknown,
}

/// An operation as a point of a chart.
#[derive(Clone, Copy, Debug)]
pub(super) struct Point {
    pub(super) op: Op,
    /// Nanoseconds since the run began.
    pub(super) at: u64,
    pub(super) took: u64,
    pub(super) end: End,
}

/// All operations, by the time they ended. A compare that found another value is as good as any.
pub(super) fn points(events: &[Event]) -> Vec<Point> {
    let mut open: BTreeMap<u64, u64> = BTreeMap::new();
    let mut points = Vec::new();
    for event in events {
        let Process::Client(process) = event.process else { continue };
        if event.kind == Kind::Invoke {
            open.insert(process, event.time);
            continue;
        }
        let Some(from) = open.remove(&process) else { continue };
        let differs = event.error.as_deref() == Some(Event::DIFFERS);
        let end = match event.kind {
            Kind::Info => End::Unknown,
            Kind::Fail if !differs => End::Failed,
            Kind::Ok | Kind::Fail | Kind::Invoke => End::Ok,
        };
        points.push(Point { op: event.op, at: event.time, took: event.time - from, end });
    }
    points
}

/// Counts and latencies of a run.
#[derive(Debug, Default)]
pub(super) struct Figures {
    pub(super) by_op: BTreeMap<&'static str, usize>,
    pub(super) failed: usize,
    pub(super) unknown: usize,
    /// Sorted times of operations that succeeded, nanoseconds.
    pub(super) times: Vec<u64>,
}

impl Figures {
    pub(super) fn of(points: &[Point]) -> Self {
        let mut figures = Self::default();
        for point in points {
            let name = match point.op {
                Op::Read => "reads",
                Op::Write => "writes",
                Op::Cas => "compares",
                Op::Attach => "attaches",
                Op::Fault | Op::Heal | Op::Stage => continue,
            };
            *figures.by_op.entry(name).or_default() += 1;
            match point.end {
                End::Ok => figures.times.push(point.took),
                End::Failed => figures.failed += 1,
                End::Unknown => figures.unknown += 1,
            }
        }
        figures.times.sort_unstable();
        figures
    }

    /// A quantile of the times, milliseconds.
    pub(super) fn quantile_ms(&self, part: f64) -> f64 {
        let at = (self.times.len().saturating_sub(1) as f64 * part) as usize;
        self.times.get(at).copied().unwrap_or(0) as f64 / 1e6
    }

    pub(super) fn operations(&self) -> usize {
        self.by_op.values().sum()
    }
}
