//! Whether operations on one register can be put in an order that explains them.
//!
//! The algorithm is Wing and Gong's (1993) as Lowe improved it ("Testing for linearizability", 2017):
//! just-in-time linearization with all configurations kept. The events are gone through in time. A
//! configuration is the register's value with the set of open operations that have taken effect; at
//! the end of an operation, each configuration is followed through all orders of open operations in
//! which that one takes effect. Equal configurations are one. When none is left, nothing explains the
//! operation that just ended.
//!
//! Two short cuts keep the set small, both sound: an operation that changes nothing takes effect as
//! soon as the value is right; and of two configurations that differ in the number of unseen writes
//! used up (see `settle`), the one with more is dropped.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::{BTreeMap, btree_map::Entry};

use super::settle::Settled;
use crate::history::{Action, Operation, RegisterValue, UNWRITTEN};

/// Configurations kept at once; beyond it the search is given up.
const CONFIGURATIONS_MAX: usize = 1 << 18;
/// Stands for every value that nobody saw. No write sets it.
const UNSEEN: RegisterValue = RegisterValue::MIN;

/// What the search found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// An order that explains everything.
    Order,
    /// Nothing explains this operation; its index in the list of certain ones.
    Nothing(usize),
    /// There are too many to look at.
    GaveUp,
}

/// Value, and the open operations that have taken effect, a bit each.
type Configuration = (RegisterValue, u128);
/// With the fewest unseen writes used up that lead to it.
type Configurations = BTreeMap<Configuration, usize>;

/// Something happens to the open operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    // At equal times, beginnings come first: such operations count as concurrent.
    UnseenWrite,
    UnseenCompare(RegisterValue),
    Begin(usize),
    End(usize),
}

/// Looks for an order.
pub(super) fn search(settled: &Settled) -> Found {
    let mut steps: Vec<(u64, Step)> = Vec::with_capacity(settled.certain.len() * 2);
    for (at, operation) in settled.certain.iter().enumerate() {
        steps.push((operation.call, Step::Begin(at)));
        steps.push((operation.end, Step::End(at)));
    }
    steps.extend(settled.unseen_writes.iter().map(|&call| (call, Step::UnseenWrite)));
    let compares = settled.unseen_compares.iter();
    steps.extend(compares.map(|&(call, from)| (call, Step::UnseenCompare(from))));
    steps.sort_unstable();

    let mut search = Search::new(&settled.certain);
    for (_, step) in steps {
        match step {
            Step::UnseenWrite => search.unseen_writes += 1,
            Step::UnseenCompare(from) => search.unseen_compares.push(from),
            Step::Begin(at) => {
                if !search.begin(at) {
                    return Found::GaveUp;
                }
            }
            Step::End(at) => {
                if !search.end(at) {
                    return Found::GaveUp;
                }
                if search.configurations.is_empty() {
                    return Found::Nothing(at);
                }
            }
        }
    }
    Found::Order
}

struct Search<'a> {
    operations: &'a [Operation],
    /// The open operation at each bit.
    open: [Option<usize>; u128::BITS as usize],
    /// Bits of open operations.
    busy: u128,
    unseen_writes: usize,
    unseen_compares: Vec<RegisterValue>,
    configurations: Configurations,
}

impl<'a> Search<'a> {
    fn new(operations: &'a [Operation]) -> Self {
        Self {
            operations,
            open: [None; u128::BITS as usize],
            busy: 0,
            unseen_writes: 0,
            unseen_compares: Vec::new(),
            configurations: BTreeMap::from([((UNWRITTEN, 0), 0)]),
        }
    }

    /// False if there is no bit left.
    fn begin(&mut self, at: usize) -> bool {
        let bit = (!self.busy).trailing_zeros() as usize;
        if bit >= self.open.len() {
            return false;
        }
        self.open[bit] = Some(at);
        self.busy |= 1 << bit;
        let action = self.operations[at].action;
        if matches!(action, Action::Read(_) | Action::Differs { .. }) {
            let before = std::mem::take(&mut self.configurations);
            for ((value, taken), used) in before {
                let taken = if holds(action, value) { taken | 1 << bit } else { taken };
                keep_least(&mut self.configurations, (value, taken), used);
            }
        }
        true
    }

    /// Leaves the configurations in which the operation has taken effect. False if there are too many.
    fn end(&mut self, at: usize) -> bool {
        let slot = self.open.iter().position(|open| *open == Some(at)).expect("it began");
        let bit = 1_u128 << slot;
        let before = std::mem::take(&mut self.configurations);
        let mut visited = before.clone();
        let mut waiting: Vec<_> = before.into_iter().collect();
        while let Some(((value, taken), used)) = waiting.pop() {
            if visited.get(&(value, taken)).is_some_and(|least| *least < used) {
                continue;
            }
            if taken & bit != 0 {
                keep_least(&mut self.configurations, (value, taken & !bit), used);
                continue;
            }
            self.follow((value, taken), used, |next, used| {
                if keep_least(&mut visited, next, used) {
                    waiting.push((next, used));
                }
            });
            if visited.len() > CONFIGURATIONS_MAX {
                return false;
            }
        }
        self.open[slot] = None;
        self.busy &= !bit;
        true
    }

    /// Every configuration that one more effect leads to.
    fn follow(
        &self,
        (value, taken): Configuration,
        used: usize,
        mut reach: impl FnMut(Configuration, usize),
    ) {
        let mut wanted = false;
        for bit in bits(self.busy & !taken) {
            match self.action(bit) {
                Action::Write(to) => reach(self.at_value(to, taken | 1 << bit), used),
                Action::Cas { from, to } if from == value => {
                    reach(self.at_value(to, taken | 1 << bit), used);
                }
                // Only a compare that waits for another value gains by one that nobody saw.
                Action::Differs { from } => wanted |= from == value,
                Action::Cas { .. } | Action::Read(_) => {}
            }
        }
        if !wanted {
            return;
        }
        // No value comes twice, so a compare of unknown outcome can have set it but once.
        if self.unseen_compares.contains(&value) {
            reach(self.at_value(UNSEEN, taken), used);
        } else if used < self.unseen_writes {
            reach(self.at_value(UNSEEN, taken), used + 1);
        }
    }

    /// With every open operation that changes nothing and fits the value.
    fn at_value(&self, value: RegisterValue, taken: u128) -> Configuration {
        let fits = |&bit: &u32| holds(self.action(bit), value);
        let fitting = bits(self.busy & !taken).filter(fits);
        (value, fitting.fold(taken, |taken, bit| taken | 1 << bit))
    }

    fn action(&self, bit: u32) -> Action {
        self.operations[self.open[bit as usize].expect("a busy bit")].action
    }
}

/// Whether an operation that changes nothing can take effect at this value.
fn holds(action: Action, value: RegisterValue) -> bool {
    match action {
        Action::Read(seen) => seen == value,
        Action::Differs { from } => from != value,
        Action::Write(_) | Action::Cas { .. } => false,
    }
}

fn bits(mut set: u128) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let bit = set.trailing_zeros();
        (set != 0).then(|| {
            set &= set - 1;
            bit
        })
    })
}

/// Whether it is new, or better than what was known.
fn keep_least(configurations: &mut Configurations, key: Configuration, used: usize) -> bool {
    match configurations.entry(key) {
        Entry::Vacant(entry) => {
            entry.insert(used);
            true
        }
        Entry::Occupied(mut entry) => {
            let better = used < *entry.get();
            if better {
                entry.insert(used);
            }
            better
        }
    }
}
