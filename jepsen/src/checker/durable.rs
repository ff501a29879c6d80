//! The final reads find every acknowledged write, or one that may have come after it.
//!
//! Linearizability says so too, where the search can decide; this looks at acknowledgements alone, and
//! names the writes that are lost.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use super::{Claim, Undecided, Verdict, Violation, settle::writers};
use crate::history::{Event, Malformed, Operation, UNWRITTEN, final_reads, registers};

/// Judges the final read of every register to which a write was acknowledged.
pub fn durable(events: &[Event]) -> Verdict {
    match judge(events) {
        Ok(verdict) => verdict,
        Err(malformed) => malformed.into(),
    }
}

fn judge(events: &[Event]) -> Result<Verdict, Malformed> {
    let Some(reads) = final_reads(events)? else {
        return Ok(Verdict::Unknown(Undecided::NoFinalReads));
    };
    let (mut found, mut unread, mut judged) = (Vec::new(), None, false);
    for (block, operations) in registers(events)? {
        let is_acknowledged = |op: &&Operation| op.done && op.sets().is_some();
        let acknowledged: Vec<_> = operations.iter().filter(is_acknowledged).collect();
        let Some(read) = reads.get(&block) else {
            if !acknowledged.is_empty() {
                unread = Some(Undecided::NotRead { block });
            }
            continue;
        };
        judged = true;
        let value = read.saw().unwrap_or(UNWRITTEN);
        let writer = writers(&operations)?.get(&value).map(|&at| operations[at]);
        if writer.is_none() && value != UNWRITTEN {
            let witness = vec![*read];
            found.push(Violation { claim: Claim::Invented, block: Some(block), witness });
            continue;
        }
        // The register held `value` last. A write that started after that was surely set is lost; one
        // of unknown outcome may have come at any time.
        let set_by = writer.map_or(0, |write| write.end);
        let lost = acknowledged.into_iter().filter(|op| op.call > set_by && op.end < read.call);
        let mut witness: Vec<_> = writer.into_iter().collect();
        witness.extend(lost.copied());
        if witness.len() > usize::from(writer.is_some()) {
            witness.push(*read);
            found.push(Violation { claim: Claim::LostWrite, block: Some(block), witness });
        }
    }
    Ok(match unread {
        Some(why) if found.is_empty() => Verdict::Unknown(why),
        None if !judged => Verdict::Unknown(Undecided::NoFinalReads),
        Some(_) | None => Verdict::of(found),
    })
}
