//! A walk over all states that can be reached.

use std::{
    collections::BTreeSet,
    fmt,
    hash::{Hash, Hasher},
};

use xxhash_rust::xxh3::Xxh3;

/// A state, what may happen in it, and what must hold.
pub(super) trait Walked: Clone + Hash + fmt::Debug {
    type Step: Copy;

    fn steps(&self) -> Vec<Self::Step>;

    fn take(&mut self, step: Self::Step);

    /// Panics where an invariant does not hold.
    fn check(&self);
}

/// Cheap: a walk does little else.
fn hash_of(state: &impl Hash) -> u64 {
    let mut hasher = Xxh3::new();
    state.hash(&mut hasher);
    hasher.finish()
}

/// Walks every reachable state once and returns how many there were, and whether these are all: `limit`
/// stops the walk.
pub(super) fn walk<S: Walked>(start: S, limit: usize) -> (usize, bool) {
    let mut seen = BTreeSet::from([hash_of(&start)]);
    let mut stack = vec![start];
    while let Some(state) = stack.pop() {
        for step in state.steps() {
            let mut next = state.clone();
            next.take(step);
            if seen.insert(hash_of(&next)) {
                next.check();
                if seen.len() >= limit {
                    return (seen.len(), false);
                }
                stack.push(next);
            }
        }
    }
    (seen.len(), true)
}
