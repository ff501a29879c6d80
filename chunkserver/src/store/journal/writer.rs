//! Writes what is queued, one batch after the other.

use std::{collections::VecDeque, io::IoSlice, sync::Arc};

use super::{
    Record, Shape,
    format::{self, BATCH_BYTES_MAX, BATCH_RECORDS_MAX, Stamp, batch_bytes, record_bytes},
    recover::{FIRST_OFFSET, Next},
};
use crate::store::{
    crew::Worker,
    disk::{DiskError, DiskFile},
};

/// Payload of a record that the shard's own thread writes if it is the only one: a hand-over to the writer's
/// thread and back costs more than to wait. Where several come together, more come meanwhile, and the shard must
/// hear of them.
const LIGHT_BYTES: usize = 128 << 10;

/// What the writer is given.
#[derive(Debug)]
pub(crate) enum Job {
    /// To be made durable.
    Append(Vec<Record>),
    /// Passes below this one are needed no more.
    Release(u64),
}

/// A batch is durable.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Written {
    /// Use of the file it went to.
    pub(crate) pass: u64,
    /// How many of the queued records it held.
    pub(crate) records: usize,
}

/// The one writer of a ring.
#[derive(Debug)]
pub(crate) struct Writer {
    files: Vec<Arc<dyn DiskFile>>,
    shape: Shape,
    tag: u64,
    next: Next,
    /// First pass still needed.
    released: u64,
    queue: VecDeque<Record>,
    broken: bool,
}

impl Writer {
    pub(crate) fn new(
        files: Vec<Arc<dyn DiskFile>>,
        shape: Shape,
        tag: u64,
        next: Next,
        released: u64,
    ) -> Self {
        Self { files, shape, tag, next, released, queue: VecDeque::new(), broken: false }
    }

    /// How many queued records make the next batch, and its bytes.
    fn group(&self) -> (usize, usize) {
        let most = BATCH_BYTES_MAX.min((self.shape.file_bytes - FIRST_OFFSET) as usize);
        let (mut head, mut payload, mut bytes) = (0, 0, 0);
        for (count, record) in self.queue.iter().enumerate() {
            let (h, p) = record_bytes(record);
            let with = batch_bytes(head + h, payload + p);
            if count > 0 && (with > most || count == BATCH_RECORDS_MAX) {
                return (count, bytes);
            }
            (head, payload, bytes) = (head + h, payload + p, with);
        }
        (self.queue.len(), bytes)
    }

    /// Whether the next batch has a place; moves on to the next file where needed.
    fn find_place(&mut self, bytes: usize) -> bool {
        if self.next.offset + bytes as u64 > self.shape.file_bytes {
            self.next.pass += 1;
            self.next.offset = FIRST_OFFSET;
        }
        self.next.pass < self.released + self.shape.files
    }

    fn write(&mut self, count: usize) -> Result<Written, DiskError> {
        let Next { number, pass, offset, chain } = self.next;
        let records: Vec<Record> = self.queue.drain(..count).collect();
        let stamp = Stamp { number, pass, chain, tag: self.tag, offset };
        let (batch, sum) = format::encode(&stamp, &records);
        let pieces: Vec<_> = batch.iter().map(|piece| IoSlice::new(piece)).collect();
        self.files[self.shape.file(pass)].write_pieces_at(offset, &pieces)?;
        let offset = offset + batch.iter().map(|piece| piece.len() as u64).sum::<u64>();
        self.next = Next { number: number + 1, pass, offset, chain: sum };
        Ok(Written { pass, records: count })
    }
}

impl Worker for Writer {
    type Job = Job;
    type Report = Result<Written, DiskError>;

    fn is_light(&self) -> bool {
        self.queue.len() <= 1 && self.queue.iter().all(|r| record_bytes(r).1 <= LIGHT_BYTES)
    }

    fn take(&mut self, job: Job) {
        match job {
            Job::Append(records) => self.queue.extend(records),
            Job::Release(pass) => self.released = self.released.max(pass),
        }
    }

    fn step(&mut self) -> Option<Self::Report> {
        if self.queue.is_empty() || self.broken {
            return None;
        }
        let (count, bytes) = self.group();
        if !self.find_place(bytes) {
            return None;
        }
        let written = self.write(count);
        self.broken = written.is_err();
        Some(written)
    }
}
