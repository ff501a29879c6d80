//! A log that grows block by block through a fresh volume, so that segments are placed while servers
//! die; others read what was appended.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tidewater_client::{Open, blocking::Disk};

use super::{Scene, device::Device, open, worker::perform};
use crate::{
    content::Layout,
    history::{Op, Value},
    recorder::{Call, Voice},
};

const WRITERS: u64 = 4;
const READERS: u64 = 3;
/// Pause of a reader while there is nothing to read, and after a failure.
const PAUSE: Duration = Duration::from_millis(20);

pub(super) fn run(scene: &Scene<'_>, layout: Layout, registers: u64) -> anyhow::Result<()> {
    let volume = open(scene.endpoints, Open::exclusive())?;
    let tail = AtomicU64::new(0);
    thread::scope(|scope| {
        for number in 0..WRITERS + READERS {
            let mut device = Device::new(Disk::new(volume.clone())?, layout);
            let tail = &tail;
            scope.spawn(move || {
                if number < WRITERS {
                    append(scene, &mut device, tail, registers);
                } else {
                    let tail = || tail.load(Ordering::Relaxed).min(registers);
                    follow(scene, &mut device, tail, number);
                }
            });
        }
        Ok(())
    })
}

fn append(scene: &Scene<'_>, device: &mut impl super::Registers, tail: &AtomicU64, registers: u64) {
    let mut voice = Voice::new(scene.recorder, None);
    while !scene.is_over() {
        let block = tail.fetch_add(1, Ordering::Relaxed);
        if block >= registers {
            return;
        }
        let value = Value::One(voice.fresh());
        let call = Call { op: Op::Write, block: Some(block), span: 1, value };
        if perform(&mut voice, device, &call).is_err() {
            thread::sleep(PAUSE);
        }
    }
}

fn follow(
    scene: &Scene<'_>,
    device: &mut impl super::Registers,
    tail: impl Fn() -> u64,
    number: u64,
) {
    let mut random = StdRng::seed_from_u64(scene.seed ^ (number << 32));
    let mut voice = Voice::new(scene.recorder, None);
    while !scene.is_over() {
        let end = tail();
        if end == 0 {
            thread::sleep(PAUSE);
            continue;
        }
        // The end of the log is where writes are under way.
        let near = end.min(16);
        let from = if random.random_bool(0.5) { end - near } else { 0 };
        let block = Some(random.random_range(from..end));
        let call = Call { op: Op::Read, block, span: 1, value: Value::None };
        if perform(&mut voice, device, &call).is_err() {
            thread::sleep(PAUSE);
        }
    }
}
