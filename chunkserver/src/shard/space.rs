//! How much the shard can still take: chunks that can be stored, less those that entries on their way will
//! need. Destaging must never run out of slots, so new chunks are stopped before it does.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeSet;

use tidewater_proto::{ids::ReplicaId, peer::Room};

/// Part of the devices that destaging keeps for itself: it moves chunks to fresh slots before it frees the
/// old ones. As large a part again is kept for what is under way.
const KEPT_SHARE: u64 = 32;
/// Never more than this is kept for destaging, chunks.
const SLACK_CHUNKS_MAX: u64 = 256;
/// Most new chunks under way to one copy while space is not plentiful.
const WINDOW_MAX: u64 = 16;

/// What a look at the store found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    /// Chunks that can still be stored.
    pub(super) free: u64,
    /// Chunks that could be stored if there were none.
    pub(super) share: u64,
    /// Copies that the shard owns.
    pub(super) copies: u64,
    /// Chunks of a segment.
    pub(super) segment_chunks: u64,
}

/// Space as of the last look, and what was claimed since.
#[derive(Debug, Default)]
pub(super) struct Space {
    free: u64,
    claimed: BTreeSet<(ReplicaId, u32)>,
    /// For destaging.
    slack: u64,
    /// Below it nothing new may be sequenced; what is under way then still fits above `slack`.
    low: u64,
    /// From it on nothing that the copies could ever need would not fit.
    plenty: u64,
    window: u32,
}

impl Space {
    /// Starts from a look, and from the chunks that uncommitted entries will need.
    pub(super) fn look(&mut self, look: Look, claimed: BTreeSet<(ReplicaId, u32)>) {
        let kept = look.share / KEPT_SHARE;
        let copies = look.copies.max(1);
        let window = (kept / copies).clamp(1, WINDOW_MAX).min(look.segment_chunks);
        self.free = look.free;
        self.claimed = claimed;
        self.slack = kept.clamp(1, SLACK_CHUNKS_MAX);
        self.low = self.slack + copies * window;
        self.plenty = self.low + copies * look.segment_chunks;
        self.window = window as u32;
    }

    /// An entry that is taken needs the chunk, which holds no data.
    pub(super) fn claim(&mut self, replica: ReplicaId, chunk: u32) {
        self.claimed.insert((replica, chunk));
    }

    /// Whether it is counted already.
    pub(super) fn is_claimed(&self, replica: ReplicaId, chunk: u32) -> bool {
        self.claimed.contains(&(replica, chunk))
    }

    fn left(&self) -> u64 {
        self.free.saturating_sub(self.claimed.len() as u64)
    }

    /// What each copy may have under way.
    pub(super) fn room(&self) -> Room {
        match self.left() {
            left if left <= self.low => Room::NONE,
            left if left < self.plenty => Room(self.window),
            _ => Room::ANY,
        }
    }

    /// Whether not even what is under way may be taken.
    pub(super) fn is_full(&self) -> bool {
        self.left() <= self.slack
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COPIES: u64 = 10;

    fn look(free: u64) -> Look {
        Look { free, share: 16_384, copies: COPIES, segment_chunks: 1_024 }
    }

    #[test]
    fn room_shrinks_with_what_is_left_and_comes_back() {
        let mut space = Space::default();
        let mut room = |free| {
            space.look(look(free), BTreeSet::new());
            (space.room(), space.is_full())
        };
        assert_eq!(room(16_384), (Room::ANY, false));
        assert_eq!(room(10_000), (Room(16), false));
        assert_eq!(room(256 + 160), (Room::NONE, false));
        assert_eq!(room(256), (Room::NONE, true));
        assert_eq!(room(256 + 161), (Room(16), false));
    }

    /// INV-BOUND: what every copy was allowed to have under way when space became short fits above what
    /// destaging needs.
    #[test]
    fn what_is_under_way_when_space_runs_out_still_fits() {
        for share in [4, 64, 200, 1 << 10, 1 << 14, 1 << 22] {
            for copies in [1, 3, 100, 1_000] {
                let mut space = Space::default();
                let mut free = share;
                let at = |free| Look { free, share, copies, segment_chunks: 1_024 };
                space.look(at(free), BTreeSet::new());
                while space.room() != Room::NONE {
                    free -= 1;
                    space.look(at(free), BTreeSet::new());
                }
                let under_way = copies * u64::from(space.window);
                let fits = free >= under_way + space.slack || free == share;
                assert!(fits, "{share} {copies}: {space:?}");
            }
        }
    }

    #[test]
    fn a_claim_counts_once_and_at_once() {
        let mut space = Space::default();
        space.look(look(256 + 160 + 2), BTreeSet::from([(ReplicaId(1), 7)]));
        assert_eq!(space.room(), Room(16));
        space.claim(ReplicaId(1), 7);
        assert_eq!(space.room(), Room(16), "it was claimed before");
        space.claim(ReplicaId(2), 7);
        assert_eq!(space.room(), Room::NONE);
        assert!(space.is_claimed(ReplicaId(2), 7) && !space.is_claimed(ReplicaId(2), 8));
    }

    #[test]
    fn a_device_without_use_takes_its_first_chunks() {
        let mut space = Space::default();
        for share in [8, 64, 128] {
            let look = Look { free: share, share, copies: 2, segment_chunks: 1 };
            space.look(look, BTreeSet::new());
            assert_ne!(space.room(), Room::NONE, "{share}: {space:?}");
        }
    }
}
