//! A chart: operations over time, drawn as inline SVG.

use std::fmt::Write as _;

use super::figures::{End, Point};
use crate::{history::Op, nemesis::Bite};

const WIDTH: f64 = 1100.0;
const LEFT: f64 = 60.0;
const LATENCY_HEIGHT: f64 = 300.0;
const RATE_TOP: f64 = 340.0;
const RATE_HEIGHT: f64 = 90.0;
const HEIGHT: f64 = 470.0;
/// The latency axis goes from 100 us to 100 s.
const LOWEST_MS: f64 = 0.1;
const DECADES: f64 = 6.0;
/// Points drawn; slow and failed ones always are.
const POINTS_MAX: usize = 6000;
const ALWAYS_MS: f64 = 100.0;
/// Columns of the rate.
const BINS: usize = 120;

/// The chart of a run.
pub(super) fn chart(points: &[Point], bites: &[Bite]) -> String {
    let last = points.iter().map(|point| point.at).max().unwrap_or(1).max(1);
    let chart = Chart { last: last as f64 };
    let mut out = String::new();
    chart.draw(&mut out, points, bites).expect("writing to a string does not fail");
    out
}

struct Chart {
    /// End of the time axis, nanoseconds.
    last: f64,
}

impl Chart {
    fn x(&self, ns: u64) -> f64 {
        LEFT + ns as f64 / self.last * (WIDTH - LEFT)
    }

    fn draw(&self, out: &mut String, points: &[Point], bites: &[Bite]) -> std::fmt::Result {
        writeln!(
            out,
            r#"<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="latency and rate over time">"#
        )?;
        self.bands(out, bites)?;
        axes(out)?;
        self.seconds(out)?;
        self.points(out, points)?;
        self.rate(out, points)?;
        writeln!(out, "</svg>")
    }

    fn bands(&self, out: &mut String, bites: &[Bite]) -> std::fmt::Result {
        for bite in bites {
            let (from, until) = (self.x(bite.from), self.x(bite.until));
            writeln!(
                out,
                r#"<rect class="fault" x="{from:.1}" y="0" width="{:.1}" height="{:.1}"><title>{}</title></rect>"#,
                (until - from).max(1.0),
                RATE_TOP + RATE_HEIGHT,
                escape(&bite.fault)
            )?;
        }
        Ok(())
    }

    fn seconds(&self, out: &mut String) -> std::fmt::Result {
        let seconds = self.last / 1e9;
        let step =
            [1, 2, 5, 10, 30, 60, 300, 600].into_iter().find(|s| seconds / *s as f64 <= 15.0);
        let step = step.unwrap_or(3600);
        for second in (0..=seconds as u64).step_by(step) {
            let x = self.x(second * 1_000_000_000);
            let y = RATE_TOP + RATE_HEIGHT + 16.0;
            writeln!(out, r#"<text x="{x:.1}" y="{y}" text-anchor="middle">{second} s</text>"#)?;
        }
        Ok(())
    }

    fn points(&self, out: &mut String, points: &[Point]) -> std::fmt::Result {
        let always = |point: &Point| point.end != End::Ok || point.took as f64 / 1e6 >= ALWAYS_MS;
        let every = points.len().div_ceil(POINTS_MAX).max(1);
        for (at, point) in points.iter().enumerate() {
            if !always(point) && at % every != 0 {
                continue;
            }
            let class = match (point.end, point.op) {
                (End::Failed, _) => "failed",
                (End::Unknown, _) => "unknown",
                (End::Ok, Op::Read) => "read",
                (End::Ok, _) => "write",
            };
            let (x, y) = (self.x(point.at), latency_y(point.took as f64 / 1e6));
            writeln!(out, r#"<circle class="{class}" cx="{x:.1}" cy="{y:.1}" r="1.6"/>"#)?;
        }
        Ok(())
    }

    fn rate(&self, out: &mut String, points: &[Point]) -> std::fmt::Result {
        let mut bins = [0_u32; BINS];
        for point in points.iter().filter(|point| point.end == End::Ok) {
            let bin = (point.at as f64 / self.last * BINS as f64) as usize;
            bins[bin.min(BINS - 1)] += 1;
        }
        let most = f64::from(bins.iter().copied().max().unwrap_or(1).max(1));
        let per_second = most / (self.last / 1e9 / BINS as f64);
        let width = (WIDTH - LEFT) / BINS as f64;
        for (at, count) in bins.into_iter().enumerate() {
            let height = f64::from(count) / most * RATE_HEIGHT;
            let (x, y) = (LEFT + at as f64 * width, RATE_TOP + RATE_HEIGHT - height);
            let width = width - 0.5;
            writeln!(
                out,
                r#"<rect class="rate" x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}"/>"#
            )?;
        }
        let y = RATE_TOP + 10.0;
        writeln!(out, r#"<text x="0" y="{y}">{per_second:.0}/s</text>"#)
    }
}

fn axes(out: &mut String) -> std::fmt::Result {
    for decade in 0..=DECADES as i32 {
        let ms = LOWEST_MS * 10_f64.powi(decade);
        let y = latency_y(ms);
        let label = if ms >= 1000.0 { format!("{} s", ms / 1000.0) } else { format!("{ms} ms") };
        writeln!(out, r#"<line x1="{LEFT}" x2="{WIDTH}" y1="{y:.1}" y2="{y:.1}"/>"#)?;
        writeln!(out, r#"<text x="0" y="{:.1}">{label}</text>"#, (y + 4.0).max(10.0))?;
    }
    Ok(())
}

fn latency_y(ms: f64) -> f64 {
    let part = (ms.max(LOWEST_MS) / LOWEST_MS).log10() / DECADES;
    LATENCY_HEIGHT * (1.0 - part.min(1.0))
}

/// Text between tags.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
