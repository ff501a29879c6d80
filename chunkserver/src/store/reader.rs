//! Reads blocks of one chunk from its slot, and compares them with the catalog's checksums.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use tidewater_proto::{
    aligned::AlignedBuf,
    checksum,
    geometry::BLOCK_BYTES,
    ids::{ReplicaId, Sequence},
};

use super::{
    base::Store,
    catalog::{
        CatalogError,
        rows::{ChunkRow, OWNER_CHAIN, Place, chunk_key},
    },
    crew::Worker,
    destage::Fault,
    device::DeviceError,
};

const BLOCK: usize = BLOCK_BYTES as usize;

/// Blocks wanted of one chunk.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    /// Read that it is a part of.
    pub(crate) id: u64,
    pub(crate) replica: ReplicaId,
    pub(crate) chunk: u32,
    /// Ascending, numbered within the chunk.
    pub(crate) blocks: Vec<u16>,
    /// The version that the caller will put newer sectors over; none: any will do.
    pub(crate) exactly: Option<Sequence>,
}

/// Neighbouring blocks.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    /// First block, numbered within the chunk.
    pub(crate) first: u16,
    pub(crate) data: Bytes,
    /// Checksum of each block; they match.
    pub(crate) sums: Vec<u64>,
}

/// What a job found.
#[derive(Debug)]
pub(crate) enum Found {
    /// All of the blocks.
    Blocks(Vec<Run>),
    /// Another version than the one wanted.
    Moved,
    /// Bytes that do not match this version's checksums.
    Mismatch,
    /// The device or the catalog failed.
    Failed(Fault),
}

/// What became of a job.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) job: Job,
    pub(crate) found: Found,
    /// The row by which it was read.
    pub(crate) row: Option<Arc<ChunkRow>>,
}

/// Does one job at a time.
#[derive(Debug)]
pub(crate) struct Reader {
    store: Arc<Store>,
    jobs: VecDeque<Job>,
}

impl Worker for Reader {
    type Job = Job;
    type Report = Report;

    fn take(&mut self, job: Job) {
        self.jobs.push_back(job);
    }

    fn step(&mut self) -> Option<Report> {
        let job = self.jobs.pop_front()?;
        Some(self.report(job))
    }
}

impl Reader {
    pub(crate) fn new(store: Arc<Store>) -> Self {
        Self { store, jobs: VecDeque::new() }
    }

    /// Does one job at once.
    pub(crate) fn report(&self, job: Job) -> Report {
        let (found, row) = self.read(&job).unwrap_or_else(|fault| (Found::Failed(fault), None));
        Report { job, found, row }
    }

    fn read(&self, job: &Job) -> Result<(Found, Option<Arc<ChunkRow>>), Fault> {
        let row = resolve(&self.store, job.replica, job.chunk)?;
        if job.exactly.is_some() && row.as_ref().map(|row| row.changed) != job.exactly {
            return Ok((Found::Moved, None));
        }
        let row = Arc::new(row.unwrap_or_else(|| ChunkRow::hole(Sequence(0))));
        let mut found = Vec::new();
        for blocks in runs(&row, &job.blocks) {
            let Some(run) = self.run(&row, blocks)? else { return Ok((Found::Mismatch, None)) };
            found.push(run);
        }
        Ok((Found::Blocks(found), Some(row)))
    }

    /// Neighbouring blocks that are all written or all holes; none if they do not match.
    fn run(&self, row: &ChunkRow, blocks: &[u16]) -> Result<Option<Run>, DeviceError> {
        let Some(place) = row.place.filter(|_| !is_hole(row, blocks[0])) else {
            return Ok(Some(hole(blocks)));
        };
        let mut data = AlignedBuf::stale(blocks.len() * BLOCK);
        self.fill(place, blocks[0], &mut data)?;
        Ok(verified(row, blocks, data))
    }

    fn fill(&self, place: Place, first: u16, data: &mut [u8]) -> Result<(), DeviceError> {
        let Some(device) = self.store.device(place.device) else {
            let device = format!("number {}", place.device);
            return Err(DeviceError::Failed { device, source: None });
        };
        device.read(place.slot, u64::from(first) * BLOCK_BYTES, data)
    }
}

/// Neighbouring blocks that are all written or all holes.
pub(crate) fn runs<'a>(row: &'a ChunkRow, blocks: &'a [u16]) -> impl Iterator<Item = &'a [u16]> {
    blocks.chunk_by(|a, b| a + 1 == *b && is_hole(row, *a) == is_hole(row, *b))
}

pub(crate) fn is_hole(row: &ChunkRow, block: u16) -> bool {
    row.sums[usize::from(block)].is_none()
}

pub(crate) fn hole(blocks: &[u16]) -> Run {
    let data = AlignedBuf::zeroed(blocks.len() * BLOCK).freeze();
    Run { first: blocks[0], data, sums: vec![checksum::zero_block_sum(); blocks.len()] }
}

/// A run of written blocks, if the bytes are those that the row's checksums are of (INV-SUM).
pub(crate) fn verified(row: &ChunkRow, blocks: &[u16], data: AlignedBuf) -> Option<Run> {
    let sums: Vec<u64> = blocks.iter().filter_map(|&b| row.sums[usize::from(b)]).collect();
    let matches = data.chunks_exact(BLOCK).zip(&sums).all(|(d, sum)| checksum::sum(d) == *sum);
    matches.then(|| Run { first: blocks[0], data: data.freeze(), sums })
}

/// The version of a chunk that a read of the volume sees.
fn resolve(
    store: &Store,
    replica: ReplicaId,
    chunk: u32,
) -> Result<Option<ChunkRow>, CatalogError> {
    for owner in OWNER_CHAIN {
        if let Some(row) = store.catalog.get(&chunk_key(replica, chunk, owner))? {
            return Ok(Some(ChunkRow::decode(&row)?));
        }
    }
    Ok(None)
}
