//! Storage of one shard, owned by the shard's thread.
//!
//! Nothing here waits for a disk, except [`ShardStore::open`] and [`ShardStore::create`]. A record goes to the journal
//! ([`append`](ShardStore::append)); once committed, an entry is [`apply`](ShardStore::apply)-ed to the
//! overlay in memory; [`freeze`](ShardStore::freeze) has the overlay brought to the slots in the
//! background, after which its part of the journal is free.

mod copying;
mod direct;
mod reading;
mod recovery;
mod ring;
mod space;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    os::fd::OwnedFd,
    sync::Arc,
};

use bytes::Bytes;
use tidewater_proto::{
    entry::{Entry, Payload},
    geometry::{BadExtent, CHUNK_BYTES, Extent},
    ids::{Epoch, Position, ReplicaId, SegmentId, Sequence, Token},
    peer::AppliedSession,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::Notify,
};

use super::{
    base::Store,
    catalog::{
        CatalogError,
        rows::{ChunkRow, ReplicaRow, replica_key},
    },
    crew::{Inbox, Station},
    destage::{self, Destager, End, Fault, Freeze},
    disk::DiskError,
    fetch::Fetcher,
    journal::{
        Record,
        writer::{self, Writer},
    },
    overlay::Generation,
    reader::{self, Reader},
    recent::Recent,
};
pub use copying::ChunkImage;
use direct::Reservations;
use reading::Reading;
use ring::Ring;

/// Number of a record in the order of appending.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// One copy as found on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Copy.
    pub replica: ReplicaId,
    /// Segment it is a copy of.
    pub segment: SegmentId,
    /// Highest epoch promised.
    pub epoch: Epoch,
    /// Token promised with it.
    pub token: Token,
    /// Everything up to here is in the slots.
    pub base: Position,
    /// Operations applied, as of `base`.
    pub applied: Vec<AppliedSession>,
    /// Journal above `base`, contiguous. The caller applies those up to `commit`.
    pub entries: Vec<Entry<Payload>>,
    /// Highest commit point found, at least `base`; it may lie above the last entry.
    pub commit: Sequence,
    /// Where an unfinished copy started. Then `entries` end there too.
    pub copying: Option<Sequence>,
    /// Records of this copy may be missing though they were durable, or a device that held chunks of it has
    /// failed. The store has nothing of it but what is deleted with it.
    pub damaged: bool,
}

/// What has happened.
#[derive(Debug)]
pub enum Completion {
    /// All records up to this ticket are durable.
    Durable(Ticket),
    /// A read that went to a device.
    Read {
        /// As given.
        tag: u64,
        /// The bytes.
        result: Result<Payload, ReadError>,
    },
    /// A chunk from a peer is durable.
    ChunkPut {
        /// As given.
        tag: u64,
    },
    /// The end of a copy is durable.
    CopyEnded {
        /// As given.
        tag: u64,
    },
    /// A copy is deleted.
    Deleted {
        /// Which.
        replica: ReplicaId,
    },
    /// A copy had chunks on a device that failed: it is gone from memory, and its id can only be retired.
    Lost {
        /// Which.
        replica: ReplicaId,
    },
    /// Everything up to these positions is in the slots.
    Destaged(Vec<(ReplicaId, Position)>),
    /// A device, the catalog or the journal is out of service; nothing more becomes durable.
    DeviceFailed(Failure),
}

/// What is out of service.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The journal.
    #[error("journal failed")]
    Journal(#[source] DiskError),
    /// A device or the catalog, while destaging.
    #[error("destaging failed")]
    Destage(#[source] Fault),
}

/// A read found no good bytes.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The bytes do not match their checksums.
    #[error("stored bytes do not match their checksums")]
    Corrupt,
    /// The device or the catalog failed.
    #[error(transparent)]
    Failed(Fault),
    /// The copy was deleted meanwhile.
    #[error("the copy was deleted")]
    Gone,
    /// The store has failed before, while destaging.
    #[error("storage is out of service")]
    OutOfService,
}

#[derive(Debug)]
enum Report {
    Journal(Result<writer::Written, DiskError>),
    Destage(destage::Report),
    Read(reader::Report),
}

impl From<Result<writer::Written, DiskError>> for Report {
    fn from(report: Result<writer::Written, DiskError>) -> Self {
        Self::Journal(report)
    }
}

impl From<destage::Report> for Report {
    fn from(report: destage::Report) -> Self {
        Self::Destage(report)
    }
}

impl From<reader::Report> for Report {
    fn from(report: reader::Report) -> Self {
        Self::Read(report)
    }
}

/// What is kept in memory of a chunk in the slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mapped {
    changed: Sequence,
    /// Not all holes.
    data: bool,
    /// Where it lies, where that is known.
    device: Option<u16>,
}

#[derive(Debug)]
struct Copy {
    /// Chunks that came from the primary since the copy began.
    put: BTreeSet<u32>,
    end: Option<End>,
}

#[derive(Debug)]
struct Replica {
    segment: SegmentId,
    chunks: BTreeMap<u32, Mapped>,
    base: Position,
    /// Last entry applied.
    applied: Sequence,
    /// Entries up to here need the journal no more.
    released: Sequence,
    /// Promise in the catalog, and the last one appended.
    saved: (Epoch, Token),
    promised: (Epoch, Token),
    /// Appended and not yet applied.
    tail: VecDeque<Entry<Payload>>,
    copy: Option<Copy>,
    /// While a copy is filled: entries up to here are its own, and needed above `base`.
    own: Option<Sequence>,
}

/// A round on its way.
#[derive(Debug)]
struct Round {
    frozen: Arc<Generation>,
    /// What the journal is freed up to, afterwards.
    points: Vec<(ReplicaId, Sequence)>,
}

/// Storage of one shard.
#[derive(Debug)]
pub struct ShardStore {
    store: Arc<Store>,
    replicas: BTreeMap<ReplicaId, Replica>,
    active: Generation,
    round: Option<Round>,
    ring: Ring,
    reserved: Reservations,
    queued: Vec<Record>,
    reads: BTreeMap<u64, Reading>,
    next_read: u64,
    journal: Station<Writer>,
    destager: Station<Destager>,
    reader: Station<Reader>,
    /// For reads that the shard's thread does itself: of chunks whose rows are at hand, and of others.
    fetcher: Fetcher,
    inline: Reader,
    /// Rows of chunks read or written last.
    rows: Recent<(ReplicaId, u32), Arc<ChunkRow>>,
    /// Blocks read last, by number within the segment, with their checksums; none that has been written since.
    blocks: Recent<(ReplicaId, u32), (Bytes, u64)>,
    inbox: Arc<Inbox<Report>>,
    failed_devices: usize,
    /// Nothing becomes durable any more; the first failure is reported once.
    failed: bool,
}

impl std::fmt::Debug for Inbox<Report> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Inbox")
    }
}

impl ShardStore {
    /// Queues a record for the next group commit. Call [`submit`](Self::submit) once a turn.
    ///
    /// An entry with the sequence of an earlier one replaces that and all after it.
    pub fn append(&mut self, mut record: Record) -> Ticket {
        self.reserve(&mut record);
        if let Some(replica) = self.replicas.get_mut(&record.replica()) {
            match &record {
                Record::Entry { entry, .. } => replica.extend(entry),
                Record::Promise { epoch, token, .. } => {
                    replica.promised = replica.promised.max((*epoch, *token));
                }
            }
        }
        self.queue(record)
    }

    fn queue(&mut self, record: Record) -> Ticket {
        let ticket = self.ring.appended(&record);
        self.queued.push(record);
        ticket
    }

    /// Whether records wait for the next [`submit`](Self::submit).
    pub fn has_queued(&self) -> bool {
        !self.queued.is_empty()
    }

    /// Hands what is queued to the writer, and begins the reads.
    pub fn submit(&mut self) {
        self.fetcher.submit(false);
        if !self.queued.is_empty() {
            self.journal.give(writer::Job::Append(std::mem::take(&mut self.queued)));
            self.journal.turn(&self.inbox);
        }
    }

    /// Begins the reads; if there is only one, waits for it: so short a wait costs less than to come back.
    pub fn submit_read(&mut self) {
        self.fetcher.submit(true);
    }

    /// Whether there is room for client writes. If not, there will be after a `Destaged`.
    pub fn room(&self) -> bool {
        self.active.bytes() < self.store.config.overlay_bytes
            && self.ring.has_room()
            && !self.failed
    }

    /// Chunks that the devices in service hold in all.
    pub fn capacity_chunks(&self) -> u64 {
        let devices = self.store.devices().iter().filter(|d| !d.has_failed());
        devices.map(|d| u64::from(d.room().1)).sum()
    }

    /// Chunks that can still be stored: this shard's share of the devices, less the chunks that have data
    /// in a slot or in memory. Slots that a round has taken and not yet given back do not count: it gives
    /// them back before it fails for want of them.
    pub fn free_chunks(&self) -> u64 {
        let share = self.capacity_chunks() / self.store.config.shards.max(1) as u64;
        let mapped = self.replicas.values().flat_map(|r| r.chunks.values());
        let stored = mapped.filter(|chunk| chunk.data).count() as u64;
        let frozen = self.round.as_ref().map(|round| &*round.frozen);
        let changed = [Some(&self.active), frozen].into_iter().flatten().flat_map(Generation::iter);
        let is_stored = |replica: ReplicaId, chunk: u32| {
            let mapped = self.replicas.get(&replica).and_then(|r| r.chunks.get(&chunk));
            mapped.is_some_and(|mapped| mapped.data)
        };
        let new: BTreeSet<(ReplicaId, u32)> =
            changed.map(|(r, chunk, _)| (r, chunk)).filter(|&(r, c)| !is_stored(r, c)).collect();
        share.saturating_sub(stored + new.len() as u64 + self.reserved.len() as u64)
    }

    /// Applies a committed entry; entries of a replica come in order. An entry that a chunk already
    /// has is skipped.
    pub fn apply(&mut self, replica: ReplicaId, entry: &Entry<Payload>) {
        let Some(state) = self.replicas.get_mut(&replica) else { return };
        let sequence = entry.position.sequence;
        while state.tail.front().is_some_and(|e| e.position.sequence <= sequence) {
            state.tail.pop_front();
        }
        state.applied = state.applied.max(sequence);
        forget_blocks(&mut self.blocks, replica, entry);
        let chunks = &state.chunks;
        self.active.apply(replica, entry, |chunk| {
            chunks.get(&chunk).is_none_or(|mapped| mapped.changed < sequence)
        });
        self.note_stored(replica, entry);
    }

    /// Makes a copy, empty. Durable when it returns; waits for the catalog.
    pub fn create(&mut self, replica: ReplicaId, segment: SegmentId) -> Result<(), CatalogError> {
        if self.replicas.contains_key(&replica) {
            return Ok(());
        }
        let row = ReplicaRow::empty(segment);
        self.store.catalog.write(vec![(replica_key(replica), Some(row.encode()))])?;
        self.replicas.insert(replica, Replica::new(&row));
        Ok(())
    }

    /// Deletes a copy, with `Deleted` when that is durable. It is gone from memory at once.
    pub fn delete(&mut self, replica: ReplicaId) {
        self.replicas.remove(&replica);
        self.active.remove(replica);
        self.destager.give(destage::Job::Delete { replica });
        self.release_journal();
    }

    /// Live chunks, with the last change of each.
    pub fn chunk_table(&self, replica: ReplicaId) -> Vec<(u32, Sequence)> {
        let Some(state) = self.replicas.get(&replica) else { return Vec::new() };
        let mut table: BTreeMap<u32, Mapped> = state.chunks.clone();
        let frozen = self.round.as_ref().map(|round| &*round.frozen);
        for generation in [frozen, Some(&self.active)].into_iter().flatten() {
            for (chunk, over) in generation.chunks(replica) {
                let below = table.get(&chunk).is_some_and(|mapped| mapped.data);
                let data = !over.blocks.is_empty() || below && !over.zeroed;
                table.insert(chunk, Mapped { changed: over.changed, data, device: None });
            }
        }
        table.into_iter().filter(|(_, m)| m.data).map(|(chunk, m)| (chunk, m.changed)).collect()
    }

    /// Runs of (bytes, may hold data) that cover `extent`, by chunks.
    pub fn extents(&self, replica: ReplicaId, extent: Extent) -> Vec<(u32, bool)> {
        let live: BTreeSet<u32> =
            self.chunk_table(replica).into_iter().map(|(chunk, _)| chunk).collect();
        let mut runs: Vec<(u32, bool)> = Vec::new();
        for chunk in extent.chunks() {
            let start = (u64::from(chunk) * CHUNK_BYTES).max(extent.offset());
            let end = (u64::from(chunk + 1) * CHUNK_BYTES).min(extent.end());
            let data = live.contains(&chunk);
            match runs.last_mut() {
                Some((bytes, kind)) if *kind == data => *bytes += (end - start) as u32,
                _ => runs.push(((end - start) as u32, data)),
            }
        }
        runs
    }

    /// Whether it is time to [`freeze`](Self::freeze).
    pub fn freeze_wanted(&self) -> bool {
        let ending =
            || self.replicas.values().any(|r| r.copy.as_ref().is_some_and(Copy::is_ending));
        let full = self.active.bytes() >= self.store.config.overlay_bytes / 2;
        let filling = || self.ring.is_filling() && self.can_free();
        self.round.is_none() && !self.failed && (full || filling() || ending())
    }

    /// Whether a round would let go of some of the journal: else it would be begun again and again.
    fn can_free(&self) -> bool {
        self.replicas
            .values()
            .any(|r| r.copy.is_none() && r.applied > r.base.sequence || r.promised > r.saved)
            || !self.ring.stragglers(&self.replicas).is_empty()
    }

    /// Starts a round that brings all that is applied to the slots, unless one is on its way.
    /// `points` are those of all replicas of which something may have been applied.
    ///
    /// A point above what was applied is left out: destaging it would lose the entries between.
    pub fn freeze(&mut self, mut points: Vec<Freeze>) {
        if self.round.is_some() || self.failed {
            return;
        }
        points.retain(|point| self.replicas.get(&point.replica).is_some_and(|r| r.moves(point)));
        self.carry_over();
        let mut frozen = std::mem::take(&mut self.active);
        let mut ends = Vec::new();
        for (&id, replica) in &mut self.replicas {
            let applied = replica.applied;
            let Some(copy) = &mut replica.copy else { continue };
            match copy.end.take_if(|end| end.at.sequence <= applied) {
                Some(end) => ends.push(end),
                None => frozen.split(id, &mut self.active, |chunk| !copy.put.contains(&chunk)),
            }
        }
        let promises = self.promises_to_save();
        let mut done: Vec<_> = points.iter().map(|p| (p.replica, p.at.sequence)).collect();
        done.extend(ends.iter().map(|end| (end.replica, end.at.sequence)));
        let frozen = Arc::new(frozen);
        let job = destage::Job::Round { frozen: frozen.clone(), points, promises, ends };
        self.round = Some(Round { frozen, points: done });
        self.destager.give(job);
        self.submit();
    }

    /// Collects what has happened.
    pub fn poll(&mut self, out: &mut Vec<Completion>) {
        self.submit();
        self.look_at_devices();
        loop {
            self.journal.turn(&self.inbox);
            self.destager.turn(&self.inbox);
            self.reader.turn(&self.inbox);
            let mut reports = self.inbox.drain();
            self.fetcher.take(|report| reports.push_back(report.into()));
            if reports.is_empty() {
                return;
            }
            for report in reports {
                match report {
                    Report::Journal(written) => self.written(written, out),
                    Report::Destage(report) => self.destaged(report, out),
                    Report::Read(report) => self.read_done(report, out),
                }
            }
        }
    }

    /// What tells that [`poll`](Self::poll) has something.
    ///
    /// # Errors
    ///
    /// If the system has no descriptor left. Panics outside a tokio runtime.
    pub fn ready(&self) -> io::Result<Ready> {
        let fetched = self.fetcher.signal()?;
        let fetched =
            // SAFETY: an owned descriptor stays open and the same for as long as it is owned.
            fetched.map(|fd| unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) });
        let fetched = fetched.transpose()?;
        Ok(Ready { reports: self.inbox.notifier(), fetched })
    }

    /// What another shard would do: finds out that the fastest device does not work.
    #[cfg(test)]
    pub(crate) fn fail_a_device(&self) -> bool {
        self.store.devices()[0].sync().is_err()
    }

    /// Has the copies given up that had chunks on a device which failed, whoever noticed.
    fn look_at_devices(&mut self) {
        let failed = self.store.devices().iter().filter(|d| d.has_failed()).count();
        if failed > self.failed_devices && failed < self.store.devices().len() {
            self.destager.give(destage::Job::GiveUp);
        }
        self.failed_devices = failed;
    }

    fn written(&mut self, written: Result<writer::Written, DiskError>, out: &mut Vec<Completion>) {
        match written {
            Ok(written) => {
                out.push(Completion::Durable(self.ring.written(written)));
            }
            Err(error) => self.fail(Failure::Journal(error), out),
        }
    }

    fn fail(&mut self, failure: Failure, out: &mut Vec<Completion>) {
        if !self.failed {
            out.push(Completion::DeviceFailed(failure));
        }
        self.failed = true;
        self.fail_parked(out);
    }

    fn destaged(&mut self, report: destage::Report, out: &mut Vec<Completion>) {
        match report {
            destage::Report::Round { changed, points, promises, ended } => {
                self.remap(&changed);
                for (replica, promise) in promises {
                    if let Some(state) = self.replicas.get_mut(&replica) {
                        state.saved = promise;
                    }
                }
                self.finish_round(&points);
                for (replica, tag) in ended {
                    if let Some(state) = self.replicas.get_mut(&replica) {
                        (state.copy, state.own) = (None, None);
                    }
                    out.push(Completion::CopyEnded { tag });
                }
                out.push(Completion::Destaged(points));
            }
            destage::Report::CopyBegun { changed, base } => {
                self.remap(&changed);
                if let Some((replica, base)) = base
                    && let Some(state) = self.replicas.get_mut(&replica)
                {
                    state.base = base;
                    self.release_journal();
                    self.release_slots();
                }
            }
            destage::Report::ChunkPut { tag } => out.push(Completion::ChunkPut { tag }),
            destage::Report::Lost(replicas) => {
                for replica in replicas {
                    self.replicas.remove(&replica);
                    self.active.remove(replica);
                    // Rows may name them; they are free after a restart.
                    self.reserved.forget(replica);
                    out.push(Completion::Lost { replica });
                }
                self.release_journal();
            }
            destage::Report::Deleted { replica } => {
                self.release_slots_of(replica);
                out.push(Completion::Deleted { replica });
            }
            destage::Report::Failed(fault) => self.fail(Failure::Destage(fault), out),
        }
        self.retry_parked(out);
    }

    fn remap(&mut self, changed: &[destage::Changed]) {
        for change in changed {
            let place = change.row.as_ref().and_then(|row| row.place);
            if let Some(place) = place {
                self.reserved.adopted(place);
            }
            let Some(state) = self.replicas.get_mut(&change.replica) else { continue };
            // An image from a peer may have been put meanwhile; it follows in the same queue.
            if state.chunks.get(&change.chunk).is_some_and(|mapped| mapped.changed > change.at) {
                continue;
            }
            match change.data {
                Some(data) => {
                    let device = place.map(|place| place.device);
                    state.chunks.insert(change.chunk, Mapped { changed: change.at, data, device });
                }
                None => {
                    state.chunks.remove(&change.chunk);
                }
            }
            let key = (change.replica, change.chunk);
            match &change.row {
                Some(row) => self.rows.insert(key, Arc::clone(row)),
                None => self.rows.remove(key),
            }
        }
    }

    fn finish_round(&mut self, points: &[(ReplicaId, Position)]) {
        for (replica, base) in points {
            if let Some(state) = self.replicas.get_mut(replica) {
                state.base = *base;
            }
        }
        let Some(round) = self.round.take() else { return };
        for (replica, released) in round.points {
            if let Some(state) = self.replicas.get_mut(&replica) {
                state.released = state.released.max(released);
            }
        }
        self.release_journal();
        self.release_slots();
    }
}

/// Tells when a store has something to be polled for.
#[derive(Debug)]
pub struct Ready {
    reports: Arc<Notify>,
    /// Signalled by the ring. It is never read: each signal is an edge.
    fetched: Option<AsyncFd<OwnedFd>>,
}

impl Ready {
    /// Returns when there is something. Two events may be told as one.
    pub async fn wait(&self) {
        let Some(fetched) = &self.fetched else { return self.reports.notified().await };
        tokio::select! {
            () = self.reports.notified() => {}
            ready = fetched.readable() => match ready {
                Ok(mut ready) => ready.clear_ready(),
                Err(error) => unreachable!("the runtime is shut down: {error}"),
            },
        }
    }
}

/// Blocks that an entry changes are read again when they are wanted again.
fn forget_blocks(
    blocks: &mut Recent<(ReplicaId, u32), (Bytes, u64)>,
    replica: ReplicaId,
    entry: &Entry<Payload>,
) {
    let Some(extent) = entry.change.extent() else { return };
    let changed = extent.blocks();
    if changed.len() > blocks.len() {
        blocks.retain(|(of, block)| *of != replica || !changed.contains(block));
    } else {
        for block in changed {
            blocks.remove((replica, block));
        }
    }
}

impl Replica {
    fn new(row: &ReplicaRow) -> Self {
        let copy = row.copying.map(|_| Copy { put: BTreeSet::new(), end: None });
        Self {
            segment: row.segment,
            chunks: BTreeMap::new(),
            base: row.base,
            applied: row.base.sequence,
            released: row.base.sequence,
            saved: row.promised,
            promised: row.promised,
            tail: VecDeque::new(),
            copy,
            own: row.copying,
        }
    }

    /// Whether a round at this point changes what is known of the replica.
    fn moves(&self, point: &Freeze) -> bool {
        let at = point.at.sequence;
        let sound = at <= self.applied || self.copy.is_some();
        debug_assert!(sound, "{point:?} lies above {}", self.applied);
        if !sound {
            tracing::error!(replica = %point.replica, %at, applied = %self.applied, "cannot destage");
        }
        sound && at > self.released
    }

    fn extend(&mut self, entry: &Entry<Payload>) {
        while self.tail.back().is_some_and(|e| e.position.sequence >= entry.position.sequence) {
            self.tail.pop_back();
        }
        self.tail.push_back(entry.clone());
    }
}

impl Copy {
    fn is_ending(&self) -> bool {
        self.end.is_some()
    }
}

/// The extent of a whole chunk, of which the segment has `segment_bytes`.
pub fn chunk_extent(chunk: u32, segment_bytes: u64) -> Result<Extent, BadExtent> {
    let start = u64::from(chunk) * CHUNK_BYTES;
    Extent::new(start, CHUNK_BYTES.min(segment_bytes.saturating_sub(start)), segment_bytes)
}
