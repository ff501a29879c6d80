//! A block device on a file.

use std::{
    fs::File,
    future::Future,
    io,
    os::unix::fs::FileExt,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use tidewater_proto::geometry::BLOCK_BYTES;
use tokio::task::spawn_blocking;

use super::{BlockDevice, DeviceInfo, Io, IoDone, Run};
use crate::error::{BlockError, Kind, Outcome};

/// Zeroes written at once.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// A device on a file of fixed size. Operations run on tokio's blocking threads.
#[derive(Clone, Debug)]
pub struct FileDevice {
    info: DeviceInfo,
    file: Arc<File>,
    /// Makes a compare-and-write atomic with other changes; held on blocking threads only.
    changing: Arc<Mutex<()>>,
}

impl FileDevice {
    /// Opens or makes a file and gives it `size_bytes`, a multiple of 512.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    pub fn create(path: &Path, size_bytes: u64) -> io::Result<Self> {
        let file =
            File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        file.set_len(size_bytes)?;
        let info = DeviceInfo { size_bytes, read_only: false, fast_zero: false };
        Ok(Self { info, file: Arc::new(file), changing: Arc::default() })
    }

    fn run(&self, io: &Io) -> io::Result<IoDone> {
        let _one_change = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        match io {
            Io::Read { offset, len } => self.read(*offset, *len as usize).map(IoDone::Data),
            Io::Write { offset, data, fua } => {
                self.file.write_all_at(data, *offset)?;
                self.done(*fua)
            }
            Io::WriteZeroes { offset, len, fua, .. } => {
                let mut at = *offset;
                while at < offset + len {
                    let now = (offset + len - at).min(ZEROES.len() as u64);
                    self.file.write_all_at(&ZEROES[..now as usize], at)?;
                    at += now;
                }
                self.done(*fua)
            }
            Io::Flush => self.done(true),
            Io::CompareWrite { offset, expect, data } => {
                if self.read(*offset, BLOCK_BYTES as usize)? != *expect {
                    return Ok(IoDone::Differs);
                }
                self.file.write_all_at(data, *offset)?;
                self.done(false)
            }
            Io::Extents { len, .. } => Ok(IoDone::Extents(vec![Run { len: *len, data: true }])),
        }
    }

    fn read(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let mut data = vec![0; len];
        self.file.read_exact_at(&mut data, offset)?;
        Ok(data.into())
    }

    fn done(&self, durable: bool) -> io::Result<IoDone> {
        if durable {
            self.file.sync_data()?;
        }
        Ok(IoDone::Done)
    }
}

impl BlockDevice for FileDevice {
    fn info(&self) -> DeviceInfo {
        self.info
    }

    fn submit(&self, io: Io) -> impl Future<Output = Result<IoDone, BlockError>> + Send + 'static {
        let device = self.clone();
        async move {
            io.check(device.info)?;
            let (offset, len) = io.range().unwrap_or_default();
            let outcome = Outcome::Unknown;
            let fail = |kind| BlockError { kind, outcome, offset, len, tries: 1 };
            spawn_blocking(move || device.run(&io))
                .await
                .map_err(|_| fail(Kind::Closed))?
                .map_err(|e| fail(Kind::File(e.kind())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::contract;

    #[tokio::test]
    async fn file_device_keeps_the_contract() {
        let dir = tempfile::tempdir().expect("a folder");
        let disk = FileDevice::create(&dir.path().join("disk"), 8 << 20).expect("a file");
        contract::check(&disk).await.expect("no errors");
    }
}
