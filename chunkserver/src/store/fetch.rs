//! Reads blocks of chunks whose rows are in memory, through a ring of the shard's own thread: no other thread, and
//! no system call a read.

use std::{collections::BTreeMap, io, os::fd::OwnedFd, sync::Arc};

use tidewater_proto::{aligned::AlignedBuf, geometry::BLOCK_BYTES};

use super::{
    base::Store,
    catalog::rows::ChunkRow,
    device::DeviceError,
    disk::ReadRing,
    reader::{Found, Job, Report, Run, hole, is_hole, runs, verified},
};

const BLOCK: usize = BLOCK_BYTES as usize;
/// A job's runs are numbered below this in a tag.
const RUNS_MAX: u64 = 256;

/// Reads on their way.
#[derive(Debug)]
pub(crate) struct Fetcher {
    store: Arc<Store>,
    ring: Ring,
    fetches: BTreeMap<u64, Fetch>,
    next: u64,
}

#[derive(Debug)]
enum Ring {
    /// Made at the first use, by the thread that uses it.
    Later(OwnedFd),
    Here(Box<ReadRing>),
    /// The kernel refuses, or reads are to be done in line.
    Never,
}

/// A job, and what it has of its blocks.
#[derive(Debug)]
struct Fetch {
    job: Job,
    row: Arc<ChunkRow>,
    device: u16,
    runs: Vec<Run>,
    waiting: usize,
    /// What went wrong.
    bad: Option<Found>,
}

impl Fetcher {
    pub(crate) fn new(store: Arc<Store>) -> Self {
        let ring = match ReadRing::event() {
            Ok(event) if store.is_fast() => Ring::Later(event),
            _ => Ring::Never,
        };
        Self { store, ring, fetches: BTreeMap::new(), next: 0 }
    }

    /// A descriptor that becomes readable when reads have ended; none if none ever will.
    pub(crate) fn signal(&self) -> io::Result<Option<OwnedFd>> {
        match &self.ring {
            Ring::Later(event) => event.try_clone().map(Some),
            Ring::Here(ring) => ring.signal().try_clone_to_owned().map(Some),
            Ring::Never => Ok(None),
        }
    }

    fn ring(&mut self) -> Option<&mut ReadRing> {
        if let Ring::Later(event) = &self.ring {
            let made = event.try_clone().and_then(ReadRing::new);
            self.ring = match made {
                Ok(ring) => Ring::Here(Box::new(ring)),
                Err(error) => {
                    tracing::info!(%error, "no io_uring: threads read");
                    Ring::Never
                }
            };
        }
        match &mut self.ring {
            Ring::Here(ring) => Some(ring),
            Ring::Later(_) | Ring::Never => None,
        }
    }

    /// Begins a job for blocks of the chunk as `row` has it; gives it back if it cannot.
    pub(crate) fn begin(&mut self, job: Job, row: Arc<ChunkRow>) -> Result<(), Job> {
        let store = Arc::clone(&self.store);
        let Some(place) = row.place else { return Err(job) };
        let Some(device) = store.device(place.device) else { return Err(job) };
        let Some((file, start)) = device.direct(place.slot) else { return Err(job) };
        let tag = self.next * RUNS_MAX;
        let Some(ring) = self.ring() else { return Err(job) };
        if runs(&row, &job.blocks).count() > ring.room() {
            return Err(job);
        }
        let (mut done, mut waiting) = (Vec::new(), 0);
        for (index, blocks) in (0..).zip(runs(&row, &job.blocks)) {
            let first = blocks[0];
            if is_hole(&row, first) {
                done.push(hole(blocks));
                continue;
            }
            let buf = AlignedBuf::stale(blocks.len() * BLOCK);
            ring.push(file, start + u64::from(first) * BLOCK_BYTES, buf, tag + index);
            waiting += 1;
        }
        if waiting == 0 {
            return Err(job);
        }
        device.read_begun();
        let (device, runs) = (place.device, done);
        self.fetches.insert(self.next, Fetch { job, row, device, runs, waiting, bad: None });
        self.next += 1;
        Ok(())
    }

    /// Begins what was queued. With `wait` and only one read under way, returns when that has ended: so short
    /// a wait costs less than to come back.
    pub(crate) fn submit(&mut self, wait: bool) {
        if let Ring::Here(ring) = &mut self.ring {
            let alone = ring.under_way() == 1;
            ring.submit(wait && alone);
        }
    }

    /// Jobs that have ended.
    pub(crate) fn take(&mut self, mut out: impl FnMut(Report)) {
        let Ring::Here(ring) = &mut self.ring else { return };
        while let Some((tag, read)) = ring.take() {
            let id = tag / RUNS_MAX;
            let Some(fetch) = self.fetches.get_mut(&id) else { continue };
            let device = self.store.device(fetch.device).expect("begun on it");
            fetch.fill((tag % RUNS_MAX) as usize, read.map_err(|e| device.unreadable(e)));
            if fetch.waiting == 0
                && let Some(fetch) = self.fetches.remove(&id)
            {
                device.read_ended();
                out(fetch.report());
            }
        }
    }
}

impl Fetch {
    fn fill(&mut self, index: usize, read: Result<AlignedBuf, DeviceError>) {
        self.waiting -= 1;
        let blocks = runs(&self.row, &self.job.blocks).nth(index).expect("begun");
        match read.map(|data| verified(&self.row, blocks, data)) {
            Ok(Some(run)) => self.runs.push(run),
            Ok(None) => {
                self.bad.get_or_insert(Found::Mismatch);
            }
            Err(error) => self.bad = Some(Found::Failed(error.into())),
        }
    }

    fn report(self) -> Report {
        let found = self.bad.unwrap_or(Found::Blocks(self.runs));
        Report { job: self.job, found, row: Some(self.row) }
    }
}
