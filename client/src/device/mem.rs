//! A block device in memory, for tests and examples.

use std::{
    collections::BTreeMap,
    future::{Future, ready},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::{Bytes, BytesMut};
use tidewater_proto::geometry::BLOCK_BYTES;

use super::{BlockDevice, DeviceInfo, Io, IoDone, Run, ext::push_run};
use crate::error::BlockError;

/// Bytes allocated together.
const PAGE_BYTES: u64 = 64 << 10;

/// A sparse device in memory. Clones share the same bytes. Every write is durable at once, for as
/// long as the process lives.
#[derive(Clone, Debug)]
pub struct MemDevice {
    info: DeviceInfo,
    /// A lock, because clones are used from many threads at once; never held across an await.
    pages: Arc<Mutex<BTreeMap<u64, Box<[u8]>>>>,
}

impl MemDevice {
    /// An empty device of `size_bytes`, a multiple of 512.
    pub fn new(size_bytes: u64) -> Self {
        let info = DeviceInfo { size_bytes, read_only: false, fast_zero: true };
        Self { info, pages: Arc::default() }
    }

    /// The same bytes, but everything that changes them is refused.
    #[must_use]
    pub fn read_only(&self) -> Self {
        let info = DeviceInfo { read_only: true, ..self.info };
        Self { info, pages: Arc::clone(&self.pages) }
    }

    fn run(&self, io: Io) -> Result<IoDone, BlockError> {
        io.check(self.info)?;
        let mut pages = Pages(&mut self.pages.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(match io {
            Io::Read { offset, len } => IoDone::Data(pages.read(offset, u64::from(len))),
            Io::Write { offset, data, .. } => pages.write(offset, &data),
            Io::WriteZeroes { offset, len, .. } => pages.zero(offset, len),
            Io::Flush => IoDone::Done,
            Io::CompareWrite { offset, expect, data } => {
                if pages.read(offset, BLOCK_BYTES) == expect {
                    pages.write(offset, &data)
                } else {
                    IoDone::Differs
                }
            }
            Io::Extents { offset, len } => IoDone::Extents(pages.runs(offset, len)),
        })
    }
}

impl BlockDevice for MemDevice {
    fn info(&self) -> DeviceInfo {
        self.info
    }

    fn submit(&self, io: Io) -> impl Future<Output = Result<IoDone, BlockError>> + Send + 'static {
        ready(self.run(io))
    }
}

struct Pages<'a>(&'a mut BTreeMap<u64, Box<[u8]>>);

/// The pages of a range: (page, first byte within it, bytes).
fn split(offset: u64, len: u64) -> impl Iterator<Item = (u64, usize, usize)> {
    let end = offset + len;
    (offset / PAGE_BYTES..end.div_ceil(PAGE_BYTES)).map(move |page| {
        let start = offset.max(page * PAGE_BYTES);
        let stop = end.min((page + 1) * PAGE_BYTES);
        (page, (start % PAGE_BYTES) as usize, (stop - start) as usize)
    })
}

impl Pages<'_> {
    fn read(&self, offset: u64, len: u64) -> Bytes {
        let mut out = BytesMut::with_capacity(len as usize);
        for (page, at, bytes) in split(offset, len) {
            match self.0.get(&page) {
                Some(data) => out.extend_from_slice(&data[at..at + bytes]),
                None => out.resize(out.len() + bytes, 0),
            }
        }
        out.freeze()
    }

    fn write(&mut self, offset: u64, mut data: &[u8]) -> IoDone {
        for (page, at, bytes) in split(offset, data.len() as u64) {
            let (now, rest) = data.split_at(bytes);
            data = rest;
            let zeroes = || vec![0; PAGE_BYTES as usize].into();
            self.0.entry(page).or_insert_with(zeroes)[at..at + bytes].copy_from_slice(now);
        }
        IoDone::Done
    }

    fn zero(&mut self, offset: u64, len: u64) -> IoDone {
        let pages = offset / PAGE_BYTES..(offset + len).div_ceil(PAGE_BYTES);
        let held: Vec<u64> = self.0.range(pages).map(|(page, _)| *page).collect();
        for page in held {
            let start = offset.max(page * PAGE_BYTES);
            let stop = (offset + len).min((page + 1) * PAGE_BYTES);
            if stop - start == PAGE_BYTES {
                self.0.remove(&page);
            } else if let Some(data) = self.0.get_mut(&page) {
                let at = (start % PAGE_BYTES) as usize;
                data[at..at + (stop - start) as usize].fill(0);
            }
        }
        IoDone::Done
    }

    fn runs(&self, offset: u64, len: u64) -> Vec<Run> {
        let end = offset + len;
        let mut runs = Vec::new();
        let mut at = offset;
        for (&page, _) in self.0.range(offset / PAGE_BYTES..end.div_ceil(PAGE_BYTES)) {
            let start = offset.max(page * PAGE_BYTES);
            let stop = end.min((page + 1) * PAGE_BYTES);
            if start > at {
                push_run(&mut runs, Run { len: start - at, data: false });
            }
            push_run(&mut runs, Run { len: stop - start, data: true });
            at = stop;
        }
        if at < end {
            push_run(&mut runs, Run { len: end - at, data: false });
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{BlockDeviceExt, contract};

    #[tokio::test]
    async fn mem_device_keeps_the_contract() {
        contract::check(&MemDevice::new(8 << 20)).await.expect("no errors");
    }

    #[tokio::test]
    async fn a_read_only_device_refuses_every_change() {
        let disk = MemDevice::new(1 << 20);
        let view = disk.read_only();
        assert!(view.write_at(0, vec![1; 512]).await.is_err());
        assert!(view.discard(0..512).await.is_err());
        disk.write_at(0, vec![1; 512]).await.expect("writable");
        assert_eq!(view.read_at(0, 512).await.expect("readable"), vec![1; 512]);
    }
}
