//! Applied changes that are not yet in the slots, in memory: by replica, chunk and block.
//!
//! A store has two generations: the *active* one takes changes, the *frozen* one is being destaged.
//! Reads look at the active one, then at the frozen one, then at the disk.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;

use bytes::Bytes;
use tidewater_proto::{
    checksum,
    entry::{Change, Entry, Payload},
    geometry::{BLOCK_BYTES, CHUNK_BLOCKS, CHUNK_BYTES, Extent, Piece, SECTOR_BYTES},
    ids::{ReplicaId, Sequence},
};

use super::catalog::rows::Place;

const BLOCK: usize = BLOCK_BYTES as usize;
const SECTOR: usize = SECTOR_BYTES as usize;
/// Sectors of a block.
const SECTORS: usize = BLOCK / SECTOR;
/// Counted for each changed block besides its bytes: the entry in the tree.
const BLOCK_OVERHEAD_BYTES: u64 = 128;

static ZEROES: [u8; SECTOR] = [0; SECTOR];

/// Newest bytes of some sectors of a block.
pub(crate) type Sectors = Box<[Option<Bytes>; SECTORS]>;

/// What is known of one block.
#[derive(Clone, Debug)]
pub(crate) enum BlockOverlay {
    /// All of it, and its checksum.
    Whole(Bytes, u64),
    /// Zeroes.
    Zero,
    /// Some sectors; the rest is below.
    Partial(Sectors),
}

/// What is known of one chunk.
#[derive(Clone, Debug, Default)]
pub(crate) struct ChunkOverlay {
    /// Blocks not listed are zeroes, whatever is below.
    pub(crate) zeroed: bool,
    /// Last change.
    pub(crate) changed: Sequence,
    /// Changed blocks, numbered within the chunk.
    pub(crate) blocks: BTreeMap<u16, BlockOverlay>,
    /// Where all of it lies already, just as it is here.
    pub(crate) stored: Option<Place>,
}

/// Changes of one period.
#[derive(Clone, Debug, Default)]
pub(crate) struct Generation {
    replicas: BTreeMap<ReplicaId, BTreeMap<u32, ChunkOverlay>>,
    bytes: u64,
    /// Something was zeroed, so that a chunk may hold less than what is below.
    zeroes: bool,
}

/// What the generations say about a block.
#[derive(Clone, Debug)]
pub(crate) enum Look {
    /// Its bytes, and their checksum where it is at hand.
    Known(Bytes, Option<u64>),
    /// Zeroes.
    Zero,
    /// The disk's bytes, with these sectors over them.
    Below(Option<Sectors>),
}

impl Generation {
    /// Memory held, at most: a payload counts whole, for as long as any part of it may live.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether anything was zeroed.
    pub(crate) fn zeroes(&self) -> bool {
        self.zeroes
    }

    pub(crate) fn chunk(&self, replica: ReplicaId, chunk: u32) -> Option<&ChunkOverlay> {
        self.replicas.get(&replica)?.get(&chunk)
    }

    /// Changed chunks of a replica.
    pub(crate) fn chunks(&self, replica: ReplicaId) -> impl Iterator<Item = (u32, &ChunkOverlay)> {
        self.replicas.get(&replica).into_iter().flatten().map(|(&chunk, over)| (chunk, over))
    }

    /// Everything, ordered by replica and chunk.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (ReplicaId, u32, &ChunkOverlay)> {
        self.replicas
            .iter()
            .flat_map(|(&replica, chunks)| chunks.iter().map(move |(&c, over)| (replica, c, over)))
    }

    /// The change at `changed` is all that a chunk holds, and lies at `place`.
    pub(crate) fn store(
        &mut self,
        replica: ReplicaId,
        chunk: u32,
        changed: Sequence,
        place: Place,
    ) {
        let over = self.replicas.get_mut(&replica).and_then(|chunks| chunks.get_mut(&chunk));
        if let Some(over) = over.filter(|over| over.changed == changed) {
            debug_assert_eq!(over.blocks.len(), CHUNK_BLOCKS, "a whole chunk");
            over.stored = Some(place);
        }
    }

    /// Forgets a replica.
    pub(crate) fn remove(&mut self, replica: ReplicaId) {
        self.replicas.remove(&replica);
    }

    /// Forgets a chunk.
    pub(crate) fn remove_chunk(&mut self, replica: ReplicaId, chunk: u32) {
        if let Some(chunks) = self.replicas.get_mut(&replica) {
            chunks.remove(&chunk);
        }
    }

    /// Moves the chunks of `replica` for which `stay` is true to `other`.
    pub(crate) fn split(
        &mut self,
        replica: ReplicaId,
        other: &mut Self,
        stay: impl Fn(u32) -> bool,
    ) {
        let Some(chunks) = self.replicas.get_mut(&replica) else { return };
        let moved: BTreeMap<_, _> = chunks.extract_if(.., |chunk, _| stay(*chunk)).collect();
        let bytes: u64 = moved.values().map(ChunkOverlay::bytes).sum();
        self.bytes = self.bytes.saturating_sub(bytes);
        other.bytes += bytes;
        other.zeroes |= self.zeroes;
        other.replicas.entry(replica).or_default().extend(moved);
    }

    /// Applies an entry to the chunks that `wanted` accepts.
    pub(crate) fn apply(
        &mut self,
        replica: ReplicaId,
        entry: &Entry<Payload>,
        mut wanted: impl FnMut(u32) -> bool,
    ) {
        let Some(extent) = entry.change.extent() else { return };
        let changed = entry.position.sequence;
        self.zeroes |= matches!(entry.change, Change::Zero { .. });
        let chunks = self.replicas.entry(replica).or_default();
        for chunk in extent.chunks().filter(|&chunk| wanted(chunk)) {
            let over = chunks.entry(chunk).or_default();
            over.changed = changed;
            match &entry.change {
                Change::Activate => {}
                Change::Write { data, .. } => over.write(chunk, extent, data),
                Change::Zero { .. } => over.zero(chunk, extent),
            }
        }
        self.bytes += match &entry.change {
            Change::Activate => 0,
            Change::Write { data, .. } => {
                data.data.len() as u64 + extent.blocks().len() as u64 * BLOCK_OVERHEAD_BYTES
            }
            Change::Zero { .. } => {
                let blocks = extent.blocks().len().min(2 * CHUNK_BLOCKS) as u64;
                blocks * BLOCK_OVERHEAD_BYTES
            }
        };
    }
}

impl ChunkOverlay {
    fn bytes(&self) -> u64 {
        self.blocks.len() as u64 * (BLOCK_BYTES + BLOCK_OVERHEAD_BYTES)
    }

    fn write(&mut self, chunk: u32, extent: Extent, data: &Payload) {
        self.stored = None;
        for (i, block, piece) in pieces_in(chunk, extent) {
            let bytes = data.data.slice(piece.data.clone());
            if piece.is_whole() {
                let sum = data.sum(i).unwrap_or_else(|| checksum::sum(&bytes));
                self.blocks.insert(block, BlockOverlay::Whole(bytes, sum));
            } else {
                let sectors =
                    (0..bytes.len()).step_by(SECTOR).map(|at| bytes.slice(at..at + SECTOR));
                self.put(block, piece.within / SECTOR, sectors);
            }
        }
    }

    fn zero(&mut self, chunk: u32, extent: Extent) {
        self.stored = None;
        let start = u64::from(chunk) * CHUNK_BYTES;
        if extent.offset() <= start && extent.end() >= start + CHUNK_BYTES {
            self.zeroed = true;
            self.blocks.clear();
            return;
        }
        for (_, block, piece) in pieces_in(chunk, extent) {
            if !piece.is_whole() {
                let count = piece.data.len() / SECTOR;
                let sectors = std::iter::repeat_n(Bytes::from_static(&ZEROES), count);
                self.put(block, piece.within / SECTOR, sectors);
            } else if self.zeroed {
                self.blocks.remove(&block);
            } else {
                self.blocks.insert(block, BlockOverlay::Zero);
            }
        }
    }

    /// Puts sectors over what is known of the block.
    fn put(&mut self, block: u16, first: usize, sectors: impl Iterator<Item = Bytes>) {
        let mut all: Sectors = Box::default();
        for (slot, sector) in all[first..].iter_mut().zip(sectors) {
            *slot = Some(sector);
        }
        let merged = match (self.blocks.remove(&block), self.zeroed) {
            (Some(BlockOverlay::Whole(below, _)), _) => merge(&all, Some(&below)),
            (Some(BlockOverlay::Zero), _) | (None, true) => merge(&all, None),
            (Some(BlockOverlay::Partial(below)), _) => {
                fill(&mut all, &below);
                if all.iter().all(Option::is_some) {
                    merge(&all, None)
                } else {
                    BlockOverlay::Partial(all)
                }
            }
            (None, false) => BlockOverlay::Partial(all),
        };
        self.blocks.insert(block, merged);
    }
}

fn pieces_in(chunk: u32, extent: Extent) -> impl Iterator<Item = (usize, u16, Piece)> {
    let blocks = CHUNK_BLOCKS as u32;
    let skip = (chunk * blocks).saturating_sub(extent.blocks().start) as usize;
    let in_chunk = move |piece: &Piece| piece.block / blocks == chunk;
    extent
        .pieces()
        .enumerate()
        .skip(skip)
        .take_while(move |(_, piece)| in_chunk(piece))
        .map(move |(i, piece)| (i, (piece.block % blocks) as u16, piece))
}

fn fill(above: &mut Sectors, below: &Sectors) {
    for (slot, sector) in above.iter_mut().zip(below.iter()) {
        if slot.is_none() {
            slot.clone_from(sector);
        }
    }
}

fn merge(sectors: &Sectors, below: Option<&Bytes>) -> BlockOverlay {
    let mut data = below.map_or_else(|| vec![0; BLOCK], |b| b.to_vec());
    patch(&mut data, sectors);
    let sum = checksum::sum(&data);
    BlockOverlay::Whole(data.into(), sum)
}

/// Puts sectors over a block.
pub(crate) fn patch(block: &mut [u8], sectors: &Sectors) {
    for (to, sector) in block.chunks_exact_mut(SECTOR).zip(sectors.iter()) {
        if let Some(sector) = sector {
            to.copy_from_slice(sector);
        }
    }
}

/// What `layers`, newest first, say about a block of their chunk.
pub(crate) fn look(layers: [Option<&ChunkOverlay>; 2], block: u16) -> Look {
    let mut above: Option<Sectors> = None;
    for layer in layers.into_iter().flatten() {
        match (layer.blocks.get(&block), layer.zeroed) {
            (Some(BlockOverlay::Whole(data, sum)), _) => {
                return known(above, Some(data), Some(*sum));
            }
            (Some(BlockOverlay::Zero), _) | (None, true) => return known(above, None, None),
            (Some(BlockOverlay::Partial(sectors)), _) => match &mut above {
                Some(above) => fill(above, sectors),
                None => above = Some(sectors.clone()),
            },
            (None, false) => {}
        }
    }
    Look::Below(above)
}

fn known(above: Option<Sectors>, below: Option<&Bytes>, sum: Option<u64>) -> Look {
    match (above, below) {
        (None, Some(data)) => Look::Known(data.clone(), sum),
        (None, None) => Look::Zero,
        (Some(sectors), below) => match merge(&sectors, below) {
            BlockOverlay::Whole(data, sum) => Look::Known(data, Some(sum)),
            BlockOverlay::Zero | BlockOverlay::Partial(_) => unreachable!("a merge is whole"),
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tidewater_proto::ids::{Epoch, Position, Token};

    use super::*;

    const SPAN: usize = 2 * CHUNK_BYTES as usize;

    #[derive(Clone, Debug)]
    enum Op {
        Write { sector: u64, sectors: u64, byte: u8 },
        Zero { sector: u64, sectors: u64 },
        Freeze,
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let near = 2032..2064_u64; // around the border of two chunks
        let at = prop_oneof![near.clone(), 0..4096_u64];
        let op = prop_oneof![
            (at.clone(), 1..40_u64, 1..255_u8).prop_map(|(sector, sectors, byte)| Op::Write {
                sector,
                sectors,
                byte
            }),
            (near, 1..24_u64).prop_map(|(sector, sectors)| Op::Zero { sector, sectors }),
            (0..2048_u64, 2048..4096_u64)
                .prop_map(|(sector, sectors)| Op::Zero { sector, sectors }),
            Just(Op::Freeze),
        ];
        prop::collection::vec(op, 1..30)
    }

    fn entry(sequence: u64, change: Change<Payload>) -> Entry<Payload> {
        let position = Position { epoch: Epoch(1), sequence: Sequence(sequence) };
        Entry { position, token: Token(1), op: None, lowest_open: 0, change }
    }

    fn read(layers: [&Generation; 2], model: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(SPAN);
        for block in 0..2 * CHUNK_BLOCKS as u32 {
            let chunk = block / CHUNK_BLOCKS as u32;
            let layers = layers.map(|g| g.chunk(ReplicaId(1), chunk));
            match look(layers, (block % CHUNK_BLOCKS as u32) as u16) {
                Look::Known(data, sum) => {
                    assert_eq!(sum, Some(checksum::sum(&data)), "block {block}");
                    out.extend_from_slice(&data);
                }
                Look::Zero => out.extend([0; BLOCK]),
                Look::Below(sectors) => {
                    let at = block as usize * BLOCK;
                    let mut below = model[at..at + BLOCK].to_vec();
                    if let Some(sectors) = sectors {
                        patch(&mut below, &sectors);
                    }
                    out.extend(below);
                }
            }
        }
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Two generations over a disk of 0xff read like a flat array.
        #[test]
        fn generations_over_a_disk_read_like_an_array(ops in ops()) {
            let disk = vec![0xff; SPAN];
            let mut model = disk.clone();
            let [mut active, mut frozen] = [Generation::default(), Generation::default()];
            let mut froze = false;
            for (sequence, op) in (1..).zip(ops) {
                let range = |sector: u64, sectors: u64| {
                    let sectors = sectors.min(4096 - sector);
                    Extent::new(sector * 512, sectors * 512, SPAN as u64).expect("in range")
                };
                match op {
                    Op::Write { sector, sectors, byte } => {
                        let extent = range(sector, sectors);
                        let bytes = vec![byte; extent.len() as usize];
                        model[extent.offset() as usize..extent.end() as usize].copy_from_slice(&bytes);
                        let data = Payload::new(extent, bytes.into());
                        let entry = entry(sequence, Change::Write { extent, data });
                        active.apply(ReplicaId(1), &entry, |_| true);
                    }
                    Op::Zero { sector, sectors } => {
                        let extent = range(sector, sectors);
                        model[extent.offset() as usize..extent.end() as usize].fill(0);
                        let entry = entry(sequence, Change::Zero { extent, discard: true });
                        active.apply(ReplicaId(1), &entry, |_| true);
                    }
                    Op::Freeze if !froze => {
                        frozen = std::mem::take(&mut active);
                        froze = true;
                    }
                    Op::Freeze => {}
                }
            }
            prop_assert!(read([&active, &frozen], &disk) == model);
        }
    }

    #[test]
    fn zeroing_a_whole_segment_lists_no_block() {
        let mut generation = Generation::default();
        let extent = Extent::new(0, 1 << 30, 1 << 30).expect("valid");
        generation.apply(ReplicaId(1), &entry(1, Change::Zero { extent, discard: true }), |_| true);
        assert_eq!(generation.iter().count(), 1024);
        assert!(generation.iter().all(|(_, _, over)| over.zeroed && over.blocks.is_empty()));
    }
}
