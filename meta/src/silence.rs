#![deny(clippy::disallowed_methods, clippy::disallowed_types)]
//! A primary says that a member does not answer. Whose fault is it? (docs/protocol.md, rule 7.)

use std::collections::{BTreeMap, BTreeSet};

use tidewater_proto::{
    ids::{ReplicaId, ServerId},
    record::{SegmentRecord, SetChange},
};

/// Per live server, the servers that it hears on the data plane.
pub(crate) type Hearing = BTreeMap<ServerId, BTreeSet<ServerId>>;

/// What to do about `silent`, which the primary wants out of the set. `alive` has the servers that
/// meta hears. The primary goes, not the member, if the member is alive and hears other members
/// while another member does not hear the primary either.
pub(crate) fn judge(record: &SegmentRecord, silent: ReplicaId, alive: &Hearing) -> SetChange {
    let remove = SetChange::Remove { replica: silent };
    let primary = record.primary_member().server;
    let Some(member) = record.member(silent).filter(|m| m.server != primary) else {
        return remove;
    };
    let others: Vec<_> = record
        .members
        .iter()
        .filter(|m| m.server != primary && m.server != member.server)
        .collect();
    let hears = |by: ServerId, whom: ServerId| alive.get(&by).is_some_and(|h| h.contains(&whom));
    let member_hears_others = others.iter().any(|other| hears(member.server, other.server));
    let deaf_to_primary = others
        .iter()
        .find(|other| alive.contains_key(&other.server) && !hears(other.server, primary));
    match deaf_to_primary {
        Some(heir) if member_hears_others => {
            if record.members.len() > usize::from(record.floor) {
                SetChange::Replace { to: heir.replica }
            } else {
                SetChange::Handover { to: heir.replica }
            }
        }
        _ => remove,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::record;

    /// Server, and whom it hears.
    type Hears<'a> = &'a [(u64, &'a [u64])];

    fn hearing(pairs: Hears<'_>) -> Hearing {
        let set = |whom: &[u64]| whom.iter().map(|&id| ServerId(id)).collect();
        pairs.iter().map(|&(by, whom)| (ServerId(by), set(whom))).collect()
    }

    #[test]
    fn the_primary_goes_only_if_two_members_agree_against_it() {
        // Members on servers 1 (primary), 2 and 3; the primary reports 2.
        let record = record(&[1, 2, 3]);
        let remove = SetChange::Remove { replica: ReplicaId(2) };
        let replace = SetChange::Replace { to: ReplicaId(3) };
        let table: &[(&str, Hears<'_>, SetChange)] = &[
            ("member dead", &[(1, &[3]), (3, &[1])], remove),
            ("member alive, alone cut off", &[(1, &[3]), (2, &[]), (3, &[1])], remove),
            ("member cut off from the primary only", &[(2, &[3]), (3, &[1, 2])], remove),
            ("nobody hears the primary", &[(2, &[3]), (3, &[2])], replace),
            ("nobody hears the primary, meta does", &[(1, &[]), (2, &[3]), (3, &[2])], replace),
            ("other member dead too", &[(1, &[]), (2, &[3])], remove),
        ];
        for (case, hears, expected) in table {
            assert_eq!(judge(&record, ReplicaId(2), &hearing(hears)), *expected, "{case}");
        }
    }

    #[test]
    fn a_set_at_its_floor_keeps_the_old_primary() {
        let mut record = record(&[1, 2, 3]);
        record.floor = 3;
        let hears = hearing(&[(2, &[3]), (3, &[2])]);
        let handover = SetChange::Handover { to: ReplicaId(3) };
        assert_eq!(judge(&record, ReplicaId(2), &hears), handover);
    }

    #[test]
    fn of_two_members_the_silent_one_goes() {
        let record = record(&[1, 2]);
        let remove = SetChange::Remove { replica: ReplicaId(2) };
        assert_eq!(judge(&record, ReplicaId(2), &hearing(&[(2, &[])])), remove);
    }
}
