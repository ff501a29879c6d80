//! What faults did to operations, read from the history.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;

use crate::history::{Event, Kind, Op, Process, Value};

/// An operation that takes this many times the median felt something.
const SLOW_TIMES: u64 = 8;
/// And no less than this, nanoseconds.
const SLOW_NS_MIN: u64 = 50_000_000;

/// A fault as the clients felt it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bite {
    /// What the nemesis said when it began.
    pub fault: String,
    /// What it said in the end.
    pub end: String,
    /// Nanoseconds since the run began.
    pub from: u64,
    /// The same, when it was taken back.
    pub until: u64,
    /// Operations that were under way when it began.
    pub in_flight: usize,
    /// Operations that overlap it and were slow, or whose outcome is not `ok`.
    pub hurt: usize,
    /// The longest operation that overlaps it, nanoseconds.
    pub longest: u64,
    /// The longest time without any operation completing, from its begin on, nanoseconds.
    pub gap: u64,
    /// A meta node was elected meanwhile.
    pub elected: bool,
}

impl Bite {
    /// Whether it showed: operations were under way and some were hurt, or a leader was elected.
    pub fn bit(&self) -> bool {
        self.in_flight > 0 && (self.hurt > 0 || self.elected)
    }
}

/// A client's operation in time.
struct Span {
    from: u64,
    until: u64,
    good: bool,
}

/// All faults of a history.
pub fn bites(events: &[Event]) -> Vec<Bite> {
    let spans = spans(events);
    let slow = slow_ns(&spans);
    let text = |event: &Event| match &event.value {
        Value::Text(text) => text.clone(),
        Value::None | Value::One(_) | Value::Many(_) => String::new(),
    };
    let last = events.last().map_or(0, |event| event.time);
    let mut begun: Option<&Event> = None;
    let mut bites = Vec::new();
    for event in events {
        match event.op {
            Op::Fault => begun = Some(event),
            Op::Heal | Op::Stage => {
                if let Some(fault) = begun.take() {
                    bites.push(bite(
                        &spans,
                        slow,
                        text(fault),
                        text(event),
                        fault.time,
                        event.time,
                    ));
                }
            }
            Op::Read | Op::Write | Op::Cas | Op::Attach => {}
        }
    }
    if let Some(fault) = begun {
        bites.push(bite(&spans, slow, text(fault), String::new(), fault.time, last));
    }
    bites
}

fn bite(spans: &[Span], slow: u64, fault: String, end: String, from: u64, until: u64) -> Bite {
    let in_flight = spans.iter().filter(|span| span.from <= from && span.until > from).count();
    let overlaps = || spans.iter().filter(|span| span.from < until && span.until > from);
    let hurt = |span: &&Span| !span.good || span.until - span.from > slow;
    let mut ends: Vec<_> = spans.iter().filter(|s| s.good).map(|span| span.until).collect();
    ends.sort_unstable();
    let after = ends.iter().copied().filter(|end| *end > from);
    let (mut before, mut gap) = (from, 0);
    for end in after {
        gap = gap.max(end - before);
        if end > until {
            break;
        }
        before = end;
    }
    Bite {
        elected: end.contains("meta term"),
        hurt: overlaps().filter(hurt).count(),
        longest: overlaps().map(|span| span.until - span.from).max().unwrap_or(0),
        fault,
        end,
        from,
        until,
        in_flight,
        gap,
    }
}

fn slow_ns(spans: &[Span]) -> u64 {
    let mut times: Vec<_> = spans.iter().filter(|s| s.good).map(|s| s.until - s.from).collect();
    times.sort_unstable();
    let median = times.get(times.len() / 2).copied().unwrap_or(0);
    (median * SLOW_TIMES).max(SLOW_NS_MIN)
}

fn spans(events: &[Event]) -> Vec<Span> {
    let mut open: BTreeMap<u64, u64> = BTreeMap::new();
    let mut spans = Vec::new();
    for event in events.iter().filter(|event| event.op != Op::Attach) {
        let Process::Client(process) = event.process else { continue };
        if event.kind == Kind::Invoke {
            open.insert(process, event.time);
        } else if let Some(from) = open.remove(&process) {
            let differs = event.error.as_deref() == Some(Event::DIFFERS);
            let good = event.kind == Kind::Ok || differs;
            spans.push(Span { from, until: event.time, good });
        }
    }
    spans
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(process: u64, from: u64, until: u64) -> [Event; 2] {
        let event = |time, kind, value| Event {
            time,
            process: Process::Client(process),
            kind,
            op: Op::Read,
            block: Some(0),
            span: 1,
            value,
            session: None,
            error: None,
        };
        [event(from, Kind::Invoke, Value::None), event(until, Kind::Ok, Value::One(0))]
    }

    fn bites_of(mut events: Vec<Event>, end: &str) -> Vec<Bite> {
        const MS: u64 = 1_000_000;
        for event in &mut events {
            event.time *= MS;
        }
        events.push(Event::nemesis(100 * MS, Op::Fault, "kill"));
        events.push(Event::nemesis(300 * MS, Op::Heal, end));
        events.sort_by_key(|event| event.time);
        bites(&events)
    }

    #[test]
    fn a_fault_bites_where_operations_in_flight_are_slowed() {
        let quick = [read(0, 90, 91), read(0, 95, 101), read(0, 110, 111)].concat();
        let unfelt = bites_of(quick.clone(), "");
        assert_eq!((unfelt.len(), unfelt[0].in_flight, unfelt[0].hurt), (1, 1, 0));
        assert!(!unfelt[0].bit());
        assert!(bites_of(quick.clone(), "; meta term 1 -> 2")[0].bit());
        let felt = bites_of([quick, read(1, 99, 290).to_vec()].concat(), "");
        assert!(felt[0].bit());
        assert_eq!((felt[0].in_flight, felt[0].hurt), (2, 1));
        assert_eq!((felt[0].longest, felt[0].gap), (191_000_000, 179_000_000));
    }

    #[test]
    fn a_fault_with_nothing_under_way_does_not_bite() {
        assert!(!bites_of(read(0, 10, 20).to_vec(), "; meta term 1 -> 2")[0].bit());
    }
}
