//! Sizes every process agrees on, and how a volume's byte range falls into segments and blocks.

use std::ops::Range;

/// Unit of checksum.
pub const BLOCK_BYTES: u64 = 4096;
/// Smallest write; every offset and length is a multiple of it.
pub const SECTOR_BYTES: u64 = 512;
/// Unit of tiering and of copying between replicas.
pub const CHUNK_BYTES: u64 = 1 << 20;
/// Blocks of a chunk.
pub const CHUNK_BLOCKS: usize = (CHUNK_BYTES / BLOCK_BYTES) as usize;
/// Default size of a segment; a cluster may be made with a smaller one.
pub const SEGMENT_BYTES: u64 = 1 << 30;
/// Largest volume.
pub const VOLUME_BYTES_MAX: u64 = 64 << 40;
/// Largest payload of one data-plane request. Longer operations are split by the client.
pub const PAYLOAD_BYTES_MAX: u64 = CHUNK_BYTES;

/// A sector-aligned, non-empty piece of one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Extent {
    offset: u32,
    len: u32,
}

/// Why a byte range is no [`Extent`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("range {offset}+{len} bytes is empty, unaligned or reaches past {limit}")]
pub struct BadExtent {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Where the range must end.
    pub limit: u64,
}

impl Extent {
    /// Checks that the range is non-empty, sector-aligned and ends within `limit` bytes.
    pub fn new(offset: u64, len: u64, limit: u64) -> Result<Self, BadExtent> {
        let aligned = offset.is_multiple_of(SECTOR_BYTES) && len.is_multiple_of(SECTOR_BYTES);
        let fits = offset.checked_add(len).is_some_and(|end| end <= limit.min(SEGMENT_BYTES));
        if len == 0 || !aligned || !fits {
            return Err(BadExtent { offset, len, limit });
        }
        Ok(Self { offset: offset as u32, len: len as u32 })
    }

    /// First byte, within the segment.
    pub fn offset(self) -> u64 {
        u64::from(self.offset)
    }

    /// Length in bytes.
    #[allow(clippy::len_without_is_empty)] // an extent is never empty
    pub fn len(self) -> u64 {
        u64::from(self.len)
    }

    /// First byte after the extent.
    pub fn end(self) -> u64 {
        self.offset() + self.len()
    }

    /// Blocks it touches, in part or whole, numbered within the segment.
    pub fn blocks(self) -> Range<u32> {
        (self.offset() / BLOCK_BYTES) as u32..self.end().div_ceil(BLOCK_BYTES) as u32
    }

    /// Chunks it touches, numbered within the segment.
    pub fn chunks(self) -> Range<u32> {
        (self.offset() / CHUNK_BYTES) as u32..self.end().div_ceil(CHUNK_BYTES) as u32
    }

    /// Whether the two share a block. Ordering is by block: sectors of one block are one register.
    pub fn shares_block(self, other: Self) -> bool {
        self.blocks().start < other.blocks().end && other.blocks().start < self.blocks().end
    }

    /// The pieces of each touched block: (block, first byte within the block, bytes within `self`).
    pub fn pieces(self) -> impl Iterator<Item = Piece> {
        self.blocks().map(move |block| {
            let base = u64::from(block) * BLOCK_BYTES;
            let start = self.offset().max(base);
            let end = self.end().min(base + BLOCK_BYTES);
            Piece {
                block,
                within: (start - base) as usize,
                data: (start - self.offset()) as usize..(end - self.offset()) as usize,
            }
        })
    }
}

/// The part of an extent that lies in one block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Block, numbered within the segment.
    pub block: u32,
    /// Where in the block the piece starts, bytes.
    pub within: usize,
    /// Which bytes of the extent's data it is.
    pub data: Range<usize>,
}

impl Piece {
    /// Whether the piece covers its block.
    pub fn is_whole(&self) -> bool {
        self.data.len() as u64 == BLOCK_BYTES
    }
}

/// Splits a volume's byte range at segment boundaries: (segment index, offset within it, bytes).
pub fn split_by_segment(
    offset: u64,
    len: u64,
    segment_bytes: u64,
) -> impl Iterator<Item = (u32, u64, u64)> {
    let end = offset + len;
    let mut at = offset;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let within = at % segment_bytes;
        let take = (segment_bytes - within).min(end - at);
        let index = (at / segment_bytes) as u32;
        at += take;
        Some((index, within, take))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extent_refuses_what_is_empty_unaligned_or_too_long() {
        for (offset, len) in [(0, 0), (1, 512), (512, 100), (4096, 8192), (u64::MAX - 511, 512)] {
            assert!(Extent::new(offset, len, 8192).is_err(), "{offset}+{len}");
        }
        assert_eq!(Extent::new(4096, 4096, 8192).map(Extent::end), Ok(8192));
    }

    #[test]
    fn pieces_cover_the_extent_once_and_in_order() {
        let extent = Extent::new(3584, 5120, 1 << 20).expect("valid");
        let pieces: Vec<_> = extent.pieces().collect();
        assert_eq!(pieces.len(), 3);
        assert_eq!((pieces[0].block, pieces[0].within, pieces[0].data.clone()), (0, 3584, 0..512));
        assert!(pieces[1].is_whole());
        assert_eq!((pieces[2].block, pieces[2].within, pieces[2].data.clone()), (2, 0, 4608..5120));
    }

    #[test]
    fn a_range_splits_at_segment_boundaries() {
        let parts: Vec<_> = split_by_segment(1000, 3000, 2048).collect();
        assert_eq!(parts, vec![(0, 1000, 1048), (1, 0, 1952)]);
    }
}
