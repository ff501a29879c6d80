#![deny(clippy::disallowed_methods, clippy::disallowed_types)]
//! Chooses which chunkservers hold a segment. Pure and deterministic.
//!
//! Two copies never share a host, unless all servers do. Among the hosts, a copy goes where its region,
//! zone and rack are shared with the fewest copies chosen so far, then to the server that is least busy
//! and least full, in quarters, then to the one with the fewest copies.

use std::cmp::Reverse;

use tidewater_proto::ids::ServerId;

use crate::state::{State, index::CopyCount, rows::Topology};

/// Room for a first part of a copy.
const COPY_BYTES_MIN: u64 = 64 << 20;
/// Servers whose load and fill are in the same quarter, percent, count as equal: what comes and goes
/// within it must not outweigh the number of copies.
const QUARTER_PERCENT: u32 = 25;

/// What placement may know about one server. Only such as may take a copy are given to it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Candidate {
    pub(crate) server: ServerId,
    pub(crate) topology: Topology,
    pub(crate) free_bytes: u64,
    /// Share of its space that is in use.
    pub(crate) used_percent: u32,
    pub(crate) copies: CopyCount,
    /// Share of its capacity to serve that is in use.
    pub(crate) load_percent: u32,
}

impl Candidate {
    fn load_quarter(&self) -> u32 {
        self.load_percent / QUARTER_PERCENT
    }
}

/// Why no placement exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("need {wanted} servers on hosts of their own with {need_bytes} bytes free, found {found}")]
pub(crate) struct NoPlacement {
    pub(crate) wanted: usize,
    pub(crate) found: usize,
    pub(crate) need_bytes: u64,
}

/// Preference order, best first. Fields compare top to bottom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Score {
    /// Copies that share the region, zone or rack, the wider domain counting more.
    shared: u32,
    /// How busy or how full it is, whichever is more, in quarters.
    pressure: u32,
    /// Rebuild traffic already on its way there.
    learners: u32,
    copies: u32,
    load_percent: u32,
    free_bytes: Reverse<u64>,
    /// Breaks ties, so that the answer is unique.
    server: ServerId,
}

fn score(candidate: &Candidate, taken: &[&Topology]) -> Score {
    let shared = |weight: u32, label: fn(&Topology) -> Domain<'_>| {
        let own = label(&candidate.topology);
        taken.iter().filter(|other| label(other) == own).count() as u32 * weight
    };
    Score {
        shared: shared(4, |t| (&t.region, "", ""))
            + shared(2, |t| (&t.region, &t.zone, ""))
            + shared(1, |t| (&t.region, &t.zone, &t.rack)),
        pressure: candidate.load_quarter().max(candidate.used_percent / QUARTER_PERCENT),
        learners: candidate.copies.learners,
        copies: candidate.copies.copies,
        load_percent: candidate.load_percent,
        free_bytes: Reverse(candidate.free_bytes),
        server: candidate.server,
    }
}

type Domain<'a> = (&'a str, &'a str, &'a str);

/// Room a new copy needs, bytes. Copies are thin: this much is a start, not a reservation.
pub(crate) fn need_bytes(state: &State) -> u64 {
    state.cluster().map_or(0, |cluster| cluster.segment_bytes).min(COPY_BYTES_MIN)
}

/// A cluster on a single host: there is nothing to keep apart.
fn share_one_host(candidates: &[Candidate], taken: &[&Topology]) -> bool {
    let mut hosts =
        candidates.iter().map(|c| &c.topology.host).chain(taken.iter().map(|t| &t.host));
    let first = hosts.next();
    hosts.all(|host| Some(host) == first)
}

/// The best server for one more copy beside those in `taken`.
pub(crate) fn pick_one(
    candidates: &[Candidate],
    taken: &[&Topology],
    need_bytes: u64,
) -> Option<ServerId> {
    let one_host = share_one_host(candidates, taken);
    let free = |c: &&Candidate| {
        let apart = one_host || taken.iter().all(|t| t.host != c.topology.host);
        c.free_bytes >= need_bytes && apart
    };
    candidates.iter().filter(free).map(|c| score(c, taken)).min().map(|best| best.server)
}

/// Picks `wanted` servers, the primary first: of the least busy ones, the one that leads the fewest
/// segments.
pub(crate) fn pick(
    candidates: &[Candidate],
    wanted: usize,
    need_bytes: u64,
) -> Result<Vec<ServerId>, NoPlacement> {
    let mut left = candidates.to_vec();
    let mut picked: Vec<Candidate> = Vec::with_capacity(wanted);
    while picked.len() < wanted {
        let taken: Vec<_> = picked.iter().map(|c| &c.topology).collect();
        let best = pick_one(&left, &taken, need_bytes);
        match best.and_then(|best| left.iter().position(|c| c.server == best)) {
            Some(place) => picked.push(left.swap_remove(place)),
            None => return Err(NoPlacement { wanted, found: picked.len(), need_bytes }),
        }
    }
    picked.sort_by_key(|c| (c.load_quarter(), c.copies.primaries));
    Ok(picked.into_iter().map(|c| c.server).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(id: u64, place: [&str; 4], free_bytes: u64, copies: u32) -> Candidate {
        let [region, zone, rack, host] = place.map(str::to_owned);
        Candidate {
            server: ServerId(id),
            topology: Topology { region, zone, rack, host },
            free_bytes,
            used_percent: 0,
            copies: CopyCount { copies, primaries: copies, learners: 0 },
            load_percent: 0,
        }
    }

    fn ids(picked: &[ServerId]) -> Vec<u64> {
        picked.iter().map(|server| server.0).collect()
    }

    #[test]
    fn copies_never_share_a_host() {
        let all = [
            candidate(1, ["", "", "", "a"], 100, 0),
            candidate(2, ["", "", "", "a"], 100, 0),
            candidate(3, ["", "", "", "b"], 100, 9),
        ];
        assert_eq!(pick(&all, 2, 10).map(|p| ids(&p)), Ok(vec![1, 3]));
        let none = NoPlacement { wanted: 3, found: 2, need_bytes: 10 };
        assert_eq!(pick(&all, 3, 10), Err(none));
    }

    #[test]
    fn a_cluster_on_one_host_places_there() {
        let all = [1, 2, 3].map(|id| candidate(id, ["", "", "", "a"], 100, id as u32));
        assert_eq!(pick(&all, 3, 10).map(|p| ids(&p)), Ok(vec![1, 2, 3]));
    }

    #[test]
    fn copies_spread_over_regions_then_zones_then_racks() {
        let all = [
            candidate(1, ["r1", "z1", "k1", "a"], 100, 0),
            candidate(2, ["r1", "z1", "k1", "b"], 100, 0),
            candidate(3, ["r1", "z1", "k2", "c"], 100, 5),
            candidate(4, ["r1", "z2", "k1", "d"], 100, 6),
            candidate(5, ["r2", "z1", "k1", "e"], 100, 7),
        ];
        assert_eq!(pick(&all, 4, 10).map(|p| ids(&p)), Ok(vec![1, 3, 4, 5]));
    }

    #[test]
    fn full_servers_take_nothing_and_quiet_ones_come_first() {
        let all = [
            candidate(1, ["", "", "", "a"], 9, 0),
            candidate(2, ["", "", "", "b"], 100, 3),
            candidate(3, ["", "", "", "c"], 100, 1),
            candidate(4, ["", "", "", "d"], 100, 2),
        ];
        assert_eq!(pick(&all, 2, 10).map(|p| ids(&p)), Ok(vec![3, 4]));
    }

    /// Four servers with 1, 2, 3 and 4 copies.
    fn four() -> [Candidate; 4] {
        let host = |id: u64| ["a", "b", "c", "d"][id as usize - 1];
        [1, 2, 3, 4].map(|id| candidate(id, ["", "", "", host(id)], 100, id as u32))
    }

    #[test]
    fn a_busy_server_is_passed_over_and_a_slightly_busier_one_is_not() {
        let mut all = four();
        all[0].load_percent = 90;
        assert_eq!(pick(&all, 3, 10).map(|p| ids(&p)), Ok(vec![2, 3, 4]));
        all[1].load_percent = 20;
        assert_eq!(pick(&all, 2, 10).map(|p| ids(&p)), Ok(vec![2, 3]));
        assert_eq!(pick(&all, 4, 10).map(|p| p.len()), Ok(4), "if no other is left it is taken");
    }

    #[test]
    fn a_server_that_fills_up_is_passed_over() {
        let mut all = four();
        all[0].used_percent = 80;
        assert_eq!(pick(&all, 3, 10).map(|p| ids(&p)), Ok(vec![2, 3, 4]));
    }

    #[test]
    fn a_busy_server_does_not_lead() {
        let mut all = four();
        all[0].load_percent = 60;
        assert_eq!(pick(&all, 4, 10).map(|p| ids(&p)), Ok(vec![2, 3, 4, 1]));
    }

    #[test]
    fn the_primary_is_the_one_that_leads_the_fewest() {
        let mut all = [
            candidate(1, ["", "", "", "a"], 100, 0),
            candidate(2, ["", "", "", "b"], 100, 1),
            candidate(3, ["", "", "", "c"], 100, 2),
        ];
        all[0].copies.primaries = 7;
        all[2].copies.primaries = 0;
        assert_eq!(pick(&all, 3, 10).map(|p| ids(&p)), Ok(vec![3, 2, 1]));
    }
}
