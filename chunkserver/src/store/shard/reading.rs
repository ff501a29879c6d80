//! Reads: what is in memory, and the rest from the slots.
//!
//! A read sees everything applied before it was issued. Blocks from the disk may be newer; but
//! where newer sectors lie over a disk block, the block must be the very version they were laid over:
//! else an older sector could cover a newer one.

use std::{ops::Range, sync::Arc};

use bytes::{Bytes, BytesMut};
use tidewater_proto::{
    checksum,
    entry::Payload,
    geometry::{BLOCK_BYTES, CHUNK_BLOCKS, Extent},
    ids::{ReplicaId, Sequence},
};

use super::{Completion, ReadError, ShardStore};
use crate::store::{
    catalog::rows::ChunkRow,
    overlay::{Look, Sectors, look, patch},
    reader::{Found, Job, Report, Run},
};

const BLOCK: usize = BLOCK_BYTES as usize;
/// A read that found wrong bytes looks again this often: the block may just have been moved.
const ATTEMPTS_MAX: u32 = 4;
/// A read of at most this many blocks is short: with no other under way, the shard's own thread waits for it, and
/// its blocks are kept, for they may well be wanted again.
const SHORT_BLOCKS_MAX: usize = 4;

/// A read on its way.
#[derive(Debug)]
pub(super) struct Reading {
    replica: ReplicaId,
    extent: Extent,
    tag: u64,
    attempts: u32,
    /// All blocks of the extent, in order.
    blocks: Vec<Block>,
    /// All of them as they came, if they came together.
    together: Option<(Bytes, Vec<u64>)>,
    waiting: usize,
    again: bool,
    /// Waits until the destager reports.
    parked: bool,
    failed: Option<ReadError>,
}

#[derive(Debug)]
enum Block {
    Known(Bytes, Option<u64>),
    Zero,
    Below(Option<Sectors>),
}

impl ShardStore {
    /// Reads `extent`. Some: it was all in memory or holes; none: a completion will carry `tag`.
    pub fn read(&mut self, replica: ReplicaId, extent: Extent, tag: u64) -> Option<Payload> {
        let mut reading = Reading {
            replica,
            extent,
            tag,
            attempts: 0,
            blocks: Vec::new(),
            together: None,
            waiting: 0,
            again: false,
            parked: false,
            failed: None,
        };
        let jobs = self.look_up(&mut reading);
        if jobs.is_empty() {
            return Some(reading.assemble());
        }
        self.issue(reading, jobs);
        None
    }

    fn issue(&mut self, mut reading: Reading, jobs: Vec<Job>) {
        self.next_read += 1;
        reading.waiting = jobs.len();
        let alone = self.reads.is_empty();
        self.reads.insert(self.next_read, reading);
        for job in jobs {
            let job = Job { id: self.next_read, ..job };
            let row = self.row(job.replica, job.chunk);
            let begun = match row {
                Some(row) => self.fetcher.begin(job, row),
                None => Err(job),
            };
            let Err(job) = begun else { continue };
            if alone && job.blocks.len() <= SHORT_BLOCKS_MAX && self.store.is_fast() {
                // As for the journal: waiting costs less than handing over.
                let report = self.inline.report(job);
                self.inbox.push(report.into());
            } else {
                self.reader.give(job);
            }
        }
    }

    /// The row of a chunk as it is now, if it is in memory.
    fn row(&mut self, replica: ReplicaId, chunk: u32) -> Option<Arc<ChunkRow>> {
        let changed = self.changed(replica, chunk)?;
        let row = self.rows.get((replica, chunk))?;
        (row.changed == changed).then(|| Arc::clone(row))
    }

    /// Finds the blocks in memory; returns what is to be read for the others.
    fn look_up(&mut self, reading: &mut Reading) -> Vec<Job> {
        let (replica, extent) = (reading.replica, reading.extent);
        let mut jobs = Vec::new();
        for chunk in extent.chunks() {
            let frozen = self.round.as_ref().and_then(|round| round.frozen.chunk(replica, chunk));
            let layers = [self.active.chunk(replica, chunk), frozen];
            let mapped = self.replicas.get(&replica).and_then(|state| state.chunks.get(&chunk));
            let mut job = Job { id: 0, replica, chunk, blocks: Vec::new(), exactly: None };
            for block in blocks_in(extent, chunk) {
                let within = (block % CHUNK_BLOCKS as u32) as u16;
                let found = match look(layers, within) {
                    Look::Known(data, sum) => Block::Known(data, sum),
                    Look::Below(sectors) if mapped.is_some_and(|m| m.data) => {
                        let kept = self.blocks.get((replica, block)).filter(|_| sectors.is_none());
                        if let Some((data, sum)) = kept {
                            Block::Known(data.clone(), Some(*sum))
                        } else {
                            job.blocks.push(within);
                            if sectors.is_some() {
                                job.exactly = mapped.map(|mapped| mapped.changed);
                            }
                            Block::Below(sectors)
                        }
                    }
                    Look::Zero | Look::Below(None) => Block::Zero,
                    Look::Below(Some(sectors)) => {
                        let mut data = vec![0; BLOCK];
                        patch(&mut data, &sectors);
                        Block::Known(data.into(), None)
                    }
                };
                reading.blocks.push(found);
            }
            if !job.blocks.is_empty() {
                jobs.push(job);
            }
        }
        jobs
    }

    pub(super) fn read_done(&mut self, report: Report, out: &mut Vec<Completion>) {
        let Report { job, found, row } = report;
        let changed = self.changed(job.replica, job.chunk);
        match (&found, row) {
            (Found::Blocks(runs), Some(row)) if changed == Some(row.changed) => {
                self.keep(&job, runs);
                self.rows.insert((job.replica, job.chunk), row);
            }
            (Found::Mismatch, _) => self.rows.remove((job.replica, job.chunk)),
            _ => {}
        }
        let Some(reading) = self.reads.get_mut(&job.id) else { return };
        reading.waiting -= 1;
        match found {
            Found::Blocks(runs) => reading.fill(job.chunk, runs),
            Found::Moved => {
                reading.again = true;
                // A newer row is in the catalog; unless its report has come already, it will.
                reading.parked |= changed == job.exactly && !self.failed;
            }
            Found::Mismatch => {
                reading.again = true;
                reading.attempts += 1;
            }
            Found::Failed(fault) => reading.failed = Some(ReadError::Failed(fault)),
        }
        if reading.waiting == 0 && !(reading.again && reading.parked && reading.failed.is_none()) {
            self.conclude(job.id, out);
        }
    }

    /// Keeps the blocks of a short read, if they are what a read issued now would find on the disk: the chunk has
    /// not been destaged since, and nothing lies over them.
    fn keep(&mut self, job: &Job, runs: &[Run]) {
        if job.blocks.len() > SHORT_BLOCKS_MAX {
            return;
        }
        let frozen = self.round.as_ref().and_then(|r| r.frozen.chunk(job.replica, job.chunk));
        let layers = [self.active.chunk(job.replica, job.chunk), frozen];
        for run in runs {
            for (i, sum) in (0..).zip(&run.sums) {
                let within = run.first + i;
                if !matches!(look(layers, within), Look::Below(None)) {
                    continue;
                }
                let data = run.data.slice(usize::from(i) * BLOCK..(usize::from(i) + 1) * BLOCK);
                let alone = run.sums.len() == 1;
                // A slice would keep all of the run.
                let data = if alone { data } else { Bytes::copy_from_slice(&data) };
                let block = job.chunk * CHUNK_BLOCKS as u32 + u32::from(within);
                self.blocks.insert((job.replica, block), (data, *sum));
            }
        }
    }

    fn changed(&self, replica: ReplicaId, chunk: u32) -> Option<Sequence> {
        self.replicas.get(&replica)?.chunks.get(&chunk).map(|mapped| mapped.changed)
    }

    fn conclude(&mut self, id: u64, out: &mut Vec<Completion>) {
        let Some(mut reading) = self.reads.remove(&id) else { return };
        let tag = reading.tag;
        let result = match reading.failed.take() {
            Some(error) => Err(error),
            None if !reading.again => Ok(reading.assemble()),
            None if reading.attempts >= ATTEMPTS_MAX => Err(ReadError::Corrupt),
            None if !self.replicas.contains_key(&reading.replica) => Err(ReadError::Gone),
            None if self.failed && reading.parked => Err(ReadError::OutOfService),
            None => {
                (reading.again, reading.parked) = (false, false);
                reading.blocks.clear();
                reading.together = None;
                let jobs = self.look_up(&mut reading);
                if !jobs.is_empty() {
                    self.issue(reading, jobs);
                    return;
                }
                Ok(reading.assemble())
            }
        };
        out.push(Completion::Read { tag, result });
    }

    /// Looks again for the reads that found a version newer than memory knew.
    pub(super) fn retry_parked(&mut self, out: &mut Vec<Completion>) {
        let parked: Vec<u64> = self
            .reads
            .iter()
            .filter(|(_, r)| r.parked && r.waiting == 0)
            .map(|(&id, _)| id)
            .collect();
        for id in parked {
            self.conclude(id, out);
        }
    }

    pub(super) fn fail_parked(&mut self, out: &mut Vec<Completion>) {
        self.retry_parked(out);
    }
}

impl Reading {
    fn fill(&mut self, chunk: u32, mut runs: Vec<Run>) {
        let below = |block: &Block| matches!(block, Block::Below(None));
        if let [run] = &mut runs[..]
            && run.sums.len() == self.blocks.len()
            && self.blocks.iter().all(below)
        {
            self.together = Some((run.data.clone(), std::mem::take(&mut run.sums)));
            return;
        }
        let start = self.extent.blocks().start;
        for run in runs {
            let first = chunk * CHUNK_BLOCKS as u32 + u32::from(run.first) - start;
            let blocks = self.blocks[first as usize..].iter_mut();
            for ((at, sum), block) in (0..).step_by(BLOCK).zip(run.sums).zip(blocks) {
                let data = run.data.slice(at..at + BLOCK);
                *block = match std::mem::replace(block, Block::Zero) {
                    Block::Below(Some(sectors)) => {
                        let mut merged = data.to_vec();
                        patch(&mut merged, &sectors);
                        Block::Known(merged.into(), None)
                    }
                    Block::Below(None) | Block::Known(..) | Block::Zero => {
                        Block::Known(data, Some(sum))
                    }
                };
            }
        }
    }

    /// The bytes of the extent, and their sums: those stored for whole blocks, others anew.
    fn assemble(&self) -> Payload {
        if let Some((data, sums)) = &self.together {
            return self.cut(data, sums);
        }
        let mut data = BytesMut::with_capacity(self.extent.len() as usize);
        let mut sums = Vec::with_capacity(self.blocks.len() * 8);
        let mut only = None;
        for (piece, block) in self.extent.pieces().zip(&self.blocks) {
            let range = piece.within..piece.within + piece.data.len();
            let (bytes, sum) = match block {
                Block::Known(bytes, sum) => (bytes.slice(range), *sum),
                Block::Zero => {
                    (Bytes::from_static(&ZEROES[range]), Some(checksum::zero_block_sum()))
                }
                Block::Below(_) => unreachable!("every block has been read"),
            };
            let sum = sum.filter(|_| piece.is_whole()).unwrap_or_else(|| checksum::sum(&bytes));
            sums.extend(sum.to_le_bytes());
            if self.blocks.len() == 1 {
                only = Some(bytes);
            } else {
                data.extend_from_slice(&bytes);
            }
        }
        Payload { data: only.unwrap_or_else(|| data.freeze()), sums: sums.into() }
    }

    /// The extent out of the blocks that it lies in.
    fn cut(&self, blocks: &Bytes, sums: &[u64]) -> Payload {
        let start = (self.extent.offset() % BLOCK_BYTES) as usize;
        let data = blocks.slice(start..start + self.extent.len() as usize);
        let mut out = Vec::with_capacity(sums.len() * 8);
        for (piece, sum) in self.extent.pieces().zip(sums) {
            let sum =
                if piece.is_whole() { *sum } else { checksum::sum(&data[piece.data.clone()]) };
            out.extend(sum.to_le_bytes());
        }
        Payload { data, sums: out.into() }
    }
}

/// Blocks of the extent that lie in the chunk.
fn blocks_in(extent: Extent, chunk: u32) -> Range<u32> {
    let first = chunk * CHUNK_BLOCKS as u32;
    let blocks = extent.blocks();
    first.max(blocks.start)..(first + CHUNK_BLOCKS as u32).min(blocks.end)
}

static ZEROES: [u8; BLOCK] = [0; BLOCK];
