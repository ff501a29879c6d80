//! All orders of few operations, tried one after the other: what the search must agree with.

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom as _};

use super::{
    super::{
        search::{Found, search},
        settle::settle,
        shrink::shrink,
    },
    simulated::{Bug, Simulation},
};
use crate::history::{Action, Operation, RegisterValue, UNWRITTEN};

const SEEDS: u64 = 30_000;
/// Operations that all orders can be tried of.
const FEW: usize = 9;

/// Wing and Gong's search, without any short cut.
fn some_order_explains(operations: &[Operation], taken: u32, value: RegisterValue) -> bool {
    let waits = |at: &usize| taken & 1 << at == 0;
    let all = 0..operations.len();
    if !all.clone().filter(waits).any(|at| operations[at].done) {
        return true;
    }
    all.clone().filter(waits).any(|at| {
        let operation = &operations[at];
        let is_first = !all
            .clone()
            .filter(waits)
            .any(|other| operations[other].done && operations[other].end < operation.call);
        let next = match operation.action {
            Action::Read(seen) => (seen == value).then_some(value),
            Action::Write(to) => Some(to),
            Action::Cas { from, to } => (from == value).then_some(to),
            Action::Differs { from } => (from != value).then_some(value),
        };
        is_first && next.is_some_and(|next| some_order_explains(operations, taken | 1 << at, next))
    })
}

fn search_finds_an_order(operations: &[Operation]) -> bool {
    let settled = settle(operations).expect("every value is written once");
    match search(&settled) {
        Found::Order => true,
        Found::Nothing(_) => false,
        Found::GaveUp => panic!("few operations have few orders"),
    }
}

/// A few operations of a sound simulation, some of which then saw something else.
fn few(random: &mut StdRng) -> Vec<Operation> {
    let processes = random.random_range(1..5);
    let mut operations =
        Simulation { processes, operations: FEW, unknown: 0.3, bug: None }.run(random).operations();
    let values: Vec<_> = operations.iter().filter_map(Operation::sets).chain([UNWRITTEN]).collect();
    for _ in 0..random.random_range(0..3) {
        let at = random.random_range(0..operations.len());
        let value = *values.choose(random).expect("never empty");
        match &mut operations[at].action {
            Action::Read(seen) => *seen = value,
            Action::Cas { from, to } if value != *to => *from = value,
            Action::Differs { from } => *from = value,
            Action::Write(_) | Action::Cas { .. } => {}
        }
    }
    operations
}

#[test]
fn the_search_agrees_with_all_orders_of_few_operations() {
    let (mut sound, mut wrong) = (0, 0);
    for seed in 0..SEEDS {
        let operations = few(&mut StdRng::seed_from_u64(seed));
        let want = some_order_explains(&operations, 0, UNWRITTEN);
        let got = search_finds_an_order(&operations);
        let list = || {
            let lines: Vec<_> = operations.iter().map(|op| format!("\n{op}")).collect();
            lines.concat()
        };
        assert_eq!(got, want, "seed {seed}:{}", list());
        if want {
            sound += 1;
            continue;
        }
        wrong += 1;
        let least = shrink(operations.clone(), |some| !search_finds_an_order(some));
        assert!(!some_order_explains(&least, 0, UNWRITTEN), "seed {seed}: shrunk:{}", list());
    }
    assert!(sound > SEEDS / 10 && wrong > SEEDS / 10, "{sound} sound, {wrong} wrong");
}

#[test]
fn what_all_orders_call_wrong_of_a_broken_register_the_search_does_too() {
    for bug in Bug::ALL {
        let mut caught = 0;
        for seed in 0..SEEDS / 10 {
            let random = &mut StdRng::seed_from_u64(seed);
            let simulation =
                Simulation { processes: 2, operations: FEW, unknown: 0.1, bug: Some(bug) };
            let operations = simulation.run(random).operations();
            let want = some_order_explains(&operations, 0, UNWRITTEN);
            assert_eq!(search_finds_an_order(&operations), want, "{bug:?}, seed {seed}");
            caught += u64::from(!want);
        }
        assert!(caught > SEEDS / 200, "{bug:?} shows itself in {caught} of {}", SEEDS / 10);
    }
}
