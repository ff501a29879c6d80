//! Brings applied changes from memory to the slots: data first, then the catalog, then what is no
//! longer needed is freed.
//!
//! A whole block may be written in place: the journal holds its entry until the catalog has its new
//! checksum, and the commit point that covers it is in the journal too, so after a crash the block
//! is written again. A part of a block may not, because merging it reads what is there: such a chunk
//! goes to a fresh slot.

mod chunk;
mod loss;
mod plan;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use tidewater_proto::{
    entry::Payload,
    ids::{Epoch, Position, ReplicaId, Sequence, Token},
    peer::AppliedSession,
};

use super::{
    base::Store,
    catalog::{
        Batch, CatalogError,
        rows::{
            ChunkRow, Owner, Place, ReplicaRow, chunk_key, chunks_prefix, parse_chunk_key,
            replica_key,
        },
    },
    crew::Worker,
    device::DeviceError,
    overlay::Generation,
};
use chunk::Pending;

/// Chunks after which a round writes the catalog and frees slots: as many more slots may be in use for a while.
const CHUNKS_PER_COMMIT: usize = 256;
/// Bytes of chunk data gathered before they are written, sorted.
const GATHER_BYTES: usize = 16 << 20;

/// What a replica's log was applied up to when a round began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Freeze {
    /// Copy.
    pub replica: ReplicaId,
    /// Commit point; everything up to it has been applied.
    pub at: Position,
    /// Operations applied, as of `at`.
    pub applied: Vec<AppliedSession>,
}

/// A copy is whole.
#[derive(Clone, Debug)]
pub(crate) struct End {
    pub(crate) replica: ReplicaId,
    pub(crate) at: Position,
    pub(crate) applied: Vec<AppliedSession>,
    /// Chunks that stay; none: all.
    pub(crate) keep: Option<BTreeSet<u32>>,
    pub(crate) tag: u64,
}

/// What the destager is given, in the order it is to be done.
#[derive(Debug)]
pub(crate) enum Job {
    Round {
        frozen: Arc<Generation>,
        points: Vec<Freeze>,
        promises: BTreeMap<ReplicaId, (Epoch, Token)>,
        ends: Vec<End>,
    },
    BeginCopy {
        replica: ReplicaId,
        have: Sequence,
        own: Generation,
        /// Where it stands, as its new base.
        point: Option<Freeze>,
    },
    PutChunk {
        replica: ReplicaId,
        chunk: u32,
        changed: Sequence,
        image: Option<Payload>,
        tag: u64,
    },
    Delete {
        replica: ReplicaId,
    },
    /// A device has failed.
    GiveUp,
}

/// What became of a chunk.
#[derive(Clone, Debug)]
pub(crate) struct Changed {
    pub(crate) replica: ReplicaId,
    pub(crate) chunk: u32,
    /// Last change.
    pub(crate) at: Sequence,
    /// Whether there is data; none: the row is gone.
    pub(crate) data: Option<bool>,
    /// The row.
    pub(crate) row: Option<Arc<ChunkRow>>,
}

/// What the destager reports.
#[derive(Debug)]
pub(crate) enum Report {
    Round {
        changed: Vec<Changed>,
        points: Vec<(ReplicaId, Position)>,
        promises: BTreeMap<ReplicaId, (Epoch, Token)>,
        ended: Vec<(ReplicaId, u64)>,
    },
    CopyBegun {
        changed: Vec<Changed>,
        base: Option<(ReplicaId, Position)>,
    },
    ChunkPut {
        tag: u64,
    },
    Deleted {
        replica: ReplicaId,
    },
    /// These copies had chunks on a device that failed.
    Lost(Vec<ReplicaId>),
    Failed(Fault),
}

/// Destaging cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// A device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The catalog.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

/// The one who writes a shard's slots and catalog rows.
#[derive(Debug)]
pub(crate) struct Destager {
    store: Arc<Store>,
    shard: usize,
    jobs: VecDeque<Job>,
    /// Failed devices whose copies have been given up.
    given_up: BTreeSet<u16>,
    broken: bool,
}

impl Worker for Destager {
    type Job = Job;
    type Report = Report;

    fn take(&mut self, job: Job) {
        self.jobs.push_back(job);
    }

    fn step(&mut self) -> Option<Report> {
        while let Some(job) = self.jobs.pop_front() {
            if self.broken {
                continue;
            }
            match self.run(&job) {
                Ok(report) => return Some(report),
                Err(fault) => match self.go_on_after(fault) {
                    Ok(lost) => {
                        self.jobs.push_front(job);
                        return Some(Report::Lost(lost));
                    }
                    Err(fault) => {
                        self.broken = true;
                        return Some(Report::Failed(fault));
                    }
                },
            }
        }
        None
    }
}

impl Destager {
    pub(crate) fn new(store: Arc<Store>, shard: usize) -> Self {
        let (jobs, given_up) = (VecDeque::new(), BTreeSet::new());
        Self { store, shard, jobs, given_up, broken: false }
    }

    fn run(&mut self, job: &Job) -> Result<Report, Fault> {
        match job {
            Job::Round { frozen, points, promises, ends } => {
                self.round(frozen, points, promises, ends)
            }
            Job::BeginCopy { replica, have, own, point } => {
                self.begin_copy(*replica, *have, own, point.as_ref())
            }
            Job::PutChunk { replica, chunk, changed, image, tag } => {
                self.put_chunk(*replica, *chunk, *changed, image.as_ref())?;
                Ok(Report::ChunkPut { tag: *tag })
            }
            Job::Delete { replica } => {
                self.delete(*replica)?;
                Ok(Report::Deleted { replica: *replica })
            }
            Job::GiveUp => Ok(Report::Lost(self.give_up()?)),
        }
    }

    fn begin_copy(
        &self,
        replica: ReplicaId,
        have: Sequence,
        own: &Generation,
        point: Option<&Freeze>,
    ) -> Result<Report, Fault> {
        self.note_commits(std::iter::once((replica, have)))?;
        let mut base = None;
        let changed = Pending::fill(&self.store, |pending| {
            self.destage(own, pending, false)?;
            if let Some(mut row) = self.replica(replica)? {
                row.copying = Some(have);
                if let Some(point) = point
                    && point.at.sequence >= row.base.sequence
                {
                    base = Some((replica, point.at));
                    (row.base, row.applied) = (point.at, point.applied.clone());
                }
                pending.batch.push((replica_key(replica), Some(row.encode())));
            }
            Ok(())
        })?;
        Ok(Report::CopyBegun { changed, base })
    }

    /// The row of a copy, unless it is deleted or lost.
    fn replica(&self, replica: ReplicaId) -> Result<Option<ReplicaRow>, Fault> {
        let Some(row) = self.store.catalog.get(&replica_key(replica))? else { return Ok(None) };
        let row = ReplicaRow::decode(&row).map_err(CatalogError::from)?;
        Ok((!row.lost).then_some(row))
    }

    /// Makes the commit points durable that a round begins with. They are in the catalog, for the journal
    /// may be full, and then it is this round that makes room in it.
    fn note_commits(
        &self,
        commits: impl Iterator<Item = (ReplicaId, Sequence)>,
    ) -> Result<(), Fault> {
        let mut batch = Batch::new();
        for (replica, commit) in commits {
            let Some(mut row) = self.replica(replica)? else { continue };
            if row.commit < commit {
                row.commit = commit;
                batch.push((replica_key(replica), Some(row.encode())));
            }
        }
        if batch.is_empty() { Ok(()) } else { Ok(self.store.catalog.write(batch)?) }
    }

    fn round(
        &self,
        frozen: &Generation,
        points: &[Freeze],
        promises: &BTreeMap<ReplicaId, (Epoch, Token)>,
        ends: &[End],
    ) -> Result<Report, Fault> {
        self.note_commits(points.iter().map(|point| (point.replica, point.at.sequence)))?;
        let mut moved = Vec::new();
        let changed = Pending::fill(&self.store, |pending| {
            self.destage(frozen, pending, true)?;
            for end in ends {
                self.drop_chunks(end, pending)?;
            }
            moved = self.points(&mut pending.batch, points, promises, ends)?;
            Ok(())
        })?;
        let ended = ends.iter().map(|end| (end.replica, end.tag)).collect();
        Ok(Report::Round { changed, points: moved, promises: promises.clone(), ended })
    }

    /// `adopts`: chunks that lie in a slot already keep it, but for those of copies that are being filled. Their
    /// bases do not move, so that recovery would look for the entry there after the slot has changed.
    fn destage(
        &self,
        from: &Generation,
        pending: &mut Pending<'_>,
        adopts: bool,
    ) -> Result<(), Fault> {
        for (replica, is_filled, chunks) in self.by_replica(from)? {
            pending.adopts = adopts && !is_filled;
            for (chunk, row) in chunks {
                let over = from.chunk(replica, chunk).expect("listed from this generation");
                pending.destage(replica, chunk, row, over)?;
            }
        }
        Ok(())
    }

    /// The changed chunks of the replicas that still exist, with their rows; chunks of one device
    /// in the order of their slots.
    #[allow(clippy::type_complexity)] // read once, just above
    fn by_replica(
        &self,
        frozen: &Generation,
    ) -> Result<Vec<(ReplicaId, bool, Vec<(u32, Option<ChunkRow>)>)>, Fault> {
        let mut all: Vec<(ReplicaId, Vec<(u32, Option<ChunkRow>)>)> = Vec::new();
        for (replica, chunk, _) in frozen.iter() {
            if all.last().is_none_or(|(last, _)| *last != replica) {
                all.push((replica, Vec::new()));
            }
            let row = self.chunk(replica, chunk)?;
            all.last_mut().expect("just pushed").1.push((chunk, row));
        }
        let mut exist = Vec::with_capacity(all.len());
        for (replica, mut chunks) in all {
            if let Some(row) = self.replica(replica)? {
                chunks.sort_by_key(|(chunk, row)| (row.as_ref().and_then(|r| r.place), *chunk));
                exist.push((replica, row.copying.is_some(), chunks));
            }
        }
        Ok(exist)
    }

    fn chunk(&self, replica: ReplicaId, chunk: u32) -> Result<Option<ChunkRow>, Fault> {
        let row = self.store.catalog.get(&chunk_key(replica, chunk, Owner::Volume))?;
        Ok(row.map(|row| ChunkRow::decode(&row)).transpose().map_err(CatalogError::from)?)
    }

    /// At the end of a copy: chunks that the primary does not have, and rows of holes that only
    /// kept a sequence.
    fn drop_chunks(&self, end: &End, pending: &mut Pending<'_>) -> Result<(), Fault> {
        if self.replica(end.replica)?.is_none() {
            return Ok(());
        }
        // Rows changed by this round must be seen.
        pending.commit()?;
        let mut gone = Vec::new();
        self.store.catalog.scan(&chunks_prefix(end.replica), &mut |key, row| {
            let (_, chunk, _) = parse_chunk_key(key)?;
            let row = ChunkRow::decode(row)?;
            let kept = end.keep.as_ref().is_none_or(|keep| keep.contains(&chunk));
            if row.place.is_none() || !kept && row.changed <= end.at.sequence {
                gone.push((chunk, row));
            }
            Ok(())
        })?;
        for (chunk, row) in gone {
            pending.remove(end.replica, chunk, &row, end.at.sequence.max(row.changed));
        }
        Ok(())
    }

    fn points(
        &self,
        batch: &mut Batch,
        points: &[Freeze],
        promises: &BTreeMap<ReplicaId, (Epoch, Token)>,
        ends: &[End],
    ) -> Result<Vec<(ReplicaId, Position)>, Fault> {
        let points: BTreeMap<_, _> = points.iter().map(|p| (p.replica, p)).collect();
        let ended: BTreeMap<_, _> = ends.iter().map(|end| (end.replica, end)).collect();
        let mut names: BTreeSet<_> = points.keys().chain(promises.keys()).copied().collect();
        names.extend(ended.keys());
        let mut moved = Vec::new();
        for replica in names {
            let Some(mut row) = self.replica(replica)? else { continue };
            if let Some(promise) = promises.get(&replica) {
                row.promised = row.promised.max(*promise);
            }
            let mut point = points.get(&replica).map(|p| (p.at, &p.applied));
            if let Some(end) = ended.get(&replica) {
                row.copying = None;
                if point.is_none_or(|(at, _)| at.sequence <= end.at.sequence) {
                    point = Some((end.at, &end.applied));
                }
            }
            // Until a copy ends, what is whole is what was there when it began.
            if row.copying.is_none()
                && let Some((at, applied)) = point
                && at.sequence >= row.base.sequence
            {
                (row.base, row.applied) = (at, applied.clone());
                moved.push((replica, at));
            }
            batch.push((replica_key(replica), Some(row.encode())));
        }
        Ok(moved)
    }

    fn put_chunk(
        &mut self,
        replica: ReplicaId,
        chunk: u32,
        changed: Sequence,
        image: Option<&Payload>,
    ) -> Result<(), Fault> {
        if self.replica(replica)?.is_none() {
            return Ok(());
        }
        let old = self.chunk(replica, chunk)?;
        Pending::fill(&self.store, |pending| {
            pending.put(replica, chunk, old.as_ref(), changed, image)
        })?;
        Ok(())
    }

    fn delete(&mut self, replica: ReplicaId) -> Result<(), Fault> {
        let mut batch = vec![(replica_key(replica), None)];
        let mut slots: Vec<Place> = Vec::new();
        self.store.catalog.scan(&chunks_prefix(replica), &mut |key, row| {
            batch.push((key.to_vec(), None));
            slots.extend(ChunkRow::decode(row)?.place);
            Ok(())
        })?;
        self.store.catalog.write(batch)?;
        for place in slots {
            self.store.release(place);
        }
        Ok(())
    }
}
