//! The operations that events make up, register by register.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use super::{Event, Kind, Op, Process, Stage, Value};

/// A register's value, unique to the write that set it.
pub type RegisterValue = i64;

/// Value of a register that was never written.
pub const UNWRITTEN: RegisterValue = 0;

/// What an operation did to a register, or saw of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// It held this.
    Read(RegisterValue),
    /// It was set to this.
    Write(RegisterValue),
    /// It held `from` and was set to `to`.
    Cas {
        /// Before.
        from: RegisterValue,
        /// After.
        to: RegisterValue,
    },
    /// It held anything but this.
    Differs {
        /// What was expected.
        from: RegisterValue,
    },
}

/// An operation on one register that took effect, or may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Who.
    pub process: u64,
    /// The attachment it went through.
    pub session: Option<u64>,
    /// When it started, nanoseconds; it took effect after that.
    pub call: u64,
    /// When it ended; it took effect before that. `u64::MAX` where that is unknown.
    pub end: u64,
    /// Whether it is known to have taken effect.
    pub done: bool,
    /// What.
    pub action: Action,
}

impl Operation {
    /// The value that it set, if any.
    pub fn sets(&self) -> Option<RegisterValue> {
        match self.action {
            Action::Write(value) | Action::Cas { to: value, .. } => Some(value),
            Action::Read(_) | Action::Differs { .. } => None,
        }
    }

    /// The value that it saw, if it took effect.
    pub fn saw(&self) -> Option<RegisterValue> {
        match self.action {
            Action::Read(value) | Action::Cas { from: value, .. } => Some(value),
            Action::Write(_) | Action::Differs { .. } => None,
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |ns: u64| format!("{:.3}", ns as f64 / 1e6);
        let end = if self.end == u64::MAX { "?".to_owned() } else { ms(self.end) };
        write!(f, "{:>12} .. {end:>12} ms  process {:<5} ", ms(self.call), self.process)?;
        match self.action {
            Action::Read(value) => write!(f, "read {value}"),
            Action::Write(value) => write!(f, "write {value}"),
            Action::Cas { from, to } => write!(f, "cas {from} -> {to}"),
            Action::Differs { from } => write!(f, "cas that did not find {from}"),
        }?;
        if self.done { Ok(()) } else { f.write_str("  (outcome unknown)") }
    }
}

/// Why a list of events is no history. The harness is at fault, not what it tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// An event is earlier than the one before it.
    #[error("event {0}: time goes back")]
    TimeGoesBack(usize),
    /// A process starts an operation before it ended the last, or after one of unknown outcome.
    #[error("event {0}: its process is not free")]
    NotFree(usize),
    /// An operation ends that did not start, or not as the one that started.
    #[error("event {0}: ends what did not start")]
    NotStarted(usize),
    /// The value does not fit the operation.
    #[error("event {0}: the value does not fit the operation")]
    BadValue(usize),
    /// Two operations set the same register to the same value.
    #[error("value {0} was written twice")]
    WrittenTwice(RegisterValue),
}

/// An event that starts an operation, with the one that ends it.
struct Call<'a> {
    at: usize,
    begin: &'a Event,
    end: Option<&'a Event>,
}

fn calls(events: &[Event]) -> Result<Vec<Call<'_>>, Malformed> {
    let mut open: BTreeMap<u64, usize> = BTreeMap::new();
    let mut retired = BTreeSet::new();
    let mut calls: Vec<Call<'_>> = Vec::new();
    let mut last = 0;
    for (at, event) in events.iter().enumerate() {
        if event.time < last {
            return Err(Malformed::TimeGoesBack(at));
        }
        last = event.time;
        let Process::Client(process) = event.process else { continue };
        if event.kind == Kind::Invoke {
            if open.contains_key(&process) || retired.contains(&process) {
                return Err(Malformed::NotFree(at));
            }
            open.insert(process, calls.len());
            calls.push(Call { at, begin: event, end: None });
            continue;
        }
        let call = open.remove(&process).ok_or(Malformed::NotStarted(at))?;
        let begin = calls[call].begin;
        if (begin.op, begin.block, begin.span) != (event.op, event.block, event.span) {
            return Err(Malformed::NotStarted(at));
        }
        calls[call].end = Some(event);
        if event.kind == Kind::Info {
            retired.insert(process);
        }
    }
    Ok(calls)
}

/// The operations on each register. What did not happen is left out, and so are reads that found
/// nothing out.
///
/// # Errors
///
/// [`Malformed`].
pub fn registers(events: &[Event]) -> Result<BTreeMap<u64, Vec<Operation>>, Malformed> {
    let mut registers: BTreeMap<u64, Vec<Operation>> = BTreeMap::new();
    for call in calls(events)? {
        let (Process::Client(process), Some(first)) = (call.begin.process, call.begin.block) else {
            continue;
        };
        for at in 0..call.begin.span {
            if let Some((action, done)) = action(&call, at as usize)? {
                let end = call.end.filter(|_| done).map_or(u64::MAX, |end| end.time);
                let session = call.begin.session;
                let begin = call.begin.time;
                let operation = Operation { process, session, call: begin, end, done, action };
                registers.entry(first + u64::from(at)).or_default().push(operation);
            }
        }
    }
    Ok(registers)
}

/// What a call did to its `at`-th register, and whether that is certain.
fn action(call: &Call<'_>, at: usize) -> Result<Option<(Action, bool)>, Malformed> {
    let bad = Malformed::BadValue(call.at);
    let end = call.end.map_or(Kind::Info, |end| end.kind);
    match (call.begin.op, end) {
        (Op::Read, Kind::Ok) => {
            let found = match call.end.map(|end| &end.value) {
                Some(Value::One(value)) if call.begin.span == 1 => Some(*value),
                Some(Value::Many(each)) => each.get(at).copied(),
                Some(_) | None => None,
            };
            Ok(Some((Action::Read(found.ok_or(bad)?), true)))
        }
        (Op::Write, Kind::Ok | Kind::Info) => match call.begin.value {
            Value::One(value) => Ok(Some((Action::Write(value), end == Kind::Ok))),
            Value::None | Value::Many(_) | Value::Text(_) => Err(bad),
        },
        (Op::Cas, _) => {
            let Value::Many(pair) = &call.begin.value else { return Err(bad) };
            let &[from, to] = pair.as_slice() else { return Err(bad) };
            let error = call.end.and_then(|end| end.error.as_deref());
            Ok(match end {
                Kind::Fail if error == Some(Event::DIFFERS) => {
                    Some((Action::Differs { from }, true))
                }
                Kind::Fail | Kind::Invoke => None,
                Kind::Ok | Kind::Info => Some((Action::Cas { from, to }, end == Kind::Ok)),
            })
        }
        (Op::Read | Op::Write, _) => Ok(None),
        (Op::Attach | Op::Fault | Op::Heal | Op::Stage, _) => Err(bad),
    }
}

/// What the reads after the mark [`Stage::Final`] found in each register, the last of each; none
/// where the run did not get there.
///
/// # Errors
///
/// [`Malformed`].
pub fn final_reads(events: &[Event]) -> Result<Option<BTreeMap<u64, Operation>>, Malformed> {
    let Some(mark) = events.iter().find(|event| event.begins(Stage::Final)) else {
        return Ok(None);
    };
    let mut last = BTreeMap::new();
    for (register, operations) in registers(events)? {
        let is_final =
            |op: &&Operation| op.call >= mark.time && matches!(op.action, Action::Read(_));
        if let Some(read) = operations.iter().rfind(is_final) {
            last.insert(register, *read);
        }
    }
    Ok(Some(last))
}
