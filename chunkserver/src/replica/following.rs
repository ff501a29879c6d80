//! The follower's side: members and learners behind a primary (rules 3, 5, 6).
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use tidewater_proto::{
    entry::Entry,
    ids::{Position, ReplicaId, Sequence},
    peer::{FromPrimary, Room, ToPrimary},
    record::Durability,
};

use super::{Effect, Following, Replica, Role, Time};

impl<P: Clone> Replica<P> {
    /// Follows `primary` in the promised epoch.
    pub(super) fn follow(
        &mut self,
        now: Time,
        primary: ReplicaId,
        newer: bool,
        out: &mut Vec<Effect<P>>,
    ) {
        let already = matches!(&self.role, Role::Following(f) if f.primary == primary);
        if already && !newer {
            return;
        }
        self.step_down(out);
        self.role = Role::Following(Following { primary, ..Following::default() });
        self.try_answer(now, out);
    }

    pub(super) fn receive_as_follower(
        &mut self,
        now: Time,
        from: ReplicaId,
        message: FromPrimary<P>,
        out: &mut Vec<Effect<P>>,
    ) {
        if let Role::Idle = self.role {
            // A record that left this copy out, or another run of its own process, may be behind.
            self.role = Role::Following(Following { primary: from, ..Following::default() });
        }
        let Role::Following(following) = &mut self.role else {
            return;
        };
        following.primary = from;
        match message {
            FromPrimary::Append { previous, entry, commit } => {
                self.take_append(previous, entry, commit, out);
            }
            FromPrimary::Commit { last, commit } => self.take_commit(last, commit, out),
            FromPrimary::Query => {
                following.queried = true;
                self.try_answer(now, out);
                self.show_life(out);
            }
            FromPrimary::Fetch { from: first } => self.send_tail(from, first, out),
            FromPrimary::LeaseAsk { number } => {
                following.asked = Some(number);
                self.try_answer(now, out);
            }
            FromPrimary::CopyBegin { at, have, live, follow } => {
                self.begin_copy(at, have, (live, follow), out);
            }
            FromPrimary::CopyChunk { chunk, changed, at, image } => {
                self.take_chunk(chunk, changed, at, image, out);
            }
            FromPrimary::CopyEnd { at, applied } => self.end_copy(at, applied, out),
            // Taken before any role is looked at.
            FromPrimary::LeaseReturn { .. } => {}
        }
    }

    /// Whether entries may be taken: a learner whose copy was cut off has to start it again.
    fn takes_entries(&self) -> bool {
        self.copying.is_none() || self.copy_runs
    }

    fn take_append(
        &mut self,
        previous: Position,
        entry: Entry<P>,
        commit: Sequence,
        out: &mut Vec<Effect<P>>,
    ) {
        let at = entry.position;
        if !self.takes_entries()
            || at.sequence != previous.sequence.next()
            || !self.log.agrees(previous)
        {
            self.refuse(out);
            return;
        }
        if !self.log.agrees(at) {
            self.truncate(previous.sequence);
            self.append(entry, out);
        }
        self.matched(at.sequence);
        self.advance_commit(commit.min(at.sequence), out);
        let in_memory = self.record.as_ref().is_some_and(|r| r.durability == Durability::Flush);
        if in_memory || self.durable >= at.sequence {
            self.acknowledge(out);
        }
    }

    fn take_commit(&mut self, last: Position, commit: Sequence, out: &mut Vec<Effect<P>>) {
        if let Role::Following(following) = &mut self.role {
            following.refused = false;
        }
        if !self.takes_entries() || !self.log.agrees(last) {
            self.refuse(out);
            return;
        }
        self.matched(last.sequence);
        self.advance_commit(commit.min(last.sequence), out);
        self.acknowledge(out);
    }

    /// Says once that what came does not fit; the primary starts again from there.
    pub(super) fn refuse(&mut self, out: &mut Vec<Effect<P>>) {
        let Role::Following(following) = &mut self.role else { return };
        if std::mem::replace(&mut following.refused, true) {
            return;
        }
        let primary = following.primary;
        if self.waits_for_space() {
            self.acknowledge(out);
            return;
        }
        let message: ToPrimary<P> = match self.copying {
            Some(have) => ToPrimary::CopyAsk { have },
            None => ToPrimary::Mismatch { last: self.log.last(), commit: self.commit },
        };
        self.send(primary, message, out);
    }

    /// Whether this is a learner that would not take what it asked for.
    fn waits_for_space(&self) -> bool {
        let learns = |r: &super::RecordView| r.learners.contains(&self.id);
        self.room == Room::NONE && self.record.as_ref().is_some_and(learns)
    }

    /// The log up to `sequence` is the primary's.
    fn matched(&mut self, sequence: Sequence) {
        if let Role::Following(following) = &mut self.role {
            following.refused = false;
            following.matched = following.matched.max(sequence);
        }
    }

    fn acknowledge(&mut self, out: &mut Vec<Effect<P>>) {
        let Role::Following(following) = &self.role else { return };
        if self.promised_durable < self.promised {
            return;
        }
        let matched = following.matched.max(self.commit);
        let received = matched.min(self.log.last().sequence);
        let durable = self.durable.min(matched);
        let (room, filling) = (self.room, self.copying);
        let message = ToPrimary::Appended { received, durable, room, filling };
        self.send(following.primary, message, out);
    }

    pub(super) fn follower_persisted(&mut self, now: Time, out: &mut Vec<Effect<P>>) {
        self.try_answer(now, out);
        self.tell_room(out);
    }

    /// Acknowledges what there is, unless the primary has to be told something else first.
    pub(super) fn tell_room(&mut self, out: &mut Vec<Effect<P>>) {
        let Role::Following(following) = &self.role else { return };
        if !following.refused && !following.queried {
            self.acknowledge(out);
        }
    }

    /// Answers what a primary of the promised epoch asked, once the epoch is durable and no older lease
    /// of this member can be alive.
    pub(super) fn try_answer(&mut self, now: Time, out: &mut Vec<Effect<P>>) {
        let Role::Following(following) = &mut self.role else {
            self.activation_progress(now, out);
            return;
        };
        let primary = following.primary;
        if self.promised_durable < self.promised || !self.granter.is_free_for(primary, now) {
            return;
        }
        if let Some(number) = following.asked.take() {
            self.granter.grant(primary, number, now, &self.timing);
            self.send(primary, ToPrimary::LeaseGrant { number }, out);
        }
        let Role::Following(following) = &mut self.role else { return };
        if following.queried && self.durable == self.log.last().sequence {
            following.queried = false;
            let message = ToPrimary::Answer { last: self.log.last(), commit: self.commit };
            self.send(primary, message, out);
        }
    }

    /// A member that may not answer yet, because an older lease may be alive, says that it is alive: it
    /// acknowledges nothing.
    fn show_life(&self, out: &mut Vec<Effect<P>>) {
        let Role::Following(following) = &self.role else { return };
        if following.queried && self.promised_durable == self.promised {
            let (received, durable) = (Sequence(0), Sequence(0));
            let (room, filling) = (self.room, self.copying);
            let message = ToPrimary::Appended { received, durable, room, filling };
            self.send(following.primary, message, out);
        }
    }

    /// Sends the entries from `first` on to a new primary that lacks them.
    fn send_tail(&self, to: ReplicaId, first: Sequence, out: &mut Vec<Effect<P>>) {
        let last = self.log.last();
        for entry in self.log.above(Sequence(first.0.saturating_sub(1))) {
            self.send(to, ToPrimary::Tail { entry: entry.clone(), last }, out);
        }
    }
}
