//! The journal: what is durable before anything else is.
//!
//! A ring of files of equal size. Each use of a file is a *pass*, numbered from 0; pass p is in file
//! p modulo the number of files. A file is used again once nothing in it is needed, and the batch
//! numbers tell old content from new.
//!
//! | file | noun |
//! | --- | --- |
//! | [`format`] | bytes of a batch |
//! | [`recover`] | bytes of the files to batches and a verdict (pure) |
//! | [`writer`] | the one who writes |

pub mod format;
pub mod recover;
pub(crate) mod writer;

use tidewater_proto::{
    entry::{Change, Entry, Payload},
    ids::{Epoch, ReplicaId, SegmentId, Sequence, Token},
};

use super::catalog::rows::Place;

/// One thing made durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// An entry of a segment's log. Payload checksums are verified before it comes here.
    Entry {
        /// Copy whose log it is.
        replica: ReplicaId,
        /// Its segment.
        segment: SegmentId,
        /// The entry.
        entry: Entry<Payload>,
        /// Commit point known when it was appended.
        commit: Sequence,
        /// Where its payload is, if not in the journal.
        slot: Option<Place>,
    },
    /// A promise to refuse older epochs.
    Promise {
        /// Copy that promises.
        replica: ReplicaId,
        /// Its segment.
        segment: SegmentId,
        /// Lowest epoch accepted from now on.
        epoch: Epoch,
        /// Token that comes with it.
        token: Token,
    },
}

impl Record {
    /// Copy it belongs to.
    pub fn replica(&self) -> ReplicaId {
        match self {
            Self::Entry { replica, .. } | Self::Promise { replica, .. } => *replica,
        }
    }

    /// The slot that its payload goes to, and the payload.
    pub(crate) fn in_slot(&self) -> Option<(Place, &Payload)> {
        match self {
            Self::Entry {
                entry: Entry { change: Change::Write { data, .. }, .. },
                slot: Some(place),
                ..
            } => Some((*place, data)),
            Self::Entry { .. } | Self::Promise { .. } => None,
        }
    }
}

/// Shape of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Files.
    pub files: u64,
    /// Bytes of each, a multiple of 4096.
    pub file_bytes: u64,
}

/// Fewest files of a ring: one being written, one to go on to, one being freed.
pub const FILES_MIN: u64 = 3;
/// Usual number of files.
const FILES: u64 = 8;
/// Smallest file: it holds the largest batch.
pub const FILE_BYTES_MIN: u64 = 8 << 20;

impl Shape {
    /// Divides `bytes` into files.
    pub fn of(bytes: u64) -> Self {
        let file_bytes = (bytes / FILES).max(FILE_BYTES_MIN).next_multiple_of(4096);
        Self { files: (bytes / file_bytes).max(FILES_MIN), file_bytes }
    }

    /// File of a pass.
    pub fn file(self, pass: u64) -> usize {
        (pass % self.files) as usize
    }
}

/// Name of a ring's file.
pub fn file_name(shard: usize, file: usize) -> String {
    format!("journal-{shard}-{file}")
}
