//! A volume's handle for any thread and runtime. The session runs on a thread of its own.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use futures::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    task::LocalSet,
};

use crate::{
    device::{BlockDevice, DeviceInfo, Io, IoDone, LocalBlockDevice as _},
    error::{BlockError, Kind, Outcome},
    open::Open,
    session::{CloseError, LocalVolume, OpenError},
    stats::VolumeStats,
};

/// What a session tells once it is attached.
type Opened = (DeviceInfo, Arc<AtomicU64>);
type IoResult = Result<IoDone, BlockError>;
type CloseResult = Result<(), CloseError>;

enum Command {
    Io { io: Io, slot: OwnedSemaphorePermit, reply: oneshot::Sender<IoResult> },
    Close { reply: oneshot::Sender<CloseResult> },
}

/// An open volume. Clones share it; the last one to go drains, flushes and detaches in the
/// background, [`close`](Self::close) does so and tells the result.
///
/// Dropping the future of an operation detaches from it: it runs on in the session and may take
/// effect, block by block.
#[derive(Clone)]
pub struct Volume {
    info: DeviceInfo,
    /// As the session last heard.
    size_bytes: Arc<AtomicU64>,
    stats: Arc<VolumeStats>,
    slots: Arc<Semaphore>,
    commands: mpsc::Sender<Command>,
}

impl Volume {
    pub(crate) async fn open(
        endpoints: Vec<String>,
        name: String,
        options: Open,
    ) -> Result<Self, OpenError> {
        let depth = options.queue_depth;
        let stats = Arc::new(VolumeStats::default());
        // One more for the command that closes, which needs no slot.
        let (commands, receiver) = mpsc::channel(depth + 1);
        let (opened, result) = oneshot::channel();
        let session_stats = Arc::clone(&stats);
        std::thread::Builder::new()
            .name(format!("tw-{name:.12}"))
            .spawn(move || {
                session_thread(receiver, opened, async move {
                    LocalVolume::open(&endpoints, &name, &options, session_stats).await
                });
            })
            .map_err(|_| OpenError::Thread)?;
        let (info, size_bytes) = result.await.map_err(|_| OpenError::Thread)??;
        let slots = Arc::new(Semaphore::new(depth));
        Ok(Self { info, size_bytes, stats, slots, commands })
    }

    /// Counters and latencies.
    pub fn stats(&self) -> &VolumeStats {
        &self.stats
    }

    /// As [`submit`](BlockDevice::submit), but does not wait for room in the queue.
    ///
    /// # Errors
    ///
    /// `Busy` at once if the queue is full; else those of the operation.
    pub fn try_submit(
        &self,
        io: Io,
    ) -> Result<impl Future<Output = IoResult> + Send + 'static, BlockError> {
        let (offset, len) = io.range().unwrap_or_default();
        match Arc::clone(&self.slots).try_acquire_owned() {
            Ok(slot) => Ok(self.enqueue(io, slot)),
            Err(_) => Err(BlockError::refused(Kind::Busy, offset, len)),
        }
    }

    /// Waits for what is in flight, flushes, and gives the attachment back.
    ///
    /// # Errors
    ///
    /// [`CloseError`].
    pub async fn close(self) -> CloseResult {
        let (reply, result) = oneshot::channel();
        let closed = || CloseError::Flush(BlockError::refused(Kind::Closed, 0, 0));
        self.commands.send(Command::Close { reply }).await.map_err(|_| closed())?;
        result.await.map_err(|_| closed())?
    }

    /// Queues the operation now; the future only waits for its result.
    fn enqueue(
        &self,
        io: Io,
        slot: OwnedSemaphorePermit,
    ) -> impl Future<Output = IoResult> + Send + 'static {
        let (offset, len) = io.range().unwrap_or_default();
        let (reply, result) = oneshot::channel();
        // Room is certain: there are as many slots as places.
        let queued = self.commands.try_send(Command::Io { io, slot, reply }).is_ok();
        async move {
            if !queued {
                return Err(BlockError::refused(Kind::Closed, offset, len));
            }
            let gone = BlockError {
                outcome: Outcome::Unknown,
                ..BlockError::refused(Kind::Closed, offset, len)
            };
            result.await.unwrap_or(Err(gone))
        }
    }
}

impl BlockDevice for Volume {
    fn info(&self) -> DeviceInfo {
        DeviceInfo { size_bytes: self.size_bytes.load(Ordering::Relaxed), ..self.info }
    }

    fn submit(&self, io: Io) -> impl Future<Output = IoResult> + Send + 'static {
        let volume = self.clone();
        async move {
            let (offset, len) = io.range().unwrap_or_default();
            io.check(BlockDevice::info(&volume))?;
            let slot = Arc::clone(&volume.slots).acquire_owned().await;
            let slot = slot.map_err(|_| BlockError::refused(Kind::Closed, offset, len))?;
            volume.enqueue(io, slot).await
        }
    }
}

fn session_thread(
    commands: mpsc::Receiver<Command>,
    opened: oneshot::Sender<Result<Opened, OpenError>>,
    open: impl Future<Output = Result<LocalVolume, OpenError>>,
) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            // The opener sees its channel close, which is `OpenError::Thread`.
            tracing::warn!(%error, "no runtime for a session");
            return;
        }
    };
    LocalSet::new().block_on(&runtime, async move {
        match open.await {
            Err(error) => {
                if opened.send(Err(error)).is_err() {
                    tracing::debug!("who opened a volume has gone");
                }
            }
            Ok(volume) => {
                if opened.send(Ok((volume.info(), volume.size_bytes()))).is_err() {
                    tracing::debug!("who opened a volume has gone");
                }
                serve(volume, commands).await;
            }
        }
    });
}

async fn serve(volume: LocalVolume, mut commands: mpsc::Receiver<Command>) {
    let mut running = FuturesUnordered::new();
    let closing = loop {
        tokio::select! {
            command = commands.recv() => match command {
                Some(Command::Io { io, slot, reply }) => running.push(run(&volume, io, slot, reply)),
                Some(Command::Close { reply }) => break Some(reply),
                None => break None,
            },
            Some(()) = running.next() => {}
        }
    };
    commands.close();
    while let Some(command) = commands.recv().await {
        match command {
            Command::Io { io, slot, reply } => running.push(run(&volume, io, slot, reply)),
            Command::Close { reply } => drop(reply),
        }
    }
    while running.next().await.is_some() {}
    let result = volume.close().await;
    let told = match closing {
        Some(reply) => reply.send(result).is_ok(),
        None => false,
    };
    if !told {
        tracing::debug!("volume closed with nobody waiting for the result");
    }
}

async fn run(
    volume: &LocalVolume,
    io: Io,
    slot: OwnedSemaphorePermit,
    reply: oneshot::Sender<IoResult>,
) {
    let result = volume.submit(io).await;
    drop(slot);
    if reply.send(result).is_err() {
        tracing::trace!("operation ended with nobody waiting for it");
    }
}
