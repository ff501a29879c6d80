//! Catch-up of a learner that the log no longer reaches (rule 8): chunks that changed since its own copy
//! ended, beside the log.
//!
//! Each chunk is read once. Until it is, entries that change it are sent without their bytes: the image
//! will show them. From then on they are sent whole, and the learner lays them over the image. So a
//! learner never has to keep changes of a chunk that it does not have.
//!
//! That needs two things. Only committed entries are sent, for an image cannot be undone. And while a
//! chunk is read, nothing is sent that was committed later: the learner has applied nothing that the
//! image does not show. A read is short, because the turn for it is awaited before.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeSet;

use tidewater_proto::{
    entry::{Change, Entry},
    ids::{Position, ReplicaId, Sequence},
    peer::{AppliedSession, FromPrimary, ToPrimary},
};

use super::{
    Effect, Replica, Role, Time,
    serving::{Part, Peer},
};

/// Chunks sent before any of them is acknowledged.
const WINDOW: usize = 4;

/// A copy under way, at the primary.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct CopyOut {
    /// Where the learner's own copy ended.
    have: Sequence,
    begun: bool,
    /// Chunks still to be read.
    queue: BTreeSet<u32>,
    /// The next one is the first from here on, so that one that cannot be read holds up no other.
    next: u32,
    reading: Option<u32>,
    untaken: BTreeSet<u32>,
    /// Highest commit point the learner may hear of now.
    cap: Sequence,
    ending: Option<Position>,
}

impl CopyOut {
    fn new(have: Sequence, commit: Sequence) -> Self {
        Self {
            have,
            begun: false,
            queue: BTreeSet::new(),
            next: 0,
            reading: None,
            untaken: BTreeSet::new(),
            cap: commit,
            ending: None,
        }
    }

    pub(super) fn begun(&self) -> bool {
        self.begun
    }

    pub(super) fn cap(&self) -> Sequence {
        self.cap
    }

    /// How far the learner may be sent entries.
    pub(super) fn reach(&mut self, commit: Sequence) -> Sequence {
        if self.reading.is_none() {
            self.cap = commit;
        }
        self.cap
    }

    /// An entry as the learner is sent it: without its bytes if images yet to be read show it.
    pub(super) fn as_sent<P: Clone>(&self, entry: &Entry<P>) -> Entry<P> {
        let shown = |chunk: u32| self.queue.contains(&chunk) || self.reading == Some(chunk);
        match &entry.change {
            Change::Write { extent, .. } if extent.chunks().all(shown) => Entry {
                position: entry.position,
                token: entry.token,
                op: None,
                lowest_open: 0,
                change: Change::Activate,
            },
            Change::Write { .. } | Change::Zero { .. } | Change::Activate => entry.clone(),
        }
    }

    fn pop(&mut self) -> Option<u32> {
        let after = self.queue.range(self.next..).next();
        let chunk = *after.or_else(|| self.queue.first())?;
        self.queue.remove(&chunk);
        self.next = chunk + 1;
        Some(chunk)
    }
}

impl<P: Clone> Replica<P> {
    fn peer_mut(&mut self, replica: ReplicaId) -> Option<&mut Peer> {
        match &mut self.role {
            Role::Serving(s) => s.peers.get_mut(&replica),
            Role::Idle | Role::Following(_) | Role::Activating(_) => None,
        }
    }

    fn copy_mut(&mut self, learner: ReplicaId) -> Option<&mut CopyOut> {
        match &mut self.peer_mut(learner)?.part {
            Part::Copies(copy) => Some(copy),
            Part::Member | Part::Probed | Part::Follows => None,
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
        peer.flow.broken();
        peer.part = Part::Copies(CopyOut::new(have, commit));
        out.push(Effect::PlanCopy { learner });
    }

    /// A learner that is not whole has received so much: it counts for nothing but its flow. A copy that
    /// this primary does not know of, or no more, begins again.
    pub(super) fn take_ack_of_filling(
        &mut self,
        learner: ReplicaId,
        received: Sequence,
        have: Sequence,
        out: &mut Vec<Effect<P>>,
    ) {
        let Some(peer) = self.peer_mut(learner) else { return };
        match peer.part {
            Part::Copies(_) => {
                peer.flow.received(received);
                self.copy_progress(learner, out);
            }
            Part::Probed | Part::Follows => self.start_copy(learner, have, out),
            Part::Member => {}
        }
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
        (copy.begun, copy.cap) = (true, commit);
        copy.queue =
            chunks.iter().filter(|(_, changed)| *changed > have).map(|(c, _)| *c).collect();
        peer.sent = commit;
        let follow = copy.queue.iter().copied().collect();
        let live = chunks.into_iter().map(|(chunk, _)| chunk).collect();
        self.send(learner, FromPrimary::CopyBegin { at, have, live, follow }, out);
        self.copy_progress(learner, out);
    }

    /// Goes on with every copy under way.
    pub(super) fn copies_progress(&mut self, out: &mut Vec<Effect<P>>) {
        let Role::Serving(s) = &self.role else { return };
        let copies = s.peers.iter().filter(|(_, p)| matches!(p.part, Part::Copies(_)));
        let learners: Vec<_> = copies.map(|(&learner, _)| learner).collect();
        for learner in learners {
            self.copy_progress(learner, out);
        }
    }

    /// Sends what is committed, then awaits the turn for the next chunk, or ends the copy when nothing is
    /// left.
    pub(super) fn copy_progress(&mut self, learner: ReplicaId, out: &mut Vec<Effect<P>>) {
        self.push(learner, out);
        let at = self.log.position(self.commit).unwrap_or(self.log.base());
        let applied = &self.applied;
        let Role::Serving(s) = &mut self.role else { return };
        let Some(peer) = s.peers.get_mut(&learner) else { return };
        let Part::Copies(copy) = &mut peer.part else { return };
        // The learner's log must reach as far as the next image and the end show.
        let lags = peer.sent < copy.cap;
        if !copy.begun || copy.reading.is_some() || copy.ending.is_some() || lags {
            return;
        }
        if !copy.queue.is_empty() {
            if copy.untaken.len() < WINDOW && peer.flow.wants_turn() {
                out.push(Effect::AwaitTurn { learner });
            }
        } else if copy.untaken.is_empty() {
            copy.ending = Some(at);
            let message = FromPrimary::CopyEnd { at, applied: applied.save() };
            self.send(learner, message, out);
        }
    }

    /// There is time for the next chunk.
    pub(super) fn copy_next(&mut self, learner: ReplicaId, out: &mut Vec<Effect<P>>) {
        self.push(learner, out);
        let Some(peer) = self.peer_mut(learner) else { return };
        let Part::Copies(copy) = &mut peer.part else { return };
        // Where the learner lags, its next acknowledgement goes on.
        if !copy.begun || copy.reading.is_some() || peer.sent < copy.cap {
            return;
        }
        if let Some(chunk) = copy.pop() {
            copy.reading = Some(chunk);
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
        let Some(copy) = self.copy_mut(learner).filter(|c| c.reading == Some(chunk)) else {
            return;
        };
        copy.reading = None;
        let at = copy.cap;
        self.send(learner, FromPrimary::CopyChunk { chunk, changed, at, image }, out);
        self.copy_progress(learner, out);
    }

    /// The chunk is tried again later; the next tick goes on, so that one that stays unreadable is not
    /// read over and over.
    pub(super) fn copy_unread(&mut self, learner: ReplicaId, chunk: u32) {
        if let Some(copy) = self.copy_mut(learner).filter(|c| c.reading == Some(chunk)) {
            copy.reading = None;
            copy.untaken.remove(&chunk);
            copy.queue.insert(chunk);
        }
    }

    pub(super) fn copy_taken(&mut self, learner: ReplicaId, chunk: u32, out: &mut Vec<Effect<P>>) {
        // One that is being read was not sent by this copy yet.
        if let Some(copy) = self.copy_mut(learner).filter(|c| c.reading != Some(chunk)) {
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
        let Some(peer) = self.peer_mut(learner) else { return };
        let whole = matches!(&peer.part, Part::Copies(copy) if copy.ending == Some(at));
        if !whole {
            return;
        }
        peer.part = Part::Follows;
        let (sent, commit) = (peer.sent, self.commit);
        let last = self.log.position(sent).unwrap_or(at);
        self.send(learner, FromPrimary::Commit { last, commit }, out);
        self.push(learner, out);
        self.ask_leases(now, out);
    }

    // ---------- at the learner ----------

    pub(super) fn begin_copy(
        &mut self,
        at: Position,
        have: Sequence,
        (live, follow): (Vec<u32>, Vec<u32>),
        out: &mut Vec<Effect<P>>,
    ) {
        let own_end = self.copying.unwrap_or(self.commit);
        if have > own_end {
            return;
        }
        let begun_before = self.copying.is_some() || have != self.commit;
        let own = (!begun_before).then(|| self.freeze_point());
        self.log.reset(at);
        self.destaged = at;
        (self.commit, self.durable) = (at.sequence, at.sequence);
        self.copying = Some(have);
        self.copy_runs = true;
        self.awaited = follow.iter().copied().collect();
        if let Role::Following(following) = &mut self.role {
            following.refused = false;
            following.matched = at.sequence;
        }
        out.push(Effect::BeginCopy { at, have, live, follow, own });
    }

    pub(super) fn take_chunk(
        &mut self,
        chunk: u32,
        changed: Sequence,
        at: Sequence,
        image: Option<P>,
        out: &mut Vec<Effect<P>>,
    ) {
        // An image that lacks what is applied here already comes late, from a connection before.
        if self.copying.is_some() && self.copy_runs && self.commit <= at {
            out.push(Effect::TakeChunk { chunk, changed, at, image });
        }
    }

    pub(super) fn chunk_taken(&mut self, chunk: u32, out: &mut Vec<Effect<P>>) {
        self.awaited.remove(&chunk);
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
        let fits = self.log.agrees(at) && self.commit <= at.sequence;
        if self.copying.is_none() || !self.copy_runs || !fits {
            return;
        }
        if !self.awaited.is_empty() {
            self.refuse(out);
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
        // Some of the entries up to here came without their bytes: they must never be sent on.
        self.destaged(at);
        if let Role::Following(following) = &self.role {
            self.send(following.primary, ToPrimary::CopyEnded { at }, out);
        }
    }
}
