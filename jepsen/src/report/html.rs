//! A run as one page without scripts or anything to load.

use super::{
    figures::points,
    svg::{chart, escape},
    text::{ms, name, summary},
};
use crate::{
    checker::Verdict,
    nemesis::Bite,
    run::{Outcome, RunSpec},
};

const STYLE: &str = "
body{font:15px/1.5 system-ui,sans-serif;max-width:1150px;margin:2em auto;padding:0 1em}
svg{width:100%;height:auto;font-size:11px}
svg line{stroke:#ddd}.fault{fill:#d33;opacity:.15}.rate{fill:#89a}
.read{fill:#37b}.write{fill:#293}.failed{fill:#e80}.unknown{fill:#c0c}
table{border-collapse:collapse}td,th{padding:.2em .8em;text-align:left;border-bottom:1px solid #ddd}
pre{background:#f5f5f5;padding:1em;overflow:auto}";

/// The page.
pub fn html(spec: &RunSpec, outcome: &Outcome) -> String {
    let title = format!(
        "Tidewater under fault: {} / {}, seed {}",
        name(&spec.workload),
        name(&spec.nemesis),
        spec.seed
    );
    let verdict = |(checker, verdict): &(&str, Verdict)| {
        format!("<tr><td>{checker}</td><td>{}</td></tr>\n", verdict.rank())
    };
    let verdicts = outcome.verdicts.iter().map(verdict).collect::<Vec<_>>().concat();
    let faults = outcome.bites.iter().map(row).collect::<Vec<_>>().concat();
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\
         <style>{STYLE}</style></head><body>\n<h1>{title}</h1>\n<p>Verdict: <b>{rank}</b></p>\n\
         <table><tr><th>checker</th><th>verdict</th></tr>\n{verdicts}</table>\n\
         <h2>Operations over time</h2>\n<p>Latency of each operation when it ended (log scale): \
         <span style=\"color:#37b\">reads</span>, <span style=\"color:#293\">writes</span>, \
         <span style=\"color:#e80\">failed</span>, <span style=\"color:#c0c\">outcome unknown</span>; \
         below, completed operations a second. Bands are faults.</p>\n{chart}\n\
         <h2>Faults</h2>\n<table><tr><th>at</th><th>fault</th><th>lasted</th><th>in flight</th>\
         <th>hurt</th><th>longest</th><th>gap</th><th>felt</th></tr>\n{faults}</table>\n\
         <h2>Summary</h2>\n<pre>{summary}</pre>\n</body></html>\n",
        rank = outcome.rank(),
        chart = chart(&points(&outcome.events), &outcome.bites),
        summary = escape(&summary(spec, outcome)),
    )
}

fn row(bite: &Bite) -> String {
    format!(
        "<tr><td>{:.1} s</td><td>{}</td><td>{:.1} s</td><td>{}</td><td>{}</td><td>{:.0} ms</td>\
         <td>{:.0} ms</td><td>{}</td></tr>\n",
        bite.from as f64 / 1e9,
        escape(&bite.fault),
        (bite.until - bite.from) as f64 / 1e9,
        bite.in_flight,
        bite.hurt,
        ms(bite.longest),
        ms(bite.gap),
        if bite.bit() { "yes" } else { "no" }
    )
}
