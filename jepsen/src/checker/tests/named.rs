//! One small history for each way to be wrong, and for each way to be right that looks wrong.

use std::time::Duration;

use super::super::{Claim, Rank, Undecided, Verdict, durable, fence, judge, linear, progress};
use crate::history::{Event, Kind, Malformed, Op, Process, Stage, Value};

const LONGEST: Duration = Duration::from_nanos(100);

fn event(time: u64, process: u64, kind: Kind, op: Op, value: Value) -> Event {
    let process = Process::Client(process);
    let block = (op != Op::Attach).then_some(1);
    Event { time, process, kind, op, block, span: 1, value, session: None, error: None }
}

/// An operation, from and to.
fn does(process: u64, times: (u64, u64), kind: Kind, op: Op, value: Value) -> [Event; 2] {
    let given = if op == Op::Read { Value::None } else { value.clone() };
    [event(times.0, process, Kind::Invoke, op, given), event(times.1, process, kind, op, value)]
}

fn write(process: u64, times: (u64, u64), value: i64) -> [Event; 2] {
    does(process, times, Kind::Ok, Op::Write, Value::One(value))
}

fn lost_sight_of(process: u64, times: (u64, u64), value: i64) -> [Event; 2] {
    does(process, times, Kind::Info, Op::Write, Value::One(value))
}

fn read(process: u64, times: (u64, u64), value: i64) -> [Event; 2] {
    does(process, times, Kind::Ok, Op::Read, Value::One(value))
}

fn cas(process: u64, times: (u64, u64), from: i64, to: i64) -> [Event; 2] {
    does(process, times, Kind::Ok, Op::Cas, Value::Many(vec![from, to]))
}

fn differs(process: u64, times: (u64, u64), from: i64) -> [Event; 2] {
    let mut events = does(process, times, Kind::Fail, Op::Cas, Value::Many(vec![from, 1000]));
    events[1].error = Some(Event::DIFFERS.to_owned());
    events
}

fn attach(process: u64, times: (u64, u64), token: Option<i64>) -> [Event; 2] {
    let value = token.map_or(Value::None, Value::One);
    let mut events = does(process, times, Kind::Ok, Op::Attach, value);
    events[0].value = Value::None;
    through(process, events)
}

fn through(session: u64, mut events: [Event; 2]) -> [Event; 2] {
    for event in &mut events {
        event.session = Some(session);
    }
    events
}

fn stage(time: u64, stage: Stage) -> Vec<Event> {
    vec![Event::nemesis(time, Op::Stage, stage.name())]
}

fn history(parts: impl IntoIterator<Item = impl Into<Vec<Event>>>) -> Vec<Event> {
    let mut events: Vec<_> = parts.into_iter().flat_map(Into::into).collect();
    events.sort_by_key(|event| event.time);
    events
}

fn is_linear(parts: impl IntoIterator<Item = [Event; 2]>) -> Rank {
    linear(&history(parts)).rank()
}

#[test]
fn an_unknown_write_may_take_effect_late_or_never() {
    let unknown = lost_sight_of(0, (1, 2), 7);
    let rest =
        |last| [unknown.clone(), write(1, (3, 4), 8), read(1, (5, 6), 8), read(1, (7, 8), last)];
    assert_eq!(is_linear(rest(7)), Rank::Valid, "late");
    assert_eq!(is_linear(rest(8)), Rank::Valid, "never");
    assert_eq!(is_linear(rest(9)), Rank::Invalid, "nobody wrote it");
    assert_eq!(is_linear(rest(0)), Rank::Invalid, "it was overwritten");
}

#[test]
fn an_unknown_write_takes_effect_once_and_not_before_it_started() {
    let before = [read(1, (1, 2), 7), lost_sight_of(0, (3, 4), 7)];
    assert_eq!(is_linear(before), Rank::Invalid);
    let twice = [
        lost_sight_of(0, (1, 2), 7),
        read(1, (3, 4), 7),
        write(1, (5, 6), 8),
        read(1, (7, 8), 8),
        read(1, (9, 10), 7),
    ];
    assert_eq!(is_linear(twice), Rank::Invalid);
}

#[test]
fn two_compares_that_expect_the_same_cannot_both_win() {
    let both = [write(0, (1, 2), 5), cas(0, (3, 10), 5, 6), cas(1, (3, 10), 5, 7)];
    assert_eq!(is_linear(both.clone()), Rank::Invalid);
    let [first, second, _] = both;
    let one = [first, second, differs(1, (3, 10), 5)];
    assert_eq!(is_linear(one), Rank::Valid);
}

#[test]
fn a_compare_that_did_not_find_what_was_there_all_the_time_is_wrong() {
    let there = [write(0, (1, 2), 5), differs(1, (3, 4), 5), read(0, (5, 6), 5)];
    assert_eq!(is_linear(there.clone()), Rank::Invalid);
    // A write of unknown outcome that nobody saw may have been there in between, but not afterwards.
    let [first, second, third] = there;
    let unseen = lost_sight_of(2, (1, 2), 9);
    assert_eq!(is_linear([first.clone(), second.clone(), unseen.clone()]), Rank::Valid);
    assert_eq!(is_linear([first, second, third, unseen]), Rank::Invalid);
}

#[test]
fn a_violation_comes_with_little_more_than_what_shows_it() {
    let mut parts = Vec::new();
    for (at, value) in (1..200_u64).zip(1..) {
        parts.push(write(at % 3, (at * 10, at * 10 + 1), value));
        parts.push(read(4, (at * 10 + 2, at * 10 + 3), value));
    }
    parts.push(read(5, (1500, 1501), 20));
    let Verdict::Invalid(found) = linear(&history(parts)) else { panic!("a stale read") };
    assert_eq!(found.len(), 1);
    let text = found[0].to_string();
    assert_eq!(found[0].witness.len(), 3, "{text}");
    assert!(text.contains("write 20") && text.contains("read 20"), "{text}");
}

#[test]
fn an_acknowledged_write_that_is_gone_is_named() {
    let events = |last| {
        history([
            write(0, (1, 2), 7).to_vec(),
            write(0, (3, 4), 8).to_vec(),
            stage(5, Stage::Final),
            read(1, (6, 7), last).to_vec(),
        ])
    };
    assert_eq!(durable(&events(8)), Verdict::Valid);
    let Verdict::Invalid(found) = durable(&events(7)) else { panic!("8 is lost") };
    assert_eq!(found[0].claim, Claim::LostWrite);
    assert!(found[0].witness.iter().any(|op| op.sets() == Some(8)));
}

#[test]
fn a_write_at_the_same_time_or_of_unknown_outcome_may_come_last() {
    for other in [write(0, (1, 9), 7), lost_sight_of(0, (1, 2), 7)] {
        let events = history([
            other.to_vec(),
            write(1, (3, 4), 8).to_vec(),
            stage(10, Stage::Final),
            read(1, (11, 12), 7).to_vec(),
        ]);
        assert_eq!(durable(&events), Verdict::Valid);
    }
}

#[test]
fn without_final_reads_nothing_is_known_of_durability() {
    let events = history([write(0, (1, 2), 7)]);
    assert_eq!(durable(&events), Verdict::Unknown(Undecided::NoFinalReads));
    let events = history([write(0, (1, 2), 7).to_vec(), stage(3, Stage::Final)]);
    assert_eq!(durable(&events), Verdict::Unknown(Undecided::NotRead { block: 1 }));
}

/// Two attachments, the second ready at 20; a write through the first; then what the second reads.
fn take_over(late: [Event; 2], reads: [i64; 2]) -> Verdict {
    fence(&history([
        attach(0, (1, 2), None),
        through(0, late),
        attach(1, (10, 20), None),
        through(1, read(1, (21, 22), reads[0])),
        through(1, read(1, (23, 24), reads[1])),
    ]))
}

#[test]
fn nothing_lands_through_an_attachment_that_was_fenced_off() {
    let seen_late = |verdict| match verdict {
        Verdict::Invalid(found) => found.iter().all(|found| found.claim == Claim::WriteAfterFence),
        Verdict::Valid | Verdict::Unknown(_) => false,
    };
    // Under way at the take-over: before it, or never.
    for late in [write(0, (5, 30), 7), lost_sight_of(0, (5, 30), 7)] {
        assert_eq!(take_over(late.clone(), [7, 7]), Verdict::Valid);
        assert!(seen_late(take_over(late, [0, 7])), "it landed between two reads of the new one");
    }
    assert_eq!(take_over(lost_sight_of(0, (5, 30), 7), [0, 0]), Verdict::Valid);
    // Started after the take-over.
    assert!(seen_late(take_over(write(0, (25, 30), 7), [0, 0])), "acknowledged");
    assert!(!seen_late(take_over(lost_sight_of(0, (21, 30), 7), [0, 0])), "unknown, unseen");
    assert!(seen_late(take_over(lost_sight_of(0, (21, 22), 7), [0, 7])), "seen");
    // All of this is linearizable: only the fence forbids it.
    let late = history([write(0, (5, 30), 7), read(1, (21, 22), 0), read(1, (23, 24), 7)]);
    assert_eq!(linear(&late), Verdict::Valid);
}

#[test]
fn tokens_order_attachments_that_were_made_at_the_same_time() {
    let at_once = |tokens: [Option<i64>; 2]| {
        fence(&history([
            attach(0, (1, 20), tokens[0]),
            attach(1, (1, 10), tokens[1]),
            through(0, write(0, (25, 30), 7)),
            through(1, read(1, (31, 32), 7)),
        ]))
    };
    assert_eq!(at_once([Some(2), Some(1)]), Verdict::Valid, "the writer is the newer one");
    assert_eq!(at_once([Some(1), Some(2)]).rank(), Rank::Invalid, "the writer is the older one");
    assert_eq!(at_once([None, None]), Verdict::Unknown(Undecided::Nothing), "nobody knows");
}

#[test]
fn what_hangs_is_stuck() {
    let ended = [stage(300, Stage::Healed), stage(301, Stage::Healthy), stage(302, Stage::Final)];
    let with = |part: Vec<Event>| history(ended.iter().cloned().chain([part]));
    let in_time = with(write(0, (1, 90), 7).to_vec());
    assert_eq!(progress(&in_time, LONGEST), Verdict::Valid);
    for hangs in [write(0, (1, 102), 7).to_vec(), write(0, (1, 2), 7)[..1].to_vec()] {
        let Verdict::Invalid(found) = progress(&with(hangs), LONGEST) else { panic!("it hangs") };
        assert_eq!(found[0].claim, Claim::Stuck);
    }
}

#[test]
fn what_fails_on_a_whole_cluster_is_stuck() {
    let run = |kind| {
        let read = does(0, (20, 21), kind, Op::Read, Value::One(0));
        let parts = [Stage::Healed, Stage::Healthy, Stage::Final].map(|at| stage(10, at));
        progress(&history(parts.into_iter().chain([read.to_vec()])), LONGEST).rank()
    };
    assert_eq!(run(Kind::Ok), Rank::Valid);
    assert_eq!(run(Kind::Fail), Rank::Invalid);
    assert_eq!(run(Kind::Info), Rank::Invalid);
}

#[test]
fn a_cluster_that_does_not_heal_is_stuck_and_a_run_that_broke_off_is_unknown() {
    let run = |stages: &[Stage]| {
        let parts = stages.iter().map(|at| stage(10, *at)).chain([write(0, (1, 2), 7).to_vec()]);
        progress(&history(parts), LONGEST)
    };
    assert_eq!(run(&[]), Verdict::Unknown(Undecided::NoFinalReads));
    let Verdict::Invalid(found) = run(&[Stage::Healed]) else { panic!("not healed") };
    assert_eq!(found[0].claim, Claim::NotHealed);
    assert_eq!(run(&[Stage::Healed, Stage::Healthy, Stage::Final]), Verdict::Valid);
}

#[test]
fn what_is_no_history_is_never_valid() {
    let twice = history([write(0, (1, 2), 7), write(0, (3, 4), 7), read(0, (5, 6), 7)]);
    assert_eq!(linear(&twice), Verdict::Unknown(Malformed::WrittenTwice(7).into()));
    let empty: &[Event] = &[];
    for (name, verdict) in judge(empty, LONGEST) {
        assert_eq!(verdict.rank(), Rank::Unknown, "{name}");
    }
}
