//! The narrow waist: what a block device can do. Everything else is layered on it.
//!
//! Contract, checked for every implementation by [`contract::check`]:
//!
//! - A read that is submitted after a write completed sees it.
//! - Overlapping writes in flight together are unordered; a block is never torn.
//! - Once a flush completes, all writes that completed before it was submitted are durable.
//! - Bytes never written, zeroed or discarded read as zeroes.
//! - Dropping a future detaches from the operation: it may or may not take effect, block by block.
//! - What is out of range, empty or not aligned to 512 bytes is refused before anything happens.

pub mod contract;
mod ext;
mod fault;
mod file;
mod mem;

use std::future::Future;

use bytes::Bytes;
use tidewater_proto::geometry::{BLOCK_BYTES, SECTOR_BYTES};

pub use ext::BlockDeviceExt;
pub use fault::FaultyDevice;
pub use file::FileDevice;
pub use mem::MemDevice;

use crate::error::{BlockError, Kind};

/// A block device that one thread uses. Send it to others as a [`BlockDevice`].
pub trait LocalBlockDevice: 'static {
    /// Size and abilities; cached, so cheap.
    fn info(&self) -> DeviceInfo;

    /// Starts one operation; the future gives its result. See the module for the contract.
    ///
    /// # Errors
    ///
    /// [`BlockError`] says whether the operation happened.
    fn submit(&self, io: Io) -> impl Future<Output = Result<IoDone, BlockError>> + 'static;
}

/// A block device that any thread may use.
pub trait BlockDevice: Send + Sync + 'static {
    /// As [`LocalBlockDevice::info`].
    fn info(&self) -> DeviceInfo;

    /// As [`LocalBlockDevice::submit`].
    ///
    /// # Errors
    ///
    /// [`BlockError`] says whether the operation happened.
    fn submit(&self, io: Io) -> impl Future<Output = Result<IoDone, BlockError>> + Send + 'static;
}

impl<D: BlockDevice> LocalBlockDevice for D {
    fn info(&self) -> DeviceInfo {
        BlockDevice::info(self)
    }

    fn submit(&self, io: Io) -> impl Future<Output = Result<IoDone, BlockError>> + 'static {
        BlockDevice::submit(self, io)
    }
}

/// Size and abilities of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Bytes; a multiple of 512.
    pub size_bytes: u64,
    /// Everything that changes data is refused.
    pub read_only: bool,
    /// Zeroing costs no more than discarding.
    pub fast_zero: bool,
}

/// One operation. Offsets and lengths are bytes, multiples of 512.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Io {
    /// Bytes of a range.
    Read {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// Replace bytes.
    Write {
        /// First byte.
        offset: u64,
        /// What.
        data: Bytes,
        /// Durable when it completes.
        fua: bool,
    },
    /// Replace by zeroes.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Space may be given back.
        discard: bool,
        /// Durable when it completes.
        fua: bool,
    },
    /// All writes that completed before are durable when it completes.
    Flush,
    /// Replace one 4 KiB block if it holds the expected bytes.
    CompareWrite {
        /// First byte of the block.
        offset: u64,
        /// What must be there, 4,096 bytes.
        expect: Bytes,
        /// What replaces it, 4,096 bytes.
        data: Bytes,
    },
    /// Which parts of a range hold data. The answer may cover only its beginning.
    Extents {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
}

/// Result of an operation that succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IoDone {
    /// Of a read. May be part of a larger buffer, which lives as long as this: who keeps small pieces
    /// for long copies them.
    Data(Bytes),
    /// Of what changes data, and of a flush.
    Done,
    /// Of a compare that found other bytes: nothing was written.
    Differs,
    /// Runs of bytes from the start of the range on; at least one.
    Extents(Vec<Run>),
}

/// Bytes that hold data, or a hole, which reads as zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Bytes.
    pub len: u64,
    /// Whether it holds data.
    pub data: bool,
}

impl Io {
    /// First byte and bytes of the range; nothing for a flush.
    pub fn range(&self) -> Option<(u64, u64)> {
        match self {
            Self::Read { offset, len } => Some((*offset, u64::from(*len))),
            Self::Write { offset, data, .. } | Self::CompareWrite { offset, data, .. } => {
                Some((*offset, data.len() as u64))
            }
            Self::WriteZeroes { offset, len, .. } | Self::Extents { offset, len } => {
                Some((*offset, *len))
            }
            Self::Flush => None,
        }
    }

    fn changes_data(&self) -> bool {
        match self {
            Self::Write { .. } | Self::WriteZeroes { .. } | Self::CompareWrite { .. } => true,
            Self::Read { .. } | Self::Flush | Self::Extents { .. } => false,
        }
    }

    /// What every device checks before it starts.
    ///
    /// # Errors
    ///
    /// `Unaligned`, `OutOfRange` or `ReadOnly`, never applied.
    pub fn check(&self, info: DeviceInfo) -> Result<(), BlockError> {
        let Some((offset, len)) = self.range() else {
            return Ok(());
        };
        let refuse = |kind| Err(BlockError::refused(kind, offset, len));
        let fits = offset.checked_add(len).is_some_and(|end| end <= info.size_bytes);
        if !fits || len == 0 {
            return refuse(Kind::OutOfRange);
        }
        if !offset.is_multiple_of(SECTOR_BYTES) || !len.is_multiple_of(SECTOR_BYTES) {
            return refuse(Kind::Unaligned);
        }
        if let Self::CompareWrite { expect, .. } = self {
            let block = offset.is_multiple_of(BLOCK_BYTES) && len == BLOCK_BYTES;
            if !block || expect.len() as u64 != BLOCK_BYTES {
                return refuse(Kind::Unaligned);
            }
        }
        if self.changes_data() && info.read_only {
            return refuse(Kind::ReadOnly);
        }
        Ok(())
    }
}
