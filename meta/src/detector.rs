#![deny(clippy::disallowed_methods, clippy::disallowed_types)]
//! Failure detection: who was heard from, by one clock, the leader's monotonic one. No two machines'
//! clocks are compared.

use std::collections::{BTreeMap, BTreeSet};

use tidewater_proto::ids::{RunId, ServerId};

use crate::state::rows::Device;

/// Milliseconds of the leader's monotonic clock.
pub(crate) type Millis = u64;

/// What the leader believes about a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Liveness {
    Alive,
    /// Late, but not yet given up.
    Suspect,
    /// Not heard from for the detection time.
    Dead {
        /// When it was last heard from.
        since: Millis,
    },
}

impl Liveness {
    pub(crate) fn is_dead(self) -> bool {
        matches!(self, Self::Dead { .. })
    }
}

/// What a server says of itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Beat {
    pub(crate) run: RunId,
    pub(crate) devices: Vec<Device>,
    /// Servers it heard from on the data plane.
    pub(crate) hears: BTreeSet<ServerId>,
    pub(crate) load: f64,
}

#[derive(Clone, Debug)]
struct Seen {
    at: Millis,
    beat: Beat,
}

/// Who was heard from when.
#[derive(Clone, Debug)]
pub(crate) struct Detector {
    dead_after: Millis,
    /// Nobody is late before this plus the detection time: a new leader has heard nobody yet.
    grace_from: Millis,
    last_tick: Millis,
    term: u64,
    seen: BTreeMap<ServerId, Seen>,
}

impl Detector {
    /// A detector that gives a server up after `dead_after` of silence.
    pub(crate) fn new(dead_after: Millis, now: Millis) -> Self {
        Self { dead_after, grace_from: now, last_tick: now, term: 0, seen: BTreeMap::new() }
    }

    /// This node leads in `term`: everybody gets a full detection time. Repeated, it says nothing new, so
    /// whoever learns of it first says it, and what was heard since is kept.
    pub(crate) fn lead(&mut self, term: u64, now: Millis) {
        if term > self.term {
            self.term = term;
            self.grace_from = now;
            self.last_tick = now;
            self.seen.clear();
        }
    }

    /// Called regularly. A gap means that this process stood still and heard nobody meanwhile, which
    /// says nothing about the servers.
    pub(crate) fn tick(&mut self, now: Millis) {
        if now.saturating_sub(self.last_tick) > self.dead_after / 2 {
            self.grace_from = now;
        }
        self.last_tick = now;
    }

    pub(crate) fn heard(&mut self, server: ServerId, now: Millis, beat: Beat) {
        self.seen.insert(server, Seen { at: now, beat });
    }

    pub(crate) fn forget(&mut self, server: ServerId) {
        self.seen.remove(&server);
    }

    pub(crate) fn judge(&self, server: ServerId, now: Millis) -> Liveness {
        let heard = self.seen.get(&server).map_or(0, |seen| seen.at);
        let since = heard.max(self.grace_from);
        let silent = now.saturating_sub(since);
        if silent >= self.dead_after {
            Liveness::Dead { since }
        } else if silent >= self.dead_after / 2 {
            Liveness::Suspect
        } else {
            Liveness::Alive
        }
    }

    /// What the server last said, if it was heard from under this leader.
    pub(crate) fn beat(&self, server: ServerId) -> Option<&Beat> {
        self.seen.get(&server).map(|seen| &seen.beat)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: ServerId = ServerId(1);

    #[test]
    fn silence_makes_suspect_then_dead_and_a_beat_makes_alive_again() {
        let mut detector = Detector::new(1000, 0);
        detector.heard(S, 100, Beat::default());
        let table = [
            (100, Liveness::Alive),
            (599, Liveness::Alive),
            (600, Liveness::Suspect),
            (1099, Liveness::Suspect),
            (1100, Liveness::Dead { since: 100 }),
            (9000, Liveness::Dead { since: 100 }),
        ];
        for (now, liveness) in table {
            assert_eq!(detector.judge(S, now), liveness, "at {now}");
        }
        detector.heard(S, 9000, Beat::default());
        assert_eq!(detector.judge(S, 9001), Liveness::Alive);
    }

    #[test]
    fn a_new_leader_grants_everybody_a_full_detection_time() {
        let mut detector = Detector::new(1000, 0);
        detector.heard(S, 10, Beat::default());
        detector.lead(1, 5000);
        assert!(!detector.judge(S, 5999).is_dead());
        assert!(!detector.judge(ServerId(2), 5999).is_dead());
        assert_eq!(detector.judge(S, 6000), Liveness::Dead { since: 5000 });
    }

    #[test]
    fn what_a_leader_heard_in_its_term_is_kept_however_often_it_is_told_that_it_leads() {
        let mut detector = Detector::new(1000, 0);
        detector.lead(1, 0);
        detector.heard(S, 500, Beat { load: 0.5, ..Beat::default() });
        detector.lead(1, 600);
        assert_eq!(detector.beat(S).map(|beat| beat.load), Some(0.5));
        assert!(detector.judge(S, 1500).is_dead(), "no second grace");
        detector.lead(2, 2000);
        assert_eq!(detector.beat(S), None, "that was another leader");
    }

    #[test]
    fn a_leader_that_stood_still_blames_nobody_for_it() {
        let mut detector = Detector::new(1000, 0);
        detector.heard(S, 0, Beat::default());
        detector.tick(100);
        detector.tick(4000);
        assert!(!detector.judge(S, 4000).is_dead());
        detector.tick(4100);
        assert!(detector.judge(S, 5000).is_dead());
    }
}
