#![deny(clippy::disallowed_methods, clippy::disallowed_types)]
//! How a segment's record changes: a pure function of the record.
//!
//! | change | members | learners | former | retired | epoch |
//! | --- | --- | --- | --- | --- | --- |
//! | remove a member | - | | + | | +1 |
//! | remove a learner that was a member | | - | + | | +1 |
//! | remove a learner never complete | | - | | + | +1 |
//! | lost | - | | | + | +1 |
//! | promote | + | - | | | +1 |
//! | withdraw, handover | | | | | +1 |
//! | replace | - primary | | + primary | | +1 |

use tidewater_proto::{
    ids::ReplicaId,
    record::{Member, SegmentRecord, SetChange},
};

use crate::state::{outcome::Rejected, rows::EventKind};

/// Fewest members of a set that should have `replicas`.
pub(super) fn floor(replicas: u8) -> u8 {
    if replicas >= 3 { 2 } else { 1 }
}

/// The event that records `change`.
pub(super) fn kind(change: SetChange) -> EventKind {
    match change {
        SetChange::Remove { .. } => EventKind::MemberRemoved,
        SetChange::Lost { .. } => EventKind::MemberLost,
        SetChange::Promote { .. } => EventKind::MemberPromoted,
        SetChange::Withdraw => EventKind::PromotionWithdrawn,
        SetChange::Handover { .. } => EventKind::PrimaryMoved,
        SetChange::Replace { .. } => EventKind::PrimaryReplaced,
    }
}

/// The record after `change`, an epoch higher. Run and revision are the caller's to set.
/// `successor` ranks members for the case that the primary's copy is lost; the lowest leads.
pub(super) fn change<S: Ord>(
    record: &SegmentRecord,
    change: SetChange,
    successor: impl Fn(&Member) -> S,
) -> Result<SegmentRecord, Rejected> {
    let mut next = record.clone();
    next.epoch = record.epoch.next();
    match change {
        SetChange::Remove { replica } => remove(&mut next, replica)?,
        SetChange::Lost { replica } if next.learners.iter().any(|l| l.replica == replica) => {
            let lost = take(&mut next.learners, replica)?;
            next.retired.push(lost);
        }
        SetChange::Lost { replica } => {
            let lost = take(&mut next.members, replica)?;
            next.retired.push(lost);
            let heir =
                next.members.iter().min_by_key(|m| successor(m)).ok_or(Rejected::LastMember)?;
            if replica == next.primary {
                next.primary = heir.replica;
            }
        }
        SetChange::Promote { replica } => {
            // A migration's set has one member more than it will keep.
            if next.members.len() > usize::from(next.replicas) {
                return Err(Rejected::SetFull { members: next.members.len() });
            }
            let learner = take(&mut next.learners, replica)?;
            next.members.push(Member { fresh: false, ..learner });
        }
        SetChange::Withdraw => {}
        SetChange::Handover { to } => lead(&mut next, to)?,
        SetChange::Replace { to } => {
            check_floor(&next)?;
            let old = next.primary;
            lead(&mut next, to)?;
            let left = take(&mut next.members, old)?;
            next.former.push(left);
        }
    }
    Ok(next)
}

/// Takes the copy with this id out of `copies`.
pub(super) fn take(copies: &mut Vec<Member>, replica: ReplicaId) -> Result<Member, Rejected> {
    let place = copies.iter().position(|copy| copy.replica == replica);
    place.map(|place| copies.remove(place)).ok_or(Rejected::WrongRole { replica })
}

fn check_floor(record: &SegmentRecord) -> Result<(), Rejected> {
    if record.members.len() <= usize::from(record.floor) {
        return Err(Rejected::BelowFloor { floor: record.floor });
    }
    Ok(())
}

fn lead(record: &mut SegmentRecord, to: ReplicaId) -> Result<(), Rejected> {
    if to == record.primary || record.member(to).is_none() {
        return Err(Rejected::WrongRole { replica: to });
    }
    record.primary = to;
    Ok(())
}

fn remove(record: &mut SegmentRecord, replica: ReplicaId) -> Result<(), Rejected> {
    if let Ok(learner) = take(&mut record.learners, replica) {
        let kept = if learner.fresh { &mut record.retired } else { &mut record.former };
        kept.push(learner);
        return Ok(());
    }
    // The primary leaves by `Replace`, which names who leads next.
    if replica == record.primary || record.member(replica).is_none() {
        return Err(Rejected::WrongRole { replica });
    }
    check_floor(record)?;
    let left = take(&mut record.members, replica)?;
    record.former.push(left);
    Ok(())
}
