//! Leases (rule 6): who may answer reads, and what a member that gave its word must wait for.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::{BTreeMap, VecDeque};

use tidewater_proto::ids::ReplicaId;

use super::time::{Time, Timing};

/// Requests whose time of sending is remembered; more than a lease's worth.
const ASKED_MAX: usize = 64;

/// The holder's side: grants in hand.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Holder {
    /// Number and time of each request, oldest first. Time is read before the request is sent.
    asked: VecDeque<(u64, Time)>,
    until: BTreeMap<ReplicaId, Time>,
    last_number: u64,
}

impl Holder {
    /// Numbers continue behind those of an earlier holder of the same replica.
    pub(crate) fn new(last_number: u64) -> Self {
        Self { last_number, ..Self::default() }
    }

    /// When leases were last asked for.
    pub(crate) fn last_asked(&self) -> Option<Time> {
        self.asked.back().map(|(_, at)| *at)
    }

    /// Numbers a new request sent at `now`.
    pub(crate) fn ask(&mut self, now: Time) -> u64 {
        self.last_number += 1;
        self.asked.push_back((self.last_number, now));
        if self.asked.len() > ASKED_MAX {
            self.asked.pop_front();
        }
        self.last_number
    }

    /// A grant came in.
    pub(crate) fn granted(&mut self, from: ReplicaId, number: u64, timing: &Timing) {
        let Some(&(_, sent)) = self.asked.iter().find(|(n, _)| *n == number) else {
            return;
        };
        let until = sent.after(timing.holder_lease());
        let held = self.until.entry(from).or_default();
        *held = (*held).max(until);
    }

    /// Whether every one of `granters` has given a lease that lasts beyond `now`.
    pub(crate) fn covers(&self, mut granters: impl Iterator<Item = ReplicaId>, now: Time) -> bool {
        granters.all(|g| self.until.get(&g).is_some_and(|&until| now < until))
    }

    /// The highest number asked for, which is how leases are given back.
    pub(crate) fn last_number(&self) -> u64 {
        self.last_number
    }
}

/// The granter's side: a word given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Grant {
    pub(crate) holder: ReplicaId,
    pub(crate) number: u64,
    pub(crate) until: Time,
}

/// What the member has promised. It survives no restart, so a restarted member waits one full lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Granter {
    /// A lease given by an earlier run of this process may last until then.
    restarted_until: Time,
    grant: Option<Grant>,
}

impl Granter {
    pub(crate) fn new(restarted_until: Time) -> Self {
        Self { restarted_until, grant: None }
    }

    /// Gives `holder` a lease from `now` on.
    pub(crate) fn grant(&mut self, holder: ReplicaId, number: u64, now: Time, timing: &Timing) {
        let until = now.after(timing.lease);
        self.grant = Some(Grant { holder, number, until });
    }

    /// `holder` gives back everything up to `number`.
    pub(crate) fn returned(&mut self, holder: ReplicaId, number: u64) {
        if self.grant.is_some_and(|g| g.holder == holder && g.number <= number) {
            self.grant = None;
        }
    }

    /// Whether nobody but `next` can hold a lease of this member at `now`.
    pub(crate) fn is_free_for(&self, next: ReplicaId, now: Time) -> bool {
        now >= self.restarted_until && self.grant.is_none_or(|g| g.holder == next || now >= g.until)
    }
}
