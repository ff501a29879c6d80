//! Filling a copy from a peer.
//!
//! While a copy is being filled, entries of the stream are applied to its chunks as they come, over
//! content that may miss earlier ones. So a chunk stays in memory until its image has come or the
//! copy ends: only then is it whole and may be destaged.

use std::collections::BTreeSet;

use tidewater_proto::{
    entry::Payload,
    geometry::CHUNK_BLOCKS,
    ids::{Position, ReplicaId, Sequence},
    peer::AppliedSession,
};

use super::{Copy, Mapped, ShardStore};
use crate::store::{
    destage::{End, Freeze, Job},
    overlay::Generation,
};

/// One chunk as a peer has it.
#[derive(Clone, Debug)]
pub struct ChunkImage {
    /// Chunk within the segment.
    pub chunk: u32,
    /// Its last change.
    pub changed: Sequence,
    /// Commit point its content shows.
    pub at: Sequence,
    /// Its bytes, verified; none: a hole.
    pub image: Option<Payload>,
}

impl ShardStore {
    /// Begins to fill a copy whose own state ends at `have`, all of it applied. Until the copy ends,
    /// a restart finds it as of `have`, with the chunks that came since.
    ///
    /// The journal keeps its entries up to `have` until the copy ends;
    /// [`begin_copy_at`](Self::begin_copy_at) does without.
    pub fn begin_copy(&mut self, replica: ReplicaId, have: Sequence) {
        self.begin(replica, have, None);
    }

    /// Begins to fill a copy, and makes where it stands now its base.
    pub fn begin_copy_at(&mut self, point: Freeze) {
        self.begin(point.replica, point.at.sequence, Some(point));
    }

    fn begin(&mut self, replica: ReplicaId, have: Sequence, point: Option<Freeze>) {
        let Some(state) = self.replicas.get_mut(&replica) else { return };
        state.own = Some(have);
        state.copy = Some(Copy { put: BTreeSet::new(), end: None });
        state.tail.clear();
        self.ring.forget_above(replica, have);
        // Its own changes must not lie over the images.
        let mut own = Generation::default();
        self.active.split(replica, &mut own, |_| true);
        self.destager.give(Job::BeginCopy { replica, have, own, point });
    }

    /// Stores a chunk in a fresh slot; `ChunkPut` comes when it is durable. What was applied to the
    /// chunk stays over it if it is newer than the image.
    pub fn put_chunk(&mut self, replica: ReplicaId, image: ChunkImage, tag: u64) {
        let Some(state) = self.replicas.get_mut(&replica) else { return };
        let ChunkImage { chunk, changed, at, image } = image;
        // The overlay shows each byte it has as of the last entry applied.
        if state.applied <= at {
            self.active.remove_chunk(replica, chunk);
        }
        let data = image.is_some();
        state.chunks.insert(chunk, Mapped { changed, data, device: None });
        self.rows.remove((replica, chunk));
        for block in chunk * CHUNK_BLOCKS as u32..(chunk + 1) * CHUNK_BLOCKS as u32 {
            self.blocks.remove((replica, block));
        }
        if let Some(copy) = &mut state.copy {
            copy.put.insert(chunk);
        }
        self.destager.give(Job::PutChunk { replica, chunk, changed, image, tag });
    }

    /// The chunk has all that it should have, though no image of it came since the copy began: what is
    /// applied to it may be destaged.
    pub fn mark_whole(&mut self, replica: ReplicaId, chunk: u32) {
        let copy = self.replicas.get_mut(&replica).and_then(|state| state.copy.as_mut());
        if let Some(copy) = copy {
            copy.put.insert(chunk);
        }
    }

    /// Ends a copy: all chunks have come, everything up to `at` has been applied, and `applied` is
    /// the table of operations as of `at`. `at` must not lie below an earlier [`freeze`](Self::freeze)
    /// point of the replica. Chunks not in `keep` are dropped. Takes effect with the next `freeze`, which
    /// `freeze_wanted` then asks for; `CopyEnded` comes when it is durable.
    pub fn end_copy(
        &mut self,
        replica: ReplicaId,
        at: Position,
        applied: Vec<AppliedSession>,
        keep: Option<BTreeSet<u32>>,
        tag: u64,
    ) {
        let Some(state) = self.replicas.get_mut(&replica) else { return };
        let copy = state.copy.get_or_insert_with(|| Copy { put: BTreeSet::new(), end: None });
        state.applied = state.applied.max(at.sequence);
        copy.end = Some(End { replica, at, applied, keep, tag });
    }
}
