//! The formats are pinned by bytes; what is no history is told apart.

use std::io::BufReader;

use super::{
    Kind::{Info, Invoke, Ok},
    *,
};

const GOLDEN_JSON: &str = include_str!("golden.jsonl");
const GOLDEN_EDN: &str = include_str!("golden.edn");
const GOLDEN_BLOCK_EDN: &str = include_str!("golden-block-7.edn");

fn event(time: u64, process: u64, kind: Kind, op: Op, block: u64, value: Value) -> Event {
    let process = Process::Client(process);
    Event {
        time,
        process,
        kind,
        op,
        block: Some(block),
        span: 1,
        value,
        session: None,
        error: None,
    }
}

/// One of each kind of line.
fn example() -> Vec<Event> {
    let long = |kind, time, value| Event { span: 2, ..event(time, 2, kind, Op::Read, 7, value) };
    vec![
        Event {
            block: None,
            value: Value::None,
            session: Some(4),
            ..event(0, 0, Kind::Invoke, Op::Attach, 0, Value::None)
        },
        Event {
            block: None,
            session: Some(4),
            ..event(5, 0, Kind::Ok, Op::Attach, 0, Value::One(12))
        },
        event(10, 0, Kind::Invoke, Op::Write, 7, Value::One(1)),
        long(Kind::Invoke, 11, Value::None),
        event(12, 1, Kind::Invoke, Op::Cas, 7, Value::Many(vec![1, 16_777_217])),
        Event::nemesis(13, Op::Fault, "kill chunkserver-1"),
        event(20, 0, Kind::Ok, Op::Write, 7, Value::One(1)),
        long(Kind::Ok, 21, Value::Many(vec![1, 0])),
        Event {
            error: Some("no answer in time at 28672+4096 (\"may have been applied\")".to_owned()),
            ..event(30, 1, Kind::Info, Op::Cas, 7, Value::Many(vec![1, 16_777_217]))
        },
        event(31, 3, Kind::Invoke, Op::Cas, 7, Value::Many(vec![5, 6])),
        Event {
            error: Some(Event::DIFFERS.to_owned()),
            session: Some(4),
            ..event(32, 3, Kind::Fail, Op::Cas, 7, Value::Many(vec![5, 6]))
        },
        Event::nemesis(33, Op::Heal, "restart chunkserver-1"),
        Event::nemesis(34, Op::Stage, Stage::Healed.name()),
    ]
}

#[test]
fn the_lines_of_a_history_are_pinned() {
    let mut written = Vec::new();
    for event in example() {
        write_json(&mut written, &event).expect("a vector");
    }
    assert_eq!(String::from_utf8(written).expect("UTF-8"), GOLDEN_JSON);
    let back = read_json(BufReader::new(GOLDEN_JSON.as_bytes())).expect("readable");
    assert_eq!(back, example());
}

#[test]
fn the_edn_of_a_history_is_pinned() {
    let edn = |block| {
        let mut written = Vec::new();
        write_edn(&mut written, &example(), block).expect("a vector");
        String::from_utf8(written).expect("UTF-8")
    };
    assert_eq!(edn(None), GOLDEN_EDN);
    assert_eq!(edn(Some(7)), GOLDEN_BLOCK_EDN);
}

#[test]
fn a_line_that_is_no_event_is_named() {
    for (text, line) in [
        ("{}\n", 1),
        ("\n", 1),
        ("{\"time\":1,\"process\":0,\"type\":\"ok\",\"op\":\"read\",\"colour\":1}\n", 1),
        (&format!("{}x\n", GOLDEN_JSON.lines().next().expect("a line")), 1),
    ] {
        let error = read_json(text.as_bytes()).expect_err(text);
        assert!(matches!(error, ReadError::Line { line: at, .. } if at == line), "{error}");
    }
}

#[test]
fn operations_are_paired_register_by_register() {
    let registers = registers(&example()).expect("a history");
    let seven: Vec<_> = registers[&7].iter().map(|op| (op.action, op.done, op.end)).collect();
    let want = [
        (Action::Write(1), true, 20),
        (Action::Read(1), true, 21),
        (Action::Cas { from: 1, to: 16_777_217 }, false, u64::MAX),
        (Action::Differs { from: 5 }, true, 32),
    ];
    assert_eq!(seven, want);
    assert_eq!(registers[&8].iter().map(|op| op.action).collect::<Vec<_>>(), [Action::Read(0)]);
}

#[test]
fn what_breaks_the_rules_of_a_history_is_told() {
    let write =
        |time, process, kind, value| event(time, process, kind, Op::Write, 1, Value::One(value));
    for (events, wrong) in [
        (vec![write(2, 0, Invoke, 1), write(1, 0, Ok, 1)], Malformed::TimeGoesBack(1)),
        (vec![write(1, 0, Invoke, 1), write(2, 0, Invoke, 2)], Malformed::NotFree(1)),
        (
            vec![write(1, 0, Invoke, 1), write(2, 0, Info, 1), write(3, 0, Invoke, 2)],
            Malformed::NotFree(2),
        ),
        (vec![write(1, 0, Ok, 1)], Malformed::NotStarted(0)),
        (
            vec![write(1, 0, Invoke, 1), event(2, 0, Ok, Op::Read, 1, Value::One(1))],
            Malformed::NotStarted(1),
        ),
        (
            vec![
                event(1, 0, Invoke, Op::Read, 1, Value::None),
                event(2, 0, Ok, Op::Read, 1, Value::None),
            ],
            Malformed::BadValue(0),
        ),
    ] {
        assert_eq!(registers(&events), Err(wrong));
    }
}
