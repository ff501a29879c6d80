//! After an exclusive attach has returned, nothing of an older attachment takes effect.
//!
//! Each attachment is fenced off when the first newer one is ready. Newer is: with a higher token where
//! both are known, else begun after the older one was ready. Writes through it that started later must
//! not be acknowledged; those that had started took effect before that time, or never. So the check is
//! the one for linearizability, of a history in which every such write ends with the fence.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;

use super::{Claim, Undecided, Verdict, Violation, linear};
use crate::history::{Event, Kind, Malformed, Op, Operation, Process, Value, registers};

/// An attachment.
struct Attach {
    call: u64,
    end: u64,
    token: Option<i64>,
}

impl Attach {
    fn is_newer_than(&self, other: &Self) -> bool {
        match (self.token, other.token) {
            (Some(own), Some(other)) => own > other,
            (Some(_), None) | (None, Some(_) | None) => self.call > other.end,
        }
    }
}

/// Judges the writes of every attachment that a newer one fenced off.
pub fn fence(events: &[Event]) -> Verdict {
    match judge(events) {
        Ok(verdict) => verdict,
        Err(malformed) => malformed.into(),
    }
}

fn judge(events: &[Event]) -> Result<Verdict, Malformed> {
    let fences = fences(events)?;
    if fences.is_empty() {
        return Ok(Verdict::Unknown(Undecided::Nothing));
    }
    let (mut late, mut clamped) = (Vec::new(), BTreeMap::new());
    for (block, operations) in registers(events)? {
        let mut kept = Vec::with_capacity(operations.len());
        for operation in operations {
            let fence = operation.session.and_then(|session| fences.get(&session)).copied();
            match fence.filter(|_| operation.sets().is_some()) {
                Some(fence) if operation.call > fence && operation.done => {
                    let witness = vec![operation];
                    late.push(Violation {
                        claim: Claim::WriteAfterFence,
                        block: Some(block),
                        witness,
                    });
                    kept.push(operation);
                }
                // Whoever sees its value has seen what nobody wrote.
                Some(fence) if operation.call > fence => {}
                Some(fence) if operation.done => {
                    kept.push(Operation { end: operation.end.min(fence), ..operation });
                }
                Some(fence) => kept.push(Operation { end: fence, ..operation }),
                None => kept.push(operation),
            }
        }
        clamped.insert(block, kept);
    }
    if !late.is_empty() {
        return Ok(Verdict::Invalid(late));
    }
    Ok(linear::judge(&clamped, Claim::WriteAfterFence))
}

/// When each attachment was fenced off.
fn fences(events: &[Event]) -> Result<BTreeMap<u64, u64>, Malformed> {
    let attaches = attaches(events)?;
    let mut fences = BTreeMap::new();
    for (session, older) in &attaches {
        let newer = attaches.values().filter(|attach| attach.is_newer_than(older));
        if let Some(fence) = newer.map(|attach| attach.end).min() {
            fences.insert(*session, fence.max(older.end));
        }
    }
    Ok(fences)
}

/// The attachments that became ready, by session.
fn attaches(events: &[Event]) -> Result<BTreeMap<u64, Attach>, Malformed> {
    let mut begun: BTreeMap<u64, u64> = BTreeMap::new();
    let mut ready = BTreeMap::new();
    for (at, event) in events.iter().enumerate().filter(|(_, event)| event.op == Op::Attach) {
        let Process::Client(process) = event.process else {
            return Err(Malformed::BadValue(at));
        };
        if event.kind == Kind::Invoke {
            begun.insert(process, event.time);
            continue;
        }
        let call = begun.remove(&process).ok_or(Malformed::NotStarted(at))?;
        if event.kind == Kind::Ok {
            let session = event.session.ok_or(Malformed::BadValue(at))?;
            let token = match event.value {
                Value::One(token) => Some(token),
                Value::None => None,
                Value::Many(_) | Value::Text(_) => return Err(Malformed::BadValue(at)),
            };
            ready.insert(session, Attach { call, end: event.time, token });
        }
    }
    Ok(ready)
}
