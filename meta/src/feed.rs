#![deny(clippy::disallowed_methods, clippy::disallowed_types)]
//! Which segments changed at which revision: what a watch needs to go on from where it was.

use std::collections::VecDeque;

use tidewater_proto::ids::{Revision, SegmentId, ServerId};

use crate::state::Touched;

/// Changes kept; a watch that is further behind is sent the full state.
const CHANGES_MAX: usize = 1 << 16;

/// A segment's record changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) revision: Revision,
    pub(crate) segment: SegmentId,
    /// Servers that the record named before the change.
    pub(crate) before: Vec<ServerId>,
}

/// The newest changes.
#[derive(Debug, Default)]
pub(crate) struct Feed {
    changes: VecDeque<Change>,
    /// Changes after this revision are all here.
    floor: Revision,
}

impl Feed {
    /// A feed that knows nothing up to `floor`.
    pub(crate) fn starting_after(floor: Revision) -> Self {
        Self { changes: VecDeque::new(), floor }
    }

    pub(crate) fn push(&mut self, revision: Revision, touched: Touched) {
        for (segment, before) in touched {
            let before = before.into_iter().collect();
            self.changes.push_back(Change { revision, segment, before });
        }
        while self.changes.len() > CHANGES_MAX {
            self.floor = self.changes.pop_front().map_or(self.floor, |change| change.revision);
        }
    }

    /// Changes after `revision`, oldest first; none if some of them are forgotten.
    pub(crate) fn since(&self, revision: Revision) -> Option<impl Iterator<Item = &Change>> {
        let first = self.changes.partition_point(|change| change.revision <= revision);
        (revision >= self.floor).then(|| self.changes.range(first..))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use tidewater_proto::ids::VolumeId;

    use super::*;

    fn touched(indices: std::ops::Range<u32>) -> Touched {
        indices
            .map(|index| (SegmentId { volume: VolumeId(1), index }, BTreeSet::from([ServerId(1)])))
            .collect()
    }

    #[test]
    fn a_feed_covers_exactly_what_it_has_not_forgotten() {
        let mut feed = Feed::starting_after(Revision(10));
        assert!(feed.since(Revision(9)).is_none());
        feed.push(Revision(11), touched(0..2));
        feed.push(Revision(14), touched(1..2));
        let indices = |feed: &Feed, from| -> Option<Vec<u32>> {
            feed.since(Revision(from)).map(|changes| changes.map(|c| c.segment.index).collect())
        };
        assert_eq!(indices(&feed, 10), Some(vec![0, 1, 1]));
        assert_eq!(indices(&feed, 11), Some(vec![1]));
        assert_eq!(indices(&feed, 14), Some(vec![]));
        feed.push(Revision(15), touched(0..CHANGES_MAX as u32));
        assert_eq!(indices(&feed, 13), None);
        assert_eq!(indices(&feed, 14).map(|i| i.len()), Some(CHANGES_MAX));
    }
}
