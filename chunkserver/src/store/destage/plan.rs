//! How to write one changed chunk. Pure.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use tidewater_proto::geometry::{BLOCK_BYTES, CHUNK_BYTES};

use crate::store::{
    catalog::rows::{ChunkRow, Place},
    overlay::{BlockOverlay, ChunkOverlay},
};

/// What an operation and a byte cost on a device, in nanoseconds. Only the ratio counts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    pub(crate) operation_ns: u64,
    pub(crate) kilobyte_ns: u64,
}

/// A sorted 4 KiB write in a queue takes about 16 us of an NVMe drive that moves 1 GB/s.
pub(crate) const NVME: Cost = Cost { operation_ns: 16_000, kilobyte_ns: 1_000 };

/// How a chunk is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Nothing but holes is left of it.
    Remove,
    /// It lies in a fresh slot already.
    Stored(Place),
    /// Changed blocks go where the old ones are.
    InPlace,
    /// All of it goes to a fresh slot.
    Fresh,
}

/// Chooses. `row` is what is on disk.
pub(crate) fn plan(row: Option<&ChunkRow>, over: &ChunkOverlay, cost: Cost) -> Plan {
    let stays =
        |block: u16| !over.zeroed && row.is_some_and(|row| row.sums[usize::from(block)].is_some());
    let written = over.blocks.values().any(|block| !matches!(block, BlockOverlay::Zero));
    let blocks = row.map_or(0, |row| row.sums.len() as u16);
    if !written && !(0..blocks).any(|block| stays(block) && !over.blocks.contains_key(&block)) {
        return Plan::Remove;
    }
    let partial = over.blocks.values().any(|block| matches!(block, BlockOverlay::Partial(_)));
    let own_slot = row.is_some_and(|row| row.place.is_some() && row.references == 1);
    if !own_slot || over.zeroed || partial {
        return Plan::Fresh;
    }
    if in_place_ns(over, cost) <= fresh_ns(cost) { Plan::InPlace } else { Plan::Fresh }
}

fn in_place_ns(over: &ChunkOverlay, cost: Cost) -> u64 {
    let whole: Vec<u16> = over
        .blocks
        .iter()
        .filter(|(_, block)| matches!(block, BlockOverlay::Whole(..)))
        .map(|(&block, _)| block)
        .collect();
    let runs = whole.chunk_by(|a, b| a + 1 == *b).count() as u64;
    runs * cost.operation_ns + whole.len() as u64 * BLOCK_BYTES / 1024 * cost.kilobyte_ns
}

fn fresh_ns(cost: Cost) -> u64 {
    2 * (cost.operation_ns + CHUNK_BYTES / 1024 * cost.kilobyte_ns)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tidewater_proto::ids::Sequence;

    use super::*;

    fn row() -> ChunkRow {
        let mut row = ChunkRow::hole(Sequence(1));
        row.place = Some(Place { device: 1, slot: 1 });
        row.references = 1;
        row.sums.fill(Some(1));
        row
    }

    fn whole(blocks: impl Iterator<Item = u16>) -> ChunkOverlay {
        let data = Bytes::from(vec![1; 4096]);
        let blocks = blocks.map(|b| (b, BlockOverlay::Whole(data.clone(), 1))).collect();
        ChunkOverlay { changed: Sequence(2), blocks, ..ChunkOverlay::default() }
    }

    #[test]
    fn few_whole_blocks_go_in_place_and_many_to_a_fresh_slot() {
        assert_eq!(plan(Some(&row()), &whole([3, 9].into_iter()), NVME), Plan::InPlace);
        assert_eq!(plan(Some(&row()), &whole((0..200).step_by(2)), NVME), Plan::InPlace);
        assert_eq!(plan(Some(&row()), &whole((0..256).step_by(2)), NVME), Plan::Fresh);
        assert_eq!(plan(Some(&row()), &whole(0..256), NVME), Plan::InPlace, "one run, no read");
    }

    #[test]
    fn a_part_of_a_block_a_new_or_a_shared_chunk_goes_to_a_fresh_slot() {
        let mut part = whole([3].into_iter());
        part.blocks.insert(4, BlockOverlay::Partial(Box::default()));
        assert_eq!(plan(Some(&row()), &part, NVME), Plan::Fresh);
        assert_eq!(plan(None, &whole([3].into_iter()), NVME), Plan::Fresh);
        let shared = ChunkRow { references: 2, ..row() };
        assert_eq!(plan(Some(&shared), &whole([3].into_iter()), NVME), Plan::Fresh);
        let zeroed = ChunkOverlay { zeroed: true, ..whole([3].into_iter()) };
        assert_eq!(plan(Some(&row()), &zeroed, NVME), Plan::Fresh);
    }

    #[test]
    fn a_chunk_of_holes_is_removed() {
        let zeroed = ChunkOverlay { zeroed: true, ..ChunkOverlay::default() };
        assert_eq!(plan(Some(&row()), &zeroed, NVME), Plan::Remove);
        assert_eq!(plan(None, &zeroed, NVME), Plan::Remove);
        let blocks = (0..256).map(|b| (b, BlockOverlay::Zero)).collect();
        let all = ChunkOverlay { blocks, ..ChunkOverlay::default() };
        assert_eq!(plan(Some(&row()), &all, NVME), Plan::Remove);
    }
}
