//! Learners that catch up while clients write: bounded, and getting on.

use std::time::Duration;

use tidewater_proto::{
    entry::Change,
    geometry::{CHUNK_BYTES, Extent},
    ids::{ReplicaId, ServerId},
    peer::{Action, FromPrimary, PeerMessage},
    record::{Member, SetChange},
};

use super::{
    store::Value,
    world::{A, Answer, B, C, D, World, timing},
};

const CHUNKS: u64 = 16;
const SEGMENT: u64 = CHUNKS * CHUNK_BYTES;
/// Entries that a learner lacks: more than may be missing of one that is proposed.
const BEHIND: u64 = 600;

fn extent(offset: u64, len: u64) -> Extent {
    Extent::new(offset, len, SEGMENT).expect("valid")
}

/// A block of a chunk.
fn block(chunk: u64, block: u64) -> Extent {
    extent(chunk * CHUNK_BYTES + block * 4096, 4096)
}

fn write(world: &mut World, number: u64, extent: Extent) {
    let action = Action::Write { extent, data: number as Value };
    world.request(A, number, number, action);
}

fn learner(id: ReplicaId) -> Member {
    Member { replica: id, server: ServerId(id.0), fresh: true }
}

/// A primary with data in every chunk, destaged, and a learner that the log does not reach.
fn with_learner_behind() -> (World, u64) {
    let mut world = World::serving(&[A, B, C]);
    for chunk in 0..CHUNKS {
        write(&mut world, chunk + 1, block(chunk, 0));
    }
    world.settle();
    world.destage(A);
    world.add(D);
    world.commit(|r| r.learners.push(learner(D)));
    (world, CHUNKS)
}

/// A learner that follows the log from its start, with this many small entries to go. It is not near
/// enough to be proposed, and no turn is given.
fn with_follower_behind(entries: u64) -> World {
    let mut world = World::serving(&[A, B, C]);
    for number in 1..=entries {
        write(&mut world, number, block(0, number % 256));
        world.settle();
    }
    world.holds_turns = true;
    world.add(D);
    world.commit(|r| r.learners.push(learner(D)));
    world.configure_all();
    world.settle();
    assert!(!world.turns.is_empty() && !is_proposed(&world));
    world
}

fn is_proposed(world: &World) -> bool {
    world.proposals.iter().any(|(_, change)| *change == SetChange::Promote { replica: D })
}

/// What is on the way to D, as (chunk, whether the bytes are there).
fn sent_to_d(world: &World) -> Vec<(u32, bool)> {
    let link = world.links.get(&(A, D)).into_iter().flatten();
    link.filter_map(|envelope| match &envelope.message {
        PeerMessage::Primary(FromPrimary::Append { entry, .. }) => Some(match &entry.change {
            Change::Write { extent, .. } => (extent.chunks().start, true),
            Change::Activate | Change::Zero { .. } => (u32::MAX, false),
        }),
        _ => None,
    })
    .collect()
}

fn same_content(world: &World) {
    let whole = extent(0, SEGMENT);
    let [a, d] = [A, D].map(|id| world.node(id).shelf.read(whole));
    let differs = a.iter().zip(&d).position(|(a, d)| a != d);
    assert_eq!(differs, None, "sector {differs:?} differs");
}

#[test]
fn rule_8_bytes_that_an_image_will_show_are_not_sent_before_it() {
    let (mut world, mut number) = with_learner_behind();
    world.holds_turns = true;
    world.configure_all();
    world.settle();
    // Chunk 0 is read and sent, the others are to come.
    assert!(world.give_turn(), "the copy has begun");
    world.settle();
    for chunk in [0, 5] {
        number += 1;
        write(&mut world, number, block(chunk, 1));
        world.settle_between(&[A, B, C]);
    }
    assert_eq!(sent_to_d(&world), [(0, true), (u32::MAX, false)]);
    world.holds_turns = false;
    world.run_for(timing().repeat * 3);
    assert!(is_proposed(&world));
    same_content(&world);
}

#[test]
fn rule_8_a_learner_keeps_nothing_for_images_to_come_and_gets_on_under_heavy_writes() {
    let (mut world, mut number) = with_learner_behind();
    world.holds_turns = true;
    world.configure_all();
    let mut rounds = 0;
    while !is_proposed(&world) {
        // Between two turns clients write to every chunk, and everything is destaged.
        for chunk in 0..CHUNKS {
            number += 1;
            write(&mut world, number, block(chunk, number % 256));
        }
        world.settle();
        assert_eq!(world.node(D).shelf.pinned(), 0, "round {rounds}");
        for id in [A, D] {
            world.destage(id);
        }
        world.give_turn();
        world.advance(Duration::from_millis(25));
        rounds += 1;
        assert!(rounds < 100, "it does not get on: {:?}", world.proposals);
    }
    world.run_for(timing().renew * 2);
    same_content(&world);
}

#[test]
fn rule_8_a_learner_that_does_not_answer_is_sent_a_bounded_amount() {
    let mut world = with_follower_behind(BEHIND);
    // Clients write 32 MiB, of which D takes nothing.
    for number in BEHIND + 1..=BEHIND + 32 {
        write(&mut world, number, extent(number % CHUNKS * CHUNK_BYTES, CHUNK_BYTES));
        world.settle_between(&[A, B, C]);
        while world.give_turn() {}
    }
    let last = world.answer(BEHIND + 32);
    assert!(matches!(last, Some(Answer::Done(_))), "clients do not wait for it");
    let (entries, all) = (sent_to_d(&world).len(), BEHIND as usize + 32);
    assert!(entries > 300 && entries < all - 20, "{entries} of {all} entries are on the way");
    world.holds_turns = false;
    world.run_for(timing().repeat * 5);
    same_content(&world);
}

#[test]
fn rule_8_the_log_is_kept_for_a_learner_that_follows_but_not_for_ever() {
    let mut world = with_follower_behind(BEHIND);
    let kept = |world: &World| world.replica(A).entries().count();
    world.destage(A);
    assert!(kept(&world) as u64 >= BEHIND, "D is yet to be sent them");
    world.give_turn();
    world.settle();
    world.destage(A);
    assert!((1..BEHIND).contains(&(kept(&world) as u64)), "{} are kept", kept(&world));
    for number in BEHIND + 1..=BEHIND + 32 {
        write(&mut world, number, extent(number % CHUNKS * CHUNK_BYTES, CHUNK_BYTES));
        world.settle_between(&[A, B, C]);
    }
    world.destage(A);
    assert_eq!(kept(&world), 0, "D is too far behind");
    world.holds_turns = false;
    world.run_for(timing().repeat * 5);
    assert!(is_proposed(&world));
    same_content(&world);
}

#[test]
fn rule_8_what_the_primary_dropped_does_not_show_below_what_is_written_there_later() {
    let mut world = World::serving(&[A, B, C, D]);
    for number in 1..=2 {
        write(&mut world, number, block(number, 0));
    }
    world.settle();
    world.crash(D);
    world.decide(world.record().epoch, SetChange::Remove { replica: D });
    world.configure_all();
    world.settle();
    world.request(
        A,
        3,
        3,
        Action::Zero { extent: extent(CHUNK_BYTES, CHUNK_BYTES), discard: true },
    );
    world.settle();
    world.destage(A);
    // D comes back with chunk 1 as it was, and the chunk is used again while the copy runs.
    world.commit(|r| r.learners.push(learner(D)));
    world.restart(D);
    world.configure_all();
    world.settle_until(|w| w.node(D).disk.copying.is_some());
    write(&mut world, 4, block(1, 1));
    world.run_for(timing().repeat * 5);
    assert!(is_proposed(&world));
    same_content(&world);
}

#[test]
fn rule_8_a_chunk_that_cannot_be_read_holds_up_no_other() {
    let (mut world, _) = with_learner_behind();
    world.unreadable = vec![3];
    world.configure_all();
    world.run_for(timing().repeat * 10);
    let held = |world: &World| (0..CHUNKS as u32).filter(|c| world.node(D).shelf.holds(*c)).count();
    assert_eq!(held(&world) as u64, CHUNKS - 1);
    assert!(!is_proposed(&world), "it is not whole");
    world.unreadable.clear();
    world.run_for(timing().repeat * 5);
    assert!(is_proposed(&world));
    same_content(&world);
}
