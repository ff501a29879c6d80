//! A client that takes the volume over whenever its gateway stands still. What the gateway had under way
//! wakes up fenced.

use std::{sync::atomic::Ordering, thread, time::Duration};

use super::{Gateway, Scene, Worker, attach, takeover};

/// Between two looks at the gateway.
const LOOK: Duration = Duration::from_millis(10);

pub(super) fn contend(
    scene: &Scene<'_>,
    gateway: &Gateway,
    worker: impl Fn(u64) -> Worker + Sync,
) -> anyhow::Result<()> {
    while !scene.is_over() {
        if !gateway.is_paused.load(Ordering::SeqCst) {
            thread::sleep(LOOK);
        } else if let Some((volume, session)) = attach(scene) {
            // Ends when the gateway is started anew and takes the volume back.
            takeover::work(scene, &volume, session, &worker)?;
        }
    }
    Ok(())
}
