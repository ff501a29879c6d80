//! One copy of a segment: the replication protocol as a pure state machine (rules 1 to 10 of
//! docs/protocol.md). No clock, no I/O: [`Replica::step`] takes the time and an event and lists effects.
//!
//! ```text
//!                     record names it primary of a newer epoch, in this run
//!            ┌───────────────────────────────────────────────────────────┐
//!            │                                                           ▼
//!   Idle ◄──►│Following ── newer epoch, other primary ◄── Leading{Asking ─► Fetching ─► Settling ─► Serving}
//!            └── (record, or a message of a newer epoch)
//! ```
//!
//! `Asking`, `Fetching` and `Settling` are the activation: no write is accepted and no read answered
//! before the first entry of the epoch is on every member.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod activation;
mod applied;
mod catchup;
mod event;
mod following;
mod lease;
mod log;
mod pushing;
mod requests;
mod serving;
mod space;
mod time;

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};

use tidewater_proto::{
    entry::Entry,
    ids::{Epoch, Position, ReplicaId, Revision, RunId, SegmentId, Sequence, Token},
    peer::{AppliedSession, Envelope, FromPrimary, PeerMessage, Reply, Room, ToPrimary},
    record::{CopyReport, Durability, SegmentRecord},
};

use self::{activation::Activation, applied::Applied, lease::Granter, log::Log, serving::Serving};
pub use self::{
    event::{Effect, Event, Persist, Reason, RequestId},
    time::{Time, Timing},
};

/// What a copy knows when its process starts.
#[derive(Clone, Debug)]
pub struct Restored<P> {
    /// Which copy.
    pub id: ReplicaId,
    /// Of which segment.
    pub segment: SegmentId,
    /// Takes part in nothing older.
    pub promised: Epoch,
    /// Token durable with it.
    pub token: Token,
    /// Everything up to here is in the chunks.
    pub base: Position,
    /// Operations applied as of `base`.
    pub applied: Vec<AppliedSession>,
    /// Entries above `base`.
    pub entries: Vec<Entry<P>>,
    /// Highest commit point found on disk: a lower bound.
    pub commit: Sequence,
    /// A copy into this replica was under way: it is whole only up to here.
    pub copying: Option<Sequence>,
}

impl<P> Restored<P> {
    /// A copy just made.
    pub fn empty(id: ReplicaId, segment: SegmentId) -> Self {
        Self {
            id,
            segment,
            promised: Epoch(0),
            token: Token(0),
            base: Position::default(),
            applied: Vec::new(),
            entries: Vec::new(),
            commit: Sequence(0),
            copying: None,
        }
    }
}

/// How a copy takes part in its segment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Role<P> {
    /// Not at all: no member, no learner, or the primary's run is another.
    Idle,
    /// As member or learner behind a primary.
    Following(Following),
    /// As the primary that has yet to activate its epoch.
    Activating(Activation),
    /// As the primary.
    Serving(Box<Serving<P>>),
}

/// State of a follower that lasts as long as the epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Following {
    /// Who leads; known from the record or the first message of the epoch.
    primary: ReplicaId,
    /// The log up to here was seen to be the primary's; a tail of an older epoch above it is not
    /// acknowledged. The commit point is matched in any case.
    matched: Sequence,
    /// A mismatch was reported and nothing has fitted since.
    refused: bool,
    /// The primary asked what is held and has not been answered.
    queried: bool,
    /// A lease was asked for that could not be given yet.
    asked: Option<u64>,
}

/// A write that was given a sequence here and whose client waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Waiter {
    at: Position,
    id: RequestId,
}

/// What becomes durable with a persisted record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Pending {
    Entry(Position),
    Promise(Epoch, Token),
}

/// One copy of a segment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Replica<P> {
    id: ReplicaId,
    segment: SegmentId,
    run: RunId,
    timing: Timing,
    /// Newest record heard of; none before the first.
    record: Option<RecordView>,
    /// Highest epoch heard of; asked to be durable before anything of it is answered.
    promised: Epoch,
    promised_durable: Epoch,
    token_durable: Token,
    log: Log<P>,
    /// Everything up to here is in the chunks; the log may reach further back, for learners.
    destaged: Position,
    /// Entries up to here are in the own journal.
    durable: Sequence,
    /// Commit point as far as known.
    commit: Sequence,
    /// What the own server has room for.
    room: Room,
    applied: Applied,
    granter: Granter,
    /// Set while this copy is a learner whose content is being replaced: where the own copy ended.
    copying: Option<Sequence>,
    /// The copy was begun in this run, so entries behind its start may be taken.
    copy_runs: bool,
    /// Chunks of it whose images are not durable here yet.
    awaited: BTreeSet<u32>,
    role: Role<P>,
    waiters: VecDeque<Waiter>,
    persists: u64,
    pending: VecDeque<(u64, Pending)>,
    lease_numbers: u64,
}

/// The part of the record that the protocol reads. Kept apart so that a copy's state is small and
/// hashable.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct RecordView {
    revision: Revision,
    epoch: Epoch,
    token: Token,
    primary: ReplicaId,
    primary_run: RunId,
    members: Vec<ReplicaId>,
    learners: Vec<ReplicaId>,
    floor: usize,
    durability: Durability,
    active: Option<(Epoch, Token)>,
    route: tidewater_proto::record::Route,
}

impl From<&SegmentRecord> for RecordView {
    fn from(r: &SegmentRecord) -> Self {
        Self {
            revision: r.revision,
            epoch: r.epoch,
            token: r.token,
            primary: r.primary,
            primary_run: r.primary_run,
            members: r.members.iter().map(|m| m.replica).collect(),
            learners: r.learners.iter().map(|m| m.replica).collect(),
            floor: r.floor.into(),
            durability: r.durability,
            active: r.active,
            route: r.into(),
        }
    }
}

impl<P: Clone> Replica<P> {
    /// A copy as found on disk at `now`, and the effects of finding it: its committed entries are
    /// applied. It takes part only once a record or a primary says so, and answers an activation only
    /// when every lease an earlier run may have given has run out.
    pub fn restore(
        found: Restored<P>,
        run: RunId,
        timing: Timing,
        now: Time,
    ) -> (Self, Vec<Effect<P>>) {
        let never_promised = found.promised == Epoch(0);
        let blocked_until = if never_promised { now } else { now.after(timing.lease) };
        let mut replica = Self {
            id: found.id,
            segment: found.segment,
            run,
            timing,
            record: None,
            promised: found.promised,
            promised_durable: found.promised,
            token_durable: found.token,
            log: Log::new(found.base, found.entries),
            destaged: found.base,
            durable: Sequence(0),
            commit: found.base.sequence,
            room: Room::ANY,
            applied: Applied::load(found.applied),
            granter: Granter::new(blocked_until),
            copying: found.copying,
            copy_runs: false,
            awaited: BTreeSet::new(),
            role: Role::Idle,
            waiters: VecDeque::new(),
            persists: 0,
            pending: VecDeque::new(),
            lease_numbers: 0,
        };
        replica.durable = replica.log.last().sequence;
        let mut out = Vec::new();
        replica.advance_commit(found.commit, &mut out);
        (replica, out)
    }

    /// Takes one event. Total: what does not fit the state changes nothing.
    pub fn step(&mut self, now: Time, event: Event<P>, out: &mut Vec<Effect<P>>) {
        match event {
            Event::Configure(record) => self.configure(now, &record, out),
            Event::Message(envelope) => self.receive(now, envelope, out),
            Event::Persisted(count) => self.persisted(now, count, out),
            Event::Request { id, request, fresh } => self.request(now, id, request, fresh, out),
            Event::Room(room) => self.take_room(now, room, out),
            Event::Compared { id, equal } => self.compared(now, id, equal, out),
            Event::Connected(peer) => self.connected(now, peer, out),
            Event::Refused(peer) => self.refused(now, peer),
            Event::Tick => self.tick(now, out),
            Event::Destaged(base) => self.destaged(base),
            Event::Turn { learner } => self.turn(learner, out),
            Event::CopyPlan { learner, chunks } => self.copy_planned(learner, chunks, out),
            Event::CopyRead { learner, chunk, changed, image } => {
                self.copy_read(learner, chunk, changed, image, out);
            }
            Event::CopyUnread { learner, chunk } => self.copy_unread(learner, chunk),
            Event::ChunkTaken(chunk) => self.chunk_taken(chunk, out),
            Event::CopyEnded(at) => self.copy_ended(at, out),
        }
    }

    /// Which copy this is.
    pub fn id(&self) -> ReplicaId {
        self.id
    }

    /// Of which segment.
    pub fn segment(&self) -> SegmentId {
        self.segment
    }

    /// The commit point with its epoch, and the operations applied up to it: what a destage round
    /// that freezes now must write beside the chunks.
    pub fn freeze_point(&self) -> (Position, Vec<AppliedSession>) {
        let at = self.log.position(self.commit).unwrap_or(self.log.base());
        (at, self.applied.save())
    }

    /// Highest sequence known to be committed.
    pub fn commit_point(&self) -> Sequence {
        self.commit
    }

    /// The last entry of the log.
    pub fn last(&self) -> Position {
        self.log.last()
    }

    /// The epoch served as primary, if any.
    pub fn serves(&self) -> Option<Epoch> {
        match &self.role {
            Role::Serving(s) if s.is_active(self.commit) => Some(s.epoch),
            Role::Serving(_) | Role::Idle | Role::Following(_) | Role::Activating(_) => None,
        }
    }

    /// Whether a read that came now would be answered: it is the active primary and holds a lease of every
    /// other member.
    pub fn answers_reads(&self, now: Time) -> bool {
        match &self.role {
            Role::Serving(s) => s.is_active(self.commit) && s.has_lease(now),
            Role::Idle | Role::Following(_) | Role::Activating(_) => false,
        }
    }

    /// Whether it is the primary of its epoch, active or not yet.
    pub fn leads(&self) -> bool {
        matches!(self.role, Role::Serving(_) | Role::Activating(_))
    }

    /// Highest epoch this copy has promised to take part in.
    pub fn promised(&self) -> Epoch {
        self.promised
    }

    /// What a restored metadata cluster must know of this copy; `record` is the newest that this run was
    /// told. What it has promised or asked to be durable counts, durable or not: another copy may know of it.
    pub fn report(&self, record: Option<SegmentRecord>) -> CopyReport {
        let told = self.record.as_ref().map_or(Token(0), |record| record.token);
        CopyReport {
            segment: self.segment,
            replica: self.id,
            epoch: self.promised,
            token: self.token_durable.max(told),
            last: self.log.last(),
            copying: self.copying.is_some(),
            record,
        }
    }

    /// Entries above the destaged point, oldest first.
    pub fn entries(&self) -> impl Iterator<Item = &Entry<P>> {
        self.log.above(self.log.base().sequence)
    }

    /// Entries not known to be committed, oldest first.
    pub fn uncommitted(&self) -> impl Iterator<Item = &Entry<P>> {
        self.log.above(self.commit)
    }

    /// Copies this one talks to as primary.
    pub fn peers(&self) -> Vec<ReplicaId> {
        match &self.role {
            Role::Serving(s) => s.peers.keys().copied().collect(),
            Role::Activating(a) => a.others().collect(),
            Role::Idle | Role::Following(_) => Vec::new(),
        }
    }

    fn configure(&mut self, now: Time, record: &SegmentRecord, out: &mut Vec<Effect<P>>) {
        if self.record.as_ref().is_some_and(|known| record.revision < known.revision) {
            return;
        }
        self.record = Some(record.into());
        if record.epoch < self.promised {
            return;
        }
        let newer = record.epoch > self.promised;
        if newer {
            self.promise(record.epoch, record.token, out);
        }
        let leads = record.primary == self.id && record.primary_run == self.run;
        let takes_part = record.member(self.id).is_some()
            || record.learners.iter().any(|l| l.replica == self.id);
        if leads {
            self.lead(now, out);
        } else if takes_part && record.primary != self.id {
            self.follow(now, record.primary, newer, out);
        } else {
            self.step_down(out);
            self.role = Role::Idle;
        }
    }

    /// Records that nothing older than `epoch` is taken part in.
    fn promise(&mut self, epoch: Epoch, token: Token, out: &mut Vec<Effect<P>>) {
        debug_assert!(epoch >= self.promised, "INV-EPOCH: a promise is never taken back");
        self.promised = epoch;
        self.persist(Pending::Promise(epoch, token), Persist::Promise { epoch, token }, out);
    }

    fn persist(&mut self, pending: Pending, record: Persist<P>, out: &mut Vec<Effect<P>>) {
        self.persists += 1;
        self.pending.push_back((self.persists, pending));
        out.push(Effect::Persist(record));
    }

    /// Appends an entry and asks for it to be made durable.
    fn append(&mut self, entry: Entry<P>, out: &mut Vec<Effect<P>>) {
        let position = entry.position;
        self.log.push(entry.clone());
        let record = Persist::Entry { entry, commit: self.commit };
        self.persist(Pending::Entry(position), record, out);
    }

    /// Drops the log above `sequence`, never below the commit point (INV-LOG).
    fn truncate(&mut self, sequence: Sequence) {
        assert!(sequence >= self.commit, "INV-LOG: a committed entry is never dropped");
        self.log.truncate(sequence);
        self.durable = self.durable.min(sequence);
    }

    fn persisted(&mut self, now: Time, count: u64, out: &mut Vec<Effect<P>>) {
        while let Some(&(number, pending)) = self.pending.front().filter(|(n, _)| *n <= count) {
            debug_assert!(number <= self.persists);
            self.pending.pop_front();
            match pending {
                Pending::Promise(epoch, token) => {
                    self.promised_durable = self.promised_durable.max(epoch);
                    self.token_durable = self.token_durable.max(token);
                }
                // An entry that was replaced since says nothing of the one now in its place.
                Pending::Entry(at) if self.log.position(at.sequence) == Some(at) => {
                    self.durable = self.durable.max(at.sequence);
                }
                Pending::Entry(_) => {}
            }
        }
        match &self.role {
            Role::Idle => {}
            Role::Following(_) => self.follower_persisted(now, out),
            Role::Activating(_) => self.activation_progress(now, out),
            Role::Serving(_) => self.serving_progress(now, out),
        }
    }

    /// Raises the commit point as far as the log reaches; every entry passed is applied once, in order.
    fn advance_commit(&mut self, commit: Sequence, out: &mut Vec<Effect<P>>) {
        let commit = commit.min(self.log.last().sequence);
        let newly: Vec<Entry<P>> = self
            .log
            .above(self.commit)
            .take_while(|e| e.position.sequence <= commit)
            .cloned()
            .collect();
        self.commit = self.commit.max(commit);
        for entry in newly {
            self.applied.take(&entry);
            self.settle_waiters(entry.position, out);
            out.push(Effect::Apply(entry));
        }
    }

    /// Answers the clients whose write is committed. One whose entry was replaced is not answered: what
    /// became of it only a retry can tell.
    fn settle_waiters(&mut self, committed: Position, out: &mut Vec<Effect<P>>) {
        while let Some(waiter) = self.waiters.front() {
            if waiter.at.sequence > committed.sequence {
                return;
            }
            if waiter.at == committed {
                out.push(Effect::Reply(waiter.id, Reply::Done(committed)));
            }
            self.waiters.pop_front();
        }
    }

    fn send(&self, to: ReplicaId, message: impl Into<PeerMessage<P>>, out: &mut Vec<Effect<P>>) {
        out.push(Effect::Send(Envelope {
            segment: self.segment,
            from: self.id,
            to,
            epoch: self.promised,
            message: message.into(),
        }));
    }

    fn receive(&mut self, now: Time, envelope: Envelope<P>, out: &mut Vec<Effect<P>>) {
        let Envelope { from, to, epoch, message, .. } = envelope;
        if to != self.id {
            return;
        }
        match message {
            // It comes from a primary that may not know the newer epoch, or be the first to tell.
            PeerMessage::Primary(FromPrimary::LeaseReturn { number }) => {
                self.granter.returned(from, number);
                self.try_answer(now, out);
            }
            PeerMessage::Primary(message) => self.receive_from(now, from, epoch, message, out),
            PeerMessage::Answer(message) => self.receive_as_leader(now, from, epoch, message, out),
        }
    }

    fn receive_from(
        &mut self,
        now: Time,
        from: ReplicaId,
        epoch: Epoch,
        message: FromPrimary<P>,
        out: &mut Vec<Effect<P>>,
    ) {
        if epoch < self.promised {
            self.send(from, ToPrimary::Stale, out);
            return;
        }
        if epoch > self.promised {
            self.promise(epoch, self.token_durable, out);
            self.step_down(out);
            self.role = Role::Following(Following { primary: from, ..Following::default() });
        }
        self.receive_as_follower(now, from, message, out);
    }

    fn tick(&mut self, now: Time, out: &mut Vec<Effect<P>>) {
        match &self.role {
            Role::Idle => {}
            Role::Following(_) => self.try_answer(now, out),
            Role::Activating(_) => self.activation_tick(now, out),
            Role::Serving(_) => self.serving_tick(now, out),
        }
    }
}
