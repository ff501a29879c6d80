#![deny(clippy::disallowed_methods, clippy::disallowed_types)]
//! Leases on absence: a session that was told that a segment is not placed may believe it for a while, so
//! that a read of a hole does not cost a call each time. No placement by another session returns before
//! such a lease is over, so no write that it could miss is acknowledged (INV-LIN).
//!
//! The holder counts from before it asked, by a clock that counts time asleep, and deducts 5 %; the
//! granter counts from when it answers. A new leader knows of no leases and waits as long as one may last.
//! While a placement waits or is being committed, no lease is granted on its volume.

use std::collections::{BTreeMap, BTreeSet};

use tidewater_proto::ids::{SessionId, VolumeId};

use crate::detector::Millis;

/// How long a session may believe in an absence.
pub(crate) const LEASE_MS: u32 = 500;
/// Volumes remembered before those whose lease is over are forgotten.
const GRANTS_MAX: usize = 1_024;

#[derive(Clone, Copy, Debug)]
struct Grant {
    until: Millis,
    /// None if there are several.
    session: Option<SessionId>,
}

/// Leases that one leader has granted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Absence {
    term: u64,
    /// Leases of earlier leaders end by this.
    inherited: Millis,
    grants: BTreeMap<VolumeId, Grant>,
    /// Placements that wait or are being committed.
    placing: BTreeMap<VolumeId, u32>,
    /// Volumes with a placement of which this leader does not know what became.
    open: BTreeSet<VolumeId>,
}

impl Absence {
    /// This node leads in `term`; repeated, it says nothing new.
    pub(crate) fn lead(&mut self, term: u64, now: Millis) {
        if term > self.term {
            self.term = term;
            self.inherited = now + Millis::from(LEASE_MS);
            self.grants.clear();
            // What an older leader has left open was committed or dropped before this one serves.
            self.open.clear();
        }
    }

    /// Grants a lease on absence in `volume`; for how many milliseconds, 0 for none.
    pub(crate) fn grant(&mut self, volume: VolumeId, session: SessionId, now: Millis) -> u32 {
        let placing = self.placing.contains_key(&volume) || self.open.contains(&volume);
        if session == SessionId(0) || placing {
            return 0;
        }
        if self.grants.len() >= GRANTS_MAX {
            self.grants.retain(|_, grant| grant.until > now);
        }
        let until = now + Millis::from(LEASE_MS);
        let grant = self.grants.entry(volume).or_insert(Grant { until, session: Some(session) });
        if grant.until <= now {
            grant.session = Some(session);
        } else if grant.session != Some(session) {
            grant.session = None;
        }
        grant.until = until;
        LEASE_MS
    }

    /// A placement begins: from here on no lease is granted on the volume.
    pub(crate) fn begin(&mut self, volume: VolumeId) {
        *self.placing.entry(volume).or_default() += 1;
    }

    /// The placement is committed or, if that is `settled`, never will be.
    pub(crate) fn end(&mut self, volume: VolumeId, settled: bool) {
        if !settled {
            self.open.insert(volume);
        }
        if let Some(placing) = self.placing.get_mut(&volume) {
            *placing -= 1;
            if *placing == 0 {
                self.placing.remove(&volume);
            }
        }
    }

    /// How long a placement of `session` must wait for the leases of others, milliseconds.
    pub(crate) fn wait_ms(&self, volume: VolumeId, session: SessionId, now: Millis) -> Millis {
        let others = self.grants.get(&volume).filter(|grant| grant.session != Some(session));
        let until = others.map_or(0, |grant| grant.until).max(self.inherited);
        until.saturating_sub(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V: VolumeId = VolumeId(1);
    const A: SessionId = SessionId(1);
    const B: SessionId = SessionId(2);
    const LEASE: Millis = LEASE_MS as Millis;

    fn leader() -> Absence {
        let mut absence = Absence::default();
        absence.lead(1, 0);
        absence
    }

    #[test]
    fn a_placement_waits_for_the_leases_of_others_and_not_for_its_own() {
        let mut absence = leader();
        assert_eq!(absence.grant(V, A, 1_000), LEASE_MS);
        assert_eq!(absence.wait_ms(V, A, 1_100), 0);
        assert_eq!(absence.wait_ms(V, B, 1_100), LEASE - 100);
        assert_eq!(absence.wait_ms(VolumeId(2), B, 1_100), 0);
        assert_eq!(absence.grant(V, B, 1_200), LEASE_MS);
        assert_eq!(absence.wait_ms(V, A, 1_200), LEASE, "both hold one");
        assert_eq!(absence.grant(V, A, 3_000), LEASE_MS);
        assert_eq!(absence.wait_ms(V, A, 3_000), 0, "the other's is over");
        assert_eq!(absence.wait_ms(V, SessionId(0), 3_000), LEASE, "nobody's own");
    }

    #[test]
    fn no_lease_is_granted_while_a_segment_is_being_placed() {
        let mut absence = leader();
        absence.begin(V);
        absence.begin(V);
        absence.end(V, true);
        assert_eq!(absence.grant(V, A, 1_000), 0);
        absence.end(V, true);
        assert_eq!(absence.grant(V, A, 1_000), LEASE_MS);
        assert_eq!(absence.grant(V, SessionId(0), 1_000), 0, "nobody to hold it");
    }

    #[test]
    fn a_new_leader_waits_for_the_leases_of_the_last_one() {
        let mut absence = leader();
        absence.lead(2, 5_000);
        absence.lead(2, 6_000);
        assert_eq!(absence.wait_ms(V, A, 5_000), LEASE);
        assert_eq!(absence.wait_ms(V, A, 5_000 + LEASE), 0);
        absence.begin(V);
        absence.begin(V);
        absence.end(V, false);
        absence.lead(3, 9_000);
        assert_eq!(absence.grant(V, A, 9_000), 0, "one is still under way");
        absence.end(V, true);
        assert_eq!(absence.grant(V, A, 9_000), LEASE_MS, "what was left open is over");
        absence.begin(V);
        absence.end(V, false);
        assert_eq!(absence.grant(V, A, 9_000), 0, "it may be committed yet");
    }
}
