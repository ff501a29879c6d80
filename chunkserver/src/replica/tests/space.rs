//! Members that are low on space: new chunks are refused, everything else goes on.

use tidewater_proto::{
    geometry::Extent,
    ids::{ReplicaId, ServerId},
    peer::{Action, FromPrimary, PeerMessage, Room},
    record::{Member, SetChange},
};

use super::world::{A, Answer, B, C, D, Refused, World, timing};
use crate::replica::Event;

/// The first block of a chunk.
fn first_block(chunk: u64) -> Extent {
    Extent::new(chunk << 20, 4096, 64 << 20).expect("a block")
}

/// Writes to a chunk; the request and its operation are numbered by `number`.
fn write(world: &mut World, number: u64, chunk: u64) {
    world.request(A, number, number, Action::Write { extent: first_block(chunk), data: 7 });
}

fn told(world: &mut World, id: ReplicaId, room: Room) {
    world.step(id, Event::Room(room));
    world.settle();
}

fn is_done(world: &World, id: u64) -> bool {
    matches!(world.answer(id), Some(Answer::Done(_)))
}

const REFUSED: Option<&Answer> = Some(&Answer::Refused(Refused::NoSpace));

#[test]
fn space_new_chunks_are_refused_while_a_member_is_low_and_all_else_goes_on() {
    for low in [A, B, C] {
        let mut world = World::serving(&[A, B, C]);
        world.run_for(timing().renew);
        write(&mut world, 1, 0);
        world.settle();
        told(&mut world, low, Room::NONE);
        write(&mut world, 2, 1);
        assert_eq!(world.answer(2), REFUSED, "{low} is low");
        let compare = Action::Compare { extent: first_block(1), expect: 0, data: 1 };
        world.request(A, 3, 3, compare);
        assert_eq!(world.answer(3), REFUSED, "a compare-and-write needs the chunk too");
        write(&mut world, 4, 0);
        world.request(A, 5, 5, Action::Read { extent: first_block(0) });
        world.request(A, 6, 6, Action::Zero { extent: first_block(2), discard: true });
        world.request(A, 7, 1, Action::Write { extent: first_block(0), data: 7 });
        world.settle();
        assert!([4, 6, 7].iter().all(|id| is_done(&world, *id)), "{:?}", world.replies);
        assert_eq!(world.answer(5), Some(&Answer::block(7)));
        told(&mut world, low, Room(1));
        write(&mut world, 8, 1);
        world.settle();
        assert!(is_done(&world, 8), "{low} has space again");
    }
}

#[test]
fn space_no_more_new_chunks_are_under_way_than_a_member_has_room_for() {
    let mut world = World::serving(&[A, B, C]);
    told(&mut world, B, Room(2));
    for chunk in 1..=5 {
        write(&mut world, chunk, chunk);
    }
    // Another write to a chunk that is under way needs nothing more.
    write(&mut world, 6, 1);
    let chunks = |world: &World| {
        let to_b = world.links.get(&(A, B)).into_iter().flatten();
        let entries = to_b.filter_map(|envelope| match &envelope.message {
            PeerMessage::Primary(FromPrimary::Append { entry, .. }) => entry.change.extent(),
            _ => None,
        });
        entries.flat_map(Extent::chunks).collect::<Vec<_>>()
    };
    assert_eq!(chunks(&world), [1, 2, 1]);
    world.deliver((A, B), 0);
    while world.persist_one(B) {}
    world.deliver((B, A), 0);
    // Chunk 1 is written to once more behind what B has: it counts still.
    assert_eq!(chunks(&world), [2, 1]);
    world.settle();
    assert!((1..=6).all(|id| is_done(&world, id)), "none is refused: {:?}", world.replies);
}

#[test]
fn space_writes_that_wait_for_room_are_refused_when_the_room_is_gone() {
    let mut world = World::serving(&[A, B, C]);
    told(&mut world, B, Room(1));
    write(&mut world, 1, 1);
    write(&mut world, 2, 2);
    assert_eq!(world.answer(2), None, "it waits");
    world.step(B, Event::Room(Room::NONE));
    world.settle();
    assert!(is_done(&world, 1), "what was under way is taken");
    assert_eq!(world.answer(2), REFUSED);
}

#[test]
fn space_a_write_that_waits_for_room_is_told_the_way_when_its_primary_steps_down() {
    let mut world = World::serving(&[A, B, C]);
    told(&mut world, B, Room(1));
    write(&mut world, 1, 1);
    write(&mut world, 2, 2);
    world.change_primary(C, false);
    world.configure(A);
    assert_eq!(world.answer(2), Some(&Answer::Refused(Refused::WrongEpoch)));
}

#[test]
fn space_a_retry_of_a_write_that_waits_for_room_is_applied_once() {
    let mut world = World::serving(&[A, B, C]);
    told(&mut world, B, Room(1));
    write(&mut world, 1, 1);
    for id in [2, 3] {
        let action = Action::Write { extent: first_block(2), data: 7 };
        world.request(A, id, 2, action);
    }
    world.settle();
    assert!(is_done(&world, 2));
    assert_eq!(world.answer(2), world.answer(3), "both tries name one entry");
}

#[test]
fn space_a_learner_has_no_say_until_it_is_proposed_as_a_member() {
    let mut world = World::serving(&[A, B, C]);
    world.add(D);
    world.step(D, Event::Room(Room::NONE));
    world.commit(|r| {
        r.learners.push(Member { replica: D, server: ServerId(4), fresh: true });
    });
    write(&mut world, 1, 1);
    world.configure_all();
    assert_eq!(world.answer(1), None);
    world.settle();
    assert!(is_done(&world, 1), "a learner is not waited for");
    world.run_for(timing().renew);
    let epoch = world.record().epoch;
    assert!(world.proposals.contains(&(epoch, SetChange::Promote { replica: D })));
    write(&mut world, 2, 2);
    assert_eq!(world.answer(2), REFUSED, "it may be a member already");
    assert!(world.node(D).disk.has(world.replica(A).last()));
}

#[test]
fn space_of_a_member_that_may_be_another_process_is_taken_to_be_short() {
    let mut world = World::serving(&[A, B, C]);
    world.crash(C);
    world.restart(C);
    write(&mut world, 1, 1);
    write(&mut world, 2, 2);
    assert_eq!(world.replica(A).uncommitted().count(), 1, "one at a time until C has answered");
    world.settle();
    assert!(is_done(&world, 1) && is_done(&world, 2));
}
