//! Writes what is queued, one batch after the other.

use std::{
    collections::{BTreeSet, VecDeque},
    io::IoSlice,
    sync::Arc,
};

use bytes::Bytes;

use super::{
    Record, Shape,
    format::{self, BATCH_BYTES_MAX, BATCH_RECORDS_MAX, Stamp, batch_bytes, record_bytes},
    recover::{FIRST_OFFSET, Next},
};
use crate::store::{
    base::Store,
    crew::Worker,
    device::DeviceError,
    disk::{DiskError, DiskFile},
};

/// Payload of a record that the shard's own thread writes if it is the only one: a hand-over to the writer's
/// thread and back costs more than to wait. Where several come together, more come meanwhile, and the shard must
/// hear of them.
const LIGHT_BYTES: usize = 128 << 10;

/// Most payloads that go to slots with one batch: the records behind them wait.
const SLOTS_MAX: usize = 8;

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
    store: Arc<Store>,
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
        store: Arc<Store>,
        files: Vec<Arc<dyn DiskFile>>,
        shape: Shape,
        tag: u64,
        next: Next,
        released: u64,
    ) -> Self {
        let queue = VecDeque::new();
        Self { store, files, shape, tag, next, released, queue, broken: false }
    }

    /// How many queued records make the next batch, and its bytes.
    fn group(&self) -> (usize, usize) {
        let most = BATCH_BYTES_MAX.min((self.shape.file_bytes - FIRST_OFFSET) as usize);
        let (mut head, mut payload, mut bytes, mut slots) = (0, 0, 0, 0);
        for (count, record) in self.queue.iter().enumerate() {
            let (h, p) = record_bytes(record);
            let with = batch_bytes(head + h, payload + p);
            slots += usize::from(record.in_slot().is_some());
            if count > 0 && (with > most || count == BATCH_RECORDS_MAX || slots > SLOTS_MAX) {
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

    /// Makes the payloads durable that go to slots; false if one could not be: it goes to the journal then. The
    /// device that refused it is out of service, so nothing will look for it there.
    fn fill_slots(&mut self, count: usize) -> bool {
        let of = |record: &Record| record.in_slot().map(|(place, _)| place.device);
        let devices: BTreeSet<u16> = self.queue.iter().take(count).filter_map(of).collect();
        let refused: Vec<u16> = devices
            .into_iter()
            .filter(|&device| self.fill_slots_of(device, count).is_err())
            .collect();
        for record in self.queue.iter_mut().take(count) {
            if of(record).is_some_and(|device| refused.contains(&device))
                && let Record::Entry { slot, .. } = record
            {
                *slot = None;
            }
        }
        refused.is_empty()
    }

    fn fill_slots_of(&self, id: u16, count: usize) -> Result<(), DeviceError> {
        let missing = || DeviceError::Failed { device: format!("number {id}"), source: None };
        let device = self.store.device(id).ok_or_else(missing)?;
        let payloads = self.queue.iter().take(count).filter_map(Record::in_slot);
        let payloads: Vec<(u32, [Bytes; 1])> = payloads
            .filter(|(place, _)| place.device == id)
            .map(|(place, payload)| (place.slot, [format::aligned(&payload.data)]))
            .collect();
        let parts: Vec<(u32, u64, &[Bytes])> =
            payloads.iter().map(|(slot, data)| (*slot, 0, &data[..])).collect();
        device.write(&parts)?;
        device.sync()
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
        let light = |r: &Record| r.in_slot().is_none() && record_bytes(r).1 <= LIGHT_BYTES;
        self.queue.len() <= 1 && self.queue.iter().all(light)
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
        let (mut count, mut bytes) = self.group();
        if !self.find_place(bytes) {
            return None;
        }
        if !self.fill_slots(count) {
            (count, bytes) = self.group();
            if !self.find_place(bytes) {
                return None;
            }
        }
        let written = self.write(count);
        self.broken = written.is_err();
        Some(written)
    }
}
