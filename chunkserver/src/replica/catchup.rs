//! Catch-up of a learner that the log no longer reaches (rule 8): chunks that changed since its own copy
//! ended, beside the log. The primary keeps the commit point it tells the learner at or below the one
//! the chunks under way show, so that what the learner has applied is in every chunk it is sent.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeSet;

use tidewater_proto::{
    ids::{Position, ReplicaId, Sequence},
    peer::{AppliedSession, FromPrimary, ToPrimary},
};

use super::{
    Effect, Replica, Role, Time,
    serving::{Part, Peer},
};

/// Chunks read and sent before any of them is acknowledged.
const WINDOW: usize = 4;

/// A copy under way, at the primary.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct CopyOut {
    /// Where the learner's own copy ended.
    have: Sequence,
    begun: bool,
    /// Chunks still to be read, last first.
    queue: Vec<u32>,
    reading: BTreeSet<u32>,
    untaken: BTreeSet<u32>,
    /// Highest commit point the learner may hear of now.
    cap: Sequence,
    ending: Option<Position>,
}

impl CopyOut {
    pub(super) fn begun(&self) -> bool {
        self.begun
    }

    pub(super) fn cap(&self) -> Sequence {
        self.cap
    }
}

impl<P: Clone> Replica<P> {
    fn peer_mut(&mut self, replica: ReplicaId) -> Option<&mut Peer> {
        match &mut self.role {
            Role::Serving(s) => s.peers.get_mut(&replica),
            Role::Idle | Role::Following(_) | Role::Activating(_) => None,
        }
    }

    /// Asks every learner whose state is unknown how far it is.
    pub(super) fn probe_learners(&mut self, out: &mut Vec<Effect<P>>) {
        let (last, commit) = (self.log.last(), self.commit);
        let Role::Serving(s) = &self.role else { return };
        let probed = s.peers.iter().filter(|(_, p)| matches!(p.part, Part::Probed));
        let probed: Vec<_> = probed.map(|(&r, _)| r).collect();
        for learner in probed {
            self.send(learner, FromPrimary::Commit { last, commit }, out);
        }
    }

    /// A learner fell out of the log's reach.
    pub(super) fn probe_again(&mut self, learner: ReplicaId, out: &mut Vec<Effect<P>>) {
        if let Some(peer) = self.peer_mut(learner).filter(|p| !matches!(p.part, Part::Member)) {
            peer.part = Part::Probed;
            self.probe_learners(out);
        }
    }

    pub(super) fn start_copy(
        &mut self,
        learner: ReplicaId,
        have: Sequence,
        out: &mut Vec<Effect<P>>,
    ) {
        let commit = self.commit;
        let Some(peer) = self.peer_mut(learner) else { return };
        if matches!(peer.part, Part::Member) {
            return;
        }
        (peer.received, peer.durable) = (Sequence(0), Sequence(0));
        peer.part = Part::Copies(CopyOut {
            have,
            begun: false,
            queue: Vec::new(),
            reading: BTreeSet::new(),
            untaken: BTreeSet::new(),
            cap: commit,
            ending: None,
        });
        out.push(Effect::PlanCopy { learner });
    }

    pub(super) fn copy_planned(
        &mut self,
        learner: ReplicaId,
        chunks: Vec<(u32, Sequence)>,
        out: &mut Vec<Effect<P>>,
    ) {
        let commit = self.commit;
        let at = self.log.position(commit).unwrap_or(self.log.base());
        let Some(peer) = self.peer_mut(learner) else { return };
        let Part::Copies(copy) = &mut peer.part else { return };
        if copy.begun {
            return;
        }
        let have = copy.have;
        copy.begun = true;
        copy.cap = commit;
        copy.queue =
            chunks.iter().rev().filter(|(_, changed)| *changed > have).map(|(c, _)| *c).collect();
        peer.sent = commit;
        let live = chunks.into_iter().map(|(chunk, _)| chunk).collect();
        self.send(learner, FromPrimary::CopyBegin { at, have, live }, out);
        self.push(learner, out);
        self.copy_progress(learner, out);
    }

    /// Starts the next reads, or ends the copy when nothing is left.
    fn copy_progress(&mut self, learner: ReplicaId, out: &mut Vec<Effect<P>>) {
        let commit = self.commit;
        let at = self.log.position(commit).unwrap_or(self.log.base());
        let applied = &self.applied;
        let Role::Serving(s) = &mut self.role else { return };
        let Some(peer) = s.peers.get_mut(&learner) else { return };
        let Part::Copies(copy) = &mut peer.part else { return };
        if !copy.reading.is_empty() || copy.ending.is_some() {
            return;
        }
        copy.cap = commit;
        if copy.queue.is_empty() && copy.untaken.is_empty() {
            copy.ending = Some(at);
            let message = FromPrimary::CopyEnd { at, applied: applied.save() };
            self.send(learner, message, out);
            return;
        }
        while copy.untaken.len() < WINDOW {
            let Some(chunk) = copy.queue.pop() else { break };
            copy.reading.insert(chunk);
            copy.untaken.insert(chunk);
            out.push(Effect::ReadChunk { learner, chunk });
        }
    }

    pub(super) fn copy_read(
        &mut self,
        learner: ReplicaId,
        chunk: u32,
        changed: Sequence,
        image: Option<P>,
        out: &mut Vec<Effect<P>>,
    ) {
        let Some(peer) = self.peer_mut(learner) else { return };
        let Part::Copies(copy) = &mut peer.part else { return };
        if !copy.reading.remove(&chunk) {
            return;
        }
        let at = copy.cap;
        self.send(learner, FromPrimary::CopyChunk { chunk, changed, at, image }, out);
        self.copy_progress(learner, out);
    }

    pub(super) fn copy_taken(&mut self, learner: ReplicaId, chunk: u32, out: &mut Vec<Effect<P>>) {
        let Some(peer) = self.peer_mut(learner) else { return };
        if let Part::Copies(copy) = &mut peer.part {
            copy.untaken.remove(&chunk);
        }
        self.copy_progress(learner, out);
    }

    /// The learner's copy is whole as of `at`: it follows the log from now on.
    pub(super) fn copy_is_whole(
        &mut self,
        now: Time,
        learner: ReplicaId,
        at: Position,
        out: &mut Vec<Effect<P>>,
    ) {
        let (last, commit) = (self.log.last(), self.commit);
        let Some(peer) = self.peer_mut(learner) else { return };
        let whole = matches!(&peer.part, Part::Copies(copy) if copy.ending == Some(at));
        if !whole {
            return;
        }
        peer.part = Part::Follows;
        self.send(learner, FromPrimary::Commit { last, commit }, out);
        self.ask_leases(now, out);
    }

    // ---------- at the learner ----------

    pub(super) fn begin_copy(
        &mut self,
        at: Position,
        have: Sequence,
        live: Vec<u32>,
        out: &mut Vec<Effect<P>>,
    ) {
        let own_end = self.copying.unwrap_or(self.commit);
        if have > own_end {
            return;
        }
        let begun_before = self.copying.is_some() || have != self.commit;
        let own = (!begun_before).then(|| self.freeze_point());
        self.log.reset(at);
        (self.commit, self.durable) = (at.sequence, at.sequence);
        self.copying = Some(have);
        self.copy_runs = true;
        if let Role::Following(following) = &mut self.role {
            following.refused = false;
            following.matched = at.sequence;
        }
        out.push(Effect::BeginCopy { at, have, live, own });
    }

    pub(super) fn take_chunk(
        &mut self,
        chunk: u32,
        changed: Sequence,
        at: Sequence,
        image: Option<P>,
        out: &mut Vec<Effect<P>>,
    ) {
        if self.copying.is_some() && self.copy_runs {
            out.push(Effect::TakeChunk { chunk, changed, at, image });
        }
    }

    pub(super) fn chunk_taken(&self, chunk: u32, out: &mut Vec<Effect<P>>) {
        if let (Role::Following(following), true) = (&self.role, self.copying.is_some()) {
            self.send(following.primary, ToPrimary::CopyTaken { chunk }, out);
        }
    }

    pub(super) fn end_copy(
        &mut self,
        at: Position,
        applied: Vec<AppliedSession>,
        out: &mut Vec<Effect<P>>,
    ) {
        if self.copying.is_none() || !self.copy_runs || !self.log.agrees(at) {
            return;
        }
        self.advance_commit(at.sequence, out);
        self.applied = super::Applied::load(applied.clone());
        out.push(Effect::EndCopy { at, applied });
    }

    pub(super) fn copy_ended(&mut self, at: Position, out: &mut Vec<Effect<P>>) {
        if !self.copy_runs || self.copying.take().is_none() {
            return;
        }
        if let Role::Following(following) = &self.role {
            self.send(following.primary, ToPrimary::CopyEnded { at }, out);
        }
    }
}
