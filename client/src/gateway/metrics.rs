//! Counters of a gateway, and their text for Prometheus.

use std::{
    fmt::Write as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use tokio::sync::Notify;

use crate::stats::{OpSnapshot, VolumeStats};

/// Upper bounds of the latency buckets, microseconds.
const BUCKETS_US: [u64; 14] = [
    50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 500_000, 1_000_000,
    5_000_000,
];

/// A metric's name, and its value for one kind of operation.
type Family = (&'static str, fn(&OpSnapshot) -> u64);

/// A metric's name, kind, and its value for one export.
type ExportFamily = (&'static str, &'static str, fn(&ExportCounters) -> u64);

#[derive(Default)]
struct Counters {
    connections: AtomicUsize,
    accepted: AtomicU64,
    rejected: AtomicU64,
    /// Somebody finished; [`GatewayMetrics::idle`] looks again.
    finished: Notify,
    /// Locks, because whoever serves metrics reads them; written at start only.
    exports: Mutex<Vec<ExportEntry>>,
    volumes: Mutex<Vec<VolumeEntry>>,
}

/// What is counted of one export.
#[derive(Debug, Default)]
pub(crate) struct ExportCounters {
    sessions: AtomicUsize,
    in_flight: AtomicUsize,
    requests: AtomicU64,
    failed: AtomicU64,
}

#[derive(Clone)]
struct ExportEntry {
    labels: String,
    counters: Arc<ExportCounters>,
}

#[derive(Clone)]
struct VolumeEntry {
    labels: String,
    stats: Arc<VolumeStats>,
}

/// Counters of a gateway. Clones are the same counters; any thread may read them.
#[derive(Clone, Default)]
pub struct GatewayMetrics(Arc<Counters>);

/// A session on an export that counts as open while this lives.
#[derive(Debug)]
pub(crate) struct OpenSession(Arc<ExportCounters>);

impl OpenSession {
    pub(crate) fn new(export: &Arc<ExportCounters>) -> Self {
        export.sessions.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(export))
    }
}

impl Drop for OpenSession {
    fn drop(&mut self) {
        self.0.sessions.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection that counts as open while this lives.
pub(crate) struct OpenConnection(GatewayMetrics);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.0.connections.fetch_sub(1, Ordering::Relaxed);
        self.0.0.finished.notify_waiters();
    }
}

impl GatewayMetrics {
    pub(crate) fn add_volume(&self, volume: &str, program: &str, stats: Arc<VolumeStats>) {
        let labels = labels(volume, program);
        let mut volumes = self.0.volumes.lock().unwrap_or_else(PoisonError::into_inner);
        volumes.push(VolumeEntry { labels, stats });
    }

    /// Shows what is counted of an export.
    pub(crate) fn add_export(&self, volume: &str, program: &str, counters: Arc<ExportCounters>) {
        let entry = ExportEntry { labels: labels(volume, program), counters };
        self.0.exports.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
    }

    fn exports(&self) -> Vec<ExportEntry> {
        self.0.exports.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn connection_opened(&self, limit: usize) -> Option<OpenConnection> {
        if self.0.connections.load(Ordering::Relaxed) >= limit {
            self.0.rejected.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        self.0.connections.fetch_add(1, Ordering::Relaxed);
        self.0.accepted.fetch_add(1, Ordering::Relaxed);
        Some(OpenConnection(self.clone()))
    }

    pub(crate) fn request_started(export: &ExportCounters) {
        export.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn request_finished(&self, export: &ExportCounters, failed: bool) {
        export.requests.fetch_add(1, Ordering::Relaxed);
        export.failed.fetch_add(failed.into(), Ordering::Relaxed);
        if export.in_flight.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.finished.notify_waiters();
        }
    }

    /// Connections open now.
    pub fn connections(&self) -> usize {
        self.0.connections.load(Ordering::Relaxed)
    }

    /// Requests in flight now, those whose client has left included.
    pub fn in_flight(&self) -> usize {
        self.exports().iter().map(|e| e.counters.in_flight.load(Ordering::Relaxed)).sum()
    }

    /// Waits until no connection is open and no request in flight.
    pub async fn idle(&self) {
        loop {
            let finished = self.0.finished.notified();
            if self.connections() == 0 && self.in_flight() == 0 {
                return;
            }
            finished.await;
        }
    }

    /// All counters in Prometheus' text format.
    pub fn prometheus_text(&self) -> String {
        let c = &self.0;
        let mut out = String::new();
        for (name, value) in [
            ("tidewater_gateway_accepted_total", c.accepted.load(Ordering::Relaxed)),
            ("tidewater_gateway_rejected_total", c.rejected.load(Ordering::Relaxed)),
        ] {
            line(&mut out, format_args!("# TYPE {name} counter\n{name} {value}"));
        }
        self.exports_text(&mut out);
        self.volumes_text(&mut out);
        out
    }

    /// Connections that have not chosen an export yet are of no volume and no program.
    fn exports_text(&self, out: &mut String) {
        let exports = self.exports();
        let families: [ExportFamily; 4] = [
            ("tidewater_gateway_sessions", "gauge", |c| c.sessions.load(Ordering::Relaxed) as u64),
            ("tidewater_gateway_inflight_requests", "gauge", |c| {
                c.in_flight.load(Ordering::Relaxed) as u64
            }),
            ("tidewater_gateway_requests_total", "counter", |c| c.requests.load(Ordering::Relaxed)),
            ("tidewater_gateway_failed_total", "counter", |c| c.failed.load(Ordering::Relaxed)),
        ];
        for (name, kind, value) in families {
            line(out, format_args!("# TYPE {name} {kind}"));
            for ExportEntry { labels, counters } in &exports {
                line(out, format_args!("{name}{{{labels}}} {}", value(counters)));
            }
            if name == "tidewater_gateway_sessions" {
                let chosen: usize =
                    exports.iter().map(|e| e.counters.sessions.load(Ordering::Relaxed)).sum();
                let (labels, others) = (labels("", ""), self.connections().saturating_sub(chosen));
                line(out, format_args!("{name}{{{labels}}} {others}"));
            }
        }
    }

    fn volumes_text(&self, out: &mut String) {
        let volumes = self.0.volumes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let all: Vec<_> = volumes
            .iter()
            .flat_map(|v| v.stats.snapshot().into_iter().map(move |s| (&v.labels, s)))
            .collect();
        let families: [Family; 3] = [
            ("tidewater_volume_ops_total", |s| s.count),
            ("tidewater_volume_bytes_total", |s| s.bytes),
            ("tidewater_volume_errors_total", |s| s.errors),
        ];
        for (name, value) in families {
            line(out, format_args!("# TYPE {name} counter"));
            for (labels, s) in &all {
                let (op, value) = (s.op.name(), value(s));
                line(out, format_args!("{name}{{{labels},op=\"{op}\"}} {value}"));
            }
        }
        line(out, format_args!("# TYPE tidewater_volume_retries_total counter"));
        for volume in &volumes {
            let (labels, retries) = (&volume.labels, volume.stats.retries());
            line(out, format_args!("tidewater_volume_retries_total{{{labels}}} {retries}"));
        }
        line(out, format_args!("# TYPE tidewater_io_duration_seconds histogram"));
        for (labels, s) in &all {
            latency_text(out, &format!("role=\"client\",{labels},op=\"{}\"", s.op.name()), s);
        }
    }
}

fn latency_text(out: &mut String, labels: &str, s: &OpSnapshot) {
    const NAME: &str = "tidewater_io_duration_seconds";
    for bucket_us in BUCKETS_US {
        let count = s.latency_us.count_between(0, bucket_us);
        let le = bucket_us as f64 / 1e6;
        line(out, format_args!("{NAME}_bucket{{{labels},le=\"{le}\"}} {count}"));
    }
    let sum = s.latency_us.mean() * s.count as f64 / 1e6;
    line(out, format_args!("{NAME}_bucket{{{labels},le=\"+Inf\"}} {}", s.count));
    line(out, format_args!("{NAME}_sum{{{labels}}} {sum}"));
    line(out, format_args!("{NAME}_count{{{labels}}} {}", s.count));
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("a string takes any text");
    out.push('\n');
}

fn labels(volume: &str, program: &str) -> String {
    format!("volume=\"{}\",program=\"{}\"", escape(volume), escape(program))
}

fn escape(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::stats::Op;

    #[test]
    fn text_holds_every_counter_of_a_volume() {
        let metrics = GatewayMetrics::default();
        let stats = Arc::new(VolumeStats::default());
        metrics.add_volume("a\"b", "db", Arc::clone(&stats));
        stats.record(Op::Write, 4096, Duration::from_micros(70), true);
        stats.record(Op::Write, 4096, Duration::from_micros(70), false);
        let text = metrics.prometheus_text();
        let labels = "volume=\"a\\\"b\",program=\"db\",op=\"write\"";
        for line in [
            format!("tidewater_volume_ops_total{{{labels}}} 1"),
            format!("tidewater_volume_bytes_total{{{labels}}} 4096"),
            format!("tidewater_volume_errors_total{{{labels}}} 1"),
            format!(
                "tidewater_io_duration_seconds_bucket{{role=\"client\",{labels},le=\"0.0001\"}} 1"
            ),
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\nis not in\n{text}");
        }
    }
}
