//! Reads blocks of one chunk from its slot, and compares them with the catalog's checksums.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use tidewater_proto::{
    checksum,
    geometry::BLOCK_BYTES,
    ids::{ReplicaId, Sequence},
};

use super::{
    aligned::AlignedBuf,
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
        let found = self.read(&job).unwrap_or_else(Found::Failed);
        Report { job, found }
    }

    fn read(&self, job: &Job) -> Result<Found, Fault> {
        let row = resolve(&self.store, job.replica, job.chunk)?;
        if job.exactly.is_some() && row.as_ref().map(|row| row.changed) != job.exactly {
            return Ok(Found::Moved);
        }
        let row = row.unwrap_or_else(|| ChunkRow::hole(Sequence(0)));
        let mut runs = Vec::new();
        let written = |block: u16| row.sums[usize::from(block)];
        let together =
            |a: &u16, b: &u16| a + 1 == *b && written(*a).is_some() == written(*b).is_some();
        for blocks in job.blocks.chunk_by(together) {
            let Some(run) = self.run(&row, blocks)? else { return Ok(Found::Mismatch) };
            runs.push(run);
        }
        Ok(Found::Blocks(runs))
    }

    /// Neighbouring blocks that are all written or all holes; none if they do not match.
    fn run(&self, row: &ChunkRow, blocks: &[u16]) -> Result<Option<Run>, DeviceError> {
        let first = blocks[0];
        let mut data = AlignedBuf::zeroed(blocks.len() * BLOCK);
        let sums: Vec<u64> = blocks.iter().filter_map(|&b| row.sums[usize::from(b)]).collect();
        let Some(place) = row.place.filter(|_| !sums.is_empty()) else {
            let sums = vec![checksum::zero_block_sum(); blocks.len()];
            return Ok(Some(Run { first, data: data.into_bytes(), sums }));
        };
        self.fill(place, first, &mut data)?;
        let matches = data.chunks_exact(BLOCK).zip(&sums).all(|(d, sum)| checksum::sum(d) == *sum);
        Ok(matches.then(|| Run { first, data: data.into_bytes(), sums }))
    }

    fn fill(&self, place: Place, first: u16, data: &mut [u8]) -> Result<(), DeviceError> {
        let Some(device) = self.store.device(place.device) else {
            let device = format!("number {}", place.device);
            return Err(DeviceError::Failed { device, source: None });
        };
        device.read(place.slot, u64::from(first) * BLOCK_BYTES, data)
    }
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
