//! What one copy has stored: a small model of the chunk store, sector by sector.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tidewater_proto::{
    entry::{Change, Entry},
    geometry::{CHUNK_BYTES, Extent, SECTOR_BYTES},
    ids::{Epoch, Position, Sequence, Token},
    peer::AppliedSession,
};

use super::super::Persist;

/// What a write puts into each of its sectors; never 0, which is what zeroes read as.
pub(super) type Value = u32;

const CHUNK_SECTORS: u32 = (CHUNK_BYTES / SECTOR_BYTES) as u32;

/// Sectors of an extent, numbered within the segment.
pub(super) fn sectors(extent: Extent) -> std::ops::Range<u32> {
    (extent.offset() / SECTOR_BYTES) as u32..(extent.end() / SECTOR_BYTES) as u32
}

/// A chunk in its slot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Chunk {
    pub(super) changed: Sequence,
    /// By sector of the segment; the others are zeroes.
    pub(super) sectors: BTreeMap<u32, Value>,
}

/// A change that is applied and not in the slots.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Over {
    at: Sequence,
    extent: Extent,
    /// 0 for zeroes.
    value: Value,
}

/// A copy that is being filled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Incoming {
    at: Sequence,
    live: BTreeSet<u32>,
    /// Chunks whose images are yet to come: what is applied to them stays in memory.
    follow: BTreeSet<u32>,
}

/// What one copy has on disk, and what it has asked for that is not there yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Disk {
    pub(super) promised: Epoch,
    pub(super) token: Token,
    pub(super) base: Position,
    pub(super) applied: Vec<AppliedSession>,
    pub(super) entries: Vec<Entry<Value>>,
    pub(super) commit: Sequence,
    pub(super) copying: Option<Sequence>,
    pub(super) queued: VecDeque<Persist<Value>>,
    pub(super) persisted: u64,
    slots: BTreeMap<u32, Chunk>,
}

impl Disk {
    pub(super) fn empty() -> Self {
        Self {
            promised: Epoch(0),
            token: Token(0),
            base: Position::default(),
            applied: Vec::new(),
            entries: Vec::new(),
            commit: Sequence(0),
            copying: None,
            queued: VecDeque::new(),
            persisted: 0,
            slots: BTreeMap::new(),
        }
    }

    pub(super) fn write(&mut self, record: Persist<Value>) {
        self.persisted += 1;
        match record {
            Persist::Promise { epoch, token } => {
                (self.promised, self.token) = (self.promised.max(epoch), self.token.max(token));
            }
            Persist::Entry { entry, commit } => {
                self.entries.retain(|e| e.position.sequence < entry.position.sequence);
                self.entries.push(entry);
                self.commit = self.commit.max(commit);
            }
        }
    }

    /// What a restart finds; what was still on its way when the base moved past it does not count.
    pub(super) fn entries_above(&self, base: Position) -> Vec<Entry<Value>> {
        let above = |entry: &&Entry<Value>| entry.position.sequence > base.sequence;
        self.entries.iter().filter(above).cloned().collect()
    }

    /// Whether the entry at `at` would be there after a crash now.
    pub(super) fn has(&self, at: Position) -> bool {
        at.sequence <= self.base.sequence || self.entries.iter().any(|e| e.position == at)
    }
}

/// What is applied in memory, over the slots of the disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Shelf {
    slots: BTreeMap<u32, Chunk>,
    /// Oldest first.
    over: Vec<Over>,
    applied: Sequence,
    incoming: Option<Incoming>,
}

impl Shelf {
    /// As a restart finds it.
    pub(super) fn found(disk: &Disk) -> Self {
        Self { slots: disk.slots.clone(), applied: disk.base.sequence, ..Self::default() }
    }

    /// Applies a committed entry.
    pub(super) fn apply(&mut self, entry: &Entry<Value>) {
        let at = entry.position.sequence;
        self.applied = self.applied.max(at);
        let (extent, value) = match &entry.change {
            Change::Activate => return,
            Change::Write { extent, data } => (*extent, *data),
            Change::Zero { extent, .. } => (*extent, 0),
        };
        self.over.push(Over { at, extent, value });
    }

    fn lies_over(&self, over: &Over, chunk: u32) -> bool {
        let slot = self.slots.get(&chunk).map_or(Sequence(0), |slot| slot.changed);
        over.extent.chunks().contains(&chunk) && over.at > slot
    }

    /// A chunk with all that lies over it; none if it holds nothing.
    pub(super) fn chunk(&self, chunk: u32) -> Option<Chunk> {
        let mut now = self.slots.get(&chunk).cloned().unwrap_or_default();
        for over in self.over.iter().filter(|over| self.lies_over(over, chunk)) {
            now.changed = over.at;
            let within = chunk * CHUNK_SECTORS..(chunk + 1) * CHUNK_SECTORS;
            let range = sectors(over.extent);
            if over.value == 0 {
                now.sectors.retain(|sector, _| !range.contains(sector));
            } else {
                let changed = range.start.max(within.start)..range.end.min(within.end);
                now.sectors.extend(changed.map(|sector| (sector, over.value)));
            }
        }
        Some(now).filter(|now| !now.sectors.is_empty())
    }

    pub(super) fn holds(&self, chunk: u32) -> bool {
        self.chunk(chunk).is_some()
    }

    /// Sector by sector.
    pub(super) fn read(&self, extent: Extent) -> Vec<Value> {
        let chunks: BTreeMap<u32, Chunk> =
            extent.chunks().filter_map(|c| Some((c, self.chunk(c)?))).collect();
        let value = |sector: u32| {
            let chunk = chunks.get(&(sector / CHUNK_SECTORS))?;
            chunk.sectors.get(&sector).copied()
        };
        sectors(extent).map(|sector| value(sector).unwrap_or(0)).collect()
    }

    /// Chunks that hold data, with their last change.
    pub(super) fn table(&self) -> Vec<(u32, Sequence)> {
        let over = self.over.iter().flat_map(|over| over.extent.chunks());
        let chunks: BTreeSet<u32> = self.slots.keys().copied().chain(over).collect();
        chunks.into_iter().filter_map(|c| Some((c, self.chunk(c)?.changed))).collect()
    }

    /// Changes kept in memory because their chunk's image is yet to come.
    pub(super) fn pinned(&self) -> usize {
        let Some(incoming) = &self.incoming else { return 0 };
        let pinned = |over: &&Over| over.extent.chunks().any(|c| incoming.follow.contains(&c));
        self.over.iter().filter(pinned).count()
    }

    /// Brings to the disk what may be: all, but for chunks whose image is yet to come.
    fn destage(&mut self, disk: &mut Disk) {
        let waits = |chunk: u32| self.incoming.as_ref().is_some_and(|i| i.follow.contains(&chunk));
        let over: BTreeSet<u32> = self.over.iter().flat_map(|over| over.extent.chunks()).collect();
        let done: BTreeSet<u32> = over.into_iter().filter(|chunk| !waits(*chunk)).collect();
        for &chunk in &done {
            let changed = self.over.iter().filter(|o| self.lies_over(o, chunk)).map(|o| o.at).max();
            let Some(changed) = changed else { continue };
            let now = Chunk { changed, ..self.chunk(chunk).unwrap_or_default() };
            self.slots.insert(chunk, now);
        }
        self.over.retain(|over| !over.extent.chunks().all(|chunk| done.contains(&chunk)));
        for chunk in done {
            disk.slots.extend(self.slots.get(&chunk).map(|slot| (chunk, slot.clone())));
        }
    }

    /// A round of destaging; whether the copy's base moved to `at`.
    pub(super) fn freeze(
        &mut self,
        disk: &mut Disk,
        at: Position,
        applied: Vec<AppliedSession>,
    ) -> bool {
        self.destage(disk);
        if disk.copying.is_some() {
            return false;
        }
        (disk.base, disk.applied) = (at, applied);
        disk.commit = disk.commit.max(at.sequence);
        disk.entries.retain(|e| e.position.sequence > at.sequence);
        true
    }

    /// A copy begins behind `at`.
    pub(super) fn begin_copy(
        &mut self,
        disk: &mut Disk,
        (at, have): (Position, Sequence),
        (live, follow): (Vec<u32>, Vec<u32>),
        own: Option<(Position, Vec<AppliedSession>)>,
    ) {
        self.incoming = None;
        self.destage(disk);
        disk.copying = Some(have);
        if let Some((base, applied)) = own {
            (disk.base, disk.applied) = (base, applied);
        }
        disk.entries.clear();
        let live: BTreeSet<u32> = live.into_iter().collect();
        let gone: Vec<u32> = self.slots.keys().copied().filter(|c| !live.contains(c)).collect();
        for chunk in gone {
            let hole = Chunk { changed: at.sequence, sectors: BTreeMap::new() };
            self.slots.insert(chunk, hole.clone());
            disk.slots.insert(chunk, hole);
        }
        self.applied = at.sequence;
        let follow = follow.into_iter().collect();
        self.incoming = Some(Incoming { at: at.sequence, live, follow });
    }

    /// An image of a chunk; `shows` is the commit point it shows.
    pub(super) fn put(&mut self, disk: &mut Disk, chunk: u32, image: Chunk, shows: Sequence) {
        assert!(self.applied <= shows, "INV-LOG: an image goes over what is newer than it");
        self.slots.insert(chunk, image.clone());
        disk.slots.insert(chunk, image);
        if let Some(incoming) = &mut self.incoming {
            incoming.follow.remove(&chunk);
        }
    }

    /// The copy is whole as of `at`.
    pub(super) fn end_copy(&mut self, disk: &mut Disk, at: Position, applied: Vec<AppliedSession>) {
        let Some(incoming) = self.incoming.take() else { return };
        self.destage(disk);
        let kept =
            |chunk: u32, slot: &Chunk| incoming.live.contains(&chunk) || slot.changed > incoming.at;
        self.slots.retain(|&chunk, slot| kept(chunk, slot));
        disk.slots.retain(|&chunk, slot| kept(chunk, slot));
        disk.copying = None;
        (disk.base, disk.applied) = (at, applied);
        disk.commit = disk.commit.max(at.sequence);
        disk.entries.retain(|e| e.position.sequence > at.sequence);
    }
}
