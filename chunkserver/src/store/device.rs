//! One device: a file of slots, its limits, and whether it still works.

use std::{
    collections::BTreeSet,
    io::{self, IoSlice},
    os::fd::{AsRawFd, RawFd},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tidewater_proto::{
    aligned::{ALIGN_BYTES, AlignedBuf},
    geometry::CHUNK_BYTES,
};
use xxhash_rust::xxh3::xxh3_64;

use super::{
    busy::BusyTime,
    disk::{Disk, DiskError, DiskFile, DiskOp, Mode, Part},
    limits::{Bucket, Limits},
    slots::{NoSpace, Slots},
};

/// How fast a device is, fastest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tier {
    /// NVMe flash.
    Nvme,
    /// SATA flash.
    Ssd,
    /// Rotating disk.
    Hdd,
}

/// Name of the file of slots in a device's folder.
const SLOTS_FILE: &str = "slots";
const MAGIC: &[u8; 8] = b"TWSLOTS1";

/// A device did not take or give a chunk.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// No free slot; nothing was changed.
    #[error(transparent)]
    NoSpace(#[from] NoSpace),
    /// It could not read; other places of it may be well.
    #[error("device {device} cannot read")]
    Unreadable {
        /// Its name.
        device: String,
        /// What the disk said.
        #[source]
        source: DiskError,
    },
    /// A write or sync of the device failed, now or before: it is out of service.

    #[error("device {device} failed")]
    Failed {
        /// Its name.
        device: String,
        /// What the disk said; none if it failed before.
        #[source]
        source: Option<DiskError>,
    },
}

/// The folder holds no file of slots of this store and device.
#[derive(Debug, thiserror::Error)]
pub enum DeviceOpenError {
    /// The disk failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The file belongs to another store or device.
    #[error("device {device}: its file of slots belongs to another store or device")]
    Foreign {
        /// Name in the configuration.
        device: String,
    },
    /// The catalog knows the device, and its file is not there.
    #[error("device {device}: its file of slots is missing")]
    Missing {
        /// Name in the configuration.
        device: String,
    },
}

/// An open device, shared by the shards.
#[derive(Debug)]
pub struct Device {
    pub(crate) name: String,
    pub(crate) tier: Tier,
    /// Its number in the catalog.
    pub(crate) id: u16,
    file: Arc<dyn DiskFile>,
    /// Shared by the destagers of all shards, one short step at a time.
    slots: Mutex<Slots>,
    limits: Limits,
    bucket: Mutex<Bucket>,
    started: Instant,
    failed: AtomicBool,
    busy: BusyTime,
}

/// How to open a device.
#[derive(Debug)]
pub(crate) struct DeviceSpec<'a> {
    pub(crate) name: &'a str,
    pub(crate) tier: Tier,
    pub(crate) id: u16,
    pub(crate) store: [u8; 16],
    pub(crate) capacity_bytes: u64,
    pub(crate) limits: Limits,
    /// Slots the catalog refers to.
    pub(crate) used: &'a BTreeSet<u32>,
}

impl Device {
    pub(crate) fn open(disk: &dyn Disk, spec: &DeviceSpec<'_>) -> Result<Self, DeviceOpenError> {
        let exists = disk.list()?.iter().any(|name| name == SLOTS_FILE);
        if !exists && !spec.used.is_empty() {
            return Err(DeviceOpenError::Missing { device: spec.name.to_string() });
        }
        if !exists {
            disk.create(SLOTS_FILE, CHUNK_BYTES)?;
        }
        let file = disk.open(SLOTS_FILE, Mode::Direct)?;
        check_header(&*file, spec)?;
        let grown = ((file.bytes()? / CHUNK_BYTES).saturating_sub(1)) as u32;
        Ok(Self {
            name: spec.name.to_string(),
            tier: spec.tier,
            id: spec.id,
            file,
            slots: Mutex::new(Slots::new(spec.capacity_bytes, grown, spec.used)),
            limits: spec.limits,
            bucket: Mutex::default(),
            started: Instant::now(),
            failed: AtomicBool::new(false),
            busy: BusyTime::default(),
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How fast it is.
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// Takes a free slot.
    pub(crate) fn allocate(&self) -> Result<u32, DeviceError> {
        let mut slots = self.slots();
        let allocated = slots.allocate()?;
        if let Some(grown) = allocated.grow_to {
            match self.file.grow(slot_offset(grown)) {
                Ok(()) => {}
                Err(DiskError::Full { .. }) => {
                    slots.shrink(allocated);
                    return Err(NoSpace { capacity: allocated.slot }.into());
                }
                Err(error) => return Err(self.fail(error)),
            }
        }
        Ok(allocated.slot)
    }

    /// Takes this slot; false if it is not free.
    pub(crate) fn take(&self, slot: u32) -> bool {
        self.slots().take(slot)
    }

    /// Gives a slot back.
    pub(crate) fn release(&self, slot: u32) {
        self.slots().release(slot);
    }

    /// Slots that can still be allocated, and slots in all.
    pub fn room(&self) -> (u32, u32) {
        let slots = self.slots();
        (slots.available(), slots.capacity())
    }

    /// Time in which an operation was under way, since it was opened.
    pub fn busy(&self) -> Duration {
        self.busy.total()
    }

    /// Whether it keeps no limits.
    pub(crate) fn is_unlimited(&self) -> bool {
        self.limits.is_unlimited()
    }

    /// Whether it is out of service.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Where a slot lies, for reads that do not come through here: the file, and the offset in it. None if it
    /// keeps limits or has failed.
    pub(crate) fn direct(&self, slot: u32) -> Option<(RawFd, u64)> {
        let usable = self.limits.is_unlimited() && !self.has_failed();
        let file = self.file.direct().filter(|_| usable)?;
        Some((file.as_raw_fd(), slot_offset(slot)))
    }

    /// A read that did not come through here failed.
    pub(crate) fn unreadable(&self, source: io::Error) -> DeviceError {
        let source = DiskError::Io { op: DiskOp::Read, path: SLOTS_FILE.into(), source };
        DeviceError::Unreadable { device: self.name.clone(), source }
    }

    /// A read that does not come through here begins.
    pub(crate) fn read_begun(&self) {
        self.busy.enter();
    }

    /// One that began has ended.
    pub(crate) fn read_ended(&self) {
        self.busy.leave();
    }

    /// Reads from a slot.
    pub(crate) fn read(&self, slot: u32, offset: u64, buf: &mut [u8]) -> Result<(), DeviceError> {
        let _busy = self.busy.begin();
        self.enter(buf.len())?;
        let unreadable = |source| DeviceError::Unreadable { device: self.name.clone(), source };
        self.file.read_at(slot_offset(slot) + offset, buf).map_err(unreadable)
    }

    /// Writes parts given by slot and offset within it.
    pub(crate) fn write(&self, parts: &[(u32, u64, &[Bytes])]) -> Result<(), DeviceError> {
        let _busy = self.busy.begin();
        for (_, _, pieces) in parts {
            self.enter(pieces.iter().map(Bytes::len).sum())?;
        }
        let mut writes: Vec<Part<'_>> = Vec::with_capacity(parts.len());
        for (slot, at, pieces) in parts {
            let pieces = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
            writes.push((slot_offset(*slot) + at, pieces));
        }
        let parts = writes;
        self.file.write_all_at(&parts).map_err(|e| self.fail(e))
    }

    /// Makes all that was written durable.
    pub(crate) fn sync(&self) -> Result<(), DeviceError> {
        let _busy = self.busy.begin();
        self.enter(0)?;
        self.file.sync().map_err(|e| self.fail(e))
    }

    fn enter(&self, bytes: usize) -> Result<(), DeviceError> {
        if self.has_failed() {
            return Err(DeviceError::Failed { device: self.name.clone(), source: None });
        }
        if !self.limits.is_unlimited() {
            let mut bucket = self.bucket.lock().expect("no holder of this lock panics");
            let wait = bucket.take(&self.limits, self.started.elapsed(), bytes as u64);
            drop(bucket);
            if wait > Duration::ZERO {
                thread::sleep(wait);
            }
        }
        Ok(())
    }

    fn fail(&self, error: DiskError) -> DeviceError {
        self.failed.store(true, Ordering::Release);
        DeviceError::Failed { device: self.name.clone(), source: Some(error) }
    }

    fn slots(&self) -> std::sync::MutexGuard<'_, Slots> {
        self.slots.lock().expect("no holder of this lock panics")
    }
}

/// The first slot's place belongs to the header.
fn slot_offset(slot: u32) -> u64 {
    (u64::from(slot) + 1) * CHUNK_BYTES
}

/// The header: magic, store id, u64 device, xxh3 of these. An empty one is written.
fn check_header(file: &dyn DiskFile, spec: &DeviceSpec<'_>) -> Result<(), DeviceOpenError> {
    let mut want = [&MAGIC[..], &spec.store, &u64::from(spec.id).to_le_bytes()].concat();
    want.extend(xxh3_64(&want).to_le_bytes());
    let mut found = AlignedBuf::zeroed(ALIGN_BYTES);
    file.read_at(0, &mut found)?;
    if found[..want.len()] == want {
        return Ok(());
    }
    // A crash before the first write of the header leaves zeroes; then no slot was ever used.
    if found.starts_with(MAGIC) || !spec.used.is_empty() {
        return Err(DeviceOpenError::Foreign { device: spec.name.to_string() });
    }
    found.fill(0);
    found[..want.len()].copy_from_slice(&want);
    file.write_at(0, &found)?;
    Ok(file.sync()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::disk::{SimClock, SimDisk};

    const PIECE: usize = 64 << 10;
    const MIB: u64 = 1 << 20;
    /// What an idle device may save up, and the rounding of one operation.
    const SAVED: Duration = Duration::from_millis(51);

    fn device(limits: Limits) -> Device {
        let disk = SimDisk::new(&SimClock::new(1), "limited");
        let used = BTreeSet::new();
        let spec = DeviceSpec {
            name: "d",
            tier: Tier::Hdd,
            id: 1,
            store: [1; 16],
            capacity_bytes: 8 * CHUNK_BYTES,
            limits,
            used: &used,
        };
        Device::open(&disk, &spec).expect("opens")
    }

    fn write(device: &Device, slot: u32, at: usize) {
        let mut piece = AlignedBuf::zeroed(PIECE);
        piece.fill(7);
        let piece = piece.freeze();
        let parts: &[(u32, u64, &[Bytes])] = &[(slot, at as u64, &[piece])];
        device.write(parts).expect("written");
    }

    fn read(device: &Device, slot: u32) {
        let mut back = AlignedBuf::zeroed(PIECE);
        device.read(slot, 0, &mut back).expect("read");
        assert!(back.iter().all(|byte| *byte == 7));
    }

    /// How long `operations` of each kind take, by as many threads as there are kinds.
    fn took(limits: Limits, operations: usize) -> Duration {
        let device = device(limits);
        let [slot, other] = [0; 2].map(|_| device.allocate().expect("room"));
        write(&device, other, 0);
        let begun = Instant::now();
        thread::scope(|scope| {
            scope.spawn(|| (0..operations).for_each(|_| read(&device, other)));
            scope.spawn(|| (0..operations).for_each(|n| write(&device, slot, n % 16 * PIECE)));
            scope.spawn(|| (0..operations).for_each(|_| device.sync().expect("durable")));
        });
        begun.elapsed()
    }

    // Bounds from below alone: a machine may be as slow as it likes.

    #[test]
    fn reads_writes_and_syncs_together_are_no_more_than_the_operations_it_may_do() {
        let limits = Limits { iops: Some(200), ..Limits::default() };
        let took = took(limits, 20);
        let least = Duration::from_millis(3 * 20 * 1_000 / 200).saturating_sub(SAVED);
        assert!(took >= least, "60 operations at 200 a second took {took:?}, less than {least:?}");
    }

    #[test]
    fn what_is_read_and_written_is_no_more_than_the_bytes_it_may_move() {
        let limits = Limits { bytes_per_second: Some(8 * MIB), ..Limits::default() };
        let took = took(limits, 20);
        let bytes = 2 * 20 * PIECE as u64;
        let least = Duration::from_millis(bytes * 1_000 / (8 * MIB)).saturating_sub(SAVED);
        assert!(took >= least, "{bytes} bytes at 8 MiB/s took {took:?}, less than {least:?}");
    }

    #[test]
    fn every_operation_takes_the_added_latency() {
        let latency = Duration::from_millis(10);
        let took = took(Limits { latency, ..Limits::default() }, 20);
        assert!(took >= 20 * latency, "20 operations one after the other took {took:?}");
    }

    #[test]
    fn nothing_is_read_past_the_limits() {
        let limits = [
            Limits { iops: Some(1), ..Limits::default() },
            Limits { bytes_per_second: Some(1), ..Limits::default() },
            Limits { latency: Duration::from_millis(1), ..Limits::default() },
        ];
        for limits in limits {
            let device = device(limits);
            assert!(!device.is_unlimited() && device.direct(0).is_none(), "{limits:?}");
        }
        assert!(device(Limits::default()).is_unlimited());
    }
}
