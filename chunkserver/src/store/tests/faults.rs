//! Failing disks, full disks and rotten bits.

use tidewater_proto::{
    geometry::{BLOCK_BYTES, CHUNK_BYTES, Extent},
    ids::ReplicaId,
};

use super::driver::{Driver, Op, SEGMENT, World};
use crate::store::{
    Completion, Failure, Fault, ReadError, ShardStore,
    device::DeviceError,
    disk::{Keep, SimDisk},
};

const EIO: i32 = 5;

fn write(sector: u64, byte: u8) -> Op {
    Op::Write { replica: 1, sector, sectors: 8, byte }
}

const COMMIT: Op = Op::Commit { replica: 1, lag: 0 };

fn start(world: &World) -> Driver {
    let mut driver = Driver::new(world.open().expect("opens").0);
    assert!(driver.create(1));
    driver
}

fn completions(store: &mut ShardStore) -> Vec<Completion> {
    let mut out = Vec::new();
    store.poll(&mut out);
    out
}

#[test]
fn a_failed_journal_write_is_reported_once_and_nothing_is_durable_after_it() {
    let world = World::new();
    let mut driver = start(&world);
    driver.step(&write(0, 1));
    world.clock.fail_at(world.clock.ops() + 1, EIO);
    let first = completions(&mut driver.store);
    assert!(matches!(first[..], [Completion::DeviceFailed(Failure::Journal(_))]), "{first:?}");
    driver.step(&write(8, 2));
    assert!(completions(&mut driver.store).is_empty());
    assert!(!driver.store.room());
}

#[test]
fn a_failed_write_takes_the_device_out_of_service_and_keeps_the_journal() {
    let world = World::new();
    let mut driver = start(&world);
    for op in [write(0, 1), Op::Poll, COMMIT] {
        driver.step(&op);
    }
    let base = world.clock.ops();
    driver.freeze();
    driver.store.submit();
    // The commit record is written; growing the file and writing the chunk come next.
    world.clock.fail_at(base + 3, EIO);
    let out = completions(&mut driver.store);
    let failed = |c: &Completion| {
        matches!(
            c,
            Completion::DeviceFailed(Failure::Destage(Fault::Device(DeviceError::Failed { .. })))
        )
    };
    assert!(out.iter().any(failed), "{out:?}");
    assert!(!driver.store.freeze_wanted(), "a broken store does not destage");
    let want = driver.known[&ReplicaId(1)].contents[1].clone();
    assert!(driver.read_hot(ReplicaId(1)) == want, "memory still has it");

    let world = world.after_crash(Keep::None, 1);
    let (_, found) = world.open().expect("opens");
    assert_eq!(found[0].entries.len(), 1);
}

/// Replica 1 has its chunk on the first device, which has one slot; replica 2 on the second.
fn on_two_devices(world: &mut World) -> Driver {
    world.capacity_bytes = CHUNK_BYTES;
    world.second = Some(SimDisk::new(&world.clock, "second"));
    let mut driver = Driver::new(world.open().expect("opens").0);
    assert!(driver.create(2));
    for replica in [1, 2] {
        driver.step(&Op::Write { replica, sector: 0, sectors: 8, byte: replica as u8 });
        driver.step(&Op::Poll);
        driver.step(&Op::Commit { replica, lag: 0 });
        driver.step(&Op::Freeze);
        driver.step(&Op::Poll);
    }
    assert_eq!(driver.destaged, 2);
    driver
}

fn lost(out: &[Completion]) -> Vec<u64> {
    let replica = |c: &Completion| match c {
        Completion::Lost { replica } => Some(replica.0),
        _ => None,
    };
    out.iter().filter_map(replica).collect()
}

#[test]
fn a_failed_device_takes_its_copies_with_it_and_no_others() {
    let mut world = World::new();
    let mut driver = on_two_devices(&mut world);
    for replica in [1, 2] {
        driver.step(&Op::Write { replica, sector: 8, sectors: 8, byte: 7 });
    }
    driver.step(&Op::Poll);
    for replica in [1, 2] {
        driver.step(&Op::Commit { replica, lag: 0 });
    }
    world.device.fail(EIO);
    driver.freeze();
    let out = completions(&mut driver.store);
    assert_eq!(lost(&out), [1], "{out:?}");
    let moved = |c: &Completion| matches!(c, Completion::Destaged(points) if points.iter().all(|p| p.0 == ReplicaId(2)));
    assert!(out.iter().any(moved), "the round went on: {out:?}");

    // The other copy reads, writes and survives a restart; the lost one stays lost, though its device works.
    driver.known.remove(&ReplicaId(1));
    for op in [
        Op::Write { replica: 2, sector: 16, sectors: 8, byte: 9 },
        Op::Poll,
        Op::Commit { replica: 2, lag: 0 },
        Op::Freeze,
        Op::Poll,
    ] {
        driver.step(&op);
    }
    assert!(!driver.failed && driver.store.room());
    let want = driver.known[&ReplicaId(2)].contents[3].clone();
    assert!(driver.read_hot(ReplicaId(2)) == want);
    let world = world.after_crash(Keep::None, 1);
    let (mut store, found) = world.open().expect("opens");
    let damaged: Vec<_> = found.iter().map(|copy| (copy.replica.0, copy.damaged)).collect();
    assert_eq!(damaged, [(1, true), (2, false)]);
    store.delete(ReplicaId(1));
    let out = completions(&mut store);
    assert!(matches!(out[..], [Completion::Deleted { replica: ReplicaId(1) }]), "{out:?}");
}

#[test]
fn a_device_that_another_shard_found_failed_takes_the_copies_of_this_one_too() {
    let mut world = World::new();
    let mut driver = on_two_devices(&mut world);
    world.device.fail(EIO);
    let failed = driver.store.fail_a_device();
    assert!(failed, "a sync of the first device fails");
    assert_eq!(lost(&completions(&mut driver.store)), [1]);
    assert!(completions(&mut driver.store).is_empty(), "told once");
}

#[test]
fn a_full_device_is_told_and_loses_nothing() {
    let mut world = World::new();
    world.capacity_bytes = CHUNK_BYTES;
    let mut driver = start(&world);
    assert_eq!(driver.store.free_chunks(), 1);
    // Sector 48 is in the second range, whose first half ends chunk 0; sector 64 is in chunk 1.
    for op in [write(0, 1), write(64, 2), Op::Poll, COMMIT] {
        driver.step(&op);
    }
    assert_eq!(driver.store.free_chunks(), 0, "what is in memory counts");
    driver.freeze();
    let out = completions(&mut driver.store);
    let full = |c: &Completion| {
        matches!(
            c,
            Completion::DeviceFailed(Failure::Destage(Fault::Device(DeviceError::NoSpace(_))))
        )
    };
    assert!(out.iter().any(full), "{out:?}");

    let mut world = world.after_crash(Keep::All, 1);
    world.capacity_bytes = 4 * CHUNK_BYTES;
    let (_, found) = world.open().expect("opens with more space");
    assert_eq!(found[0].entries.len(), 2);
}

#[test]
fn a_rotten_block_is_never_returned_and_stays_rotten_when_its_chunk_moves() {
    let world = World::new();
    let mut driver = start(&world);
    for op in [write(0, 1), write(8, 2), Op::Poll, COMMIT, Op::Freeze, Op::Poll] {
        driver.step(&op);
    }
    assert_eq!(driver.destaged, 1);
    // Slot 0 lies behind the header's place.
    world.device.flip("slots", CHUNK_BYTES + 100, 3);
    let corrupt = |store: &mut ShardStore, len: u64| {
        let extent = Extent::new(0, len, SEGMENT).expect("valid");
        assert!(store.read(ReplicaId(1), extent, 5).is_none());
        let out = completions(store);
        matches!(&out[..], [Completion::Read { tag: 5, result: Err(ReadError::Corrupt) }])
    };
    assert!(corrupt(&mut driver.store, BLOCK_BYTES));
    let good = super::driver::read(&mut driver.store, ReplicaId(1), BLOCK_BYTES, BLOCK_BYTES);
    assert!(good.iter().all(|&b| b == 2), "its neighbour is well");

    // A part of the rotten block is overwritten: the chunk moves to a fresh slot.
    for op in [
        Op::Write { replica: 1, sector: 1, sectors: 2, byte: 3 },
        Op::Poll,
        COMMIT,
        Op::Freeze,
        Op::Poll,
    ] {
        driver.step(&op);
    }
    assert_eq!(driver.destaged, 2);
    assert!(corrupt(&mut driver.store, BLOCK_BYTES), "merging must not hide the rot");
    // Overwritten whole, it is well again.
    for op in [write(0, 9), Op::Poll, COMMIT, Op::Freeze, Op::Poll] {
        driver.step(&op);
    }
    let good = super::driver::read(&mut driver.store, ReplicaId(1), 0, BLOCK_BYTES);
    assert!(good.iter().all(|&b| b == 9));
}

#[test]
fn an_entry_that_rotted_below_a_later_batch_marks_the_replica_damaged() {
    let world = World::new();
    let mut driver = start(&world);
    for i in 0..4 {
        driver.step(&write(i * 8, i as u8 + 1));
        driver.step(&Op::Poll);
    }
    drop(driver);
    // Batches of two blocks each: the second one's payload is block 4.
    world.journal.flip("journal-0-0", 4 * BLOCK_BYTES + 9, 1);
    let (_, found) = world.open().expect("opens");
    assert!(found[0].damaged);
    assert_eq!(found[0].entries.len(), 1, "what is before it is good");
}

#[test]
fn a_replica_that_never_commits_does_not_stop_the_others() {
    let world = World::new();
    let mut driver = Driver::new(world.open().expect("opens").0);
    assert!(driver.create(2));
    driver.step(&Op::Write { replica: 2, sector: 0, sectors: 8, byte: 7 });
    for i in 0..200_u64 {
        driver.step(&write(i * 8 % 96, i as u8));
        driver.step(&Op::Poll);
        driver.step(&COMMIT);
        if driver.store.freeze_wanted() {
            driver.step(&Op::Freeze);
        }
    }
    driver.poll();
    assert_eq!(driver.known[&ReplicaId(1)].log.len(), 200, "there was always room");
    let (_, found) = world.open().expect("opens");
    let held = found.iter().find(|copy| copy.replica == ReplicaId(2)).expect("found");
    assert_eq!(held.entries, driver.known[&ReplicaId(2)].log, "its entry was carried over");
}

/// Appending a tail again frees the old copies only when all of the new ones are durable; here the
/// ring is too full for all of them.
#[test]
fn a_tail_that_fills_the_ring_survives_being_carried_over_again_and_again() {
    let mut world = World::new();
    let mut driver = Driver::new(world.open().expect("opens").0);
    assert!(driver.create(2));
    // Without polling nobody hears that the ring is full.
    for i in 0..60_u64 {
        let (replica, byte) = (1 + i / 4 % 2, i as u8);
        driver.step(&Op::Write { replica, sector: 0, sectors: 16 + i % 9, byte });
    }
    drop(driver);
    let mut logs = None;
    for round in 0..8 {
        world = world.after_crash(Keep::None, round);
        let (mut store, found) = world.open().expect("opens");
        assert!(found.iter().all(|copy| !copy.damaged), "round {round}");
        let now: Vec<_> = found.into_iter().map(|copy| copy.entries).collect();
        let before = logs.get_or_insert_with(|| now.clone());
        assert!(before.iter().all(|log| log.len() > 3) && *before == now, "round {round}");
        store.freeze(Vec::new());
        completions(&mut store);
    }
}

#[test]
fn an_idle_store_does_not_want_to_freeze() {
    let world = World::new();
    let mut driver = start(&world);
    for i in 0..100_u64 {
        for op in [write(i % 12 * 8, i as u8), Op::Poll, COMMIT] {
            driver.step(&op);
        }
        if driver.store.freeze_wanted() {
            driver.freeze();
            driver.poll();
        }
    }
    for _ in 0..3 {
        driver.freeze();
        driver.poll();
        assert!(!driver.store.freeze_wanted(), "else the shard would turn for nothing");
    }
}

#[test]
fn a_deleted_replica_gives_its_slots_back() {
    let world = World::new();
    let mut driver = start(&world);
    let free = driver.store.free_chunks();
    for op in [write(0, 1), Op::Poll, COMMIT, Op::Freeze, Op::Poll] {
        driver.step(&op);
    }
    assert_eq!(driver.store.free_chunks(), free - 1);
    driver.store.delete(ReplicaId(1));
    let out = completions(&mut driver.store);
    assert!(matches!(out[..], [Completion::Deleted { replica: ReplicaId(1) }]), "{out:?}");
    assert_eq!(driver.store.free_chunks(), free);
    assert!(world.open().expect("opens").1.is_empty());
}

fn fill(chunk: u64, byte: u8) -> Op {
    Op::Fill { replica: 1, chunk, byte }
}

/// What the start of a chunk holds.
fn start_of(driver: &mut Driver, chunk: u64) -> u8 {
    let at = chunk * CHUNK_BYTES;
    super::driver::read(&mut driver.store, ReplicaId(1), at, BLOCK_BYTES)[0]
}

#[test]
fn a_whole_chunk_whose_device_fails_goes_to_the_journal() {
    let mut world = World::new();
    world.shape.file_bytes = 4 << 20;
    world.second = Some(SimDisk::new(&world.clock, "second"));
    let mut driver = start(&world);
    driver.step(&fill(0, 7));
    assert_eq!(driver.store.reserved_slots(), 1);
    world.device.fail(EIO);
    for op in [Op::Poll, COMMIT, Op::Freeze, Op::Poll] {
        driver.step(&op);
    }
    assert_eq!((driver.durable.0, driver.failed, driver.destaged), (1, false, 1));
    assert_eq!(driver.store.adopted_slots(), 0, "it is not where it was to go");
    assert_eq!(start_of(&mut driver, 0), 7);
}

#[test]
fn a_slot_that_rots_before_it_has_a_row_costs_its_copy() {
    let world = World::new();
    let mut driver = start(&world);
    for op in [fill(0, 7), Op::Poll] {
        driver.step(&op);
    }
    drop(driver);
    let sound = world.after_crash(Keep::None, 1);
    assert!(!sound.open().expect("opens").1[0].damaged);
    world.device.flip("slots", CHUNK_BYTES + 5_000, 3);
    let (_, found) = world.open().expect("opens");
    assert!(found[0].damaged, "wrong bytes are never an entry's");
}

#[test]
fn slots_of_entries_that_are_overwritten_before_a_round_are_free_after_it() {
    let world = World::new();
    let mut driver = start(&world);
    let free = driver.store.free_chunks();
    for op in [fill(0, 1), fill(0, 2), fill(1, 3), write(0, 4), Op::Poll, COMMIT] {
        driver.step(&op);
    }
    assert_eq!(driver.store.reserved_slots(), 3);
    for op in [Op::Freeze, Op::Poll] {
        driver.step(&op);
    }
    let reserved = driver.store.reserved_slots();
    assert_eq!((driver.store.adopted_slots(), reserved), (1, 0), "chunk 1 alone is as it came");
    assert_eq!(driver.store.free_chunks(), free - 2);
    assert_eq!((start_of(&mut driver, 0), start_of(&mut driver, 1)), (4, 3));
}
