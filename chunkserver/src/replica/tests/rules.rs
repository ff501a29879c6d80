//! One test for each rule of docs/protocol.md; each fails when its rule is taken out.

use std::time::Duration;

use tidewater_proto::{
    entry::Change,
    ids::{Epoch, Sequence, Token},
    peer::{Action, ToPrimary},
    record::{Durability, SetChange},
};

use super::world::{A, Answer, B, C, D, Refused, World, block, timing};
use crate::replica::{Event, Role};

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
    // C alone gets a write of A, which then falls silent.
    world.write(A, 1, 1);
    world.deliver((A, C), 0);
    while world.persist_one(C) {}
    world.crash(A);
    world.change_primary(B, true);
    world.configure_all();
    world.run_for(timing().lease * 2);
    assert_eq!(world.serves(B), Some(Epoch(2)));
    // C's tail was the longest, so it was kept and committed under B.
    let kept = |id| world.replica(id).entries().any(|e| e.op.is_some_and(|op| op.number == 1));
    assert!(kept(B) && kept(C));
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
    let mut world = World::serving(&[A, B, C]);
    world.run_for(timing().renew);
    // Nothing reaches A any more; its leases run out.
    world.now = world.now.after(timing().lease);
    world.request(A, 1, 1, Action::Read { extent: block() });
    assert_eq!(world.answer(1), None);
}

#[test]
fn rule_6_the_holder_deducts_the_drift_of_clocks() {
    let mut world = World::serving(&[A, B, C]);
    world.advance(timing().renew);
    world.settle();
    world.now = world.now.after(timing().lease * 96 / 100);
    world.request(A, 1, 1, Action::Read { extent: block() });
    assert_eq!(world.answer(1), None, "a granter with a fast clock may have let go");
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
    world.write(A, 1, 1);
    world.settle();
    let mut entry = world.replica(A).entries().last().expect("written").clone();
    entry.lowest_open = 9;
    let mut table = World::table(world.applied_of(A));
    table.take(&entry);
    let old = tidewater_proto::ids::OpId { number: 8, ..entry.op.expect("a client's") };
    assert_eq!(table.seen(old), crate::replica::applied::Seen::Forgotten);
}

#[test]
fn rule_10_a_wrong_epoch_is_answered_with_the_way() {
    let mut world = World::serving(&[A, B, C]);
    world.change_primary(B, false);
    world.configure_all();
    world.settle();
    let token = world.record().token;
    let write = Action::Write { extent: block(), data: 1 };
    world.request_as(A, 1, 1, Epoch(1), token, write);
    assert_eq!(world.answer(1), Some(&Answer::Refused(Refused::WrongEpoch)));
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
