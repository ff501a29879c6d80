//! What can be said of operations of unknown outcome, because every write sets another value.
//!
//! A value that some operation saw was set, and before that operation ended: the write that sets it is
//! as good as acknowledged then. A value that nobody saw matters to nobody, except that it may be why
//! a compare found something else than it expected. All such values are alike, so how many writes of
//! them have started is all that counts. What remains is a history in which every operation ends, and
//! its search does not grow with the number of unknown outcomes.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;

use crate::history::{Action, Malformed, Operation, RegisterValue, UNWRITTEN};

/// Operations on one register, each certain, and those that may have happened unseen.
pub(super) struct Settled {
    /// They took effect between their `call` and their `end`.
    pub(super) certain: Vec<Operation>,
    /// Starts of writes of values that nobody saw; they may take effect at any later time, or never.
    pub(super) unseen_writes: Vec<u64>,
    /// The same for compares, with the value each expects.
    pub(super) unseen_compares: Vec<(u64, RegisterValue)>,
}

/// Sorts the operations on one register into what is certain and what is not.
pub(super) fn settle(operations: &[Operation]) -> Result<Settled, Malformed> {
    let writers = writers(operations)?;
    let mut settled: Vec<Operation> = operations.to_vec();
    let mut seen: Vec<usize> = (0..settled.len()).filter(|&at| settled[at].done).collect();
    while let Some(observer) = seen.pop() {
        let (saw, end) = (settled[observer].saw(), settled[observer].end);
        let Some(&writer) = saw.and_then(|value| writers.get(&value)) else { continue };
        let write = &mut settled[writer];
        // One seen before it started is a violation, which the search finds when the reader ends.
        let end = end.max(write.call);
        if !write.done || end < write.end {
            write.done = true;
            write.end = end.min(write.end);
            seen.push(writer);
        }
    }
    let unseen = || settled.iter().filter(|op| !op.done);
    Ok(Settled {
        unseen_writes: unseen()
            .filter(|op| matches!(op.action, Action::Write(_)))
            .map(|op| op.call)
            .collect(),
        unseen_compares: unseen()
            .filter_map(|op| match op.action {
                Action::Cas { from, .. } => Some((op.call, from)),
                Action::Read(_) | Action::Write(_) | Action::Differs { .. } => None,
            })
            .collect(),
        certain: settled.iter().copied().filter(|op| op.done).collect(),
    })
}

/// The operation that sets each value.
pub(super) fn writers(
    operations: &[Operation],
) -> Result<BTreeMap<RegisterValue, usize>, Malformed> {
    let mut writers = BTreeMap::from([(UNWRITTEN, usize::MAX)]);
    for (at, operation) in operations.iter().enumerate() {
        if let Some(value) = operation.sets()
            && writers.insert(value, at).is_some()
        {
            return Err(Malformed::WrittenTwice(value));
        }
    }
    writers.remove(&UNWRITTEN);
    Ok(writers)
}
