//! Long histories of sound and of broken registers.

use std::time::Instant;

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    super::{Rank, Verdict, durable, linear},
    simulated::{Bug, Simulated, Simulation},
};
use crate::history::{Event, Kind, Op, Process, Stage, Value};

const SEEDS: u64 = 300;

/// Operations one after the other, none at the same time: a bug cannot hide.
fn one_by_one(random: &mut StdRng, bug: Option<Bug>) -> Simulated {
    Simulation { processes: 1, operations: 200, unknown: 0.0, bug }.run(random)
}

#[test]
fn a_sound_register_is_valid_whatever_the_number_of_unknown_outcomes() {
    for seed in 0..SEEDS {
        let random = &mut StdRng::seed_from_u64(seed);
        let processes = random.random_range(1..12);
        let unknown = [0.0, 0.02, 0.3][seed as usize % 3];
        let events = Simulation { processes, operations: 500, unknown, bug: None }.run(random).0;
        assert_eq!(linear(&events), Verdict::Valid, "seed {seed}");
    }
}

#[test]
fn each_planted_bug_is_caught_where_operations_do_not_overlap() {
    for bug in Bug::ALL {
        let mut caught = 0;
        for seed in 0..SEEDS {
            let events = one_by_one(&mut StdRng::seed_from_u64(seed), Some(bug)).0;
            let Verdict::Invalid(found) = linear(&events) else { continue };
            caught += 1;
            let witness = &found[0].witness;
            // Of 200; compares that build on each other cannot be told apart from what they show.
            assert!(witness.len() <= 20, "{bug:?}, seed {seed}: {}", found[0]);
        }
        // A bug that is planted near the end, or overwritten before anybody looks, shows nowhere.
        assert!(caught >= SEEDS / 2, "{bug:?}: {caught} of {SEEDS}");
    }
}

#[test]
fn each_planted_bug_is_caught_among_overlapping_operations() {
    for bug in Bug::ALL {
        let caught = (0..SEEDS).filter(|seed| {
            let random = &mut StdRng::seed_from_u64(*seed);
            let simulation =
                Simulation { processes: 3, operations: 300, unknown: 0.02, bug: Some(bug) };
            linear(&simulation.run(random).0).rank() == Rank::Invalid
        });
        let caught = caught.count() as u64;
        assert!(caught >= SEEDS / 10, "{bug:?}: {caught} of {SEEDS}");
    }
}

/// Appends final reads that find `value`.
fn with_final_read(mut events: Vec<Event>, value: i64) -> Vec<Event> {
    let time = events.last().map_or(0, |event| event.time) + 1;
    let read = |time, kind, value| Event {
        time,
        process: Process::Client(1 << 20),
        kind,
        op: Op::Read,
        block: Some(1),
        span: 1,
        value,
        session: None,
        error: None,
    };
    events.push(Event::nemesis(time, Op::Stage, Stage::Final.name()));
    events.push(read(time + 1, Kind::Invoke, Value::None));
    events.push(read(time + 2, Kind::Ok, Value::One(value)));
    events
}

#[test]
fn a_final_read_of_an_older_value_is_a_lost_write() {
    let mut caught = 0;
    for seed in 0..SEEDS {
        let simulated = one_by_one(&mut StdRng::seed_from_u64(seed), None);
        let set: Vec<_> =
            simulated.operations().iter().filter_map(crate::history::Operation::sets).collect();
        let (last, before) = (set[set.len() - 1], set[set.len() - 2]);
        let good = with_final_read(simulated.0.clone(), last);
        assert_eq!(durable(&good), Verdict::Valid, "seed {seed}");
        assert_eq!(linear(&good), Verdict::Valid, "seed {seed}");
        for wrong in [before, -1, 0] {
            let bad = with_final_read(simulated.0.clone(), wrong);
            assert_eq!(durable(&bad).rank(), Rank::Invalid, "seed {seed}, {wrong}");
            assert_eq!(linear(&bad).rank(), Rank::Invalid, "seed {seed}, {wrong}");
        }
        caught += 1;
    }
    assert_eq!(caught, SEEDS);
}

#[test]
fn a_hundred_thousand_operations_on_one_register_are_judged() {
    let random = &mut StdRng::seed_from_u64(1);
    let simulation = Simulation { processes: 8, operations: 100_000, unknown: 0.002, bug: None };
    let simulated = simulation.run(random);
    let begun = Instant::now();
    assert_eq!(linear(&simulated.0), Verdict::Valid);
    eprintln!("100,000 operations judged in {:?}", begun.elapsed());
}
