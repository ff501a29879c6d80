//! What a copy asks for, done.

use std::collections::{BTreeMap, BTreeSet};

use tidewater_proto::{
    entry::{Change, Entry, Payload},
    ids::{Position, ReplicaId, Sequence},
    peer::{AppliedSession, Refusal, Reply, Room},
};

use super::{Incoming, Job, Journaled, Owned, Shard, ShardReport, pace::Wanted};
use crate::{
    replica::{Effect, Event, Persist},
    store::{ChunkImage, Completion, Freeze, ReadError, Record, Ticket, chunk_extent},
};

impl Shard {
    /// Steps a copy and does what it asks for.
    pub(super) fn step(&mut self, id: ReplicaId, event: Event<Payload>) {
        let now = self.now();
        let Some(owned) = self.owned.get_mut(&id) else { return };
        let mut effects = Vec::new();
        owned.replica.step(now, event, &mut effects);
        self.perform(id, effects);
    }

    pub(super) fn perform(&mut self, id: ReplicaId, effects: Vec<Effect<Payload>>) {
        for effect in effects {
            self.do_effect(id, effect);
        }
    }

    fn do_effect(&mut self, id: ReplicaId, effect: Effect<Payload>) {
        match effect {
            Effect::Persist(persist) => self.persist(id, persist),
            Effect::Send(envelope) => self.send_peer(envelope),
            Effect::Apply(entry) => {
                self.zeroed |= matches!(entry.change, Change::Zero { .. });
                self.note_whole(id, &entry);
                self.store.apply(id, &entry);
            }
            Effect::Reply(request, reply) => self.reply(request, reply),
            Effect::Read(request, extent) => self.read_for(id, request, extent),
            Effect::Extents(request, extent) => {
                let runs = self.store.extents(id, extent);
                self.reply(request, Reply::Extents(runs));
            }
            Effect::Compare { id: request, extent, expect } => {
                let tag = self.job(Job::Compare { replica: id, id: request, expect });
                match self.store.read(id, extent, tag) {
                    Some(found) => self.read_done(tag, Ok(found)),
                    None => self.turn.notify_one(),
                }
            }
            Effect::Propose { epoch, change, reason } => {
                let segment = self.segment_of(id);
                self.report(ShardReport::Propose { segment, epoch, change, reason });
            }
            Effect::Active { epoch, token } => {
                let segment = self.segment_of(id);
                self.report(ShardReport::Active { segment, epoch, token });
            }
            Effect::PlanCopy { learner } => {
                let chunks = self.store.chunk_table(id);
                self.step(id, Event::CopyPlan { learner, chunks });
            }
            Effect::AwaitTurn { learner } => {
                self.pace.push(Wanted { replica: id, learner });
                self.turn.notify_one();
            }
            Effect::ReadChunk { learner, chunk } => self.read_chunk(id, learner, chunk),
            Effect::BeginCopy { at, have, live, follow, own } => {
                let (live, follow) = (live.into_iter().collect(), follow.into_iter().collect());
                self.begin_copy(id, have, own, Incoming { at, live, follow });
            }
            Effect::TakeChunk { chunk, changed, at, image } => {
                self.unplaced.push_back((id, ChunkImage { chunk, changed, at, image }));
                self.place_chunks();
            }
            Effect::EndCopy { at, applied } => {
                let tag = self.job(Job::Ended { replica: id, at });
                let keep = self.chunks_kept(id);
                self.store.end_copy(id, at, applied, keep, tag);
                self.turn.notify_one();
            }
        }
    }

    fn segment_of(&self, id: ReplicaId) -> tidewater_proto::ids::SegmentId {
        self.owned[&id].replica.segment()
    }

    fn persist(&mut self, id: ReplicaId, persist: Persist<Payload>) {
        let Some(owned) = self.owned.get(&id) else { return };
        let segment = owned.replica.segment();
        if let Persist::Entry { entry, .. } = &persist {
            let new: Vec<u32> = self.unheld(id, &entry.change).collect();
            for chunk in new {
                self.space.claim(id, chunk);
            }
        }
        let record = match persist {
            Persist::Entry { entry, commit } => {
                Record::Entry { replica: id, segment, entry, commit, slot: None }
            }
            Persist::Promise { epoch, token } => {
                Record::Promise { replica: id, segment, epoch, token }
            }
        };
        let Some(Owned { persists, .. }) = self.owned.get_mut(&id) else { return };
        *persists += 1;
        let count = *persists;
        let ticket = self.store.append(record);
        self.journaled.push_back(Journaled { ticket, replica: id, count });
        self.turn.notify_one();
    }

    fn begin_copy(
        &mut self,
        id: ReplicaId,
        have: Sequence,
        own: Option<(Position, Vec<AppliedSession>)>,
        incoming: Incoming,
    ) {
        let at = incoming.at.sequence;
        let table = self.store.chunk_table(id).into_iter().map(|(chunk, _)| chunk);
        let gone: Vec<u32> = table.filter(|chunk| !incoming.live.contains(chunk)).collect();
        if let Some(owned) = self.owned.get_mut(&id) {
            owned.incoming = Some(incoming);
        }
        self.unplaced.retain(|(replica, _)| *replica != id);
        match own {
            // Names the point, so that the journal need not be kept back to the one before it.
            Some((at, applied)) => self.store.begin_copy_at(Freeze { replica: id, at, applied }),
            None => self.store.begin_copy(id, have),
        }
        // What the primary has dropped must be gone before the stream writes there again.
        for chunk in gone {
            let tag = self.job(Job::Taken { replica: id, chunk });
            let hole = ChunkImage { chunk, changed: at, at, image: None };
            self.store.put_chunk(id, hole, tag);
        }
        self.turn.notify_one();
    }

    /// Chunks that no image comes of are whole while a copy is filled: what is applied to them need not
    /// wait in memory for the end.
    fn note_whole(&mut self, id: ReplicaId, entry: &Entry<Payload>) {
        let incoming = self.owned.get(&id).and_then(|owned| owned.incoming.as_ref());
        let (Some(incoming), Some(extent)) = (incoming, entry.change.extent()) else { return };
        for chunk in extent.chunks().filter(|chunk| !incoming.follow.contains(chunk)) {
            self.store.mark_whole(id, chunk);
        }
    }

    /// Stores the chunks that have come from primaries, as far as there is space for them.
    pub(super) fn place_chunks(&mut self) {
        while let Some((id, image)) = self.unplaced.front() {
            let (id, chunk) = (*id, image.chunk);
            let new = image.image.is_some() && !self.store.holds(id, chunk);
            if new && self.space.room() == Room::NONE {
                return;
            }
            let Some((_, image)) = self.unplaced.pop_front() else { return };
            if new {
                self.space.claim(id, chunk);
            }
            let tag = self.job(Job::Taken { replica: id, chunk });
            self.store.put_chunk(id, image, tag);
            self.turn.notify_one();
        }
    }

    /// Chunks that a copy which ends now has: those the primary had when it began, and those written
    /// since. What else lies here is from before, and the primary has dropped it.
    fn chunks_kept(&mut self, id: ReplicaId) -> Option<BTreeSet<u32>> {
        let Incoming { at, live, .. } = self.owned.get_mut(&id)?.incoming.take()?;
        let table = self.store.chunk_table(id);
        let since = table.iter().filter(|(_, changed)| *changed > at.sequence).map(|(c, _)| *c);
        Some(live.into_iter().chain(since).collect())
    }

    /// Lets learners have the turns whose time has come.
    pub(super) fn give_turns(&mut self) {
        let now = self.now();
        while let Some(Wanted { replica, learner }) = self.pace.take(now) {
            self.step(replica, Event::Turn { learner });
        }
    }

    fn read_chunk(&mut self, replica: ReplicaId, learner: ReplicaId, chunk: u32) {
        let extent = chunk_extent(chunk, self.segment_bytes).expect("a chunk lies in its segment");
        let table = self.store.chunk_table(replica);
        let changed = table.iter().find(|(c, _)| *c == chunk).map(|(_, s)| *s);
        let Some(changed) = changed else {
            let changed = self.owned.get(&replica).map(|o| o.replica.commit_point());
            let changed = changed.unwrap_or_default();
            self.step(replica, Event::CopyRead { learner, chunk, changed, image: None });
            return;
        };
        let tag = self.job(Job::Chunk { replica, learner, chunk, changed });
        if let Some(image) = self.store.read(replica, extent, tag) {
            self.read_done(tag, Ok(image));
        }
    }

    /// Takes what the store has finished.
    pub fn poll_store(&mut self) {
        let mut done = Vec::new();
        self.store.poll(&mut done);
        for completion in done {
            self.complete(completion);
        }
        if self.store.freeze_wanted() {
            self.freeze();
        }
        self.unstall();
    }

    pub(super) fn complete(&mut self, completion: Completion) {
        match completion {
            Completion::Durable(ticket) => self.durable(ticket),
            Completion::Read { tag, result } => self.read_done(tag, result),
            Completion::ChunkPut { tag } | Completion::CopyEnded { tag } => self.copied(tag),
            Completion::Destaged(points) => {
                for (replica, base) in points {
                    self.step(replica, Event::Destaged(base));
                }
            }
            Completion::Deleted { replica } => self.deleted(replica),
            Completion::Lost { replica } => self.lose(replica),
            Completion::DeviceFailed(failure) => {
                let failure = &failure as &dyn std::error::Error;
                tracing::error!(failure, "storage is out of service");
                self.report(ShardReport::Failed);
            }
        }
    }

    fn durable(&mut self, ticket: Ticket) {
        let mut ready: BTreeMap<ReplicaId, u64> = BTreeMap::new();
        while self.journaled.front().is_some_and(|j| j.ticket <= ticket) {
            let Some(journaled) = self.journaled.pop_front() else { break };
            ready.insert(journaled.replica, journaled.count);
        }
        for (id, count) in ready {
            self.step(id, Event::Persisted(count));
        }
    }

    fn read_done(&mut self, tag: u64, result: Result<Payload, ReadError>) {
        match (self.jobs.remove(&tag), result) {
            (Some(Job::Read(id)), Ok(payload)) => {
                self.reply(id, Reply::Data(payload));
            }
            (Some(Job::Read(id)), Err(error)) => {
                self.reply(id, Reply::Refused(refusal(&error)));
            }
            (Some(Job::Compare { replica, id, expect }), Ok(found)) => {
                let equal = found.data == expect.data;
                self.step(replica, Event::Compared { id, equal });
            }
            (Some(Job::Compare { replica, id, .. }), Err(error)) => {
                self.reply(id, Reply::Refused(refusal(&error)));
                self.step(replica, Event::Compared { id, equal: false });
            }
            (Some(Job::Chunk { replica, learner, chunk, changed }), Ok(image)) => {
                let bytes = image.data.len() as u64;
                let counter = &self.counters.copied_bytes;
                counter.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
                let image = Some(image);
                self.step(replica, Event::CopyRead { learner, chunk, changed, image });
            }
            (Some(Job::Chunk { replica, learner, chunk, .. }), Err(error)) => {
                tracing::error!(%replica, chunk, %error, "cannot read a chunk for a learner");
                self.step(replica, Event::CopyUnread { learner, chunk });
            }
            (Some(Job::Taken { .. } | Job::Ended { .. }) | None, _) => {
                debug_assert!(false, "a read answers a read");
            }
        }
    }

    fn copied(&mut self, tag: u64) {
        match self.jobs.remove(&tag) {
            Some(Job::Taken { replica, chunk }) => self.step(replica, Event::ChunkTaken(chunk)),
            Some(Job::Ended { replica, at }) => self.step(replica, Event::CopyEnded(at)),
            Some(Job::Read(_) | Job::Compare { .. } | Job::Chunk { .. }) | None => {
                debug_assert!(false, "a put answers a put");
            }
        }
    }
}

fn refusal(error: &ReadError) -> Refusal {
    match error {
        ReadError::Corrupt => Refusal::Corrupt,
        ReadError::Failed(_) | ReadError::OutOfService => Refusal::Failed,
        ReadError::Gone => Refusal::NotPrimary,
    }
}
