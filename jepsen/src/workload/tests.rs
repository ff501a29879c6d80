//! The workload and the checkers together: on a device in memory that is sound, one that hides what it
//! did, and ones that are broken.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tidewater_cli::cluster::wait_until;
use tidewater_client::{
    BlockDevice, BlockError, DeviceInfo, FaultyDevice, Io, IoDone, MemDevice, blocking::Disk,
};

use super::{Device, Mix, Scene, Worker, Workload, perform};
use crate::{
    checker::{Rank, durable, linear},
    history::{Event, Op, Stage, Value},
    recorder::{Call, Recorder, Voice},
};

const SEED: u64 = 11;
const THREADS: u64 = 4;
const EVENTS: usize = 8000;
/// A broken device does wrong at each of so many operations.
const EVERY: u64 = 40;
/// Wrong operations of a history: one alone may go unseen.
const WRONGS: u64 = 20;

/// What a device does wrong.
#[derive(Clone, Copy, Debug)]
enum Wrong {
    /// Acknowledges a write and does nothing.
    Forgets,
    /// Writes a part and acknowledges all.
    Tears,
    /// Writes to another register.
    Misplaces,
    /// Reads what was there before the last write.
    ReadsStale,
    /// Replaces what it should have compared first.
    DoesNotCompare,
}

/// Passes operations on, and does some of them wrong.
#[derive(Clone)]
struct Broken {
    inner: MemDevice,
    wrong: Wrong,
    count: Arc<AtomicU64>,
    /// Operations done wrong.
    wrongs: Arc<AtomicU64>,
    /// What each write replaced, by offset.
    before: Arc<Mutex<BTreeMap<u64, Bytes>>>,
}

impl Broken {
    fn new(inner: MemDevice, wrong: Wrong) -> Self {
        let (count, wrongs, before) = (Arc::default(), Arc::default(), Arc::default());
        Self { inner, wrong, count, wrongs, before }
    }

    /// Whether to do this one wrong, if that is what this device does wrong: each of so many, and each comparison that
    /// should fail, for few do.
    async fn is_time(&self, io: &Io) -> Result<bool, BlockError> {
        let Io::CompareWrite { offset, expect, .. } = io else {
            let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
            return Ok(count.is_multiple_of(EVERY));
        };
        let len = expect.len() as u32;
        let found = self.inner.submit(Io::Read { offset: *offset, len }).await?;
        Ok(!matches!(found, IoDone::Data(found) if found == *expect))
    }

    fn changed(&self, io: Io) -> Result<Io, IoDone> {
        let fits = match self.wrong {
            Wrong::Forgets | Wrong::Tears | Wrong::Misplaces => matches!(io, Io::Write { .. }),
            Wrong::ReadsStale => matches!(io, Io::Read { .. }),
            Wrong::DoesNotCompare => matches!(io, Io::CompareWrite { .. }),
        };
        self.wrongs.fetch_add(u64::from(fits), Ordering::Relaxed);
        match (self.wrong, io) {
            (Wrong::Forgets, Io::Write { .. }) => Err(IoDone::Done),
            (Wrong::Tears, Io::Write { offset, data, fua }) => {
                Ok(Io::Write { offset, data: data.slice(..data.len() / 2), fua })
            }
            (Wrong::Misplaces, Io::Write { offset, data, fua }) => {
                let stride = Workload::Registers.layout(SEED).stride * 512;
                Ok(Io::Write { offset: (offset + stride) % self.info().size_bytes, data, fua })
            }
            (Wrong::ReadsStale, Io::Read { offset, len }) => {
                let before = self.before.lock().expect("no panic").get(&offset).cloned();
                before.map_or(Ok(Io::Read { offset, len }), |data| Err(IoDone::Data(data)))
            }
            (Wrong::DoesNotCompare, Io::CompareWrite { offset, data, .. }) => {
                Ok(Io::Write { offset, data, fua: false })
            }
            (_, io) => Ok(io),
        }
    }
}

impl BlockDevice for Broken {
    fn info(&self) -> DeviceInfo {
        self.inner.info()
    }

    fn submit(&self, io: Io) -> impl Future<Output = Result<IoDone, BlockError>> + Send + 'static {
        let device = self.clone();
        async move {
            if let Io::Write { offset, data, .. } = &io {
                let len = data.len() as u32;
                let old = device.inner.submit(Io::Read { offset: *offset, len }).await?;
                if let IoDone::Data(old) = old {
                    device.before.lock().expect("no panic").insert(*offset, old);
                }
            }
            let io = if device.is_time(&io).await? { device.changed(io) } else { Ok(io) };
            match io {
                Ok(io) => device.inner.submit(io).await,
                Err(done) => Ok(done),
            }
        }
    }
}

/// The registers workload on a device, with final reads; it goes on until `wrongs` have been done.
fn history(device: &(impl BlockDevice + Clone), wrongs: &AtomicU64) -> Vec<Event> {
    let recorder = Recorder::new(tempfile::tempfile().expect("a temporary file"));
    let stop = AtomicBool::new(false);
    let scene =
        Scene { recorder: &recorder, endpoints: &[], gateway: None, seed: SEED, stop: &stop };
    let (layout, registers) = (Workload::Registers.layout(SEED), Workload::Registers.registers());
    std::thread::scope(|threads| {
        for number in 0..THREADS {
            let mix = Mix::ALL;
            let worker = Worker { layout, registers, mix, span_max: 1, seed: SEED, number };
            let disk = Disk::new(device.clone()).expect("a runtime");
            let scene = &scene;
            threads.spawn(move || {
                worker.run(scene, &mut Device::new(disk, layout));
            });
        }
        let enough = wait_until("operations", Duration::from_secs(30), || {
            let (events, wrongs) = (recorder.len(), wrongs.load(Ordering::Relaxed));
            let enough = events >= EVENTS && wrongs >= WRONGS;
            if enough { Ok(()) } else { Err(format!("{events} events, {wrongs} wrong")) }
        });
        stop.store(true, Ordering::Relaxed);
        enough.expect("the workload goes on");
    });
    recorder.nemesis(Op::Stage, Stage::Final.name());
    let mut voice = Voice::new(&recorder, None);
    let mut last = Device::new(Disk::new(device.clone()).expect("a runtime"), layout);
    for block in 0..registers {
        let call = Call { op: Op::Read, block: Some(block), span: 1, value: Value::None };
        // A read that fails is in the history.
        drop(perform(&mut voice, &mut last, &call));
    }
    recorder.finish().expect("written")
}

fn memory() -> MemDevice {
    MemDevice::new(Workload::Registers.volume_bytes())
}

#[test]
fn a_sound_device_is_valid() {
    let events = history(&memory(), &AtomicU64::new(WRONGS));
    assert_eq!((linear(&events).rank(), durable(&events).rank()), (Rank::Valid, Rank::Valid));
}

#[test]
fn a_device_that_hides_whether_it_did_something_is_never_invalid() {
    let events = history(&FaultyDevice::new(memory(), 50), &AtomicU64::new(WRONGS));
    assert_eq!(linear(&events).rank(), Rank::Valid);
    assert_ne!(durable(&events).rank(), Rank::Invalid);
}

#[test]
fn a_broken_device_is_caught_whatever_it_does_wrong() {
    for wrong in
        [Wrong::Forgets, Wrong::Tears, Wrong::Misplaces, Wrong::ReadsStale, Wrong::DoesNotCompare]
    {
        let device = Broken::new(memory(), wrong);
        let events = history(&device, &device.wrongs);
        assert_eq!(linear(&events).rank(), Rank::Invalid, "{wrong:?}");
    }
}
