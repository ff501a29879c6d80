//! Takes the power at every write and sync of a fixed workload.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
};

use tidewater_proto::ids::{Epoch, ReplicaId};

use super::driver::{Driver, Op, World, table};
use crate::store::{Recovered, Ticket, disk::Keep};

const KEEPS: [Keep; 4] = [Keep::None, Keep::Half, Keep::FirstHalf, Keep::All];

/// Every kind of change, replaced tails, lagging commits, and enough of all to go round the ring.
fn workload() -> Vec<Op> {
    let mut ops = Vec::new();
    for i in 0..44_u64 {
        let byte = (i + 1) as u8;
        let replica = 1 + i % 2;
        ops.push(Op::Write { replica, sector: i * 8 % 96, sectors: 8, byte });
        ops.push(Op::Write { replica, sector: (i * 8 + 24) % 96, sectors: 16, byte });
        if i % 3 == 0 {
            ops.push(Op::Write {
                replica,
                sector: i * 5 % 96,
                sectors: 1 + i % 7,
                byte: byte | 128,
            });
        }
        if i % 2 == 1 {
            ops.push(Op::Poll);
            ops.push(Op::Commit { replica, lag: i % 3 });
        }
        if i % 7 == 6 {
            ops.push(Op::Zero { replica, sector: i % 96, sectors: 11 });
        }
        if i % 13 == 12 {
            ops.push(Op::Discard { replica, chunk: i % 2 });
        }
        if i % 11 == 4 {
            ops.push(Op::Fill { replica, chunk: i / 2 % 2, byte: byte | 64 });
        }
        if i % 9 == 8 {
            ops.push(Op::Replace { replica });
        }
        if i % 6 == 5 {
            ops.push(Op::Commit { replica: 1, lag: 1 });
            ops.push(Op::Commit { replica: 2, lag: 0 });
            ops.push(Op::Freeze);
        }
    }
    ops.extend([Op::Poll, Op::Commit { replica: 1, lag: 0 }, Op::Freeze, Op::Poll]);
    ops
}

/// Runs the workload until it ends or the power goes.
fn run(world: &World, ops: &[Op]) -> Option<Driver> {
    let (store, found) = world.open().ok()?;
    assert!(found.is_empty());
    let mut driver = Driver::new(store);
    if !driver.create(2) {
        return Some(driver);
    }
    for op in ops {
        driver.step(op);
        if driver.failed {
            break;
        }
    }
    Some(driver)
}

fn check(before: &Driver, world: &World, when: &str) {
    let (store, found) = world.open().unwrap_or_else(|e| panic!("{when}: {e:?}"));
    let mut after = Driver::new(store);
    for copy in &found {
        check_log(before, copy, when);
        for entry in copy.entries.iter().filter(|e| e.position.sequence <= copy.commit) {
            after.store.apply(copy.replica, entry);
        }
        let want = &before.known[&copy.replica].contents[copy.commit.0 as usize];
        assert!(after.read_hot(copy.replica) == *want, "{when}: content of {}", copy.replica);
    }
    for (replica, known) in &before.known {
        let is_found = found.iter().any(|copy| copy.replica == *replica);
        assert!(is_found || !known.made, "{when}: {replica} is lost");
        if is_found {
            after.known.insert(*replica, known.clone());
        }
    }
    go_on(before, &found, after, when);
}

/// All records that were durable are there, and none that never was appended.
fn check_log(before: &Driver, copy: &Recovered, when: &str) {
    let known = &before.known[&copy.replica];
    let base = copy.base.sequence;
    let log: Vec<_> = copy.entries.iter().map(|entry| entry.position).collect();
    let durable = known.history.iter().rposition(|(t, ..)| *t <= before.durable);
    let start = [(Ticket::default(), Vec::new(), Epoch::default())];
    let states = match durable {
        Some(index) => known.history[index..].iter(),
        None => start[..].iter(),
    };
    let later = if durable.is_none() { &known.history[..] } else { &[] };
    let fits = states.chain(later).any(|(_, want, epoch)| {
        want.iter().filter(|p| p.sequence > base).eq(&log) && copy.epoch == *epoch
    });
    assert!(fits, "{when}: {} recovered {:?} + {log:?}, {}", copy.replica, copy.base, copy.epoch);
    assert!(!copy.damaged && copy.copying.is_none(), "{when}: {copy:?}");
    assert!(base <= copy.commit && copy.commit.0 <= known.commit, "{when}: commit {}", copy.commit);
    let applied = if base.0 == 0 { Vec::new() } else { table(&known.log[..base.0 as usize]) };
    assert_eq!(copy.applied, applied, "{when}");
}

/// What is recovered can be destaged, and read again after another start.
fn go_on(before: &Driver, found: &[Recovered], mut after: Driver, when: &str) {
    for copy in found {
        let known = after.known.get_mut(&copy.replica).expect("checked");
        known.commit = copy.commit.0;
    }
    after.freeze();
    after.poll();
    assert!(!after.failed && after.destaged == 1, "{when}: cannot destage what was recovered");
    for copy in found {
        let want = &before.known[&copy.replica].contents[copy.commit.0 as usize];
        assert!(after.read_hot(copy.replica) == *want, "{when}: {} after destaging", copy.replica);
    }
}

#[test]
fn nothing_durable_is_lost_and_nothing_uncommitted_is_applied_at_any_crash() {
    let ops = workload();
    let world = World::new();
    let whole = run(&world, &ops).expect("opens");
    let points = world.clock.ops();
    assert!(!whole.failed && whole.destaged > 4, "the workload runs through");
    assert!(whole.known.values().all(|known| known.commit > 20), "and commits");
    assert!(whole.store.adopted_slots() > 0, "a whole chunk stayed in its slot");
    println!("{points} crash points, {} ways each", KEEPS.len());
    let next = AtomicU64::new(1);
    let lane = || {
        while let Some(point) = Some(next.fetch_add(1, Relaxed)).filter(|&point| point <= points) {
            crash_at(point, &ops);
        }
    };
    thread::scope(|scope| {
        let lanes = [scope.spawn(lane), scope.spawn(lane)];
        for lane in lanes {
            lane.join().expect("every crash is survived");
        }
    });
}

fn crash_at(point: u64, ops: &[Op]) {
    let world = World::new();
    world.clock.crash_at(point);
    let driver = run(&world, ops);
    for keep in KEEPS {
        let when = format!("crash at {point} keeping {keep:?}");
        let found = world.after_crash(keep, point);
        match &driver {
            Some(driver) => check(driver, &found, &when),
            None => assert!(found.open().is_ok(), "{when}: the folder was being made"),
        }
    }
}

#[test]
fn the_same_workload_makes_the_same_disk() {
    let ops = workload();
    let image = || {
        let world = World::new();
        let driver = run(&world, &ops).expect("opens");
        let mut after = Driver::new(world.open().expect("opens again").0);
        (world.clock.ops(), driver.durable, after.read_hot(ReplicaId(1)))
    };
    assert!(image() == image());
}
