//! One method for each thing people do with a block device.

use std::{future::Future, ops::Range};

use bytes::Bytes;
use tidewater_proto::geometry::SECTOR_BYTES;

use super::{BlockDevice, Io, IoDone, Run};
use crate::error::{BlockError, Kind};

/// Convenience over [`BlockDevice::submit`].
///
/// ```
/// use tidewater_client::{BlockDeviceExt, MemDevice};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), tidewater_client::BlockError> {
/// let disk = MemDevice::new(1 << 20);
/// disk.write_at(4096, vec![7; 512]).await?;
/// assert_eq!(disk.read_at(4096, 1024).await?[511..513], [7, 0]);
/// # Ok(())
/// # }
/// ```
pub trait BlockDeviceExt: BlockDevice {
    /// `len` bytes from `offset` on; both multiples of 512.
    ///
    /// # Errors
    ///
    /// [`BlockError`].
    fn read_at(
        &self,
        offset: u64,
        len: u32,
    ) -> impl Future<Output = Result<Bytes, BlockError>> + Send {
        let io = self.submit(Io::Read { offset, len });
        async move {
            match io.await? {
                IoDone::Data(data) => Ok(data),
                other => unreachable!("a read gives data, not {other:?}"),
            }
        }
    }

    /// Fills `buf` from `offset` on, at any alignment.
    ///
    /// # Errors
    ///
    /// [`BlockError`].
    fn read_into(
        &self,
        offset: u64,
        buf: &mut [u8],
    ) -> impl Future<Output = Result<(), BlockError>> + Send {
        async move {
            let start = offset - offset % SECTOR_BYTES;
            let end = (offset + buf.len() as u64).next_multiple_of(SECTOR_BYTES);
            let len = u32::try_from(end - start)
                .map_err(|_| BlockError::refused(Kind::OutOfRange, offset, buf.len() as u64))?;
            let data = self.read_at(start, len).await?;
            let skip = (offset - start) as usize;
            buf.copy_from_slice(&data[skip..skip + buf.len()]);
            Ok(())
        }
    }

    /// Replaces bytes; offset and length are multiples of 512.
    ///
    /// # Errors
    ///
    /// [`BlockError`].
    fn write_at(
        &self,
        offset: u64,
        data: impl Into<Bytes>,
    ) -> impl Future<Output = Result<(), BlockError>> + Send {
        done(self.submit(Io::Write { offset, data: data.into(), fua: false }))
    }

    /// As [`write_at`](Self::write_at), durable when it completes.
    ///
    /// # Errors
    ///
    /// [`BlockError`].
    fn write_at_fua(
        &self,
        offset: u64,
        data: impl Into<Bytes>,
    ) -> impl Future<Output = Result<(), BlockError>> + Send {
        done(self.submit(Io::Write { offset, data: data.into(), fua: true }))
    }

    /// Replaces a range by zeroes.
    ///
    /// # Errors
    ///
    /// [`BlockError`].
    fn write_zeroes(
        &self,
        range: Range<u64>,
    ) -> impl Future<Output = Result<(), BlockError>> + Send {
        done(self.submit(zero(&range, false)))
    }

    /// Replaces a range by zeroes and gives its space back.
    ///
    /// # Errors
    ///
    /// [`BlockError`].
    fn discard(&self, range: Range<u64>) -> impl Future<Output = Result<(), BlockError>> + Send {
        done(self.submit(zero(&range, true)))
    }

    /// Makes all writes durable that completed before the call.
    ///
    /// # Errors
    ///
    /// [`BlockError`].
    fn flush(&self) -> impl Future<Output = Result<(), BlockError>> + Send {
        done(self.submit(Io::Flush))
    }

    /// Replaces one 4 KiB block if it holds `expect`; says whether it did.
    ///
    /// # Errors
    ///
    /// [`BlockError`].
    fn compare_and_write(
        &self,
        offset: u64,
        expect: Bytes,
        data: Bytes,
    ) -> impl Future<Output = Result<bool, BlockError>> + Send {
        let io = self.submit(Io::CompareWrite { offset, expect, data });
        async move { Ok(io.await? == IoDone::Done) }
    }

    /// The runs of data and holes that make up `range`, neighbours merged.
    ///
    /// # Errors
    ///
    /// [`BlockError`].
    fn extents(
        &self,
        range: Range<u64>,
    ) -> impl Future<Output = Result<Vec<Run>, BlockError>> + Send {
        async move {
            let mut runs: Vec<Run> = Vec::new();
            let mut at = range.start;
            while at < range.end {
                let io = Io::Extents { offset: at, len: range.end - at };
                let IoDone::Extents(part) = self.submit(io).await? else {
                    unreachable!("extents give extents");
                };
                for run in part {
                    at += run.len;
                    push_run(&mut runs, run);
                }
            }
            Ok(runs)
        }
    }
}

impl<D: BlockDevice> BlockDeviceExt for D {}

/// Appends a run, merged with the last one where it is of the same kind.
pub(crate) fn push_run(runs: &mut Vec<Run>, run: Run) {
    match runs.last_mut() {
        Some(last) if last.data == run.data => last.len += run.len,
        Some(_) | None => runs.push(run),
    }
}

fn zero(range: &Range<u64>, discard: bool) -> Io {
    let len = range.end.saturating_sub(range.start);
    Io::WriteZeroes { offset: range.start, len, discard, fua: false }
}

async fn done(io: impl Future<Output = Result<IoDone, BlockError>>) -> Result<(), BlockError> {
    io.await.map(|_| ())
}
