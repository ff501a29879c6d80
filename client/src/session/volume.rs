//! A volume as a block device, on the thread of its session.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    future::Future,
    rc::Rc,
    sync::{Arc, atomic::AtomicU64},
    time::Instant,
};

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt, stream};
use tidewater_proto::{
    entry::Payload,
    ids::Position,
    peer::{Action as Ask, Reply},
    record::Durability,
};

use super::{
    attach::{CloseError, OpenError, Session},
    dial::{Dial, Tcp},
    outside::Outside,
    part::PartDone,
};
use crate::{
    device::{DeviceInfo, Io, IoDone, LocalBlockDevice, Run},
    error::{BlockError, Kind, Outcome},
    open::Open,
    split::{Cut, Part, parts},
    stats::{Op, VolumeStats},
};

/// Requests that one operation has in flight.
const PARTS_MAX: usize = 32;

/// An attached volume. Clones share the session. The futures of [`submit`](LocalBlockDevice::submit)
/// must be driven to their end for a long operation to take effect as a whole; a [`Volume`] and the gateway
/// do, and nobody else is given one.
///
/// [`Volume`]: crate::Volume
pub(crate) struct LocalVolume<D: Dial = Tcp> {
    session: Rc<Session<D>>,
    /// Durability `flush` only: highest position acknowledged and not flushed, by segment.
    unflushed: Rc<RefCell<BTreeMap<u32, Position>>>,
}

impl<D: Dial> Clone for LocalVolume<D> {
    fn clone(&self) -> Self {
        Self { session: Rc::clone(&self.session), unflushed: Rc::clone(&self.unflushed) }
    }
}

impl LocalVolume {
    /// Attaches a volume of the cluster at these addresses. Must run in a `LocalSet` of a `current_thread` runtime.
    ///
    /// # Errors
    ///
    /// [`OpenError`].
    pub(crate) async fn open(
        endpoints: &[String],
        volume: &str,
        options: &Open,
        stats: Arc<VolumeStats>,
    ) -> Result<Self, OpenError> {
        let outside = Outside::real(endpoints)
            .map_err(|source| OpenError::Meta { volume: volume.to_owned(), source })?;
        Self::open_in(outside, volume, options, stats).await
    }
}

impl<D: Dial> LocalVolume<D> {
    /// Attaches a volume.
    ///
    /// # Errors
    ///
    /// [`OpenError`].
    pub(crate) async fn open_in(
        outside: Outside<D>,
        volume: &str,
        options: &Open,
        stats: Arc<VolumeStats>,
    ) -> Result<Self, OpenError> {
        let session = Session::open(outside, volume, options, stats).await?;
        Ok(Self { session, unflushed: Rc::default() })
    }

    /// The volume's size, which grows when the volume is resized.
    pub(crate) fn size_bytes(&self) -> Arc<AtomicU64> {
        Arc::clone(self.session.map.size_bytes())
    }

    /// Makes everything durable and gives the attachment back. The caller has waited for its
    /// operations.
    ///
    /// # Errors
    ///
    /// [`CloseError`].
    pub(crate) async fn close(&self) -> Result<(), CloseError> {
        let flushed = if self.session.fenced.get() { Ok(()) } else { self.flush().await };
        let detached = self.session.detach().await;
        flushed.map_err(CloseError::Flush)?;
        detached.map_err(CloseError::Detach)
    }

    async fn run(self, io: Io) -> Result<IoDone, BlockError> {
        io.check(self.session.info())?;
        let (op, (offset, len)) = (Op::of(&io), io.range().unwrap_or_default());
        let started = Instant::now();
        let closed = |_| BlockError::refused(Kind::Closed, offset, len);
        let _slot = self.session.slots.acquire().await.map_err(closed)?;
        if self.session.fenced.get() {
            return Err(BlockError::refused(Kind::Fenced, offset, len));
        }
        let result = self.start(io).await;
        self.session.stats.record(op, len, started.elapsed(), result.is_ok());
        result
    }

    /// What is not one request is boxed, so that the state of one that is stays small.
    async fn start(&self, io: Io) -> Result<IoDone, BlockError> {
        match io {
            Io::Read { offset, len } => match self.only_part(offset, u64::from(len)) {
                Some(part) => self.read_part(part).await.map(IoDone::Data),
                None => Box::pin(self.read_parts(offset, len)).await,
            },
            Io::Write { offset, data, fua } => match self.only_part(offset, data.len() as u64) {
                Some(part) => self.write_part(part, data, fua).await.map(|()| IoDone::Done),
                None => Box::pin(self.write_parts(offset, data, fua)).await,
            },
            Io::WriteZeroes { offset, len, discard, fua } => {
                Box::pin(self.zero(offset, len, discard, fua)).await
            }
            Io::Flush if self.unflushed.borrow().is_empty() => Ok(IoDone::Done),
            Io::Flush => Box::pin(self.flush()).await.map(|()| IoDone::Done),
            Io::CompareWrite { offset, expect, data } => {
                Box::pin(self.compare(offset, expect, data)).await
            }
            Io::Extents { offset, len } => Box::pin(self.extents(offset, len)).await,
        }
    }

    fn parts(&self, offset: u64, len: u64, cut: Cut) -> impl Iterator<Item = Part> + use<D> {
        parts(offset, len, self.session.segment_bytes, cut)
    }

    /// The range as one request, if it is one.
    fn only_part(&self, offset: u64, len: u64) -> Option<Part> {
        let first = self.parts(offset, len, Cut::Chunks).next().expect("a range has a part");
        (first.extent.len() == len).then_some(first)
    }

    async fn read_parts(&self, offset: u64, len: u32) -> Result<IoDone, BlockError> {
        let parts = self.parts(offset, u64::from(len), Cut::Chunks);
        let mut out = BytesMut::with_capacity(len as usize);
        let mut pieces = stream::iter(parts).map(|part| self.read_part(part)).buffered(PARTS_MAX);
        while let Some(piece) = pieces.try_next().await? {
            out.extend_from_slice(&piece);
        }
        Ok(IoDone::Data(out.freeze()))
    }

    async fn read_part(&self, part: Part) -> Result<Bytes, BlockError> {
        let ask = Ask::Read { extent: part.extent };
        match self.session.run_part(part.segment, Some(part.extent), ask).await? {
            PartDone::Reply(Reply::Data(payload)) => Ok(payload.data),
            PartDone::Hole => Ok(BytesMut::zeroed(part.extent.len() as usize).freeze()),
            PartDone::Reply(_) => Err(self.nonsense(part)),
        }
    }

    async fn write_parts(&self, offset: u64, data: Bytes, fua: bool) -> Result<IoDone, BlockError> {
        let parts = self.parts(offset, data.len() as u64, Cut::Chunks);
        let slice =
            |part: Part| data.slice(part.at as usize..(part.at + part.extent.len()) as usize);
        self.all(parts.map(|part| self.write_part(part, slice(part), fua))).await
    }

    /// Runs every part to its end, whatever becomes of the others; the first error counts.
    async fn all(
        &self,
        parts: impl Iterator<Item = impl Future<Output = Result<(), BlockError>>>,
    ) -> Result<IoDone, BlockError> {
        let mut results = stream::iter(parts).buffer_unordered(PARTS_MAX);
        let (mut done, mut failed) = (0, None::<BlockError>);
        while let Some(result) = results.next().await {
            match result {
                Ok(()) => done += 1,
                Err(error) => failed = Some(worse(failed, error)),
            }
        }
        match failed {
            None => Ok(IoDone::Done),
            Some(error) if done > 0 => Err(BlockError { outcome: Outcome::Unknown, ..error }),
            Some(error) => Err(error),
        }
    }

    async fn write_part(&self, part: Part, data: Bytes, fua: bool) -> Result<(), BlockError> {
        let ask = Ask::Write { extent: part.extent, data: Payload::new(part.extent, data) };
        self.change(part, ask, fua).await
    }

    async fn zero(
        &self,
        offset: u64,
        len: u64,
        discard: bool,
        fua: bool,
    ) -> Result<IoDone, BlockError> {
        let parts = self.parts(offset, len, Cut::Segments);
        self.all(
            parts.map(|part| self.change(part, Ask::Zero { extent: part.extent, discard }, fua)),
        )
        .await
    }

    async fn change(&self, part: Part, ask: Ask<Payload>, fua: bool) -> Result<(), BlockError> {
        match self.session.run_part(part.segment, Some(part.extent), ask).await? {
            PartDone::Reply(Reply::Done(at)) => self.acknowledged(part, at, fua).await,
            PartDone::Hole => Ok(()),
            PartDone::Reply(_) => Err(self.nonsense(part)),
        }
    }

    /// With durability `sync` an acknowledged write is durable; with `flush` it must be remembered,
    /// or flushed now.
    async fn acknowledged(&self, part: Part, at: Position, fua: bool) -> Result<(), BlockError> {
        if self.session.durability == Durability::Sync {
            return Ok(());
        }
        if fua {
            let flushed = Box::pin(self.flush_segment(part.segment, at)).await;
            return flushed.map_err(|error| BlockError { outcome: Outcome::Unknown, ..error });
        }
        let mut unflushed = self.unflushed.borrow_mut();
        let highest = unflushed.entry(part.segment).or_insert(at);
        *highest = at.max(*highest);
        Ok(())
    }

    async fn flush(&self) -> Result<(), BlockError> {
        let unflushed = self.unflushed.borrow().clone();
        let mut results = stream::iter(unflushed)
            .map(|(segment, acked)| async move {
                let result = self.flush_segment(segment, acked).await;
                let settled = match &result {
                    Ok(()) => true,
                    // The write is gone and no later flush can bring it back: told once.
                    Err(error) => error.kind == Kind::Lost,
                };
                if settled {
                    self.settle(segment, acked);
                }
                result
            })
            .buffer_unordered(PARTS_MAX);
        let mut failed = None;
        while let Some(result) = results.next().await {
            failed = result.err().or(failed);
        }
        failed.map_or(Ok(()), Err)
    }

    fn settle(&self, segment: u32, acked: Position) {
        let mut unflushed = self.unflushed.borrow_mut();
        if unflushed.get(&segment).is_some_and(|&highest| highest <= acked) {
            unflushed.remove(&segment);
        }
    }

    async fn flush_segment(&self, segment: u32, acked: Position) -> Result<(), BlockError> {
        self.session.run_part(segment, None, Ask::Flush { acked }).await.map(|_| ())
    }

    async fn compare(&self, offset: u64, expect: Bytes, data: Bytes) -> Result<IoDone, BlockError> {
        let part =
            self.parts(offset, data.len() as u64, Cut::Chunks).next().expect("a block is one part");
        let extent = part.extent;
        let (expect, data) = (Payload::new(extent, expect), Payload::new(extent, data));
        let ask = Ask::Compare { extent, expect, data };
        match self.session.run_part(part.segment, Some(extent), ask).await? {
            PartDone::Reply(Reply::Done(at)) => {
                self.acknowledged(part, at, false).await.map(|()| IoDone::Done)
            }
            PartDone::Reply(Reply::Differs) => Ok(IoDone::Differs),
            PartDone::Reply(_) | PartDone::Hole => Err(self.nonsense(part)),
        }
    }

    /// Of the first segment of the range.
    async fn extents(&self, offset: u64, len: u64) -> Result<IoDone, BlockError> {
        let part = self.parts(offset, len, Cut::Segments).next().expect("a range has a part");
        let ask = Ask::Extents { extent: part.extent };
        match self.session.run_part(part.segment, Some(part.extent), ask).await? {
            PartDone::Hole => {
                Ok(IoDone::Extents(vec![Run { len: part.extent.len(), data: false }]))
            }
            PartDone::Reply(Reply::Extents(runs)) => {
                let runs: Vec<_> =
                    runs.into_iter().map(|(len, data)| Run { len: u64::from(len), data }).collect();
                let covered: u64 = runs.iter().map(|r| r.len).sum();
                let whole = covered == part.extent.len();
                if whole { Ok(IoDone::Extents(runs)) } else { Err(self.nonsense(part)) }
            }
            PartDone::Reply(_) => Err(self.nonsense(part)),
        }
    }

    /// An answer that does not fit the question.
    fn nonsense(&self, part: Part) -> BlockError {
        BlockError {
            kind: Kind::Corrupt,
            outcome: Outcome::Unknown,
            offset: u64::from(part.segment) * self.session.segment_bytes + part.extent.offset(),
            len: part.extent.len(),
            tries: 1,
        }
    }
}

/// The error of several that tells the caller the least.
fn worse(known: Option<BlockError>, new: BlockError) -> BlockError {
    match known {
        Some(known) if known.outcome == Outcome::Unknown => known,
        Some(_) | None => new,
    }
}

impl<D: Dial> LocalBlockDevice for LocalVolume<D> {
    fn info(&self) -> DeviceInfo {
        self.session.info()
    }

    fn submit(&self, io: Io) -> impl Future<Output = Result<IoDone, BlockError>> + 'static {
        self.clone().run(io)
    }
}
