//! The Prometheus text format, version 0.0.4.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt::Write;

/// Why writing into the text cannot fail.
const INFALLIBLE: &str = "a String takes everything";

/// How a metric's values relate over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Only rises; its name ends in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// Metrics being written.
#[derive(Debug, Default)]
pub(crate) struct Exposition {
    text: String,
}

impl Exposition {
    /// Starts a metric; its samples follow before the next is started.
    pub(crate) fn family(&mut self, name: &str, kind: Kind, help: &str) -> Family<'_> {
        debug_assert_eq!(kind == Kind::Counter, name.ends_with("_total"), "{name}");
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n").expect(INFALLIBLE);
        Family { name: name.to_owned(), text: &mut self.text }
    }

    /// Starts a metric that says how values are distributed.
    pub(crate) fn histogram(&mut self, name: &str, help: &str) -> Family<'_> {
        write!(self.text, "# HELP {name} {help}\n# TYPE {name} histogram\n").expect(INFALLIBLE);
        Family { name: name.to_owned(), text: &mut self.text }
    }

    /// A metric with one sample and no labels.
    pub(crate) fn single(&mut self, name: &str, kind: Kind, help: &str, value: f64) {
        self.family(name, kind, help).sample(&[], value);
    }

    /// The text.
    pub(crate) fn finish(self) -> String {
        self.text
    }
}

/// One metric's samples.
pub(crate) struct Family<'a> {
    name: String,
    text: &'a mut String,
}

impl Family<'_> {
    /// Adds the samples of a distribution: how many values are at most each bound, and their count and sum.
    pub(crate) fn distribution(
        &mut self,
        labels: &[(&str, &str)],
        within: impl IntoIterator<Item = (f64, u64)>,
        count: u64,
        sum: f64,
    ) {
        let with = |bound: &str, value: u64, family: &mut Self| {
            let labels = [labels, &[("le", bound)]].concat();
            family.suffixed("_bucket", &labels, value as f64);
        };
        for (bound, value) in within {
            with(&bound.to_string(), value, self);
        }
        with("+Inf", count, self);
        self.suffixed("_sum", labels, sum);
        self.suffixed("_count", labels, count as f64);
    }

    /// Adds a sample. Label names are constants; values may be any text.
    pub(crate) fn sample(&mut self, labels: &[(&str, &str)], value: f64) -> &mut Self {
        self.suffixed("", labels, value);
        self
    }

    fn suffixed(&mut self, suffix: &str, labels: &[(&str, &str)], value: f64) {
        self.text.push_str(&self.name);
        self.text.push_str(suffix);
        if !labels.is_empty() {
            let pairs: Vec<_> =
                labels.iter().map(|(name, text)| format!("{name}=\"{}\"", escape(text))).collect();
            write!(self.text, "{{{}}}", pairs.join(",")).expect(INFALLIBLE);
        }
        writeln!(self.text, " {value}").expect(INFALLIBLE);
    }
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped_and_whole_numbers_stay_whole() {
        let mut metrics = Exposition::default();
        metrics
            .family("tidewater_volume_ops_total", Kind::Counter, "Operations.")
            .sample(&[("volume", "a\"b\\c\nd"), ("op", "read")], 3.0)
            .sample(&[("volume", "x"), ("op", "write")], 12_345_678_901.0);
        metrics.single("tidewater_gateway_sessions", Kind::Gauge, "Sessions.", 0.5);
        assert_eq!(
            metrics.finish(),
            "# HELP tidewater_volume_ops_total Operations.\n\
             # TYPE tidewater_volume_ops_total counter\n\
             tidewater_volume_ops_total{volume=\"a\\\"b\\\\c\\nd\",op=\"read\"} 3\n\
             tidewater_volume_ops_total{volume=\"x\",op=\"write\"} 12345678901\n\
             # HELP tidewater_gateway_sessions Sessions.\n\
             # TYPE tidewater_gateway_sessions gauge\n\
             tidewater_gateway_sessions 0.5\n"
        );
    }

    #[test]
    fn a_distribution_has_buckets_sum_and_count() {
        let mut metrics = Exposition::default();
        metrics.histogram("tidewater_x_seconds", "X.").distribution(
            &[("op", "read")],
            [(0.001, 2), (0.5, 3)],
            4,
            2.25,
        );
        assert_eq!(
            metrics.finish(),
            "# HELP tidewater_x_seconds X.\n\
             # TYPE tidewater_x_seconds histogram\n\
             tidewater_x_seconds_bucket{op=\"read\",le=\"0.001\"} 2\n\
             tidewater_x_seconds_bucket{op=\"read\",le=\"0.5\"} 3\n\
             tidewater_x_seconds_bucket{op=\"read\",le=\"+Inf\"} 4\n\
             tidewater_x_seconds_sum{op=\"read\"} 2.25\n\
             tidewater_x_seconds_count{op=\"read\"} 4\n"
        );
    }
}
