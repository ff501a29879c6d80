//! The primary's side: sequencing, commitment, leases, silent and new members (rules 1 to 8).
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;

use tidewater_proto::{
    ids::{Epoch, Position, ReplicaId, Sequence, Token},
    peer::{FromPrimary, Room, ToPrimary},
    record::{Durability, SetChange},
};

use super::{
    Effect, Reason, Replica, Role, Time,
    catchup::CopyOut,
    lease::Holder,
    pushing::Flow,
    requests::{Held, Hold, ParkedRead},
    space::NewChunks,
};

/// A learner this close to the end of the log is proposed as a member.
const CAUGHT_UP_ENTRIES: u64 = 256;

/// What a primary knows of another copy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Peer {
    pub(super) part: Part,
    /// Entries up to here were sent on the present connection.
    pub(super) sent: Sequence,
    pub(super) received: Sequence,
    pub(super) durable: Sequence,
    /// New chunks that may be under way to it behind `received`.
    pub(super) room: Room,
    /// How much it is sent while it is a learner.
    pub(super) flow: Flow,
    heard: Time,
    refused_since: Option<Time>,
}

/// How a peer takes part.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Part {
    /// Every commit waits for it.
    Member,
    /// Asked how far it is.
    Probed,
    /// Learner that follows the log.
    Follows,
    /// Learner that is sent chunks beside the log.
    Copies(CopyOut),
}

/// An epoch being served.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Serving<P> {
    pub(super) epoch: Epoch,
    /// This copy has been primary without a break since this epoch.
    pub(super) since: Epoch,
    pub(super) token: Token,
    /// Writes up to here may have been accepted with an older token.
    token_from: Sequence,
    /// The epoch's first entry; nothing is served before it is committed.
    activation: Sequence,
    pub(super) peers: BTreeMap<ReplicaId, Peer>,
    pub(super) leases: Holder,
    /// Learner that is to be a member: commits and leases need it too until the outcome is known.
    pub(super) adding: Option<ReplicaId>,
    /// It was proposed, so that the epoch with it may be committed at any time.
    offered: bool,
    proposed_at: Option<Time>,
    reported_at: Option<Time>,
    pub(super) probed_at: Time,
    pub(super) reads: Vec<ParkedRead>,
    pub(super) holds: Vec<Hold<P>>,
    pub(super) held: Vec<Held<P>>,
    pub(super) new_chunks: NewChunks<P>,
}

impl<P> Serving<P> {
    pub(super) fn new(
        epoch: Epoch,
        token: Token,
        activation: Sequence,
        lease_numbers: u64,
    ) -> Self {
        Self {
            epoch,
            since: epoch,
            token,
            token_from: activation,
            activation,
            peers: BTreeMap::new(),
            leases: Holder::new(lease_numbers),
            adding: None,
            offered: false,
            proposed_at: None,
            reported_at: None,
            probed_at: Time::default(),
            reads: Vec::new(),
            holds: Vec::new(),
            held: Vec::new(),
            new_chunks: NewChunks::default(),
        }
    }

    pub(super) fn add_member(&mut self, replica: ReplicaId, behind: Sequence, heard: Time) {
        self.add(replica, Part::Member, behind, heard);
    }

    pub(super) fn add_learner(&mut self, replica: ReplicaId, now: Time) {
        self.add(replica, Part::Probed, Sequence(0), now);
    }

    fn add(&mut self, replica: ReplicaId, part: Part, behind: Sequence, heard: Time) {
        let peer = Peer {
            part,
            sent: behind,
            received: Sequence(0),
            durable: Sequence(0),
            // One at a time until it has said more.
            room: Room(1),
            flow: Flow::default(),
            heard,
            refused_since: None,
        };
        self.peers.insert(replica, peer);
    }

    /// Whether the activation is committed.
    pub(super) fn is_active(&self, commit: Sequence) -> bool {
        commit >= self.activation
    }

    fn counts(&self, replica: ReplicaId, peer: &Peer) -> bool {
        matches!(peer.part, Part::Member) || self.adding == Some(replica)
    }

    /// The other copies that every commit and every lease needs.
    pub(super) fn required(&self) -> impl Iterator<Item = (ReplicaId, &Peer)> {
        self.peers.iter().map(|(&r, p)| (r, p)).filter(|(r, p)| self.counts(*r, p))
    }

    /// Whether reads may be answered at `now`.
    pub(super) fn has_lease(&self, now: Time) -> bool {
        self.leases.covers(self.required().map(|(r, _)| r), now)
    }

    fn members(&self) -> usize {
        1 + self.peers.values().filter(|p| matches!(p.part, Part::Member)).count()
    }
}

impl<P: Clone> Replica<P> {
    /// The record changed and this copy goes on as primary: in the same epoch, or in the next.
    pub(super) fn reconfigure(&mut self, now: Time, out: &mut Vec<Effect<P>>) {
        let (epoch, commit, last) = (self.promised, self.commit, self.log.last().sequence);
        let Some(record) = &self.record else { return };
        let (token, record_epoch) = (record.token, record.epoch);
        let Role::Serving(s) = &mut self.role else { return };
        let (members, learners) = (&record.members, &record.learners);
        s.peers.retain(|r, _| members.contains(r) || learners.contains(r));
        for &replica in members.iter().filter(|r| **r != self.id) {
            match s.peers.get_mut(&replica) {
                Some(peer) => peer.part = Part::Member,
                None => s.add_member(replica, commit, now),
            }
        }
        for &replica in learners {
            if !s.peers.contains_key(&replica) {
                s.add_learner(replica, now);
            }
        }
        // A record of the same epoch may be the answer to a refused proposal: it keeps its pace.
        if record_epoch > s.epoch {
            (s.adding, s.offered, s.proposed_at) = (None, false, None);
        }
        s.epoch = epoch;
        if token > s.token {
            s.token = token;
            s.token_from = last;
            s.reported_at = None;
        }
        if token > self.token_durable && record_epoch == self.promised {
            self.promise(epoch, token, out);
        }
        self.ask_leases(now, out);
        self.push_all(out);
        self.probe_learners(out);
        self.probe(now, out);
        self.serving_progress(now, out);
        self.uncrowd(now, out);
    }

    /// Stops leading: gives leases back and refuses what waits. Clients of writes that were sequenced
    /// wait on: the next primary may commit them.
    pub(super) fn step_down(&mut self, out: &mut Vec<Effect<P>>) {
        let Role::Serving(serving) = std::mem::replace(&mut self.role, Role::Idle) else {
            return;
        };
        let number = serving.leases.last_number();
        self.lease_numbers = number;
        for &peer in serving.peers.keys() {
            self.send(peer, FromPrimary::LeaseReturn { number }, out);
        }
        self.refuse_all(*serving, out);
    }

    pub(super) fn ask_leases(&mut self, now: Time, out: &mut Vec<Effect<P>>) {
        let Role::Serving(s) = &mut self.role else { return };
        let number = s.leases.ask(now);
        let granters: Vec<_> = s
            .peers
            .iter()
            .filter(|(_, p)| matches!(p.part, Part::Member | Part::Follows))
            .map(|(&r, _)| r)
            .collect();
        for granter in granters {
            self.send(granter, FromPrimary::LeaseAsk { number }, out);
        }
    }

    pub(super) fn receive_as_leader(
        &mut self,
        now: Time,
        from: ReplicaId,
        epoch: Epoch,
        message: ToPrimary<P>,
        out: &mut Vec<Effect<P>>,
    ) {
        if let (ToPrimary::Stale, true) = (&message, epoch > self.promised) {
            // Someone leads a newer epoch; the record will say who. Nothing of this one is served on.
            self.promise(epoch, self.token_durable, out);
            self.step_down(out);
            return;
        }
        match &mut self.role {
            Role::Activating(a) if a.epoch == epoch => {
                self.receive_as_activating(now, from, message, out);
            }
            Role::Serving(s) if epoch >= s.since && epoch <= s.epoch => {
                let Some(peer) = s.peers.get_mut(&from) else { return };
                peer.heard = now;
                peer.refused_since = None;
                self.receive_as_serving(now, from, &message, out);
            }
            Role::Activating(_) | Role::Serving(_) | Role::Idle | Role::Following(_) => {}
        }
    }

    fn receive_as_serving(
        &mut self,
        now: Time,
        from: ReplicaId,
        message: &ToPrimary<P>,
        out: &mut Vec<Effect<P>>,
    ) {
        match *message {
            ToPrimary::Appended { received, durable, room, filling } => {
                if let Role::Serving(s) = &mut self.role
                    && let Some(peer) = s.peers.get_mut(&from)
                {
                    peer.room = room;
                }
                match filling {
                    Some(have) => self.take_ack_of_filling(from, received, have, out),
                    None => self.take_ack(now, from, received, durable, out),
                }
                self.uncrowd(now, out);
            }
            ToPrimary::Mismatch { last, commit } => {
                self.take_mismatch(now, from, last, commit, out);
            }
            ToPrimary::LeaseGrant { number } => {
                let timing = self.timing;
                if let Role::Serving(s) = &mut self.role {
                    s.leases.granted(from, number, &timing);
                }
                self.serve_reads(now, out);
            }
            ToPrimary::Lost => self.propose_lost(now, from, out),
            ToPrimary::CopyAsk { have } => self.start_copy(from, have, out),
            ToPrimary::CopyTaken { chunk } => self.copy_taken(from, chunk, out),
            ToPrimary::CopyEnded { at } => self.copy_is_whole(now, from, at, out),
            // A newer epoch was seen to before; the others answer an activation.
            ToPrimary::Stale | ToPrimary::Answer { .. } | ToPrimary::Tail { .. } => {}
        }
    }

    fn take_ack(
        &mut self,
        now: Time,
        from: ReplicaId,
        received: Sequence,
        durable: Sequence,
        out: &mut Vec<Effect<P>>,
    ) {
        let last = self.log.last().sequence;
        let Role::Serving(s) = &mut self.role else { return };
        let Some(peer) = s.peers.get_mut(&from) else { return };
        peer.flow.received(received);
        if let Part::Copies(_) = peer.part {
            // From before the copy began.
            return;
        }
        if let Part::Probed = peer.part {
            // It holds the whole log as of the probe.
            peer.part = Part::Follows;
            peer.sent = received.min(last);
            peer.flow.broken();
        }
        peer.received = peer.received.max(received.min(last));
        peer.durable = peer.durable.max(durable.min(last));
        self.push(from, out);
        self.trim_log();
        self.serving_progress(now, out);
    }

    fn take_mismatch(
        &mut self,
        now: Time,
        from: ReplicaId,
        last: Position,
        commit: Sequence,
        out: &mut Vec<Effect<P>>,
    ) {
        let base = self.log.base().sequence;
        let agrees = self.log.agrees(last) && last.sequence >= base;
        let Role::Serving(s) = &mut self.role else { return };
        let Some(peer) = s.peers.get_mut(&from) else { return };
        let forgot = last.sequence < peer.durable || last.sequence < base;
        peer.flow.broken();
        match peer.part {
            Part::Member if forgot => {
                self.propose_lost(now, from, out);
                return;
            }
            Part::Member if agrees => peer.sent = last.sequence,
            // All that is committed is there; the base is committed.
            Part::Member => peer.sent = commit.max(base),
            Part::Probed | Part::Follows if agrees => {
                (peer.part, peer.sent) = (Part::Follows, last.sequence);
            }
            Part::Probed | Part::Follows if commit >= base => {
                (peer.part, peer.sent) = (Part::Follows, commit);
            }
            Part::Probed | Part::Follows | Part::Copies(_) => {
                self.start_copy(from, commit, out);
                return;
            }
        }
        self.push(from, out);
    }

    /// Commits what is durable everywhere and does what waited for it.
    pub(super) fn serving_progress(&mut self, now: Time, out: &mut Vec<Effect<P>>) {
        let own = self.durable;
        let Role::Serving(s) = &self.role else { return };
        let commit = s.required().map(|(_, p)| p.durable).fold(own, Sequence::min);
        let in_memory = s.required().map(|(_, p)| p.received);
        let in_memory = in_memory.fold(self.log.last().sequence, Sequence::min);
        self.advance_commit(commit, out);
        if let Role::Serving(s) = &mut self.role {
            s.new_chunks.committed(self.commit);
        }
        let flush_mode = self.record.as_ref().is_some_and(|r| r.durability == Durability::Flush);
        if flush_mode {
            self.acknowledge_in_memory(in_memory, out);
        }
        self.copies_progress(out);
        self.report_active(now, out);
        self.serve_reads(now, out);
        self.propose_promotion(now, out);
    }

    /// Durability `flush`: a write is acknowledged when every member has it in memory.
    fn acknowledge_in_memory(&mut self, received: Sequence, out: &mut Vec<Effect<P>>) {
        while let Some(waiter) = self.waiters.front().filter(|w| w.at.sequence <= received) {
            if self.log.position(waiter.at.sequence) == Some(waiter.at) {
                out.push(Effect::Reply(waiter.id, tidewater_proto::peer::Reply::Done(waiter.at)));
            }
            self.waiters.pop_front();
        }
    }

    /// Reports epoch and token once active, the token durable and older writes committed; repeats until
    /// the record shows it.
    fn report_active(&mut self, now: Time, out: &mut Vec<Effect<P>>) {
        let (commit, durable) = (self.commit, self.token_durable);
        let shown = self.record.as_ref().and_then(|r| r.active);
        let repeat = self.timing.repeat * 5;
        let Role::Serving(s) = &mut self.role else { return };
        let ready = s.is_active(commit) && commit >= s.token_from && durable >= s.token;
        let lately = s.reported_at.is_some_and(|at| now.since(at) < repeat);
        if !ready || lately || shown == Some((s.epoch, s.token)) {
            return;
        }
        s.reported_at = Some(now);
        out.push(Effect::Active { epoch: s.epoch, token: s.token });
    }

    pub(super) fn serving_tick(&mut self, now: Time, out: &mut Vec<Effect<P>>) {
        let timing = self.timing;
        let last = self.log.last().sequence;
        let Role::Serving(s) = &self.role else { return };
        let renew = s.leases.last_asked().is_none_or(|at| now.since(at) >= timing.renew);
        let behind = s.peers.values().any(|p| p.durable < last);
        let wait = if behind { timing.repeat } else { timing.renew };
        let probe = now.since(s.probed_at) >= wait;
        if renew {
            self.ask_leases(now, out);
        }
        if probe {
            self.probe(now, out);
        }
        self.propose_removal(now, out);
        self.serving_progress(now, out);
    }

    fn may_propose(&mut self, now: Time) -> bool {
        let repeat = self.timing.repeat;
        let Role::Serving(s) = &mut self.role else { return false };
        if s.proposed_at.is_some_and(|at| now.since(at) < repeat) {
            return false;
        }
        s.proposed_at = Some(now);
        true
    }

    /// Asks for a silent copy to be taken out, as long as the set stays at its floor.
    fn propose_removal(&mut self, now: Time, out: &mut Vec<Effect<P>>) {
        let timing = self.timing;
        let floor = self.record.as_ref().map_or(usize::MAX, |r| r.floor);
        let Role::Serving(s) = &self.role else { return };
        let above_floor = s.members() > floor;
        let silent = |p: &Peer| {
            now.since(p.heard) >= timing.silence
                || p.refused_since.is_some_and(|at| now.since(at) >= timing.refused)
        };
        let gone = s
            .peers
            .iter()
            .find(|(_, p)| silent(p) && (above_floor || !matches!(p.part, Part::Member)));
        let Some((&replica, _)) = gone else { return };
        let epoch = s.epoch;
        if self.may_propose(now) {
            let change = SetChange::Remove { replica };
            out.push(Effect::Propose { epoch, change, reason: Reason::Silent });
        }
    }

    fn propose_lost(&mut self, now: Time, replica: ReplicaId, out: &mut Vec<Effect<P>>) {
        let Role::Serving(s) = &self.role else { return };
        let epoch = s.epoch;
        if self.may_propose(now) {
            let change = SetChange::Lost { replica };
            out.push(Effect::Propose { epoch, change, reason: Reason::CopyLost });
        }
    }

    /// Proposes a learner that has caught up (rule 8). First commits need it, then it is waited for until
    /// it has all that is committed, and only then is it proposed: so whenever the epoch with it is
    /// committed, every committed entry is on it.
    fn propose_promotion(&mut self, now: Time, out: &mut Vec<Effect<P>>) {
        let (commit, last, patience) =
            (self.commit, self.log.last().sequence, self.timing.repeat * 2);
        let Role::Serving(s) = &mut self.role else { return };
        if !s.is_active(commit) {
            return;
        }
        let follows = |p: &Peer| matches!(p.part, Part::Follows) && now.since(p.heard) < patience;
        // Nobody was told of it yet, so it can be let go as it was taken.
        if !s.offered && s.adding.is_some_and(|r| !s.peers.get(&r).is_some_and(follows)) {
            s.adding = None;
        }
        if s.adding.is_none() {
            let near = |p: &Peer| follows(p) && p.durable.0 + CAUGHT_UP_ENTRIES >= last.0;
            let Some((&next, _)) = s.peers.iter().find(|(_, p)| near(p)) else { return };
            s.adding = Some(next);
            // It is needed now, so it is sent all there is.
            self.push(next, out);
        }
        let Role::Serving(s) = &mut self.role else { return };
        let Some(replica) = s.adding else { return };
        let whole = s.peers.get(&replica).is_some_and(|p| p.durable >= commit);
        let epoch = s.epoch;
        if !(whole || s.offered) || !self.may_propose(now) {
            return;
        }
        if let Role::Serving(s) = &mut self.role {
            s.offered = true;
        }
        let change = SetChange::Promote { replica };
        out.push(Effect::Propose { epoch, change, reason: Reason::CaughtUp });
    }

    pub(super) fn connected(&mut self, now: Time, peer: ReplicaId, out: &mut Vec<Effect<P>>) {
        match &mut self.role {
            Role::Serving(s) => {
                let Some(known) = s.peers.get_mut(&peer) else { return };
                known.refused_since = None;
                // It may have been another process, with another idea of its space.
                known.room = known.room.min(Room(1));
                known.sent = known.durable.max(self.commit.min(known.sent));
                known.flow.broken();
                if let Part::Copies(_) = known.part {
                    known.part = Part::Probed;
                }
                self.ask_leases(now, out);
                self.probe(now, out);
            }
            Role::Following(following) => following.refused = false,
            Role::Activating(_) | Role::Idle => {}
        }
    }

    pub(super) fn refused(&mut self, now: Time, peer: ReplicaId) {
        match &mut self.role {
            Role::Serving(s) => {
                if let Some(peer) = s.peers.get_mut(&peer) {
                    peer.refused_since.get_or_insert(now);
                }
            }
            Role::Activating(a) => a.refused(peer),
            Role::Idle | Role::Following(_) => {}
        }
    }
}
