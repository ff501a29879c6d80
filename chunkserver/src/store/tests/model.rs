//! Random workloads, with restarts, against flat arrays.

use proptest::prelude::*;
use tidewater_proto::ids::ReplicaId;

use super::driver::{Driver, Known, Op, World};
use crate::store::disk::Keep;

#[derive(Clone, Debug)]
enum Step {
    Op(Op),
    /// The power goes and comes back.
    Restart(bool),
    Check,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let replica = 1..3_u64;
    let op = prop_oneof![
        8 => (replica.clone(), 0..96_u64, 1..24_u64, 1..255_u8).prop_map(
            |(replica, sector, sectors, byte)| Op::Write { replica, sector, sectors, byte }),
        2 => (replica.clone(), 0..96_u64, 1..24_u64).prop_map(
            |(replica, sector, sectors)| Op::Zero { replica, sector, sectors }),
        1 => (replica.clone(), 0..2_u64).prop_map(
            |(replica, chunk)| Op::Discard { replica, chunk }),
        1 => (replica.clone(), 0..2_u64, 1..255_u8).prop_map(
            |(replica, chunk, byte)| Op::Fill { replica, chunk, byte }),
        1 => replica.clone().prop_map(|replica| Op::Replace { replica }),
        4 => (replica, 0..3_u64).prop_map(|(replica, lag)| Op::Commit { replica, lag }),
        2 => Just(Op::Freeze),
        4 => Just(Op::Poll),
    ];
    let step = prop_oneof![
        20 => op.prop_map(Step::Op),
        1 => any::<bool>().prop_map(Step::Restart),
        1 => Just(Step::Check),
    ];
    prop::collection::vec(step, 1..120)
}

/// Restarts, and takes what was found as the log from now on.
fn restart(world: &World, driver: Driver, keep: Keep) -> (World, Driver) {
    let world = world.after_crash(keep, 3);
    let known = driver.known;
    let (store, found) = world.open().expect("opens");
    let mut after = Driver::new(store);
    for copy in found {
        assert!(!copy.damaged, "{}: nothing is damaged by a crash", copy.replica);
        let before = &known[&copy.replica];
        let mut now: Known = before.clone();
        now.log.truncate(copy.base.sequence.0 as usize);
        now.log.extend(copy.entries.iter().cloned());
        (now.history, now.epoch) = (Vec::new(), copy.epoch);
        assert!(now.log.len() as u64 >= before.commit, "a committed entry is lost");
        // Everything kept is committed, as after an activation.
        for entry in copy.entries.iter().filter(|e| e.position.sequence.0 <= before.commit) {
            after.store.apply(copy.replica, entry);
        }
        let positions = now.log.iter().map(|entry| entry.position).collect();
        now.history.push((after.durable, positions, now.epoch));
        after.known.insert(copy.replica, now);
    }
    (world, after)
}

fn check(driver: &mut Driver) -> Result<(), TestCaseError> {
    for replica in [1, 2].map(ReplicaId) {
        let known = &driver.known[&replica];
        let want = known.contents[known.commit as usize].clone();
        prop_assert!(driver.read_hot(replica) == want, "content of {replica}");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_store_reads_like_an_array_through_restarts(steps in steps()) {
        let mut world = World::new();
        let mut driver = Driver::new(world.open().expect("opens").0);
        prop_assert!(driver.create(2));
        for step in steps {
            match step {
                Step::Op(op) => driver.step(&op),
                Step::Restart(all) => {
                    let keep = if all { Keep::All } else { Keep::None };
                    (world, driver) = restart(&world, driver, keep);
                }
                Step::Check => check(&mut driver)?,
            }
            prop_assert!(!driver.failed);
        }
        check(&mut driver)?;
        driver.poll();
        driver.freeze();
        driver.poll();
        check(&mut driver)?;
    }
}
