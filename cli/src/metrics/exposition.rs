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
    /// Adds a sample. Label names are constants; values may be any text.
    pub(crate) fn sample(&mut self, labels: &[(&str, &str)], value: f64) -> &mut Self {
        self.text.push_str(&self.name);
        if !labels.is_empty() {
            let pairs: Vec<_> =
                labels.iter().map(|(name, text)| format!("{name}=\"{}\"", escape(text))).collect();
            write!(self.text, "{{{}}}", pairs.join(",")).expect(INFALLIBLE);
        }
        writeln!(self.text, " {value}").expect(INFALLIBLE);
        self
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
}
