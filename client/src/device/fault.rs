//! A device whose operations fail on purpose.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{BlockDevice, DeviceInfo, Io, IoDone};
use crate::error::{BlockError, Kind, Outcome};

/// Passes everything on to `inner`, but fails each `every`-th operation after it took effect.
#[derive(Clone, Debug)]
pub struct FaultyDevice<D> {
    inner: D,
    every: u64,
    seen: Arc<AtomicU64>,
}

impl<D: BlockDevice> FaultyDevice<D> {
    /// Fails each `every`-th operation; 0 never.
    pub fn new(inner: D, every: u64) -> Self {
        Self { inner, every, seen: Arc::default() }
    }
}

impl<D: BlockDevice> BlockDevice for FaultyDevice<D> {
    fn info(&self) -> DeviceInfo {
        self.inner.info()
    }

    fn submit(&self, io: Io) -> impl Future<Output = Result<IoDone, BlockError>> + Send + 'static {
        let count = self.seen.fetch_add(1, Ordering::Relaxed) + 1;
        let fails = self.every != 0 && count.is_multiple_of(self.every);
        let (offset, len) = io.range().unwrap_or_default();
        let io = self.inner.submit(io);
        async move {
            let done = io.await?;
            if fails {
                let (kind, outcome) = (Kind::Injected, Outcome::Unknown);
                return Err(BlockError { kind, outcome, offset, len, tries: 1 });
            }
            Ok(done)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{BlockDeviceExt, MemDevice, contract};

    #[tokio::test]
    async fn without_faults_it_keeps_the_contract() {
        contract::check(&FaultyDevice::new(MemDevice::new(8 << 20), 0)).await.expect("no errors");
    }

    #[tokio::test]
    async fn every_second_operation_fails_with_an_unknown_outcome() {
        let disk = FaultyDevice::new(MemDevice::new(1 << 20), 2);
        disk.write_at(0, vec![1; 512]).await.expect("the first passes");
        let error = disk.write_at(0, vec![2; 512]).await.expect_err("the second fails");
        assert_eq!(error.outcome, Outcome::Unknown);
    }
}
