//! Nothing is stuck: every operation ends within its time, the cluster says in time that it is whole
//! again, and what is asked of it then succeeds.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::{collections::BTreeMap, time::Duration};

use super::{Claim, Undecided, Verdict, Violation};
use crate::history::{Event, Kind, Op, Process, Stage, registers};

/// Judges the times of operations and the stages of the run.
pub fn progress(events: &[Event], longest: Duration) -> Verdict {
    if let Err(malformed) = registers(events) {
        return malformed.into();
    }
    let has = |stage| events.iter().any(|event| event.begins(stage));
    let mut found = stuck(events, longest);
    if has(Stage::Healed) && !has(Stage::Healthy) {
        found.push(Violation { claim: Claim::NotHealed, block: None, witness: Vec::new() });
    }
    if found.is_empty() && !has(Stage::Final) {
        return Verdict::Unknown(Undecided::NoFinalReads);
    }
    Verdict::of(found)
}

fn stuck(events: &[Event], longest: Duration) -> Vec<Violation> {
    let mut open: BTreeMap<u64, &Event> = BTreeMap::new();
    let mut blocks = Vec::new();
    for event in events {
        let Process::Client(process) = event.process else { continue };
        if event.kind == Kind::Invoke {
            open.insert(process, event);
        } else if let Some(begin) = open.remove(&process)
            // Attaching waits for servers to be replaced, and bounds itself.
            && begin.op != Op::Attach
            && event.time - begin.time > longest.as_nanos() as u64
        {
            blocks.push(begin.block);
        }
    }
    blocks.extend(open.values().map(|begin| begin.block));
    // A whole cluster without faults serves.
    let peace = events.iter().skip_while(|event| !event.begins(Stage::Final));
    let failed = peace.filter(|event| {
        matches!(event.process, Process::Client(_)) && matches!(event.kind, Kind::Fail | Kind::Info)
    });
    blocks.extend(failed.map(|event| event.block));
    let stuck = |block| Violation { claim: Claim::Stuck, block, witness: Vec::new() };
    blocks.into_iter().map(stuck).collect()
}
