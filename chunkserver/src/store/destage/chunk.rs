//! Writes the chunks of one round: gathers data, then commits rows, then frees slots.

use bytes::Bytes;
use tidewater_proto::{
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
    aligned::AlignedBuf,
    base::Store,
    catalog::{
        Batch,
        rows::{ChunkRow, Owner, Place, chunk_key},
    },
    device::{Device, DeviceError},
    overlay::{BlockOverlay, ChunkOverlay, patch},
};

const BLOCK: usize = BLOCK_BYTES as usize;

/// Bytes on their way to a slot, aligned for direct I/O.
enum Data {
    Gathered(AlignedBuf),
    /// One block as it came in a write.
    Shared(Bytes),
}

impl std::ops::Deref for Data {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Gathered(data) => data,
            Self::Shared(data) => data,
        }
    }
}

impl From<AlignedBuf> for Data {
    fn from(data: AlignedBuf) -> Self {
        Self::Gathered(data)
    }
}

impl Data {
    /// The blocks of a run; a single one that lies right in memory is not copied.
    fn of(run: &[&Bytes]) -> Self {
        if let [block] = run
            && block.as_ptr().addr().is_multiple_of(BLOCK)
        {
            return Self::Shared(Bytes::clone(block));
        }
        let mut data = AlignedBuf::zeroed(run.len() * BLOCK);
        data.chunks_exact_mut(BLOCK).zip(run).for_each(|(to, from)| to.copy_from_slice(from));
        Self::Gathered(data)
    }
}

/// Data not yet written, rows not yet committed and slots not yet free.
pub(super) struct Pending<'a> {
    store: &'a Store,
    /// (device, slot, offset in the slot), data.
    writes: Vec<(Place, u64, Data)>,
    bytes: usize,
    dirty: std::collections::BTreeSet<u16>,
    pub(super) batch: Batch,
    freed: Vec<Place>,
    chunks: usize,
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
            chunks: 0,
            changed: Vec::new(),
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
        match (plan(row.as_ref(), over, NVME), row) {
            (Plan::Remove, Some(row)) => self.remove(replica, chunk, &row, over.changed),
            (Plan::Remove, None) => {
                self.changed.push(Changed { replica, chunk, at: over.changed, data: None });
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
        self.changed.push(Changed { replica, chunk, at, data: None });
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
        self.settle(replica, chunk, &row, old);
        Ok(())
    }

    fn in_place(&mut self, replica: ReplicaId, chunk: u32, old: ChunkRow, over: &ChunkOverlay) {
        let mut row = ChunkRow { changed: over.changed, hash: [0; 32], ..old };
        let place = row.place.expect("planned in place");
        let mut runs: Vec<(u16, Vec<&Bytes>)> = Vec::new();
        for (&block, content) in &over.blocks {
            row.sums[usize::from(block)] = match content {
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
                BlockOverlay::Partial(_) => unreachable!("parts of blocks go to a fresh slot"),
            };
        }
        for (first, run) in runs {
            self.write(place, u64::from(first) * BLOCK_BYTES, Data::of(&run));
        }
        let key = chunk_key(replica, chunk, Owner::Volume);
        self.batch.push((key, Some(row.encode())));
        self.changed.push(Changed { replica, chunk, at: row.changed, data: Some(true) });
    }

    fn fresh(
        &mut self,
        replica: ReplicaId,
        chunk: u32,
        old: Option<&ChunkRow>,
        over: &ChunkOverlay,
    ) -> Result<(), Fault> {
        let mut row = ChunkRow::hole(over.changed);
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
        self.settle(replica, chunk, &row, old);
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
        let preferred = old.and_then(|old| old.place).map(|place| place.device);
        let place = match self.store.allocate(preferred) {
            Err(DeviceError::NoSpace(_)) => {
                // Slots that this round has made superfluous become free.
                self.commit()?;
                self.store.allocate(preferred)?
            }
            other => other?,
        };
        (row.place, row.references) = (Some(place), 1);
        let written: Vec<usize> = (0..CHUNK_BLOCKS).filter(|&b| row.sums[b].is_some()).collect();
        if written.len() == CHUNK_BLOCKS {
            self.write(place, 0, data);
            return Ok(());
        }
        for run in written.chunk_by(|a, b| a + 1 == *b) {
            let mut part = AlignedBuf::zeroed(run.len() * BLOCK);
            part.copy_from_slice(&data[run[0] * BLOCK..][..run.len() * BLOCK]);
            self.write(place, (run[0] * BLOCK) as u64, part);
        }
        Ok(())
    }

    fn settle(&mut self, replica: ReplicaId, chunk: u32, row: &ChunkRow, old: Option<&ChunkRow>) {
        if let Some(old) = old {
            self.free(old);
        }
        let data = Some(row.place.is_some());
        self.changed.push(Changed { replica, chunk, at: row.changed, data });
        self.batch.push((chunk_key(replica, chunk, Owner::Volume), Some(row.encode())));
    }

    /// Gives a slot back that no other row refers to.
    fn free(&mut self, old: &ChunkRow) {
        self.freed.extend(old.place.filter(|_| old.references == 1));
    }

    fn write(&mut self, place: Place, offset: u64, data: impl Into<Data>) {
        let data = data.into();
        self.bytes += data.len();
        self.writes.push((place, offset, data));
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
            let parts: Vec<(u32, u64, &[u8])> =
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
