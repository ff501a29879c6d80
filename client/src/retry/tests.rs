//! The table of the retry core, row by row, and what holds for all its histories.

use tidewater_proto::ids::{SegmentId, VolumeId};

use super::*;

const A: ServerId = ServerId(1);
const B: ServerId = ServerId(2);
const TOKEN: Token = Token(9);

fn route(epoch: u64, primary: ServerId) -> Route {
    let segment = SegmentId { volume: VolumeId(1), index: 0 };
    Route { segment, epoch: Epoch(epoch), primary, servers: vec![A, B] }
}

fn known(epoch: u64) -> Rc<Route> {
    Rc::new(route(epoch, A))
}

fn sent(class: Class) -> Retry {
    let (retry, action) = Retry::new(class, Some(known(4)));
    assert_eq!(action, Action::Send { server: A, epoch: Epoch(4) });
    retry
}

fn failed(kind: Kind, outcome: Outcome) -> Action {
    Action::Finish(End::Failed { kind, outcome })
}

#[test]
fn each_refusal_of_a_first_try_has_its_answer() {
    use Outcome::{NotApplied, Unknown};
    let refresh = Action::RefreshMap { fresh: false };
    for (refusal, action) in [
        (Refusal::WrongEpoch(route(5, B)), Action::Send { server: B, epoch: Epoch(5) }),
        (Refusal::WrongEpoch(route(4, A)), refresh.clone()),
        (Refusal::WrongEpoch(route(3, B)), refresh.clone()),
        (Refusal::NotPrimary, refresh.clone()),
        (Refusal::Failed, refresh),
        (Refusal::Busy, Action::Pause { ms: 2 }),
        (Refusal::BadSum, Action::Pause { ms: 2 }),
        (Refusal::Fenced(TOKEN), Action::CheckToken(TOKEN)),
        (Refusal::Old, failed(Kind::Forgotten, NotApplied)),
        (Refusal::Invalid, failed(Kind::Refused, NotApplied)),
        (Refusal::NoSpace, failed(Kind::NoSpace, NotApplied)),
        (Refusal::Corrupt, failed(Kind::Corrupt, NotApplied)),
        (Refusal::Lost, failed(Kind::Lost, Unknown)),
    ] {
        let step = sent(Class::Write).step(Event::Refused(refusal.clone()), 0);
        assert_eq!(step, action, "{refusal:?}");
    }
}

#[test]
fn a_refused_retry_says_nothing_about_the_first_try() {
    for (refusal, kind) in [(Refusal::Old, Kind::Forgotten), (Refusal::NoSpace, Kind::NoSpace)] {
        let mut retry = sent(Class::Write);
        retry.step(Event::ConnectionLost { sent: true }, 0);
        retry.step(Event::Routed(Rc::new(route(5, B))), 0);
        assert_eq!(retry.step(Event::Refused(refusal), 0), failed(kind, Outcome::Unknown));
    }
    let mut retry = sent(Class::Write);
    retry.step(Event::TryTimedOut, 0);
    retry.step(Event::Routed(Rc::new(route(5, B))), 0);
    assert_eq!(retry.step(Event::Refused(Refusal::Fenced(TOKEN)), 0), Action::CheckToken(TOKEN));
    assert_eq!(retry.step(Event::Detached, 0), failed(Kind::Fenced, Outcome::Unknown));
}

#[test]
fn a_fenced_first_try_was_not_applied_and_a_raised_token_goes_on() {
    let mut retry = sent(Class::Write);
    retry.step(Event::Refused(Refusal::Fenced(TOKEN)), 0);
    assert_eq!(retry.clone().step(Event::Detached, 0), failed(Kind::Fenced, Outcome::NotApplied));
    let again = retry.step(Event::TokenRaised, 0);
    assert_eq!(again, Action::Send { server: A, epoch: Epoch(4) });
}

#[test]
fn without_a_segment_reads_see_a_hole_and_writes_place_it() {
    for class in [Class::Read, Class::Zero] {
        let (mut retry, action) = Retry::new(class, None);
        assert_eq!(action, Action::RefreshMap { fresh: true }, "a stale answer would do harm");
        assert_eq!(retry.step(Event::Absent, 0), Action::Finish(End::Hole));
    }
    let (mut retry, action) = Retry::new(Class::Write, None);
    assert_eq!(action, Action::Place);
    assert_eq!(
        retry.clone().step(Event::Unplaceable, 0),
        failed(Kind::NoSpace, Outcome::NotApplied)
    );
    let send = retry.step(Event::Routed(Rc::new(route(1, B))), 0);
    assert_eq!(send, Action::Send { server: B, epoch: Epoch(1) });
}

#[test]
fn an_absent_answer_about_a_known_segment_is_a_stale_one() {
    let mut retry = sent(Class::Read);
    retry.step(Event::Refused(Refusal::NotPrimary), 0);
    assert_eq!(retry.step(Event::Absent, 0), Action::Pause { ms: 2 });
}

#[test]
fn with_meta_down_every_server_of_the_set_is_asked() {
    let mut retry = sent(Class::Write);
    let mut asked = Vec::new();
    for _ in 0..4 {
        retry.step(Event::ConnectionLost { sent: false }, 0);
        retry.step(Event::MapUnavailable, 0);
        match retry.step(Event::Paused, 0) {
            Action::Send { server, .. } => asked.push(server),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(asked, [B, A, B, A]);
}

#[test]
fn after_some_pauses_without_news_the_leader_is_asked() {
    let mut retry = sent(Class::Write);
    let mut asked = Vec::new();
    for _ in 0..=STALE_MAX {
        match retry.step(Event::ConnectionLost { sent: false }, 0) {
            Action::RefreshMap { fresh } => asked.push(fresh),
            other => panic!("{other:?}"),
        }
        retry.step(Event::Routed(known(4)), 0);
        retry.step(Event::Paused, 0);
    }
    assert_eq!(asked, [false, false, false, true]);
}

#[test]
fn time_over_while_a_write_is_out_leaves_its_outcome_open() {
    let expire = |class| sent(class).step(Event::Expired, 0);
    assert_eq!(expire(Class::Write), failed(Kind::TimedOut, Outcome::Unknown));
    assert_eq!(expire(Class::Read), failed(Kind::TimedOut, Outcome::NotApplied));
    let mut waiting = sent(Class::Write);
    waiting.step(Event::Refused(Refusal::Busy), 0);
    assert_eq!(waiting.step(Event::Expired, 0), failed(Kind::TimedOut, Outcome::NotApplied));
}

#[test]
fn damage_on_the_way_is_tried_again_and_given_up_at_last() {
    let mut retry = sent(Class::Read);
    for _ in 1..DAMAGED_MAX {
        assert!(matches!(retry.step(Event::Damaged, 0), Action::Pause { .. }));
        assert!(matches!(retry.step(Event::Paused, 0), Action::Send { .. }));
    }
    assert_eq!(retry.step(Event::Damaged, 0), failed(Kind::Corrupt, Outcome::NotApplied));
}

#[test]
fn pauses_double_up_to_the_limit() {
    let mut retry = sent(Class::Write);
    let mut longest = Vec::new();
    for _ in 0..8 {
        let Action::Pause { ms } = retry.step(Event::Refused(Refusal::Busy), u64::MAX) else {
            panic!("busy pauses");
        };
        longest.push(ms);
        retry.step(Event::Paused, 0);
    }
    assert!(longest.iter().all(|ms| (PAUSE_MIN_MS / 2..=PAUSE_MAX_MS).contains(ms)), "{longest:?}");
    assert!(longest[0] <= PAUSE_MIN_MS && longest[7] >= PAUSE_MAX_MS / 2, "{longest:?}");
}

/// Events that can answer an action.
fn answers(action: &Action, newest: u64) -> Vec<Event> {
    let mut events = match action {
        Action::Send { .. } => vec![
            Event::Answered,
            Event::Damaged,
            Event::ConnectionLost { sent: true },
            Event::ConnectionLost { sent: false },
            Event::TryTimedOut,
            Event::Refused(Refusal::WrongEpoch(route(newest + 1, B))),
            Event::Refused(Refusal::WrongEpoch(route(newest.saturating_sub(1), B))),
            Event::Refused(Refusal::NotPrimary),
            Event::Refused(Refusal::Busy),
            Event::Refused(Refusal::Fenced(TOKEN)),
            Event::Refused(Refusal::Old),
            Event::Refused(Refusal::Failed),
        ],
        Action::RefreshMap { .. } => vec![
            Event::Routed(Rc::new(route(newest, A))),
            Event::Routed(Rc::new(route(newest + 1, B))),
            Event::Absent,
            Event::MapUnavailable,
        ],
        Action::Place => vec![
            Event::Routed(Rc::new(route(newest + 1, A))),
            Event::MapUnavailable,
            Event::Unplaceable,
            Event::NoVolume,
        ],
        Action::CheckToken(_) => vec![Event::TokenRaised, Event::Detached, Event::MapUnavailable],
        Action::Pause { .. } => vec![Event::Paused],
        Action::Finish(_) => vec![Event::Answered, Event::TryTimedOut, Event::Paused],
    };
    events.push(Event::Expired);
    events
}

struct History {
    class: Class,
    newest: u64,
    /// An event after which no later refusal can mean that nothing happened.
    open: bool,
    /// Sends since the last pause, newer epoch or timeout of a try.
    hurried: u32,
    seen: Vec<Event>,
}

fn walk(retry: &Retry, action: &Action, history: &History, depth: u32, count: &mut u64) {
    *count += 1;
    check(action, history);
    if depth == 0 {
        return;
    }
    for event in answers(action, history.newest) {
        let mut next = retry.clone();
        let then = next.step(event.clone(), 3);
        if matches!(action, Action::Finish(_)) {
            assert_eq!(then, *action, "an end is final");
            continue;
        }
        if event == Event::Answered {
            assert_eq!(then, Action::Finish(End::Answered));
        }
        let mut seen = history.seen.clone();
        seen.push(event.clone());
        let open = history.open
            || matches!(
                event,
                Event::ConnectionLost { sent: true }
                    | Event::TryTimedOut
                    | Event::Refused(Refusal::Failed)
            )
            || (event == Event::Expired && matches!(action, Action::Send { .. }));
        let newest = match &event {
            Event::Routed(r) => history.newest.max(r.epoch.0),
            Event::Refused(Refusal::WrongEpoch(r)) => history.newest.max(r.epoch.0),
            _ => history.newest,
        };
        let calm = newest > history.newest
            || matches!(event, Event::Paused | Event::TryTimedOut | Event::TokenRaised);
        let hurried = if calm { 0 } else { history.hurried };
        let hurried = hurried + u32::from(matches!(then, Action::Send { .. }));
        let history = History { class: history.class, newest, open, hurried, seen };
        walk(&next, &then, &history, depth - 1, count);
    }
}

fn check(action: &Action, history: &History) {
    let seen = &history.seen;
    match action {
        Action::Send { epoch, .. } => {
            assert_eq!(epoch.0, history.newest, "the newest epoch known is carried: {seen:?}");
            assert!(history.hurried <= 1, "sent again without a pause or news: {seen:?}");
        }
        Action::Pause { ms } => assert!(*ms > 0 && *ms <= PAUSE_MAX_MS),
        Action::Finish(End::Failed { outcome, .. }) if history.class == Class::Write => {
            let expected = if history.open { Outcome::Unknown } else { Outcome::NotApplied };
            assert_eq!(*outcome, expected, "{seen:?}");
        }
        Action::RefreshMap { .. }
        | Action::Place
        | Action::CheckToken(_)
        | Action::Finish(End::Failed { .. } | End::Answered | End::Hole) => {}
    }
}

#[test]
fn no_history_spins_or_tells_an_open_outcome_as_not_applied() {
    let mut count = 0;
    for class in [Class::Read, Class::Write, Class::Zero, Class::Flush] {
        for (route, newest) in [(Some(known(4)), 4), (None, 0)] {
            let (retry, action) = Retry::new(class, route);
            let hurried = u32::from(matches!(action, Action::Send { .. }));
            let history = History { class, newest, open: false, hurried, seen: Vec::new() };
            walk(&retry, &action, &history, 7, &mut count);
        }
    }
    println!("retry: {count} states of histories");
    assert!(count > 100_000, "{count}");
}
