//! A history judged. Pure: events in, verdicts out.
//!
//! | checker | claim of `docs/invariants.md` |
//! | --- | --- |
//! | [`linear`] | INV-LIN: each register is linearizable |
//! | [`durable`] | INV-ACK: the final reads find every acknowledged write, or a later one |
//! | [`fence`] | INV-FENCE: nothing lands through an attachment after a newer one was ready |
//! | [`progress`] | nothing is stuck: operations end, and the cluster heals |
//!
//! What is not known is never taken for good: a history that is no history, a search that was given
//! up or a run that did not get to its final reads is [`Verdict::Unknown`].

mod durable;
mod fence;
mod linear;
mod progress;
mod search;
mod settle;
mod shrink;
#[cfg(test)]
mod tests;

use std::{fmt, time::Duration};

pub use durable::durable;
pub use fence::fence;
pub use linear::linear;
pub use progress::progress;

use crate::history::{Event, Kind, Malformed, Op, Operation};

/// What a checker says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The claim holds in this history.
    Valid,
    /// It does not; with everything found.
    Invalid(Vec<Violation>),
    /// It is not known whether it does.
    Unknown(Undecided),
}

/// Why there is no verdict.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Undecided {
    /// The events are no history.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// Too many orders of the operations are possible.
    #[error("register {block}: too many orders are possible to look at all")]
    TooMany {
        /// Register.
        block: u64,
    },
    /// The run ended before the final reads.
    #[error("the run has no final reads")]
    NoFinalReads,
    /// A register that was written was not read in the end.
    #[error("register {block} was not read in the end")]
    NotRead {
        /// Register.
        block: u64,
    },
    /// There is nothing to judge.
    #[error("no operation of this kind was completed")]
    Nothing,
}

/// A claim broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// What is wrong.
    pub claim: Claim,
    /// Where.
    pub block: Option<u64>,
    /// As few operations as show it; the rest of the history is not needed to see it.
    pub witness: Vec<Operation>,
}

/// What can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// No order of the operations explains what they saw.
    NotLinearizable,
    /// An acknowledged write is not there in the end, and nothing later took its place.
    LostWrite,
    /// The final read found what nobody wrote there.
    Invented,
    /// A write took effect, or was acknowledged, after its attachment was fenced off.
    WriteAfterFence,
    /// An operation never ended, took longer than it may, or failed on a whole cluster.
    Stuck,
    /// The cluster was not whole again in time after the last fault.
    NotHealed,
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotLinearizable => "no order of the operations explains what they saw",
            Self::LostWrite => "an acknowledged write is lost",
            Self::Invented => "the final read found what nobody wrote there",
            Self::WriteAfterFence => "a write landed after its attachment was fenced off",
            Self::Stuck => "an operation is stuck",
            Self::NotHealed => "the cluster was not whole again in time",
        })
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.block {
            Some(block) => write!(f, "register {block}: {}", self.claim)?,
            None => write!(f, "{}", self.claim)?,
        }
        self.witness.iter().try_for_each(|operation| write!(f, "\n  {operation}"))
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Valid => f.write_str("valid"),
            Self::Unknown(why) => write!(f, "unknown: {why}"),
            Self::Invalid(found) => {
                write!(f, "INVALID")?;
                found.iter().try_for_each(|violation| write!(f, "\n{violation}"))
            }
        }
    }
}

impl From<Malformed> for Verdict {
    fn from(malformed: Malformed) -> Self {
        Self::Unknown(malformed.into())
    }
}

impl Verdict {
    /// `Valid` where nothing was found.
    fn of(found: Vec<Violation>) -> Self {
        if found.is_empty() { Self::Valid } else { Self::Invalid(found) }
    }

    /// The worst of several: invalid, then unknown, then valid.
    pub fn worst<'a>(verdicts: impl IntoIterator<Item = &'a Self>) -> Rank {
        verdicts.into_iter().map(Self::rank).max().unwrap_or(Rank::Unknown)
    }

    /// Without the reasons.
    pub fn rank(&self) -> Rank {
        match self {
            Self::Valid => Rank::Valid,
            Self::Unknown(_) => Rank::Unknown,
            Self::Invalid(_) => Rank::Invalid,
        }
    }
}

/// A verdict without its reasons, better ones first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// The claim holds.
    Valid,
    /// It is not known.
    Unknown,
    /// It does not hold.
    Invalid,
}

impl fmt::Display for Rank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Valid => "valid",
            Self::Unknown => "unknown",
            Self::Invalid => "INVALID",
        })
    }
}

/// Every checker's verdict, by name. `longest` is how long an operation may take.
pub fn judge(events: &[Event], longest: Duration) -> Vec<(&'static str, Verdict)> {
    let mut verdicts = vec![
        ("linearizable", linear(events)),
        ("durable", durable(events)),
        ("progress", progress(events, longest)),
    ];
    // One attachment is always made for the final reads; a fence needs two.
    if events.iter().filter(|event| event.op == Op::Attach && event.kind == Kind::Ok).count() > 1 {
        verdicts.push(("fenced", fence(events)));
    }
    verdicts
}
