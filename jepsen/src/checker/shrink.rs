//! Of operations that nothing explains, as few as still show it.
//!
//! Only steps are taken that turn explained operations into explained ones, so what is left is as
//! wrong as the whole: what changes nothing may go; a write may go with everything that saw its value.
//! A compare that found another value goes with any write, as it may have found the one that goes.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::history::{Action, Operation};

/// Looks taken at a smaller list; each is a search.
const TRIALS_MAX: usize = 4000;

/// Takes away what is not needed for `wrong` to hold.
pub(super) fn shrink(
    mut operations: Vec<Operation>,
    wrong: impl Fn(&[Operation]) -> bool,
) -> Vec<Operation> {
    let mut trials = 0;
    let mut step = (operations.len() / 2).max(1);
    loop {
        let mut at = operations.len();
        let mut smaller = false;
        while at > 0 {
            let from = at.saturating_sub(step);
            let rest = without(&operations, from..at);
            trials += 1;
            if trials > TRIALS_MAX {
                return operations;
            }
            if wrong(&rest) {
                smaller = true;
                operations = rest;
            }
            at = from.min(operations.len());
        }
        if step == 1 && !smaller {
            return operations;
        }
        step = (step / 2).max(1);
    }
}

/// Without some operations and all that must go with them.
fn without(operations: &[Operation], range: std::ops::Range<usize>) -> Vec<Operation> {
    let mut gone: Vec<bool> = (0..operations.len()).map(|at| range.contains(&at)).collect();
    if operations.iter().zip(&gone).any(|(op, gone)| *gone && op.sets().is_some()) {
        for (operation, gone) in operations.iter().zip(&mut gone) {
            *gone |= matches!(operation.action, Action::Differs { .. });
        }
    }
    loop {
        let values: Vec<_> = operations
            .iter()
            .zip(&gone)
            .filter_map(|(op, gone)| op.sets().filter(|_| *gone))
            .collect();
        let more: Vec<_> = (0..operations.len())
            .filter(|&at| {
                !gone[at] && operations[at].saw().is_some_and(|value| values.contains(&value))
            })
            .collect();
        if more.is_empty() {
            break;
        }
        for at in more {
            gone[at] = true;
        }
    }
    let kept = operations.iter().zip(&gone).filter(|(_, gone)| !**gone);
    kept.map(|(operation, _)| *operation).collect()
}
