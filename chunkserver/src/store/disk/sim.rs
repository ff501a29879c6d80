//! A disk in memory that can lose power at any write or sync.
//!
//! All disks and catalogs of one simulated server share a [`SimClock`], which numbers their writes
//! and syncs. At the number chosen with [`SimClock::crash_at`] the power goes: that operation and
//! all later ones fail. [`SimDisk::after_crash`] then is the disk as the next start finds it.

use std::{
    collections::BTreeMap,
    io::{self, IoSlice},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicI32, Ordering},
    },
};

use super::{Disk, DiskError, DiskFile, DiskOp, Mode};

/// Smallest piece of a write that a crash keeps whole, bytes.
const SECTOR: usize = 512;

/// How much of what was not durable survives a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Nothing.
    None,
    /// Sectors drawn at random, about half, so that writes are torn.
    Half,
    /// The first half of every write's sectors.
    FirstHalf,
    /// Everything, as if the crash came just after.
    All,
}

/// Numbers the writes and syncs of one simulated server, and ends its power.
#[derive(Debug)]
pub struct SimClock {
    state: Mutex<ClockState>,
}

#[derive(Debug)]
struct ClockState {
    ops: u64,
    crash_at: Option<u64>,
    fail_at: Option<(u64, i32)>,
    random: u64,
}

/// What becomes of an operation that changes the disk.
#[derive(Debug)]
pub(crate) enum Tick {
    Done,
    /// The power goes during this operation.
    Crashing,
    /// The power is gone, or a failure was injected.
    Failed(io::Error),
}

impl SimClock {
    /// A clock at operation 0; `seed` decides which sectors survive.
    pub fn new(seed: u64) -> Arc<Self> {
        let state = ClockState { ops: 0, crash_at: None, fail_at: None, random: seed | 1 };
        Arc::new(Self { state: Mutex::new(state) })
    }

    /// Operations so far.
    pub fn ops(&self) -> u64 {
        self.lock().ops
    }

    /// Ends the power during operation number `op`, counted from 1.
    pub fn crash_at(&self, op: u64) {
        self.lock().crash_at = Some(op);
    }

    /// Lets operation number `op` fail with a system error number, once.
    pub fn fail_at(&self, op: u64, errno: i32) {
        self.lock().fail_at = Some((op, errno));
    }

    pub(crate) fn tick(&self) -> Tick {
        let mut state = self.lock();
        state.ops += 1;
        if let Some((at, errno)) = state.fail_at
            && at == state.ops
        {
            return Tick::Failed(io::Error::from_raw_os_error(errno));
        }
        match state.crash_at {
            Some(at) if state.ops == at => Tick::Crashing,
            Some(at) if state.ops > at => Tick::Failed(io::Error::other("no power")),
            Some(_) | None => Tick::Done,
        }
    }

    fn coin(&self) -> bool {
        let mut state = self.lock();
        // xorshift64: any sequence will do, as long as the seed repeats it.
        state.random ^= state.random << 13;
        state.random ^= state.random >> 7;
        state.random ^= state.random << 17;
        state.random & 1 == 1
    }

    fn lock(&self) -> MutexGuard<'_, ClockState> {
        self.state.lock().expect("no holder of this lock panics")
    }
}

type Sectors = BTreeMap<u64, [u8; SECTOR]>;

#[derive(Clone, Debug, Default)]
struct Image {
    bytes: u64,
    durable: Sectors,
    /// Writes since the last sync, oldest first.
    pending: Vec<(u64, Vec<u8>)>,
}

type Images = Arc<Mutex<BTreeMap<String, Image>>>;

/// A folder in memory.
#[derive(Clone, Debug)]
pub struct SimDisk {
    clock: Arc<SimClock>,
    label: String,
    images: Images,
    /// System error number of every write and sync; 0: none fails.
    broken: Arc<AtomicI32>,
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    name: String,
    mode: Mode,
}

impl SimDisk {
    /// An empty folder.
    pub fn new(clock: &Arc<SimClock>, label: &str) -> Self {
        let (images, broken) = (Arc::default(), Arc::default());
        Self { clock: clock.clone(), label: label.to_string(), images, broken }
    }

    /// Lets every write and sync fail from now on, with a system error number.
    pub fn fail(&self, errno: i32) {
        self.broken.store(errno, Ordering::Relaxed);
    }

    /// The folder as found after the crash, under a new clock.
    #[must_use]
    pub fn after_crash(&self, keep: Keep, clock: &Arc<SimClock>) -> Self {
        let mut images = self.images.lock().expect("no holder of this lock panics").clone();
        for image in images.values_mut() {
            for (offset, data) in std::mem::take(&mut image.pending) {
                self.keep(image, offset, &data, keep);
            }
        }
        let images = Arc::new(Mutex::new(images));
        let broken = Arc::default();
        Self { clock: clock.clone(), label: self.label.clone(), images, broken }
    }

    /// Flips one bit of a file, durably.
    pub fn flip(&self, name: &str, offset: u64, bit: u8) {
        self.with(name, |image| {
            let sector = image.durable.entry(offset / SECTOR as u64).or_insert([0; SECTOR]);
            sector[offset as usize % SECTOR] ^= 1 << bit;
        });
    }

    fn keep(&self, image: &mut Image, offset: u64, data: &[u8], keep: Keep) {
        let first = offset / SECTOR as u64;
        let count = data.len() / SECTOR;
        for (i, sector) in data.chunks_exact(SECTOR).enumerate() {
            let kept = match keep {
                Keep::None => false,
                Keep::Half => self.clock.coin(),
                Keep::FirstHalf => i < count.div_ceil(2),
                Keep::All => true,
            };
            if kept {
                image.durable.insert(first + i as u64, sector.try_into().expect("one sector"));
            }
        }
    }

    fn with<R>(&self, name: &str, f: impl FnOnce(&mut Image) -> R) -> R {
        let mut images = self.images.lock().expect("no holder of this lock panics");
        f(images.entry(name.to_string()).or_default())
    }

    fn failed(&self, op: DiskOp, name: &str, source: io::Error) -> DiskError {
        DiskError::Io { op, path: PathBuf::from(format!("{}/{name}", self.label)), source }
    }

    /// Counts an operation; `during` is done also when the power goes in its middle.
    fn tick(
        &self,
        op: DiskOp,
        name: &str,
        during: impl FnOnce(&mut Image),
    ) -> Result<(), DiskError> {
        let errno = self.broken.load(Ordering::Relaxed);
        if errno != 0 {
            return Err(self.failed(op, name, io::Error::from_raw_os_error(errno)));
        }
        match self.clock.tick() {
            Tick::Done => {
                self.with(name, during);
                Ok(())
            }
            Tick::Crashing => {
                self.with(name, during);
                Err(self.failed(op, name, io::Error::other("power lost")))
            }
            Tick::Failed(error) => Err(self.failed(op, name, error)),
        }
    }
}

impl Disk for SimDisk {
    fn create(&self, name: &str, bytes: u64) -> Result<(), DiskError> {
        match self.clock.tick() {
            Tick::Done => {
                self.with(name, |image| *image = Image { bytes, ..Image::default() });
                Ok(())
            }
            Tick::Crashing => {
                Err(self.failed(DiskOp::Create, name, io::Error::other("power lost")))
            }
            Tick::Failed(error) => Err(self.failed(DiskOp::Create, name, error)),
        }
    }

    fn open(&self, name: &str, mode: Mode) -> Result<Arc<dyn DiskFile>, DiskError> {
        let images = self.images.lock().expect("no holder of this lock panics");
        if !images.contains_key(name) {
            return Err(self.failed(DiskOp::Open, name, io::ErrorKind::NotFound.into()));
        }
        Ok(Arc::new(SimFile { disk: self.clone(), name: name.to_string(), mode }))
    }

    fn list(&self) -> Result<Vec<String>, DiskError> {
        let images = self.images.lock().expect("no holder of this lock panics");
        Ok(images.keys().cloned().collect())
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        assert_aligned(offset, buf);
        let bytes = self.bytes()?;
        if offset + buf.len() as u64 > bytes {
            let error = io::ErrorKind::UnexpectedEof.into();
            return Err(self.disk.failed(DiskOp::Read, &self.name, error));
        }
        self.disk.with(&self.name, |image| {
            let first = offset / SECTOR as u64;
            for (i, out) in buf.chunks_exact_mut(SECTOR).enumerate() {
                out.copy_from_slice(image.durable.get(&(first + i as u64)).unwrap_or(&[0; SECTOR]));
            }
            for (at, data) in &image.pending {
                overlay(offset, buf, *at, data);
            }
        });
        Ok(())
    }

    fn write_pieces_at(&self, offset: u64, pieces: &[IoSlice<'_>]) -> Result<(), DiskError> {
        let mut data = Vec::new();
        for piece in pieces {
            assert_aligned(offset + data.len() as u64, piece);
            data.extend_from_slice(piece);
        }
        let add = |image: &mut Image| {
            let end = offset + data.len() as u64;
            assert!(end <= image.bytes, "write past the end of {}", self.name);
            image.pending.push((offset, data));
        };
        self.disk.tick(DiskOp::Write, &self.name, add)?;
        if self.mode == Mode::Durable {
            self.disk.with(&self.name, settle);
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), DiskError> {
        // A crash during a sync finds everything still pending.
        self.disk.tick(DiskOp::Sync, &self.name, |_| ())?;
        self.disk.with(&self.name, settle);
        Ok(())
    }

    fn bytes(&self) -> Result<u64, DiskError> {
        Ok(self.disk.with(&self.name, |image| image.bytes))
    }

    fn grow(&self, bytes: u64) -> Result<(), DiskError> {
        self.disk.tick(DiskOp::Grow, &self.name, |image| image.bytes = image.bytes.max(bytes))
    }
}

fn settle(image: &mut Image) {
    for (offset, data) in std::mem::take(&mut image.pending) {
        let first = offset / SECTOR as u64;
        for (i, sector) in data.chunks_exact(SECTOR).enumerate() {
            image.durable.insert(first + i as u64, sector.try_into().expect("one sector"));
        }
    }
}

fn overlay(offset: u64, buf: &mut [u8], at: u64, data: &[u8]) {
    let start = offset.max(at);
    let end = (offset + buf.len() as u64).min(at + data.len() as u64);
    if start < end {
        let to = (start - offset) as usize..(end - offset) as usize;
        let from = (start - at) as usize..(end - at) as usize;
        buf[to].copy_from_slice(&data[from]);
    }
}

fn assert_aligned(offset: u64, memory: &[u8]) {
    let align = tidewater_proto::aligned::ALIGN_BYTES;
    let ok = offset.is_multiple_of(align as u64)
        && memory.len().is_multiple_of(align)
        && (memory.as_ptr() as usize).is_multiple_of(align);
    assert!(ok, "direct I/O at {offset} of {} bytes is not aligned", memory.len());
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidewater_proto::aligned::AlignedBuf;

    fn written(keep: Keep) -> Vec<u8> {
        let clock = SimClock::new(7);
        let disk = SimDisk::new(&clock, "disk");
        disk.create("a", 8192).expect("create");
        let file = disk.open("a", Mode::Direct).expect("open");
        let mut page = AlignedBuf::zeroed(4096);
        page.fill(1);
        file.write_at(0, &page).expect("write");
        file.sync().expect("sync");
        page.fill(2);
        file.write_at(4096, &page).expect("write");
        let found = disk.after_crash(keep, &SimClock::new(1));
        let mut buf = AlignedBuf::zeroed(8192);
        found.open("a", Mode::Direct).and_then(|f| f.read_at(0, &mut buf)).expect("read");
        assert!(buf[..4096].iter().all(|&b| b == 1), "what was synced survives");
        buf[4096..].to_vec()
    }

    #[test]
    fn a_crash_keeps_as_much_of_the_unsynced_data_as_asked() {
        assert!(written(Keep::None).iter().all(|&b| b == 0));
        assert!(written(Keep::All).iter().all(|&b| b == 2));
        let first = written(Keep::FirstHalf);
        assert!(first[..2048].iter().all(|&b| b == 2) && first[2048..].iter().all(|&b| b == 0));
        let half = written(Keep::Half);
        assert!(half.contains(&0) && half.contains(&2), "torn");
        assert_eq!(half, written(Keep::Half), "the seed decides");
    }
}
