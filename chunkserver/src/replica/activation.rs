//! Activation (rule 7): a new primary asks every member what it holds, takes the longest tail, and has
//! it durable everywhere before it serves.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;

use tidewater_proto::{
    entry::{Change, Entry},
    ids::{Epoch, Position, ReplicaId, Sequence},
    peer::{FromPrimary, ToPrimary},
    record::SetChange,
};

use super::{Effect, Reason, Replica, Role, Time, serving::Serving};

/// An epoch that is not served yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Activation {
    pub(super) epoch: Epoch,
    /// The other members, and when each was last heard.
    others: BTreeMap<ReplicaId, Time>,
    answers: BTreeMap<ReplicaId, Answer>,
    fetching: Option<Fetching>,
    asked_at: Time,
    proposed_at: Option<Time>,
}

/// The longest tail on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Fetching {
    from: ReplicaId,
    last: Position,
    /// The own log is the same up to here.
    same: Sequence,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Answer {
    last: Position,
    commit: Sequence,
}

impl Activation {
    pub(super) fn others(&self) -> impl Iterator<Item = ReplicaId> {
        self.others.keys().copied()
    }

    pub(super) fn refused(&mut self, peer: ReplicaId) {
        if let Some(heard) = self.others.get_mut(&peer) {
            *heard = Time::default();
        }
    }
}

impl<P: Clone> Replica<P> {
    /// The record names this run of this copy primary of the promised epoch.
    pub(super) fn lead(&mut self, now: Time, out: &mut Vec<Effect<P>>) {
        let epoch = self.promised;
        match &self.role {
            Role::Activating(a) if a.epoch == epoch => return,
            Role::Serving(s) if s.epoch == epoch || s.epoch.next() == epoch => {
                // No other primary can have been between: go on without activation.
                self.reconfigure(now, out);
                return;
            }
            Role::Activating(_) | Role::Serving(_) | Role::Idle | Role::Following(_) => {}
        }
        self.step_down(out);
        let record = self.record.as_ref().expect("a primary has a record");
        let others = record.members.iter().filter(|m| **m != self.id);
        self.role = Role::Activating(Activation {
            epoch,
            others: others.map(|&m| (m, now)).collect(),
            answers: BTreeMap::new(),
            fetching: None,
            asked_at: now,
            proposed_at: None,
        });
        self.ask_members(out);
        self.activation_progress(now, out);
    }

    fn ask_members(&self, out: &mut Vec<Effect<P>>) {
        let Role::Activating(activation) = &self.role else { return };
        for &other in activation.others.keys() {
            if !activation.answers.contains_key(&other) {
                self.send(other, FromPrimary::Query, out);
            }
        }
        if let Some(Fetching { from, same, .. }) = activation.fetching {
            self.send(from, FromPrimary::Fetch { from: same.next() }, out);
        }
    }

    pub(super) fn activation_tick(&mut self, now: Time, out: &mut Vec<Effect<P>>) {
        self.activation_progress(now, out);
        let (repeat, silence) = (self.timing.repeat, self.timing.silence);
        let Role::Activating(activation) = &mut self.role else { return };
        if now.since(activation.asked_at) < repeat {
            return;
        }
        activation.asked_at = now;
        let silent = activation.others.iter().find(|(_, heard)| now.since(**heard) >= silence);
        let silent = silent.map(|(&replica, _)| replica);
        self.ask_members(out);
        if let Some(replica) = silent {
            self.propose_removal_activating(now, replica, Reason::Silent, out);
        }
    }

    fn propose_removal_activating(
        &mut self,
        now: Time,
        replica: ReplicaId,
        reason: Reason,
        out: &mut Vec<Effect<P>>,
    ) {
        let repeat = self.timing.repeat;
        let floor = self.record.as_ref().map_or(usize::MAX, |r| r.floor);
        let Role::Activating(activation) = &mut self.role else { return };
        let proposed_lately = activation.proposed_at.is_some_and(|at| now.since(at) < repeat);
        let lost = reason == Reason::CopyLost;
        if proposed_lately || (!lost && activation.others.len() < floor) {
            return;
        }
        activation.proposed_at = Some(now);
        let change = if lost { SetChange::Lost { replica } } else { SetChange::Remove { replica } };
        out.push(Effect::Propose { epoch: activation.epoch, change, reason });
    }

    pub(super) fn receive_as_activating(
        &mut self,
        now: Time,
        from: ReplicaId,
        message: ToPrimary<P>,
        out: &mut Vec<Effect<P>>,
    ) {
        let Role::Activating(activation) = &mut self.role else { return };
        let Some(heard) = activation.others.get_mut(&from) else { return };
        *heard = now;
        match message {
            ToPrimary::Answer { last, commit } => {
                activation.answers.entry(from).or_insert(Answer { last, commit });
                self.activation_progress(now, out);
            }
            ToPrimary::Tail { entry, last } => self.take_tail(now, from, entry, last, out),
            ToPrimary::Lost => {
                self.propose_removal_activating(now, from, Reason::CopyLost, out);
            }
            // An answer to an earlier epoch of this copy, or none that activation waits for.
            ToPrimary::Appended { .. }
            | ToPrimary::Mismatch { .. }
            | ToPrimary::Stale
            | ToPrimary::LeaseGrant { .. }
            | ToPrimary::CopyAsk { .. }
            | ToPrimary::CopyTaken { .. }
            | ToPrimary::CopyEnded { .. } => {}
        }
    }

    /// Goes on when every member has answered and the own promises allow it.
    pub(super) fn activation_progress(&mut self, now: Time, out: &mut Vec<Effect<P>>) {
        let Role::Activating(activation) = &self.role else { return };
        let own_ready = self.promised_durable == self.promised
            && self.granter.is_free_for(self.id, now)
            && self.copying.is_none();
        let all = activation.answers.len() == activation.others.len();
        if !own_ready || !all || activation.fetching.is_some() {
            return;
        }
        let commit = activation.answers.values().map(|a| a.commit).max().unwrap_or(self.commit);
        let longest = activation.answers.iter().max_by_key(|(_, a)| a.last);
        let longest = longest.map(|(&r, a)| (r, a.last)).filter(|(_, l)| *l > self.log.last());
        // What any member knows to be committed is on every member, so it is in this log too.
        self.advance_commit(commit, out);
        match longest {
            None => self.settle(now, out),
            Some((from, last)) => {
                let same = self.commit;
                if let Role::Activating(activation) = &mut self.role {
                    activation.fetching = Some(Fetching { from, last, same });
                }
                self.ask_members(out);
            }
        }
    }

    /// Takes an entry of the longest tail. One that is here stays as it is: it may be committed, and on its
    /// way to the disk again it would be missing for a while. What differs gives way.
    fn take_tail(
        &mut self,
        now: Time,
        from: ReplicaId,
        entry: Entry<P>,
        last: Position,
        out: &mut Vec<Effect<P>>,
    ) {
        let Role::Activating(activation) = &mut self.role else { return };
        let at = entry.position;
        let Some(fetching) = &mut activation.fetching else { return };
        let fits = (fetching.from, fetching.last) == (from, last);
        if !fits || at.sequence != fetching.same.next() {
            return;
        }
        let before = std::mem::replace(&mut fetching.same, at.sequence);
        if !self.log.agrees(at) {
            self.truncate(before);
            self.append(entry, out);
        }
        if at == last {
            self.settle(now, out);
        }
    }

    /// Has the longest tail: appends the epoch's first entry behind it. Once that is on every member, so
    /// is all before it.
    fn settle(&mut self, now: Time, out: &mut Vec<Effect<P>>) {
        let Role::Activating(activation) = &self.role else { return };
        let epoch = activation.epoch;
        let record = self.record.as_ref().expect("a primary has a record");
        let token = record.token;
        let peers = activation.others.clone();
        let learners = record.learners.clone();
        let behind = self.commit;
        let first = Position { epoch, sequence: self.log.last().sequence.next() };
        let mut serving = Serving::new(epoch, token, first.sequence, self.lease_numbers);
        for (member, heard) in peers {
            serving.add_member(member, behind, heard);
        }
        for learner in learners {
            serving.add_learner(learner, now);
        }
        self.role = Role::Serving(Box::new(serving));
        if token > self.token_durable {
            // Raised while the epoch was being activated: no other record need come.
            self.promise(epoch, token, out);
        }
        self.append(
            Entry { position: first, token, op: None, lowest_open: 0, change: Change::Activate },
            out,
        );
        self.ask_leases(now, out);
        self.push_all(out);
        self.probe_learners(out);
        self.serving_progress(now, out);
    }
}
