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
    /// What each write replaced, by offset.
    before: Arc<Mutex<BTreeMap<u64, Bytes>>>,
}

impl Broken {
    fn new(inner: MemDevice, wrong: Wrong) -> Self {
        Self { inner, wrong, count: Arc::default(), before: Arc::default() }
    }

    fn changed(&self, io: Io) -> Result<Io, IoDone> {
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
            let count = device.count.fetch_add(1, Ordering::Relaxed) + 1;
            let io = if count.is_multiple_of(EVERY) { device.changed(io) } else { Ok(io) };
            match io {
                Ok(io) => device.inner.submit(io).await,
                Err(done) => Ok(done),
            }
        }
    }
}

/// The registers workload on a device, with final reads.
fn history(device: &(impl BlockDevice + Clone), mix: Mix) -> Vec<Event> {
    let recorder = Recorder::new(tempfile::tempfile().expect("a temporary file"));
    let stop = AtomicBool::new(false);
    let scene =
        Scene { recorder: &recorder, endpoints: &[], gateway: None, seed: SEED, stop: &stop };
    let (layout, registers) = (Workload::Registers.layout(SEED), Workload::Registers.registers());
    std::thread::scope(|threads| {
        for number in 0..THREADS {
            let worker = Worker { layout, registers, mix, span_max: 1, seed: SEED, number };
            let disk = Disk::new(device.clone()).expect("a runtime");
            let scene = &scene;
            threads.spawn(move || {
                worker.run(scene, &mut Device::new(disk, layout));
            });
        }
        let enough = wait_until("operations", Duration::from_secs(30), || match recorder.len() {
            len if len >= EVENTS => Ok(()),
            len => Err(format!("{len} events")),
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
    let events = history(&memory(), Mix::ALL);
    assert_eq!((linear(&events).rank(), durable(&events).rank()), (Rank::Valid, Rank::Valid));
}

#[test]
fn a_device_that_hides_whether_it_did_something_is_never_invalid() {
    let events = history(&FaultyDevice::new(memory(), 50), Mix::ALL);
    assert_eq!(linear(&events).rank(), Rank::Valid);
    assert_ne!(durable(&events).rank(), Rank::Invalid);
}

#[test]
fn a_broken_device_is_caught_whatever_it_does_wrong() {
    for wrong in
        [Wrong::Forgets, Wrong::Tears, Wrong::Misplaces, Wrong::ReadsStale, Wrong::DoesNotCompare]
    {
        let events = history(&Broken::new(memory(), wrong), Mix::ALL);
        assert_eq!(linear(&events).rank(), Rank::Invalid, "{wrong:?}");
    }
}
