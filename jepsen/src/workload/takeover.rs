//! Attachments that take the volume from each other, again and again, with writes under way.

use std::{
    thread,
    time::{Duration, Instant},
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tidewater_client::{Open, Volume, blocking::Disk};

use super::{Scene, Worker, device::Device, open};
use crate::{
    history::{Op, Value},
    recorder::{Call, Recorder, Voice},
};

const CONTENDERS: u64 = 2;
/// Threads on one attachment.
const THREADS: u64 = 3;
/// Longest time until someone who was fenced takes the volume back.
const PATIENCE_MS: u64 = 1500;
/// Between two looks at the end of the run.
const LOOK: Duration = Duration::from_millis(10);

pub(super) fn run(scene: &Scene<'_>, worker: impl Fn(u64) -> Worker + Sync) -> anyhow::Result<()> {
    let worker = &worker;
    thread::scope(|scope| {
        let contenders: Vec<_> = (0..CONTENDERS)
            .map(|contender| scope.spawn(move || contend(scene, worker, contender)))
            .collect();
        contenders.into_iter().try_for_each(|contender| {
            contender.join().map_err(|_| anyhow::anyhow!("a contender panicked"))?
        })
    })
}

fn contend(
    scene: &Scene<'_>,
    worker: &(impl Fn(u64) -> Worker + Sync),
    contender: u64,
) -> anyhow::Result<()> {
    let mut random = StdRng::seed_from_u64(scene.seed ^ (contender << 48));
    while !scene.is_over() {
        wait(scene, Duration::from_millis(random.random_range(0..PATIENCE_MS)));
        let Some((volume, session)) = attach(scene) else { continue };
        work(scene, &volume, session, worker)?;
    }
    Ok(())
}

/// Works through an attachment until it is fenced off or the run is over.
pub(super) fn work(
    scene: &Scene<'_>,
    volume: &Volume,
    session: u64,
    worker: &(impl Fn(u64) -> Worker + Sync),
) -> anyhow::Result<()> {
    thread::scope(|scope| {
        for number in 0..THREADS {
            // Other operations with each attachment.
            let worker = worker(session * THREADS + number);
            let disk = Disk::new(volume.clone())?;
            let mut device = Device::new(disk, worker.layout).of_session(session);
            scope.spawn(move || worker.run(scene, &mut device));
        }
        Ok(())
    })
}

/// Records that an attach begins, by a process whose number is the session's.
pub(crate) fn announce_attach(recorder: &Recorder) -> (Voice<'_>, Call) {
    let mut voice = Voice::new(recorder, None);
    voice.session = Some(voice.process());
    let call = Call { op: Op::Attach, block: None, span: 1, value: Value::None };
    voice.invoke(&call);
    (voice, call)
}

/// Takes the volume and records it; the session is the number of the process that did.
pub(crate) fn attach(scene: &Scene<'_>) -> Option<(Volume, u64)> {
    let (mut voice, call) = announce_attach(scene.recorder);
    let session = voice.process();
    let options = Open::exclusive().take_over().program("jepsen", session.to_string());
    match open(scene.endpoints, options) {
        Ok(volume) => {
            voice.ok(&call, None);
            Some((volume, session))
        }
        Err(error) => {
            voice.info(&call, format!("{error:#}"));
            None
        }
    }
}

fn wait(scene: &Scene<'_>, time: Duration) {
    let until = Instant::now() + time;
    while !scene.is_over() && Instant::now() < until {
        thread::sleep(LOOK);
    }
}
