//! The contract of [`BlockDevice`], as a test that every implementation passes.

use bytes::Bytes;
use tidewater_proto::geometry::BLOCK_BYTES;

use super::{BlockDevice, BlockDeviceExt};
use crate::error::{BlockError, Kind, Outcome};

/// Runs the contract against a fresh, writable device of at least 8 MiB.
///
/// # Errors
///
/// The first error of the device.
///
/// # Panics
///
/// If the device breaks the contract.
pub async fn check(disk: &impl BlockDevice) -> Result<(), BlockError> {
    reads_see_writes(disk).await?;
    zeroes_and_extents(disk).await?;
    compare_and_write(disk).await?;
    bad_ranges(disk).await;
    many_in_flight(disk).await?;
    disk.flush().await
}

fn filled(byte: u8, len: usize) -> Bytes {
    vec![byte; len].into()
}

async fn reads_see_writes(disk: &impl BlockDevice) -> Result<(), BlockError> {
    assert_eq!(disk.read_at(0, 8192).await?, filled(0, 8192), "unwritten bytes read as zero");
    disk.write_at(3584, filled(7, 1024)).await?;
    let data = disk.read_at(3072, 2048).await?;
    assert_eq!(data[..512], [0; 512], "a write changes nothing before it");
    assert_eq!(data[512..1536], [7; 1024], "a read sees a completed write");
    assert_eq!(data[1536..], [0; 512], "a write changes nothing behind it");

    let long: Bytes = (0..3 << 20).map(|i| (i / 512) as u8).collect();
    disk.write_at_fua((1 << 20) - 512, long.clone()).await?;
    let back = disk.read_at((1 << 20) - 512, 3 << 20).await?;
    assert!(back == long, "a long write reads back whole");

    let mut part = [0; 100];
    disk.read_into((1 << 20) + 450, &mut part).await?;
    assert_eq!(part[..], long[962..1062], "read_into takes any alignment");
    Ok(())
}

async fn zeroes_and_extents(disk: &impl BlockDevice) -> Result<(), BlockError> {
    disk.write_at(0, filled(9, 2 << 20)).await?;
    disk.write_zeroes(512..1024).await?;
    disk.discard(1 << 20..2 << 20).await?;
    assert_eq!(disk.read_at(0, 512).await?, filled(9, 512));
    assert_eq!(disk.read_at(512, 512).await?, filled(0, 512), "zeroed");
    assert_eq!(disk.read_at(1 << 20, 1 << 20).await?, filled(0, 1 << 20), "discarded");

    let size = disk.info().size_bytes;
    let runs = disk.extents(0..size).await?;
    assert_eq!(runs.iter().map(|r| r.len).sum::<u64>(), size, "extents cover the range");
    assert!(runs[0].data, "data is never told to be a hole");
    Ok(())
}

async fn compare_and_write(disk: &impl BlockDevice) -> Result<(), BlockError> {
    let (at, len) = (2 * BLOCK_BYTES, BLOCK_BYTES as usize);
    disk.write_at(at, filled(1, len)).await?;
    assert!(!disk.compare_and_write(at, filled(2, len), filled(3, len)).await?);
    assert_eq!(disk.read_at(at, 512).await?, filled(1, 512), "a failed compare writes nothing");
    assert!(disk.compare_and_write(at, filled(1, len), filled(3, len)).await?);
    assert_eq!(disk.read_at(at, 512).await?, filled(3, 512));
    Ok(())
}

async fn bad_ranges(disk: &impl BlockDevice) {
    let size = disk.info().size_bytes;
    for (offset, len, kind) in [
        (1, 512, Kind::Unaligned),
        (0, 100, Kind::Unaligned),
        (0, 0, Kind::OutOfRange),
        (size, 512, Kind::OutOfRange),
        (size - 512, 1024, Kind::OutOfRange),
        (u64::MAX - 511, 512, Kind::OutOfRange),
    ] {
        let error = disk.write_at(offset, filled(1, len)).await.expect_err("a bad range");
        assert_eq!((error.kind, error.outcome), (kind, Outcome::NotApplied), "{offset}+{len}");
    }
}

async fn many_in_flight(disk: &impl BlockDevice) -> Result<(), BlockError> {
    let writes = (0..64_u64).map(|i| disk.write_at(i * BLOCK_BYTES, filled(i as u8, 4096)));
    for result in futures::future::join_all(writes).await {
        result?;
    }
    let reads = (0..64_u64).map(|i| disk.read_at(i * BLOCK_BYTES, 4096));
    for (i, data) in futures::future::join_all(reads).await.into_iter().enumerate() {
        assert_eq!(data?, filled(i as u8, 4096), "block {i}");
    }
    Ok(())
}
