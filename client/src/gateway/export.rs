//! One export: a device, and what an NBD command means on it.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tidewater_proto::geometry::SECTOR_BYTES;

use super::{
    metrics::{ExportCounters, GatewayMetrics},
    range_lock::{Kind, RangeLock},
};
use crate::{
    device::{Io, IoDone, LocalBlockDevice, Run},
    error::BlockError,
    nbd::{self, Command, Errno, ExportInfo},
};

/// A device under a name. All connections share it, so a flush of one covers the writes of all. Clients are
/// told so (`CAN_MULTI_CONN`), unless other gateways serve the same volume: theirs are not covered.
pub struct Export<D> {
    name: String,
    description: String,
    /// Volume and program, for metrics.
    user: (String, String),
    device: D,
    lock: RangeLock,
    counters: Arc<ExportCounters>,
    multi_conn: bool,
}

/// What a command led to.
pub(crate) enum Answer {
    Data { offset: u64, data: Bytes },
    Done,
    Status { len: u32, one: bool, runs: Vec<nbd::Run> },
    Failed(BlockError),
}

/// A range and the whole sectors around it.
struct Around {
    start: u64,
    end: u64,
    skip: usize,
}

impl Around {
    fn new(offset: u64, len: u64) -> Self {
        let start = offset - offset % SECTOR_BYTES;
        let end = (offset + len).next_multiple_of(SECTOR_BYTES);
        Self { start, end, skip: (offset - start) as usize }
    }

    fn is_whole(&self, offset: u64, len: u64) -> bool {
        self.start == offset && self.end == offset + len
    }
}

impl<D: LocalBlockDevice> Export<D> {
    /// Exports `device` as `name`.
    pub fn new(name: impl Into<String>, description: impl Into<String>, device: D) -> Self {
        let (name, description) = (name.into(), description.into());
        let user = (name.clone(), String::new());
        let (lock, counters) = Default::default();
        Self { name, description, user, device, lock, counters, multi_conn: true }
    }

    /// Other gateways may serve the same.
    #[must_use]
    pub fn shared(self) -> Self {
        Self { multi_conn: false, ..self }
    }

    /// Counts it for this volume and program; unless told, for a volume of the export's name and no
    /// program.
    #[must_use]
    pub fn used_by(self, volume: impl Into<String>, program: impl Into<String>) -> Self {
        Self { user: (volume.into(), program.into()), ..self }
    }

    pub(crate) fn counters(&self) -> &Arc<ExportCounters> {
        &self.counters
    }

    pub(crate) fn show_in(&self, metrics: &GatewayMetrics) {
        metrics.add_export(&self.user.0, &self.user.1, Arc::clone(&self.counters));
    }

    /// As a client that connects now sees it: the device may have grown.
    pub fn info(&self) -> ExportInfo {
        let of = self.device.info();
        ExportInfo {
            name: self.name.clone(),
            description: self.description.clone(),
            size_bytes: of.size_bytes,
            read_only: of.read_only,
            fast_zero: of.fast_zero,
            multi_conn: self.multi_conn,
        }
    }

    /// Name clients ask for.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// Runs one command to its end.
    pub(crate) async fn run(&self, command: Command) -> Answer {
        let result = match command {
            Command::Read { offset, len } => {
                self.read(offset, u64::from(len)).await.map(|data| Answer::Data { offset, data })
            }
            Command::Write { offset, data, fua } => self.write(offset, data, fua).await,
            Command::Flush => self.device.submit(Io::Flush).await.map(|_| Answer::Done),
            // What is rare is boxed, so that the state of reads and writes is small.
            Command::Trim { offset, len, fua } => {
                Box::pin(self.trim(offset, u64::from(len), fua)).await
            }
            Command::WriteZeroes { offset, len, no_hole, fua } => {
                Box::pin(self.zero(offset, u64::from(len), !no_hole, fua)).await
            }
            Command::BlockStatus { offset, len, one } => {
                Box::pin(self.status(offset, len, one)).await
            }
            // A hint; there is nothing to warm up yet.
            Command::Cache { .. } => Ok(Answer::Done),
        };
        result.unwrap_or_else(Answer::Failed)
    }

    async fn read(&self, offset: u64, len: u64) -> Result<Bytes, BlockError> {
        let around = Around::new(offset, len);
        let io = Io::Read { offset: around.start, len: (around.end - around.start) as u32 };
        match self.device.submit(io).await? {
            IoDone::Data(data) => Ok(data.slice(around.skip..around.skip + len as usize)),
            IoDone::Done | IoDone::Differs | IoDone::Extents(_) => {
                unreachable!("a read gives data")
            }
        }
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<Answer, BlockError> {
        let len = data.len() as u64;
        let around = Around::new(offset, len);
        if !around.is_whole(offset, len) {
            return Box::pin(self.write_partial(around, &data, fua)).await;
        }
        let _held = self.lock.hold(Kind::Whole, offset..offset + len).await;
        self.device.submit(Io::Write { offset, data, fua }).await.map(|_| Answer::Done)
    }

    /// For clients that never asked for the block size: read the sectors, change them, write them.
    async fn write_partial(
        &self,
        around: Around,
        data: &[u8],
        fua: bool,
    ) -> Result<Answer, BlockError> {
        let _held = self.lock.hold(Kind::Partial, around.start..around.end).await;
        let old = self.read(around.start, around.end - around.start).await?;
        let mut new = BytesMut::from(&old[..]);
        new[around.skip..around.skip + data.len()].copy_from_slice(data);
        let io = Io::Write { offset: around.start, data: new.freeze(), fua };
        self.device.submit(io).await.map(|_| Answer::Done)
    }

    async fn zero(
        &self,
        offset: u64,
        len: u64,
        discard: bool,
        fua: bool,
    ) -> Result<Answer, BlockError> {
        let around = Around::new(offset, len);
        if around.is_whole(offset, len) {
            let _held = self.lock.hold(Kind::Whole, offset..offset + len).await;
            let io = Io::WriteZeroes { offset, len, discard, fua };
            return self.device.submit(io).await.map(|_| Answer::Done);
        }
        let end = offset + len;
        let inner = offset.next_multiple_of(SECTOR_BYTES)..end - end % SECTOR_BYTES;
        if inner.start >= inner.end {
            return self.write(offset, BytesMut::zeroed(len as usize).freeze(), fua).await;
        }
        let zeroes = |bytes: u64| BytesMut::zeroed(bytes as usize).freeze();
        if offset < inner.start {
            self.write(offset, zeroes(inner.start - offset), fua).await?;
        }
        if inner.end < end {
            self.write(inner.end, zeroes(end - inner.end), fua).await?;
        }
        let _held = self.lock.hold(Kind::Whole, inner.clone()).await;
        let (offset, len) = (inner.start, inner.end - inner.start);
        let io = Io::WriteZeroes { offset, len, discard, fua };
        self.device.submit(io).await.map(|_| Answer::Done)
    }

    /// Sectors that are not whole stay as they are: a trim is a hint.
    async fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<Answer, BlockError> {
        let start = offset.next_multiple_of(SECTOR_BYTES);
        let end = (offset + len) - (offset + len) % SECTOR_BYTES;
        if start >= end {
            return Ok(Answer::Done);
        }
        self.zero(start, end - start, true, fua).await
    }

    async fn status(&self, offset: u64, len: u32, one: bool) -> Result<Answer, BlockError> {
        let around = Around::new(offset, u64::from(len));
        let io = Io::Extents { offset: around.start, len: around.end - around.start };
        let IoDone::Extents(mut runs) = self.device.submit(io).await? else {
            unreachable!("extents give extents");
        };
        if let Some(first) = runs.first_mut() {
            first.len -= (around.skip as u64).min(first.len);
        }
        let run =
            |run: Run| nbd::Run { len: u32::try_from(run.len).unwrap_or(u32::MAX), data: run.data };
        Ok(Answer::Status { len, one, runs: runs.into_iter().map(run).collect() })
    }
}

/// The error number that clients are told.
pub(crate) fn errno(error: &BlockError) -> Errno {
    use crate::error::Kind as Why;
    match error.kind {
        Why::Fenced | Why::Closed | Why::NoVolume => Errno::Shutdown,
        Why::NoSpace => Errno::NoSpc,
        Why::Unaligned | Why::OutOfRange | Why::Refused => Errno::Inval,
        Why::ReadOnly => Errno::Perm,
        Why::TimedOut
        | Why::Busy
        | Why::Corrupt
        | Why::Lost
        | Why::Forgotten
        | Why::File(_)
        | Why::Injected => Errno::Io,
    }
}
