//! Writes the chunks of one round: gathers data, then commits rows, then frees slots.

use std::sync::Arc;

use bytes::Bytes;
use tidewater_proto::{
    aligned::AlignedBuf,
    checksum,
    entry::Payload,
    geometry::{BLOCK_BYTES, CHUNK_BLOCKS, CHUNK_BYTES},
    ids::{ReplicaId, Sequence},
};

use super::{
    CHUNKS_PER_COMMIT, Changed, Fault, GATHER_BYTES,
    plan::{NVME, Plan, plan},
};
use crate::store::{
    base::Store,
    catalog::{
        Batch,
        rows::{ChunkRow, Owner, Place, chunk_key},
    },
    device::{Device, DeviceError},
    overlay::{BlockOverlay, ChunkOverlay, patch},
};

const BLOCK: usize = BLOCK_BYTES as usize;

/// Runs of whole blocks, by their first block.
type Runs<'a> = Vec<(u16, Vec<&'a Bytes>)>;

/// Notes the new checksums of an overlay without parts of blocks; the blocks that are to be written.
fn note_whole<'a>(over: &'a ChunkOverlay, sums: &mut [Option<u64>]) -> Runs<'a> {
    let mut runs = Runs::new();
    for (&block, content) in &over.blocks {
        sums[usize::from(block)] = match content {
            BlockOverlay::Whole(data, sum) => {
                match runs.last_mut() {
                    Some((first, run)) if *first as usize + run.len() == block as usize => {
                        run.push(data);
                    }
                    _ => runs.push((block, vec![data])),
                }
                Some(*sum)
            }
            BlockOverlay::Zero => None,
            BlockOverlay::Partial(_) => {
                unreachable!("parts of blocks are merged with what is there")
            }
        };
    }
    runs
}

/// The blocks of a run, aligned for direct I/O; those that lie right in memory are not copied.
fn pieces(run: &[&Bytes]) -> Vec<Bytes> {
    let piece = |&block: &&Bytes| {
        if block.as_ptr().addr().is_multiple_of(BLOCK) {
            return Bytes::clone(block);
        }
        let mut data = AlignedBuf::stale(BLOCK);
        data.copy_from_slice(block);
        data.freeze()
    };
    run.iter().map(piece).collect()
}

/// Whether nothing of the old chunk goes into the new one.
fn is_all_new(old: Option<&ChunkRow>, over: &ChunkOverlay) -> bool {
    let partial = over.blocks.values().any(|block| matches!(block, BlockOverlay::Partial(_)));
    let stays = |block: usize, sum: &Option<u64>| {
        sum.is_some() && !over.blocks.contains_key(&(block as u16))
    };
    let old = old.filter(|_| !over.zeroed);
    !partial && !old.is_some_and(|old| old.sums.iter().enumerate().any(|(b, sum)| stays(b, sum)))
}

/// Data not yet written, rows not yet committed and slots not yet free.
pub(super) struct Pending<'a> {
    store: &'a Store,
    /// (device, slot, offset in the slot), data.
    writes: Vec<(Place, u64, Vec<Bytes>)>,
    bytes: usize,
    dirty: std::collections::BTreeSet<u16>,
    pub(super) batch: Batch,
    freed: Vec<Place>,
    /// Slots taken for rows not yet committed.
    taken: Vec<Place>,
    chunks: usize,
    /// Chunks that lie in a slot already keep it.
    pub(super) adopts: bool,
    pub(super) changed: Vec<Changed>,
}

impl<'a> Pending<'a> {
    pub(super) fn new(store: &'a Store) -> Self {
        Self {
            store,
            writes: Vec::new(),
            bytes: 0,
            dirty: std::collections::BTreeSet::new(),
            batch: Vec::new(),
            freed: Vec::new(),
            taken: Vec::new(),
            chunks: 0,
            adopts: false,
            changed: Vec::new(),
        }
    }

    /// Does `work` and commits; what has changed. If a device fails, slots that no row names are free again.
    pub(super) fn fill(
        store: &'a Store,
        work: impl FnOnce(&mut Self) -> Result<(), Fault>,
    ) -> Result<Vec<Changed>, Fault> {
        let mut pending = Self::new(store);
        match work(&mut pending).and_then(|()| pending.commit()) {
            Ok(()) => Ok(pending.changed),
            Err(fault) => {
                // After a fault of the catalog a row may name them.
                if matches!(fault, Fault::Device(_)) {
                    pending.taken.drain(..).for_each(|place| store.release(place));
                }
                Err(fault)
            }
        }
    }

    /// Writes one changed chunk.
    pub(super) fn destage(
        &mut self,
        replica: ReplicaId,
        chunk: u32,
        row: Option<ChunkRow>,
        over: &ChunkOverlay,
    ) -> Result<(), Fault> {
        let stored = over.stored.filter(|&place| {
            self.adopts && self.store.device(place.device).is_some_and(|d| !d.has_failed())
        });
        match (stored.map_or_else(|| plan(row.as_ref(), over, NVME), Plan::Stored), row) {
            (Plan::Stored(place), row) => self.adopt(replica, chunk, place, row.as_ref(), over),
            (Plan::Remove, Some(row)) => self.remove(replica, chunk, &row, over.changed),
            (Plan::Remove, None) => {
                self.changed.push(Changed {
                    replica,
                    chunk,
                    at: over.changed,
                    data: None,
                    row: None,
                });
            }
            (Plan::InPlace, Some(row)) => self.in_place(replica, chunk, row, over),
            (Plan::InPlace, None) => unreachable!("there is no place"),
            (Plan::Fresh, row) => self.fresh(replica, chunk, row.as_ref(), over)?,
        }
        self.chunks += 1;
        if self.bytes >= GATHER_BYTES {
            self.flush()?;
        }
        if self.chunks >= CHUNKS_PER_COMMIT { self.commit() } else { Ok(()) }
    }

    /// Removes a chunk's row; its slot is free once that is durable.
    pub(super) fn remove(&mut self, replica: ReplicaId, chunk: u32, row: &ChunkRow, at: Sequence) {
        self.batch.push((chunk_key(replica, chunk, Owner::Volume), None));
        self.free(row);
        self.changed.push(Changed { replica, chunk, at, data: None, row: None });
    }

    /// Stores a chunk's image from a peer in a fresh slot.
    pub(super) fn put(
        &mut self,
        replica: ReplicaId,
        chunk: u32,
        old: Option<&ChunkRow>,
        changed: Sequence,
        image: Option<&Payload>,
    ) -> Result<(), Fault> {
        let mut row = ChunkRow::hole(changed);
        let zero = checksum::zero_block_sum();
        if let Some(image) = image {
            for (i, (sum, block)) in row.sums.iter_mut().zip(image.data.chunks(BLOCK)).enumerate() {
                let is_hole = image.sum(i) == Some(zero) && block.iter().all(|&b| b == 0);
                *sum = image.sum(i).filter(|_| !is_hole);
            }
        }
        if row.sums.iter().any(Option::is_some) {
            let mut data = AlignedBuf::zeroed(CHUNK_BYTES as usize);
            let bytes = image.map_or(&[][..], |image| &image.data);
            data[..bytes.len()].copy_from_slice(bytes);
            self.place(&mut row, old, data)?;
        }
        self.settle(replica, chunk, row, old);
        Ok(())
    }

    /// The chunk lies in its new slot already.
    fn adopt(
        &mut self,
        replica: ReplicaId,
        chunk: u32,
        place: Place,
        old: Option<&ChunkRow>,
        over: &ChunkOverlay,
    ) {
        let mut row = ChunkRow::hole(over.changed);
        note_whole(over, &mut row.sums);
        (row.place, row.references) = (Some(place), 1);
        // An earlier try of this round may have come as far as the catalog.
        self.settle(replica, chunk, row, old.filter(|old| old.place != Some(place)));
    }

    fn in_place(&mut self, replica: ReplicaId, chunk: u32, old: ChunkRow, over: &ChunkOverlay) {
        let mut row = ChunkRow { changed: over.changed, hash: [0; 32], ..old };
        let place = row.place.expect("planned in place");
        for (first, run) in note_whole(over, &mut row.sums) {
            self.write(place, u64::from(first) * BLOCK_BYTES, pieces(&run));
        }
        self.put_row(replica, chunk, row);
    }

    fn fresh(
        &mut self,
        replica: ReplicaId,
        chunk: u32,
        old: Option<&ChunkRow>,
        over: &ChunkOverlay,
    ) -> Result<(), Fault> {
        let mut row = ChunkRow::hole(over.changed);
        if is_all_new(old, over) {
            let runs = note_whole(over, &mut row.sums);
            let place = self.allocate(&mut row, old)?;
            for (first, run) in runs {
                self.write(place, u64::from(first) * BLOCK_BYTES, pieces(&run));
            }
            self.settle(replica, chunk, row, old);
            return Ok(());
        }
        let mut data = AlignedBuf::zeroed(CHUNK_BYTES as usize);
        if let Some(old) = old.filter(|_| !over.zeroed) {
            row.sums.clone_from(&old.sums);
            self.read_rest(old, over, &mut data)?;
        }
        for (&block, content) in &over.blocks {
            let at = usize::from(block) * BLOCK;
            let bytes = &mut data[at..at + BLOCK];
            let sum = &mut row.sums[usize::from(block)];
            *sum = match content {
                BlockOverlay::Whole(new, sum) => {
                    bytes.copy_from_slice(new);
                    Some(*sum)
                }
                BlockOverlay::Zero => None,
                BlockOverlay::Partial(sectors) => {
                    // What was rotten stays recognisably so: a new sum would hide it.
                    let rotten = sum.is_some_and(|sum| checksum::sum(bytes) != sum);
                    patch(bytes, sectors);
                    let new = checksum::sum(bytes);
                    Some(if rotten { !new } else { new })
                }
            };
        }
        self.place(&mut row, old, data)?;
        self.settle(replica, chunk, row, old);
        Ok(())
    }

    /// Reads the blocks of the old slot that the new one will have too.
    fn read_rest(
        &self,
        old: &ChunkRow,
        over: &ChunkOverlay,
        data: &mut [u8],
    ) -> Result<(), DeviceError> {
        let wanted = |block: usize| {
            let replaced = matches!(
                over.blocks.get(&(block as u16)),
                Some(BlockOverlay::Whole(..) | BlockOverlay::Zero)
            );
            old.sums[block].is_some() && !replaced
        };
        let first = (0..CHUNK_BLOCKS).find(|&block| wanted(block));
        let last = (0..CHUNK_BLOCKS).rfind(|&block| wanted(block));
        let (Some(first), Some(last), Some(place)) = (first, last, old.place) else {
            return Ok(());
        };
        let device = self.device(place)?;
        let range = first * BLOCK..(last + 1) * BLOCK;
        if let Err(DeviceError::Unreadable { .. }) =
            device.read(place.slot, range.start as u64, &mut data[range.clone()])
        {
            read_what_can_be(device, place, range, data)?;
        }
        for block in (0..CHUNK_BLOCKS).filter(|&block| old.sums[block].is_none()) {
            data[block * BLOCK..][..BLOCK].fill(0);
        }
        Ok(())
    }

    /// Takes a slot for the chunk and gathers its written blocks.
    fn place(
        &mut self,
        row: &mut ChunkRow,
        old: Option<&ChunkRow>,
        data: AlignedBuf,
    ) -> Result<(), Fault> {
        let place = self.allocate(row, old)?;
        let written: Vec<usize> = (0..CHUNK_BLOCKS).filter(|&b| row.sums[b].is_some()).collect();
        let data = data.freeze();
        for run in written.chunk_by(|a, b| a + 1 == *b) {
            let range = run[0] * BLOCK..(run[0] + run.len()) * BLOCK;
            self.write(place, range.start as u64, vec![data.slice(range)]);
        }
        Ok(())
    }

    /// Takes a slot for the chunk.
    fn allocate(&mut self, row: &mut ChunkRow, old: Option<&ChunkRow>) -> Result<Place, Fault> {
        let preferred = old.and_then(|old| old.place).map(|place| place.device);
        let place = match self.store.allocate(preferred) {
            Err(DeviceError::NoSpace(_)) => {
                // Slots that this round has made superfluous become free.
                self.commit()?;
                self.store.allocate(preferred)?
            }
            other => other?,
        };
        self.taken.push(place);
        (row.place, row.references) = (Some(place), 1);
        Ok(place)
    }

    fn settle(&mut self, replica: ReplicaId, chunk: u32, row: ChunkRow, old: Option<&ChunkRow>) {
        if let Some(old) = old {
            self.free(old);
        }
        self.put_row(replica, chunk, row);
    }

    fn put_row(&mut self, replica: ReplicaId, chunk: u32, row: ChunkRow) {
        self.batch.push((chunk_key(replica, chunk, Owner::Volume), Some(row.encode())));
        let (at, data) = (row.changed, Some(row.place.is_some()));
        self.changed.push(Changed { replica, chunk, at, data, row: Some(Arc::new(row)) });
    }

    /// Gives a slot back that no other row refers to.
    fn free(&mut self, old: &ChunkRow) {
        self.freed.extend(old.place.filter(|_| old.references == 1));
    }

    fn write(&mut self, place: Place, offset: u64, pieces: Vec<Bytes>) {
        self.bytes += pieces.iter().map(Bytes::len).sum::<usize>();
        self.writes.push((place, offset, pieces));
    }

    fn device(&self, place: Place) -> Result<&'a Device, DeviceError> {
        let name = || format!("number {}", place.device);
        self.store
            .device(place.device)
            .ok_or_else(|| DeviceError::Failed { device: name(), source: None })
    }

    /// Writes what is gathered, sorted by place.
    fn flush(&mut self) -> Result<(), Fault> {
        let mut writes = std::mem::take(&mut self.writes);
        self.bytes = 0;
        writes.sort_by_key(|(place, offset, _)| (*place, *offset));
        for of_device in writes.chunk_by(|a, b| a.0.device == b.0.device) {
            let place = of_device[0].0;
            let parts: Vec<(u32, u64, &[Bytes])> =
                of_device.iter().map(|(place, at, data)| (place.slot, *at, &data[..])).collect();
            self.device(place)?.write(&parts)?;
            self.dirty.insert(place.device);
        }
        Ok(())
    }

    /// Makes data durable, then the rows that point to it, then frees what they no longer need.
    pub(super) fn commit(&mut self) -> Result<(), Fault> {
        self.flush()?;
        for device in std::mem::take(&mut self.dirty) {
            self.device(Place { device, slot: 0 })?.sync()?;
        }
        self.chunks = 0;
        let batch = std::mem::take(&mut self.batch);
        if !batch.is_empty() {
            self.store.catalog.write(batch)?;
        }
        self.taken.clear();
        for place in std::mem::take(&mut self.freed) {
            self.store.release(place);
        }
        Ok(())
    }
}

/// Block by block; one that cannot be read stays zeroes and so does not match its checksum.
fn read_what_can_be(
    device: &Device,
    place: Place,
    range: std::ops::Range<usize>,
    data: &mut [u8],
) -> Result<(), DeviceError> {
    for at in range.step_by(BLOCK) {
        let block = &mut data[at..at + BLOCK];
        match device.read(place.slot, at as u64, block) {
            Ok(()) => {}
            Err(DeviceError::Unreadable { .. }) => block.fill(0),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
