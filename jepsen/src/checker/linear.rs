//! Each register is linearizable by itself, which is all that a block device promises: linearizability
//! is local (Herlihy and Wing 1990), so registers are judged one by one.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;

use super::{
    Claim, Undecided, Verdict, Violation,
    search::{Found, search},
    settle::settle,
    shrink::shrink,
};
use crate::history::{Action, Event, Malformed, Operation, registers};

/// Registers told of; what breaks more breaks the same way, and each costs many searches to shrink.
const TOLD_MAX: usize = 8;

/// Judges every register.
pub fn linear(events: &[Event]) -> Verdict {
    match registers(events) {
        Ok(registers) => judge(&registers, Claim::NotLinearizable),
        Err(malformed) => malformed.into(),
    }
}

/// Judges registers; what nothing explains is told as `claim`.
pub(super) fn judge(registers: &BTreeMap<u64, Vec<Operation>>, claim: Claim) -> Verdict {
    let looked =
        |operation: &Operation| operation.done && !matches!(operation.action, Action::Write(_));
    if !registers.values().flatten().any(looked) {
        return Verdict::Unknown(Undecided::Nothing);
    }
    let (mut found, mut undecided) = (Vec::new(), None);
    for (&block, operations) in registers {
        if found.len() >= TOLD_MAX {
            break;
        }
        match explain(operations) {
            Ok(None) => {}
            Ok(Some(witness)) => found.push(Violation { claim, block: Some(block), witness }),
            Err(Gap::Malformed(malformed)) => undecided = Some(malformed.into()),
            Err(Gap::TooMany) => undecided = Some(Undecided::TooMany { block }),
        }
    }
    // A violation stands, whatever else is not known.
    match undecided {
        Some(why) if found.is_empty() => Verdict::Unknown(why),
        Some(_) | None => Verdict::of(found),
    }
}

/// Why a register could not be judged.
pub(super) enum Gap {
    Malformed(Malformed),
    TooMany,
}

/// None if an order explains the operations, else as few of them as none does.
pub(super) fn explain(operations: &[Operation]) -> Result<Option<Vec<Operation>>, Gap> {
    let settled = settle(operations).map_err(Gap::Malformed)?;
    match search(&settled) {
        Found::Order => Ok(None),
        Found::GaveUp => Err(Gap::TooMany),
        Found::Nothing(at) => {
            let until = settled.certain[at].end;
            Ok(Some(shrink(before(operations, until), is_wrong)))
        }
    }
}

fn is_wrong(operations: &[Operation]) -> bool {
    settle(operations).is_ok_and(|settled| matches!(search(&settled), Found::Nothing(_)))
}

/// The history up to a time: what had not started is not in it, what had not ended is open.
fn before(operations: &[Operation], until: u64) -> Vec<Operation> {
    let started = operations.iter().filter(|op| op.call <= until);
    let cut = started.filter_map(|op| match op.end {
        end if end <= until => Some(*op),
        _ if op.sets().is_some() => Some(Operation { done: false, end: u64::MAX, ..*op }),
        _ => None,
    });
    cut.collect()
}
