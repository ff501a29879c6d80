//! Splits an operation on a volume into requests to single segments.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use tidewater_proto::geometry::{CHUNK_BYTES, Extent, SEGMENT_BYTES, split_by_segment};

/// One request's share of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Segment within the volume.
    pub segment: u32,
    /// Where in the segment.
    pub extent: Extent,
    /// Where in the operation's bytes the part starts.
    pub at: u64,
}

/// Where operations are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// At segment and chunk boundaries, so that no payload is longer than a chunk.
    Chunks,
    /// At segment boundaries only, for operations without payload.
    Segments,
}

/// The parts of a sector-aligned range, in order.
///
/// # Panics
///
/// If the range is not aligned to sectors; the device's check comes first.
pub fn parts(offset: u64, len: u64, segment_bytes: u64, cut: Cut) -> impl Iterator<Item = Part> {
    let piece_bytes = match cut {
        Cut::Chunks => CHUNK_BYTES,
        Cut::Segments => SEGMENT_BYTES,
    };
    let mut at = 0;
    split_by_segment(offset, len, segment_bytes)
        .flat_map(move |(segment, within, len)| {
            split_by_segment(within, len, piece_bytes).map(move |(piece, start, len)| {
                let first = u64::from(piece) * piece_bytes + start;
                (segment, first, len)
            })
        })
        .map(move |(segment, first, len)| {
            let extent =
                Extent::new(first, len, segment_bytes).expect("aligned and within a segment");
            let part = Part { segment, extent, at };
            at += len;
            part
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_range_is_cut_at_chunks_and_segments() {
        let segment = 4 << 20;
        let cuts: Vec<_> = parts((4 << 20) - 512, (1 << 20) + 1024, segment, Cut::Chunks)
            .map(|p| (p.segment, p.extent.offset(), p.extent.len(), p.at))
            .collect();
        assert_eq!(
            cuts,
            vec![
                (0, (4 << 20) - 512, 512, 0),
                (1, 0, 1 << 20, 512),
                (1, 1 << 20, 512, (1 << 20) + 512),
            ]
        );
        assert_eq!(parts(0, 3 << 20, segment, Cut::Segments).count(), 1);
    }

    proptest! {
        #[test]
        fn parts_cover_the_range_once_and_never_cross_a_boundary(
            offset in 0..40_000_u64, len in 1..40_000_u64, whole in any::<bool>(),
        ) {
            let (offset, len, segment) = (offset * 512, len * 512, 8 << 20);
            let cut = if whole { Cut::Segments } else { Cut::Chunks };
            let mut at = 0;
            for part in parts(offset, len, segment, cut) {
                prop_assert_eq!(part.at, at);
                let volume_at = u64::from(part.segment) * segment + part.extent.offset();
                prop_assert_eq!(volume_at, offset + at);
                if !whole {
                    prop_assert_eq!(part.extent.chunks().len(), 1);
                }
                at += part.extent.len();
            }
            prop_assert_eq!(at, len);
        }
    }
}
