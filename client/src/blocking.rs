//! The same without async, for programs that have no runtime.

use std::{io, ops::Range, sync::Arc};

use bytes::Bytes;
use tidewater_proto::{
    meta_client::{MetaCode, MetaError},
    rpc,
};
use tokio::runtime::{Builder, Runtime};

use crate::{
    cluster,
    device::{BlockDevice, BlockDeviceExt as _, DeviceInfo, Run},
    error::BlockError,
    open::Open,
    session::{CloseError, OpenError},
    volume,
};

/// A block device whose methods wait for their result.
///
/// ```
/// use tidewater_client::{MemDevice, blocking::Disk};
/// let disk = Disk::new(MemDevice::new(1 << 20))?;
/// disk.write_at(0, vec![1; 4096])?;
/// assert_eq!(disk.read_at(0, 512)?, vec![1; 512]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Disk<D> {
    device: D,
    runtime: Arc<Runtime>,
}

fn runtime() -> io::Result<Arc<Runtime>> {
    Ok(Arc::new(Builder::new_current_thread().enable_all().build()?))
}

impl<D: BlockDevice> Disk<D> {
    /// Wraps a device.
    ///
    /// # Errors
    ///
    /// If the operating system has no resources for a runtime.
    pub fn new(device: D) -> io::Result<Self> {
        Ok(Self { device, runtime: runtime()? })
    }

    /// Size and abilities.
    pub fn info(&self) -> DeviceInfo {
        self.device.info()
    }

    /// See [`read_at`](crate::BlockDeviceExt::read_at).
    ///
    /// # Errors
    ///
    /// [`BlockError`].
    pub fn read_at(&self, offset: u64, len: u32) -> Result<Bytes, BlockError> {
        self.runtime.block_on(self.device.read_at(offset, len))
    }

    /// See [`read_into`](crate::BlockDeviceExt::read_into).
    ///
    /// # Errors
    ///
    /// [`BlockError`].
    pub fn read_into(&self, offset: u64, buf: &mut [u8]) -> Result<(), BlockError> {
        self.runtime.block_on(self.device.read_into(offset, buf))
    }

    /// See [`write_at`](crate::BlockDeviceExt::write_at).
    ///
    /// # Errors
    ///
    /// [`BlockError`].
    pub fn write_at(&self, offset: u64, data: impl Into<Bytes>) -> Result<(), BlockError> {
        self.runtime.block_on(self.device.write_at(offset, data))
    }

    /// See [`write_at_fua`](crate::BlockDeviceExt::write_at_fua).
    ///
    /// # Errors
    ///
    /// [`BlockError`].
    pub fn write_at_fua(&self, offset: u64, data: impl Into<Bytes>) -> Result<(), BlockError> {
        self.runtime.block_on(self.device.write_at_fua(offset, data))
    }

    /// See [`write_zeroes`](crate::BlockDeviceExt::write_zeroes).
    ///
    /// # Errors
    ///
    /// [`BlockError`].
    pub fn write_zeroes(&self, range: Range<u64>) -> Result<(), BlockError> {
        self.runtime.block_on(self.device.write_zeroes(range))
    }

    /// See [`discard`](crate::BlockDeviceExt::discard).
    ///
    /// # Errors
    ///
    /// [`BlockError`].
    pub fn discard(&self, range: Range<u64>) -> Result<(), BlockError> {
        self.runtime.block_on(self.device.discard(range))
    }

    /// See [`flush`](crate::BlockDeviceExt::flush).
    ///
    /// # Errors
    ///
    /// [`BlockError`].
    pub fn flush(&self) -> Result<(), BlockError> {
        self.runtime.block_on(self.device.flush())
    }

    /// See [`compare_and_write`](crate::BlockDeviceExt::compare_and_write).
    ///
    /// # Errors
    ///
    /// [`BlockError`].
    pub fn compare_and_write(
        &self,
        offset: u64,
        expect: Bytes,
        data: Bytes,
    ) -> Result<bool, BlockError> {
        self.runtime.block_on(self.device.compare_and_write(offset, expect, data))
    }

    /// See [`extents`](crate::BlockDeviceExt::extents).
    ///
    /// # Errors
    ///
    /// [`BlockError`].
    pub fn extents(&self, range: Range<u64>) -> Result<Vec<Run>, BlockError> {
        self.runtime.block_on(self.device.extents(range))
    }
}

impl Disk<volume::Volume> {
    /// See [`Volume::close`](crate::Volume::close).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn close(self) -> Result<(), CloseError> {
        self.runtime.block_on(self.device.close())
    }
}

/// A cluster whose methods wait for their result.
#[derive(Clone)]
pub struct Cluster {
    cluster: cluster::Cluster,
    runtime: Arc<Runtime>,
}

impl Cluster {
    /// A cluster at these addresses, once a node has answered.
    ///
    /// # Errors
    ///
    /// [`MetaError`] if no node answers in time.
    pub fn connect<S: Into<String>>(
        endpoints: impl IntoIterator<Item = S>,
    ) -> Result<Self, MetaError> {
        let runtime = runtime()
            .map_err(|e| MetaError { code: MetaCode::Internal, message: e.to_string() })?;
        let cluster = runtime.block_on(cluster::Cluster::connect(endpoints))?;
        Ok(Self { cluster, runtime })
    }

    /// Makes a volume.
    ///
    /// # Errors
    ///
    /// [`MetaError`].
    pub fn create_volume(
        &self,
        request: rpc::CreateVolumeRequest,
    ) -> Result<rpc::Volume, MetaError> {
        self.runtime.block_on(self.cluster.create_volume(request))
    }

    /// Opens a volume.
    ///
    /// # Errors
    ///
    /// [`OpenError`].
    pub fn open(
        &self,
        volume: impl Into<String>,
        options: Open,
    ) -> Result<Disk<volume::Volume>, OpenError> {
        let device = self.runtime.block_on(self.cluster.volume(volume).open(options))?;
        Ok(Disk { device, runtime: Arc::clone(&self.runtime) })
    }
}
