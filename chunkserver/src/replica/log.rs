//! The part of a segment's log that is in memory: everything above the destaged point.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::VecDeque;

use tidewater_proto::{
    entry::Entry,
    ids::{Position, Sequence},
};

/// Epoch starts remembered for entries that are no longer in memory.
const STARTS_MAX: usize = 64;

/// A contiguous run of entries behind `base`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Log<P> {
    base: Position,
    entries: VecDeque<Entry<P>>,
    /// First position of each epoch that appended something, oldest first, bounded.
    starts: VecDeque<Position>,
}

impl<P> Log<P> {
    /// `entries` follow `base` without a gap.
    pub(crate) fn new(base: Position, entries: Vec<Entry<P>>) -> Self {
        let mut log = Self { base, entries: VecDeque::new(), starts: VecDeque::new() };
        for entry in entries {
            log.push(entry);
        }
        log
    }

    /// Everything up to here is in the chunks.
    pub(crate) fn base(&self) -> Position {
        self.base
    }

    /// The last entry.
    pub(crate) fn last(&self) -> Position {
        self.entries.back().map_or(self.base, |e| e.position)
    }

    /// The entry at `sequence`, if it is in memory.
    pub(crate) fn get(&self, sequence: Sequence) -> Option<&Entry<P>> {
        let index = sequence.0.checked_sub(self.base.sequence.0 + 1)?;
        self.entries.get(usize::try_from(index).ok()?)
    }

    /// The position at `sequence`, if it is in memory or the base.
    pub(crate) fn position(&self, sequence: Sequence) -> Option<Position> {
        if sequence == self.base.sequence {
            return Some(self.base);
        }
        self.get(sequence).map(|e| e.position)
    }

    /// Whether the log agrees with another one at `at`. Everything up to the base is committed, so it
    /// agrees there with every log that has it.
    pub(crate) fn agrees(&self, at: Position) -> bool {
        at.sequence < self.base.sequence || self.position(at.sequence) == Some(at)
    }

    /// Whether the entry that was given `at` is still part of the log.
    pub(crate) fn kept(&self, at: Position) -> bool {
        if let Some(position) = self.position(at.sequence) {
            return position == at;
        }
        if at.sequence > self.base.sequence {
            return false;
        }
        // Entries of one epoch are contiguous: `at` is gone only if a later epoch starts at or below it.
        if at.epoch == self.base.epoch {
            return true;
        }
        let next = self.starts.iter().find(|s| s.epoch > at.epoch);
        let first_known = self.starts.front().is_some_and(|s| s.epoch <= at.epoch);
        first_known && next.is_some_and(|s| s.sequence > at.sequence)
    }

    /// Appends the next entry.
    pub(crate) fn push(&mut self, entry: Entry<P>) {
        assert_eq!(entry.position.sequence, self.last().sequence.next(), "the log is contiguous");
        assert!(entry.position.epoch >= self.last().epoch, "epochs never go back in a log");
        if self.starts.back().is_none_or(|s| s.epoch < entry.position.epoch) {
            self.starts.push_back(entry.position);
            if self.starts.len() > STARTS_MAX {
                self.starts.pop_front();
            }
        }
        self.entries.push_back(entry);
    }

    /// Drops what is above `sequence`.
    pub(crate) fn truncate(&mut self, sequence: Sequence) {
        assert!(sequence >= self.base.sequence, "what is in the chunks cannot be undone");
        self.entries.truncate((sequence.0 - self.base.sequence.0) as usize);
        while self.starts.back().is_some_and(|s| s.sequence > sequence) {
            self.starts.pop_back();
        }
    }

    /// Everything up to `base` is in the chunks now.
    pub(crate) fn advance_base(&mut self, base: Position) {
        while self.entries.front().is_some_and(|e| e.position.sequence <= base.sequence) {
            self.entries.pop_front();
        }
        if base.sequence > self.base.sequence {
            self.base = base;
        }
    }

    /// Starts over behind `base`: a copy replaces what was there.
    pub(crate) fn reset(&mut self, base: Position) {
        *self = Self { base, entries: VecDeque::new(), starts: VecDeque::new() };
    }

    /// Entries above `sequence`, oldest first.
    pub(crate) fn above(&self, sequence: Sequence) -> impl DoubleEndedIterator<Item = &Entry<P>> {
        let skip = sequence.0.saturating_sub(self.base.sequence.0) as usize;
        self.entries.range(skip.min(self.entries.len())..)
    }
}
