//! One test for each rule of docs/protocol.md; each fails when its rule is taken out.

use std::time::Duration;

use tidewater_proto::{
    entry::Change,
    ids::{Epoch, OpId, Position, ReplicaId, Sequence, ServerId, SessionId, Token},
    peer::{Action, Envelope, FromPrimary, PeerMessage, Refusal, Reply, Request, ToPrimary},
    record::{Durability, Route, SetChange},
};

use super::world::{A, Answer, B, C, D, Refused, World, block, segment, timing};
use crate::replica::{Effect, Event, Replica, RequestId, Role, Time};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn done(world: &World, id: u64) -> bool {
    matches!(world.answer(id), Some(Answer::Done(_)))
}

#[test]
fn rule_1_and_4_a_write_is_acknowledged_when_every_member_has_it_durable() {
    let mut world = World::serving(&[A, B, C]);
    world.write(A, 1, 42);
    while world.persist_one(A) {}
    world.deliver((A, B), 0);
    while world.persist_one(B) {}
    world.deliver((B, A), 0);
    assert!(!done(&world, 1), "one member has not got it");
    world.deliver((A, C), 0);
    assert!(!done(&world, 1), "one member has it in memory only");
    world.settle();
    assert!(done(&world, 1));
}

#[test]
fn rule_4_an_entry_in_memory_is_not_durable_because_the_one_before_it_is() {
    let mut world = World::serving(&[A, B, C]);
    world.write(A, 1, 1);
    world.write(A, 2, 2);
    for to in [B, C] {
        world.deliver((A, to), 0);
        world.deliver((A, to), 0);
        // Group commit took the first entry alone.
        world.persist_one(to);
        while world.deliver((to, A), 0) {}
    }
    while world.persist_one(A) {}
    assert!(done(&world, 1), "durable everywhere");
    assert!(!done(&world, 2), "two members have it in memory only");
}

#[test]
fn rule_2_checks_come_when_the_sequence_is_given_not_on_arrival() {
    let mut world = World::serving(&[A, B, C]);
    world.write(A, 1, 1);
    // A compare-and-write waits for the write before it and holds the one behind it.
    world.request(A, 2, 2, Action::Compare { extent: block(), expect: 1, data: 2 });
    world.write(A, 3, 3);
    // Before the held write is given its sequence the volume is attached again.
    world.commit(|r| r.token = Token(2));
    world.configure(A);
    world.settle();
    assert_eq!(world.answer(3), Some(&Answer::Refused(Refused::Fenced)));
}

#[test]
fn rule_3_a_newer_epoch_is_durable_before_anything_in_it_is_answered() {
    let mut world = World::serving(&[A, B, C]);
    world.run_for(timing().renew);
    world.change_primary(B, false);
    world.configure(A);
    world.configure(B);
    while world.persist_one(B) {}
    // A has stepped down and given its leases back; C hears of the epoch from B.
    while world.deliver((A, C), 0) {}
    world.deliver((B, C), 0);
    assert!(!world.links.contains_key(&(C, B)), "C answers before its promise is durable");
    while world.persist_one(C) {}
    assert!(world.links.get(&(C, B)).is_some_and(|q| !q.is_empty()));
}

#[test]
fn rule_3_older_epochs_are_refused() {
    let mut world = World::serving(&[A, B, C]);
    world.write(A, 1, 1);
    world.change_primary(B, true);
    world.configure(C);
    world.deliver((A, C), 0);
    let refusals = world.links.get(&(C, A)).into_iter().flatten();
    assert!(refusals.into_iter().any(|e| e.message == ToPrimary::Stale.into()));
    assert!(
        world.replica(C).entries().all(|e| e.op.is_none()),
        "the old primary's write is not taken"
    );
}

#[test]
fn rule_3_a_gap_is_refused_and_resent() {
    let mut world = World::serving(&[A, B, C]);
    world.write(A, 1, 1);
    world.write(A, 2, 2);
    // The first entry to B is lost; the second does not fit.
    world.links.get_mut(&(A, B)).expect("under way").pop_front();
    world.settle();
    assert!(done(&world, 1) && done(&world, 2));
}

#[test]
fn rule_3_a_tail_of_an_older_epoch_is_not_acknowledged_as_the_new_primarys() {
    let mut world = World::serving(&[A, B, C]);
    // C alone gets a write of A durable. A restarts without it, and B leads a set without C.
    world.write(A, 1, 1);
    world.deliver((A, C), 0);
    while world.persist_one(C) {}
    world.crash(A);
    world.restart(A);
    world.commit(|r| {
        r.epoch = r.epoch.next();
        r.primary = B;
        let cut_off = r.members.pop().expect("C");
        r.learners.push(cut_off);
    });
    let tail = world.replica(C).last();
    assert_eq!((tail.epoch, tail.sequence), (Epoch(1), Sequence(2)));
    // C follows B from the start, and its journal tells it of nothing but its own promise.
    let mut claims = 0;
    world.configure_all();
    for _ in 0..60 {
        world.advance(ms(50));
        for _ in 0..20 {
            for id in [A, B, C] {
                world.persist_one(id);
            }
            claims += check_claims(&world);
            for link in world.links.keys().copied().collect::<Vec<_>>() {
                world.deliver(link, 0);
            }
        }
    }
    assert!(claims > 0, "C says nothing");
    assert_eq!(world.serves(B), Some(Epoch(2)));
    let at = |id| world.replica(id).log.position(Sequence(2)).map(|at| at.epoch);
    assert_eq!([at(A), at(B), at(C)], [Some(Epoch(2)); 3], "the tail gave way");
}

/// Counts what C acknowledges to B, none of which may be other than what B has.
fn check_claims(world: &World) -> usize {
    let mut claims = 0;
    for envelope in world.links.get(&(C, B)).into_iter().flatten() {
        let PeerMessage::Answer(ToPrimary::Appended { received, durable, .. }) = &envelope.message
        else {
            continue;
        };
        claims += 1;
        for sequence in 1..=received.0.max(durable.0) {
            let at = |id| world.replica(id).log.position(Sequence(sequence));
            assert_eq!(at(B), at(C), "C acknowledges what B does not have\n{world:?}");
        }
    }
    claims
}

#[test]
fn rule_5_recovery_applies_nothing_above_the_commit_point_it_finds() {
    let mut world = World::serving(&[A, B, C]);
    world.write(A, 1, 1);
    world.deliver((A, B), 0);
    while world.persist_one(B) {}
    world.crash(B);
    world.restart(B);
    let read = world.node(B).shelf.read(block());
    assert_eq!(read, [0; 8], "an uncommitted entry was applied");
    assert_eq!(world.replica(B).last().sequence, Sequence(2), "but it is kept in the log");
}

#[test]
fn rule_6_a_read_waits_for_writes_before_it_and_not_for_later_ones() {
    let mut world = World::serving(&[A, B, C]);
    world.run_for(timing().renew);
    world.write(A, 1, 1);
    world.request(A, 2, 2, Action::Read { extent: block() });
    assert_eq!(world.answer(2), None, "an uncommitted write is before it");
    world.settle();
    assert_eq!(world.answer(2), Some(&Answer::block(1)));
    world.request(A, 3, 3, Action::Read { extent: block() });
    world.write(A, 4, 4);
    assert_eq!(world.answer(3), Some(&Answer::block(1)));
}

#[test]
fn rule_6_no_read_is_answered_without_a_lease_of_every_member() {
    for silent in [B, C] {
        let mut world = World::serving(&[A, B, C]);
        world.run_for(timing().renew);
        world.request(A, 1, 1, Action::Read { extent: block() });
        assert_eq!(world.answer(1), Some(&Answer::block(0)), "both have given one");
        // The other one goes on giving leases while this one's runs out.
        let others: Vec<_> = [A, B, C].into_iter().filter(|id| *id != silent).collect();
        run_between(&mut world, &others, timing().lease);
        assert!(world.replica(A).leases_of(&others[1..], world.now), "the other one's lease");
        world.request(A, 2, 2, Action::Read { extent: block() });
        assert_eq!(world.answer(2), None, "{silent} may have let go");
        world.settle();
        assert_eq!(world.answer(2), None, "what was lost on the way gives no lease");
        world.run_for(timing().renew);
        assert_eq!(world.answer(2), Some(&Answer::block(0)), "it is back");
    }
}

/// Time passes among some copies only; the others are cut off.
fn run_between(world: &mut World, ids: &[ReplicaId], duration: Duration) {
    let step = ms(50);
    for _ in 0..duration.as_millis() / step.as_millis() {
        world.advance(step);
        world.links.retain(|(from, to), _| ids.contains(from) && ids.contains(to));
        world.settle_between(ids);
        world.links.retain(|(from, to), _| ids.contains(from) && ids.contains(to));
    }
}

impl<P: Clone> Replica<P> {
    /// Whether it holds a lease of each of these.
    fn leases_of(&self, granters: &[ReplicaId], now: Time) -> bool {
        match &self.role {
            Role::Serving(s) => s.leases.covers(granters.iter().copied(), now),
            Role::Idle | Role::Following(_) | Role::Activating(_) => false,
        }
    }
}

#[test]
fn rule_6_a_member_that_is_being_added_has_to_give_its_lease_too() {
    let mut world = with_learner();
    world.configure_all();
    world.run_for(ms(400));
    assert!(world.proposals.contains(&(Epoch(1), SetChange::Promote { replica: D })));
    world.request(A, 1, 1, Action::Read { extent: block() });
    assert_eq!(world.answer(1), Some(&Answer::block(0)));
    run_between(&mut world, &[A, B, C], timing().lease);
    assert!(world.replica(A).leases_of(&[B, C], world.now), "the members' leases");
    world.request(A, 2, 2, Action::Read { extent: block() });
    assert_eq!(
        world.answer(2),
        None,
        "the epoch with D, and another primary, may be there already"
    );
    // Only another epoch says that D is not a member.
    world.proposals.clear();
    world.decide(Epoch(1), SetChange::Remove { replica: D });
    for id in [A, B, C] {
        world.configure(id);
    }
    world.settle_between(&[A, B, C]);
    assert_eq!(world.answer(2), Some(&Answer::block(0)));
}

#[test]
fn rule_6_the_holder_counts_from_before_it_asked_and_deducts_the_drift_of_clocks() {
    let mut world = World::serving(&[A, B, C]);
    world.advance(timing().renew);
    let asked = world.now;
    // The request is on its way for a while, and so is the answer.
    world.now = asked.after(ms(200));
    for to in [B, C] {
        while world.deliver((A, to), 0) {}
    }
    let granted = world.now;
    world.now = granted.after(ms(200));
    world.settle();
    let mut read = |number, now| {
        world.now = now;
        world.request(A, number, number, Action::Read { extent: block() });
        world.answer(number).is_some()
    };
    let lease = timing().lease;
    assert!(read(1, asked.after(lease * 94 / 100)), "a lease in hand");
    assert!(!read(2, asked.after(lease * 96 / 100)), "a granter with a fast clock may have let go");
    assert!(!read(3, granted.after(lease * 94 / 100)), "counted from the granter's answer");
}

#[test]
fn rule_6_the_granter_counts_from_its_answer() {
    let mut world = World::serving(&[A, B, C]);
    world.advance(timing().renew);
    let asked = world.now;
    world.now = asked.after(ms(300));
    world.settle();
    let granted = world.now;
    world.change_primary(B, true);
    world.configure(B);
    world.configure(C);
    let mut serves_at = |now| {
        world.now = now;
        for id in [B, C] {
            world.step(id, Event::Tick);
        }
        world.links.retain(|(from, to), _| *from != A && *to != A);
        world.settle_between(&[B, C]);
        world.serves(B).is_some()
    };
    assert!(!serves_at(asked.after(timing().lease)), "A may have got the grant late");
    assert!(!serves_at(granted.after(timing().lease * 99 / 100)));
    assert!(serves_at(granted.after(timing().lease)));
}

#[test]
fn rule_6_giving_back_names_the_number_so_a_late_return_does_not_end_a_newer_lease() {
    for (older, waits) in [(1, true), (0, false)] {
        let mut world = World::serving(&[A, B, C]);
        world.run_for(timing().renew);
        let Role::Serving(serving) = &world.replica(A).role else { panic!("A leads") };
        let number = serving.leases.last_number();
        assert!(number > 1, "leases were asked for more than once");
        // A is cut off. What it gave back in an earlier epoch, or gives back now, still comes.
        world.change_primary(B, true);
        world.links.clear();
        if !waits {
            // Whoever gives back its last lease has stopped answering.
            world.crash(A);
        }
        for to in [B, C] {
            let returned = FromPrimary::LeaseReturn { number: number - older }.into();
            let (segment, epoch) = (segment(), Epoch(1));
            let envelope = Envelope { segment, from: A, to, epoch, message: returned };
            world.step(to, Event::Message(envelope));
        }
        world.configure(B);
        world.configure(C);
        world.settle_between(&[B, C]);
        let serves = world.serves(B).is_some();
        assert_eq!(serves, !waits, "{older} before the last number");
    }
}

#[test]
fn rule_6_a_member_answers_activation_when_its_grant_has_run_out() {
    let mut world = World::serving(&[A, B, C]);
    world.run_for(timing().renew);
    // A is alive but cut off, so it gives nothing back.
    world.change_primary(B, true);
    world.configure(B);
    world.configure(C);
    world.links.retain(|(from, to), _| *from != A && *to != A);
    world.settle_between(&[B, C]);
    assert_eq!(world.serves(B), None, "A may still answer reads");
    world.now = world.now.after(timing().lease);
    for id in [B, C] {
        world.step(id, Event::Tick);
    }
    world.settle_between(&[B, C]);
    assert_eq!(world.serves(B), Some(Epoch(2)));
}

#[test]
fn rule_6_leases_given_back_make_a_hand_over_immediate() {
    let mut world = World::serving(&[A, B, C]);
    world.run_for(timing().renew);
    world.change_primary(B, false);
    world.configure_all();
    world.settle();
    assert_eq!(world.serves(B), Some(Epoch(2)), "without waiting for any lease to run out");
    assert_eq!(world.serves(A), None);
}

#[test]
fn rule_6_a_restarted_member_waits_one_full_lease() {
    let mut world = World::serving(&[A, B, C]);
    world.run_for(timing().renew);
    world.crash(C);
    world.restart(C);
    world.change_primary(B, true);
    world.configure(B);
    world.configure(C);
    // B's own grant is out of the way; C does not remember what it granted.
    let refused = |w: &World| match &w.replica(C).role {
        Role::Following(f) => f.queried,
        Role::Idle | Role::Activating(_) | Role::Serving(_) => false,
    };
    world.settle_between(&[B, C]);
    assert!(refused(&world), "C answered while an earlier run's lease may be alive");
}

#[test]
fn rule_7_a_silent_member_is_removed_and_service_goes_on_without_activation() {
    let mut world = World::serving(&[A, B, C]);
    world.crash(C);
    world.write(A, 1, 1);
    world.run_for(timing().silence + ms(100));
    assert!(!done(&world, 1));
    assert!(world.proposals.contains(&(Epoch(1), SetChange::Remove { replica: C })));
    world.decide_all();
    assert!(done(&world, 1), "acks in hand count for the new set");
    assert_eq!(world.serves(A), Some(Epoch(2)));
}

#[test]
fn rule_7_a_set_never_shrinks_below_its_floor() {
    let mut world = World::serving(&[A, B, C]);
    world.crash(C);
    world.run_for(timing().silence + ms(100));
    world.decide_all();
    world.crash(B);
    world.write(A, 1, 1);
    world.run_for(timing().silence * 3);
    assert!(world.proposals.is_empty(), "no proposal below the floor");
    assert!(!done(&world, 1), "writes wait");
}

#[test]
fn rule_7_activation_takes_the_longest_tail() {
    let mut world = World::serving(&[A, B, C]);
    world.write(A, 1, 1);
    world.settle();
    world.write(A, 2, 2);
    world.deliver((A, C), 0);
    while world.persist_one(C) {}
    world.crash(A);
    world.change_primary(B, true);
    world.configure_all();
    world.run_for(timing().lease * 2);
    assert_eq!(world.serves(B), Some(Epoch(2)));
    let numbers: Vec<_> =
        world.replica(B).entries().filter_map(|e| e.op).map(|o| o.number).collect();
    assert_eq!(numbers, [1, 2]);
}

/// Which copy B fetches a tail from in epoch 9, if A and C say that theirs end so.
fn fetched_from(ends: [(u64, u64); 2]) -> Option<ReplicaId> {
    let mut world = World::serving(&[A, B, C]);
    // No lease is in the way.
    world.now = world.now.after(timing().lease);
    world.commit(|r| (r.epoch, r.primary) = (Epoch(9), B));
    world.configure(B);
    while world.persist_one(B) {}
    world.links.clear();
    for (from, (epoch, sequence)) in [A, C].into_iter().zip(ends) {
        let last = Position { epoch: Epoch(epoch), sequence: Sequence(sequence) };
        let message = ToPrimary::Answer { last, commit: Sequence(1) }.into();
        let (segment, epoch) = (segment(), Epoch(9));
        let answer = Envelope { segment, from, to: B, epoch, message };
        world.step(B, Event::Message(answer));
    }
    let fetches = |queue: &std::collections::VecDeque<Envelope<_>>| {
        queue.iter().any(|e| matches!(e.message, PeerMessage::Primary(FromPrimary::Fetch { .. })))
    };
    let asked = world.links.iter().filter(|(_, queue)| fetches(queue));
    let asked: Vec<_> = asked.map(|((_, to), _)| *to).collect();
    assert!(asked.len() <= 1, "{asked:?}");
    let settles = matches!(world.replica(B).role, Role::Serving(_));
    assert_eq!(settles, asked.is_empty(), "{ends:?}");
    asked.first().copied()
}

#[test]
fn rule_7_tails_are_compared_by_the_epoch_of_the_last_entry_and_then_by_sequence() {
    for (ends, expected) in [
        ([(1, 5), (2, 3)], Some(C)),
        ([(2, 3), (1, 5)], Some(A)),
        ([(2, 3), (2, 4)], Some(C)),
        ([(2, 4), (2, 3)], Some(A)),
        ([(1, 1), (1, 2)], Some(C)),
        // Its own ends at (1, 1).
        ([(1, 1), (1, 1)], None),
        ([(0, 7), (1, 1)], None),
    ] {
        assert_eq!(fetched_from(ends), expected, "{ends:?}");
    }
}

#[test]
fn rule_7_nothing_is_served_before_the_first_entry_of_the_epoch_is_everywhere() {
    let mut world = World::new(&[A, B, C]);
    world.configure_all();
    world.write(A, 1, 1);
    assert_eq!(world.answer(1), Some(&Answer::Refused(Refused::Busy)));
    assert_eq!(world.serves(A), None);
}

#[test]
fn rule_7_a_member_that_waits_for_a_lease_to_run_out_is_not_silent() {
    let mut world = World::serving(&[A, B, C]);
    world.run_for(timing().renew);
    world.crash(A);
    world.change_primary(B, true);
    world.configure_all();
    world.proposals.clear();
    world.run_for(timing().lease + ms(200));
    assert_eq!(world.serves(B), Some(Epoch(2)));
    assert!(world.proposals.is_empty(), "{:?}", world.proposals);
}

#[test]
fn rule_7_an_epoch_is_served_by_one_process_run() {
    let mut world = World::serving(&[A, B, C]);
    world.crash(A);
    world.restart(A);
    world.configure_all();
    world.run_for(timing().lease * 2);
    assert_eq!(world.serves(A), None, "a restarted primary does not go on in its epoch");
    world.commit(|r| r.epoch = r.epoch.next());
    world.configure_all();
    world.run_for(timing().lease * 2);
    assert_eq!(world.serves(A), Some(Epoch(2)), "it does in the next one");
}

fn with_learner() -> World {
    let mut world = World::serving(&[A, B, C]);
    world.add(D);
    world.commit(|r| {
        let fresh = tidewater_proto::record::Member {
            replica: D,
            server: tidewater_proto::ids::ServerId(4),
            fresh: true,
        };
        r.learners.push(fresh);
    });
    world
}

#[test]
fn rule_8_a_learner_follows_the_journal_and_is_promoted_by_the_primary() {
    let mut world = with_learner();
    world.write(A, 1, 1);
    world.configure_all();
    world.run_for(ms(400));
    assert!(world.proposals.contains(&(Epoch(1), SetChange::Promote { replica: D })));
    world.decide_all();
    world.write(A, 2, 2);
    world.settle();
    assert!(done(&world, 2) && world.node(D).disk.has(world.replica(A).last()));
}

#[test]
fn rule_8_from_the_proposal_on_commits_need_the_learner() {
    let mut world = with_learner();
    world.configure_all();
    world.run_for(ms(400));
    assert!(!world.proposals.is_empty(), "proposed");
    world.crash(D);
    world.write(A, 1, 1);
    world.settle();
    assert!(!done(&world, 1), "the epoch with D may be committed already");
    // It is withdrawn by a further epoch change, not by a timeout.
    world.proposals.clear();
    world.run_for(timing().silence + ms(200));
    assert!(!done(&world, 1));
    assert!(world.proposals.contains(&(Epoch(1), SetChange::Remove { replica: D })));
    world.decide(Epoch(1), SetChange::Remove { replica: D });
    world.configure_all();
    world.settle();
    assert!(done(&world, 1));
}

#[test]
fn rule_8_catch_up_by_chunks_where_the_journal_does_not_reach() {
    let mut world = with_learner();
    world.write(A, 1, 7);
    world.settle();
    world.destage(A);
    world.configure_all();
    world.run_for(ms(400));
    assert_eq!(world.node(D).shelf.read(block()), [7; 8], "the chunk was copied");
    assert!(world.proposals.contains(&(Epoch(1), SetChange::Promote { replica: D })));
    assert_eq!(world.applied_of(D), world.applied_of(A), "with the applied operations");
}

#[test]
fn rule_8_a_copy_that_was_cut_off_starts_again_from_where_the_own_copy_ended() {
    let mut world = with_learner();
    world.write(A, 1, 7);
    world.settle();
    world.destage(A);
    world.configure_all();
    world.settle_until(|w| w.replica(D).copying.is_some());
    world.crash(D);
    world.restart(D);
    assert_eq!(world.replica(D).copying, Some(Sequence(0)));
    world.configure_all();
    world.run_for(ms(600));
    assert_eq!(world.replica(D).copying, None);
    assert!(world.proposals.contains(&(Epoch(1), SetChange::Promote { replica: D })));
}

#[test]
fn rule_9_a_retry_is_applied_once() {
    let mut world = World::serving(&[A, B, C]);
    world.write(A, 1, 1);
    world.request(A, 2, 1, Action::Write { extent: block(), data: 1 });
    world.settle();
    world.request(A, 3, 1, Action::Write { extent: block(), data: 1 });
    let at = |id| world.answer(id).cloned();
    assert_eq!((at(1), at(1)), (at(2), at(3)), "all tries name one entry");
    let writes = world.replica(A).entries().filter(|e| e.op.is_some()).count();
    assert_eq!(writes, 1);
}

#[test]
fn rule_9_a_retry_at_the_next_primary_is_applied_once() {
    let mut world = World::serving(&[A, B, C]);
    world.write(A, 1, 1);
    world.settle();
    world.crash(A);
    world.change_primary(B, true);
    world.configure_all();
    world.run_for(timing().lease * 2);
    world.request(B, 2, 1, Action::Write { extent: block(), data: 1 });
    world.settle();
    assert_eq!(world.answer(1), world.answer(2));
}

#[test]
fn rule_9_numbers_below_the_lowest_open_one_are_refused_as_old() {
    let mut world = World::serving(&[A, B, C]);
    let ask = |world: &mut World, to, id, number: u64, lowest_open| {
        let action = Action::Write { extent: block(), data: number as u32 };
        let op = OpId { session: SessionId(7), number };
        let (epoch, token) = (world.record().epoch, world.record().token);
        let request = Request { segment: segment(), epoch, token, op, lowest_open, action };
        world.step(to, Event::Request { id: RequestId(id), request, fresh: vec![0] });
        world.settle();
        world.answer(id).cloned()
    };
    let written = |world: &World, to| {
        world.replica(to).entries().filter_map(|e| e.op).map(|op| op.number).collect::<Vec<_>>()
    };
    let old = Some(Answer::Refused(Refused::Old));
    assert!(matches!(ask(&mut world, A, 1, 1, 1), Some(Answer::Done(_))));
    assert!(matches!(ask(&mut world, A, 2, 9, 9), Some(Answer::Done(_))));
    // The first is forgotten, and 8 was never there: of neither can be said that it was not applied.
    assert_eq!(ask(&mut world, A, 3, 1, 9), old);
    assert_eq!(ask(&mut world, A, 4, 8, 9), old);
    assert!(matches!(ask(&mut world, A, 5, 9, 9), Some(Answer::Done(_))), "9 is a duplicate");
    assert_eq!(written(&world, A), [1, 9], "what is old is not written again");
    // The table is the log's, so the next primary refuses the same.
    world.crash(A);
    world.change_primary(B, true);
    world.configure_all();
    world.run_for(timing().lease * 2);
    assert_eq!(ask(&mut world, B, 6, 8, 9), old);
    assert_eq!(written(&world, B), [1, 9]);
    // Another session's numbers are its own.
    let other = OpId { session: SessionId(8), number: 1 };
    assert_eq!(World::table(world.applied_of(B)).seen(other), crate::replica::applied::Seen::New);
}

#[test]
fn rule_10_a_wrong_epoch_is_answered_with_the_way() {
    let mut world = World::serving(&[A, B, C]);
    let token = world.record().token;
    let refusal = |world: &World, by| {
        let mut replica = world.replica(by).clone();
        let (op, action) =
            (OpId { session: SessionId(7), number: 1 }, Action::Read { extent: block() });
        let (segment, lowest_open) = (segment(), 1);
        let request = Request { segment, epoch: Epoch(1), token, op, lowest_open, action };
        let mut out = Vec::new();
        replica.step(
            world.now,
            Event::Request { id: RequestId(1), request, fresh: vec![] },
            &mut out,
        );
        match out.as_slice() {
            [Effect::Reply(RequestId(1), Reply::Refused(refusal))] => refusal.clone(),
            other => panic!("{other:?}"),
        }
    };
    world.change_primary(B, true);
    assert_eq!(refusal(&world, C), Refusal::NotPrimary, "C has not heard of it");
    world.configure_all();
    world.settle();
    let way = Route::from(world.record());
    assert_eq!((way.epoch, way.primary.0), (Epoch(2), B.0), "of the epoch that B leads");
    assert_eq!(way.servers, [ServerId(2), ServerId(3)]);
    // The old primary, which has left, and a member that follows.
    for by in [A, C] {
        assert_eq!(refusal(&world, by), Refusal::WrongEpoch(way.clone()), "{by}");
    }
}

#[test]
fn replicas_a_member_that_forgot_what_it_acknowledged_is_reported_lost() {
    let mut world = World::serving(&[A, B, C]);
    world.write(A, 1, 1);
    world.settle();
    world.crash(C);
    world.nodes.remove(&C);
    world.add(C);
    // The empty copy comes back under the same id: its disk was swapped.
    world.acked.clear();
    world.step(A, Event::Connected(C));
    world.configure(C);
    world.settle();
    assert!(world.proposals.contains(&(Epoch(1), SetChange::Lost { replica: C })));
}

#[test]
fn attachments_a_token_is_acknowledged_when_older_writes_are_committed() {
    let mut world = World::serving(&[A, B, C]);
    world.write(A, 1, 1);
    world.active.clear();
    world.commit(|r| r.token = Token(2));
    world.configure(A);
    while world.persist_one(A) {}
    assert!(world.active.is_empty(), "a write with the old token is not committed");
    world.settle();
    assert_eq!(world.active.last(), Some(&(A, Epoch(1), Token(2))));
}

#[test]
fn attachments_a_token_raised_during_activation_is_acknowledged() {
    let mut world = World::new(&[A, B, C]);
    world.configure(A);
    assert!(world.serves(A).is_none(), "the others have not answered");
    world.commit(|r| r.token = Token(2));
    world.configure_all();
    world.settle();
    assert_eq!(world.active.last(), Some(&(A, Epoch(1), Token(2))));
}

#[test]
fn attachments_an_older_token_is_fenced_off() {
    let mut world = World::serving(&[A, B, C]);
    world.commit(|r| r.token = Token(2));
    world.configure_all();
    world.settle();
    let write = Action::Write { extent: block(), data: 1 };
    world.request_as(A, 1, 1, Epoch(1), Token(1), write);
    world.request_as(A, 2, 2, Epoch(1), Token(1), Action::Read { extent: block() });
    for id in [1, 2] {
        assert_eq!(world.answer(id), Some(&Answer::Refused(Refused::Fenced)));
    }
}

fn flush_mode() -> World {
    let mut world = World::new(&[A, B, C]);
    world.commit(|r| r.durability = Durability::Flush);
    world.configure_all();
    world.settle();
    world
}

#[test]
fn modes_flush_acknowledges_from_memory_and_flush_makes_durable() {
    let mut world = flush_mode();
    world.write(A, 1, 1);
    world.deliver((A, B), 0);
    world.deliver((A, C), 0);
    world.deliver((B, A), 0);
    world.deliver((C, A), 0);
    let Some(Answer::Done(at)) = world.answer(1).cloned() else { panic!("in every memory") };
    assert!(!world.node(B).disk.has(at), "and on no disk yet");
    world.acked.clear();
    world.request(A, 2, 2, Action::Flush { acked: at });
    assert_eq!(world.answer(2), None);
    world.settle();
    assert!(done(&world, 2) && world.node(B).disk.has(at));
}

#[test]
fn modes_a_flush_after_the_write_was_lost_says_so() {
    let mut world = flush_mode();
    world.write(A, 1, 1);
    for link in [(A, B), (A, C), (B, A), (C, A)] {
        world.deliver(link, 0);
    }
    let Some(Answer::Done(at)) = world.answer(1).cloned() else { panic!("acknowledged") };
    // Power cut: nobody had it on disk. In this mode that is no violation.
    world.acked.clear();
    for id in [A, B, C] {
        world.crash(id);
    }
    for id in [A, B, C] {
        world.restart(id);
    }
    world.commit(|r| r.epoch = r.epoch.next());
    world.configure_all();
    world.run_for(timing().lease * 2);
    assert_eq!(world.serves(A), Some(Epoch(2)));
    world.request(A, 2, 2, Action::Flush { acked: at });
    assert_eq!(world.answer(2), Some(&Answer::Refused(Refused::Lost)));
}

#[test]
fn compare_and_write_is_decided_once_and_in_order() {
    let mut world = World::serving(&[A, B, C]);
    world.run_for(timing().renew);
    world.write(A, 1, 1);
    world.request(A, 2, 2, Action::Compare { extent: block(), expect: 1, data: 2 });
    world.settle();
    world.request(A, 3, 3, Action::Compare { extent: block(), expect: 1, data: 3 });
    world.settle();
    assert!(done(&world, 2));
    assert_eq!(world.answer(3), Some(&Answer::Differs));
    let last = world.replica(A).entries().last().expect("written").change.clone();
    assert_eq!(last, Change::Write { extent: block(), data: 2 });
}
