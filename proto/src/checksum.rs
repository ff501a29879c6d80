//! End-to-end checksums: xxh3-64 of each block a range touches, over the bytes within the range.

use xxhash_rust::xxh3::xxh3_64;

use crate::geometry::{BLOCK_BYTES, Extent};

/// xxh3-64 of `bytes`.
pub fn sum(bytes: &[u8]) -> u64 {
    xxh3_64(bytes)
}

/// Checksum of a block of zeroes, what a hole reads as.
pub fn zero_block_sum() -> u64 {
    static SUM: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    *SUM.get_or_init(|| sum(&[0; BLOCK_BYTES as usize]))
}

/// One checksum for each block that `extent` touches, over the bytes of `data` in that block.
///
/// `data` is `extent.len()` bytes long.
pub fn sums(extent: Extent, data: &[u8]) -> Vec<u64> {
    extent.pieces().map(|piece| sum(&data[piece.data])).collect()
}

/// A block whose bytes are not those that were summed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("checksum mismatch in block {block} of the segment")]
pub struct BadSum {
    /// Block within the segment.
    pub block: u32,
}

/// Compares `data` with `sums`, block by block (INV-SUM).
///
/// # Errors
///
/// The first block that does not match; a wrong number of sums fails at the first one missing.
pub fn verify(extent: Extent, data: &[u8], sums: &[u64]) -> Result<(), BadSum> {
    for (i, piece) in extent.pieces().enumerate() {
        let block = piece.block;
        let ok = data.get(piece.data).zip(sums.get(i)).is_some_and(|(d, &want)| sum(d) == want);
        if !ok {
            return Err(BadSum { block });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Golden value: a change here is a change of the wire and disk formats.
    #[test]
    fn sum_of_a_zero_block_is_pinned() {
        assert_eq!(zero_block_sum(), 10_653_106_456_947_493_306);
    }

    #[test]
    fn a_flipped_bit_is_found_in_its_block() {
        let extent = Extent::new(512, 8192, 1 << 20).expect("valid");
        let mut data = vec![7; 8192];
        let want = sums(extent, &data);
        assert_eq!(verify(extent, &data, &want), Ok(()));
        data[5000] ^= 1;
        assert_eq!(verify(extent, &data, &want), Err(BadSum { block: 1 }));
    }
}
