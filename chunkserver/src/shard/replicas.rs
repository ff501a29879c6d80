//! The copies a shard owns: made, configured and deleted as the records say.

use std::{collections::BTreeSet, sync::atomic::Ordering::Relaxed};

use tidewater_proto::{
    entry::{Change, Payload},
    geometry::CHUNK_BYTES,
    ids::{ReplicaId, SegmentId},
    peer::Room,
    record::{CopyReport, Member, SegmentRecord, SetChange},
};

use super::{Owned, Shard, ShardCommand, ShardReport, space::Look};
use crate::{
    replica::{Event, Reason, Replica, Restored},
    store::{Freeze, Recovered},
};

/// Ticks between two looks at the free space.
const TICKS_PER_SPACE_CHECK: u64 = 8;
/// Ticks between two reports of primaries that are lost.
const TICKS_PER_LOSS_REPORT: u64 = 40;

impl Shard {
    /// Takes up a copy found on disk. One whose journal is damaged is not taken up: it answers as lost,
    /// and is replaced.
    pub(super) fn recover(&mut self, found: Recovered) {
        let (id, segment) = (found.replica, found.segment);
        if found.damaged {
            tracing::error!(replica = %id, %segment, "journal damaged or device lost: the copy is given up");
            return;
        }
        let restored = Restored {
            id,
            segment,
            promised: found.epoch,
            token: found.token,
            base: found.base,
            applied: found.applied,
            entries: if found.copying.is_some() { Vec::new() } else { found.entries },
            commit: if found.copying.is_some() { found.base.sequence } else { found.commit },
            copying: found.copying,
        };
        self.own(restored);
    }

    fn own(&mut self, restored: Restored<Payload>) {
        let (id, segment) = (restored.id, restored.segment);
        let (replica, effects) = Replica::restore(restored, self.run, self.timing, self.now());
        self.owned.insert(id, Owned { replica, persists: 0, incoming: None });
        self.by_segment.insert(segment, id);
        self.perform(id, effects);
        self.step(id, Event::Room(self.told_room));
    }

    /// Does what the server says.
    pub fn command(&mut self, command: ShardCommand) {
        match command {
            ShardCommand::Record(record) => self.record(record),
            ShardCommand::Gone(segment) => {
                // Nothing is deleted for want of being named: only a retired id is.
                self.records.remove(&segment);
            }
            ShardCommand::Retired(segment, replica) => self.delete(segment, replica),
            ShardCommand::Servers(servers) => self.learn_servers(servers),
            ShardCommand::TellCopies(answer) => {
                if answer.send(self.copy_reports()).is_err() {
                    tracing::debug!("nobody waits for the copies any more");
                }
            }
        }
    }

    /// What it holds, as a restored metadata cluster wants to know it.
    fn copy_reports(&self) -> Vec<CopyReport> {
        let report = |owned: &Owned| {
            let record = self.records.get(&owned.replica.segment()).cloned();
            owned.replica.report(record)
        };
        self.owned.values().map(report).collect()
    }

    fn record(&mut self, record: SegmentRecord) {
        let segment = record.segment;
        let known = self.records.get(&segment);
        if known.is_some_and(|known| known.revision > record.revision) {
            return;
        }
        self.records.insert(segment, record.clone());
        self.delete_retired(&record);
        self.create_fresh(&record);
        self.connect_to(&record);
        if let Some(&id) = self.by_segment.get(&segment) {
            self.step(id, Event::Configure(record));
        }
    }

    fn create_fresh(&mut self, record: &SegmentRecord) {
        let mine = |m: &&Member| m.server == self.server && m.fresh;
        let fresh = record.members.iter().chain(&record.learners).find(mine).map(|m| m.replica);
        let Some(id) = fresh.filter(|id| !self.owned.contains_key(id)) else { return };
        if let Err(error) = self.store.create(id, record.segment) {
            tracing::warn!(replica = %id, segment = %record.segment, %error, "cannot make the copy");
            return;
        }
        self.own(Restored::empty(id, record.segment));
    }

    fn delete_retired(&mut self, record: &SegmentRecord) {
        let mine = record.retired.iter().filter(|m| m.server == self.server);
        let retired: Vec<ReplicaId> = mine.map(|m| m.replica).collect();
        for id in retired {
            self.delete(record.segment, id);
        }
    }

    /// Deletes a copy whose id a Raft record has retired; repeating it does no harm.
    fn delete(&mut self, segment: SegmentId, id: ReplicaId) {
        self.owned.remove(&id);
        self.unplaced.retain(|(replica, _)| *replica != id);
        if self.by_segment.get(&segment) == Some(&id) {
            self.by_segment.remove(&segment);
        }
        if self.deleting.insert(id, segment).is_none() {
            self.store.delete(id);
            self.turn.notify_one();
        }
    }

    /// The store has freed what a retired copy held.
    pub(super) fn deleted(&mut self, id: ReplicaId) {
        if let Some(segment) = self.deleting.remove(&id) {
            self.report(ShardReport::Deleted { segment, replica: id });
        }
    }

    /// A copy is lost with a device: who asks for it is told so, as after a restart without it.
    pub(super) fn lose(&mut self, id: ReplicaId) {
        let Some(owned) = self.owned.remove(&id) else { return };
        let segment = owned.replica.segment();
        tracing::error!(replica = %id, %segment, "the copy is lost with a device");
        if self.by_segment.get(&segment) == Some(&id) {
            self.by_segment.remove(&segment);
        }
        self.report_lost();
    }

    /// Asks for other primaries where this server's copy leads and is lost: nobody else would notice, for
    /// nobody asks a primary for its copy.
    fn report_lost(&mut self) {
        let primaries = self.records.values().map(|r| (r.segment, r.primary, r.epoch));
        let lost: Vec<_> = primaries.filter(|&(s, replica, _)| self.has_lost(s, replica)).collect();
        for (segment, replica, epoch) in lost {
            let (change, reason) = (SetChange::Lost { replica }, Reason::CopyLost);
            self.report(ShardReport::Propose { segment, epoch, change, reason });
        }
    }

    /// Whether this server should hold `id` and does not: it has lost it.
    pub(super) fn has_lost(&self, segment: SegmentId, id: ReplicaId) -> bool {
        let record = self.records.get(&segment);
        let named = record.and_then(|r| r.copies().find(|m| m.replica == id));
        named.is_some_and(|m| m.server == self.server && !m.fresh) && !self.owned.contains_key(&id)
    }

    pub(super) fn tick_replicas(&mut self) {
        if self.ticks.is_multiple_of(TICKS_PER_SPACE_CHECK) {
            self.look_at_space();
            self.users.sweep(self.now());
        }
        if self.ticks.is_multiple_of(TICKS_PER_LOSS_REPORT) {
            self.report_lost();
        }
        self.ticks += 1;
        self.reports.retry();
        self.pace.adjust(self.now(), self.open.len());
        self.counters.rebuild_rate.store(self.pace.rate(), Relaxed);
        let ids: Vec<_> = self.owned.keys().copied().collect();
        for &id in &ids {
            self.step(id, Event::Tick);
        }
        let primaries = self.owned.values().filter(|o| o.replica.leads()).count();
        self.counters.replicas.store(ids.len() as u64, Relaxed);
        self.counters.primaries.store(primaries as u64, Relaxed);
    }

    /// Counts what is free, and what entries that are not applied yet will need of it.
    pub(super) fn look_at_space(&mut self) {
        let mut claimed = BTreeSet::new();
        for (&id, owned) in &self.owned {
            for entry in owned.replica.uncommitted() {
                claimed.extend(self.unheld(id, &entry.change).map(|chunk| (id, chunk)));
            }
        }
        let look = Look {
            free: self.store.free_chunks(),
            share: self.store.capacity_chunks() / self.shards.max(1) as u64,
            copies: self.owned.len() as u64,
            segment_chunks: self.segment_bytes.div_ceil(CHUNK_BYTES),
        };
        self.space.look(look, claimed);
        self.tell_room();
        let short = self.told_room != Room::ANY;
        if short && self.zeroed && !self.store.is_destaging() {
            self.freeze();
        }
        self.place_chunks();
    }

    /// Chunks that a change gives data to and that hold none.
    pub(super) fn unheld(
        &self,
        id: ReplicaId,
        change: &Change<Payload>,
    ) -> impl Iterator<Item = u32> + use<'_> {
        let chunks = match change {
            Change::Write { extent, .. } => extent.chunks(),
            Change::Activate | Change::Zero { .. } => 0..0,
        };
        chunks.filter(move |&chunk| !self.store.holds(id, chunk))
    }

    /// Tells the copies what there is room for, where that has changed.
    pub(super) fn tell_room(&mut self) {
        let room = self.space.room();
        if std::mem::replace(&mut self.told_room, room) == room {
            return;
        }
        let low = room == Room::NONE;
        if low != (self.counters.low_on_space.swap(low.into(), Relaxed) == 1) {
            tracing::warn!(low, "space for new chunks");
        }
        let ids: Vec<_> = self.owned.keys().copied().collect();
        for id in ids {
            self.step(id, Event::Room(room));
        }
    }

    /// Starts a destage round of everything committed.
    pub(super) fn freeze(&mut self) {
        self.zeroed = false;
        let points = self.owned.iter().map(|(&replica, owned)| {
            let (at, applied) = owned.replica.freeze_point();
            Freeze { replica, at, applied }
        });
        let points = points.collect();
        self.store.freeze(points);
    }
}
