//! The summary of a run, as lines.

use std::fmt::Write as _;

use clap::ValueEnum;

use super::figures::{Figures, points};
use crate::{
    nemesis::Bite,
    run::{Outcome, RunSpec},
};

/// As it is named on the command line.
pub(super) fn name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

pub(super) fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

/// The summary of a run; ends with the verdict.
pub fn summary(spec: &RunSpec, outcome: &Outcome) -> String {
    let mut out = String::new();
    write_summary(&mut out, spec, outcome).expect("writing to a string does not fail");
    out
}

fn write_summary(out: &mut String, spec: &RunSpec, outcome: &Outcome) -> std::fmt::Result {
    let figures = Figures::of(&points(&outcome.events));
    let seconds = outcome.events.last().map_or(0.0, |event| event.time as f64 / 1e9);
    writeln!(
        out,
        "run          workload {}, nemesis {}, seed {}, {seconds:.1} s",
        name(&spec.workload),
        name(&spec.nemesis),
        spec.seed
    )?;
    let kinds: Vec<_> =
        figures.by_op.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    writeln!(
        out,
        "operations   {} ({}); {} failed, {} of unknown outcome",
        figures.operations(),
        kinds.join(", "),
        figures.failed,
        figures.unknown
    )?;
    writeln!(
        out,
        "latency      median {:.1} ms, 99% {:.1} ms, longest {:.0} ms",
        figures.quantile_ms(0.5),
        figures.quantile_ms(0.99),
        figures.quantile_ms(1.0)
    )?;
    let bit = outcome.bites.iter().filter(|bite| bite.bit()).count();
    writeln!(out, "faults       {}, of which {bit} were felt", outcome.bites.len())?;
    for bite in &outcome.bites {
        writeln!(out, "  {}", line(bite))?;
    }
    for (checker, verdict) in &outcome.verdicts {
        writeln!(out, "{checker:<12} {verdict}")?;
    }
    for trouble in &outcome.trouble {
        writeln!(out, "trouble      {trouble}")?;
    }
    writeln!(out, "files        {}", spec.folder.display())?;
    writeln!(out, "verdict      {}", outcome.rank())
}

fn line(bite: &Bite) -> String {
    let elected = if bite.elected { ", leader elected" } else { "" };
    format!(
        "{:7.1} s  {} for {:.1} s: {} hurt, longest {:.0} ms, gap {:.0} ms{elected}",
        bite.from as f64 / 1e9,
        bite.fault,
        (bite.until - bite.from) as f64 / 1e9,
        bite.hurt,
        ms(bite.longest),
        ms(bite.gap)
    )
}
