//! One entry of a segment's log, and the payload it carries.

use bytes::Bytes;

use crate::{
    checksum::{self, BadSum},
    geometry::Extent,
    ids::{OpId, Position, Token},
};

/// What an entry does to the segment. `P` is [`Payload`] in production and a small value in models.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Change<P> {
    /// Nothing: the first entry of an epoch, which carries everything before it to every member.
    Activate,
    /// Bytes for `extent`.
    Write {
        /// Where.
        extent: Extent,
        /// What.
        data: P,
    },
    /// Zeroes for `extent`; with `discard`, whole chunks also give their space back.
    Zero {
        /// Where.
        extent: Extent,
        /// Whether space is given back.
        discard: bool,
    },
}

impl<P> Change<P> {
    /// The range it changes.
    pub fn extent(&self) -> Option<Extent> {
        match self {
            Self::Activate => None,
            Self::Write { extent, .. } | Self::Zero { extent, .. } => Some(*extent),
        }
    }
}

/// One entry of a segment's log.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Entry<P> {
    /// Epoch it was first given, and its place.
    pub position: Position,
    /// Token it was accepted under.
    pub token: Token,
    /// Client operation it came from; none for an activation.
    pub op: Option<OpId>,
    /// The session's lowest number still open when the operation was sent; lower ones are forgotten.
    pub lowest_open: u64,
    /// What it does.
    pub change: Change<P>,
}

/// Bytes of a write and one checksum for each block they touch.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Payload {
    /// The bytes.
    pub data: Bytes,
    /// Checksums as in [`checksum::sums`], little-endian, eight bytes each.
    pub sums: Bytes,
}

impl std::fmt::Debug for Payload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Payload({} bytes)", self.data.len())
    }
}

impl Payload {
    /// Sums `data`.
    pub fn new(extent: Extent, data: Bytes) -> Self {
        let sums: Vec<u8> =
            extent.pieces().flat_map(|p| checksum::sum(&data[p.data]).to_le_bytes()).collect();
        Self { data, sums: sums.into() }
    }

    /// The `i`-th checksum.
    pub fn sum(&self, i: usize) -> Option<u64> {
        let bytes = self.sums.get(i * 8..i * 8 + 8)?;
        Some(u64::from_le_bytes(bytes.try_into().expect("eight bytes")))
    }

    /// Compares the bytes with their checksums (INV-SUM).
    ///
    /// # Errors
    ///
    /// The first block whose bytes differ, or for which there is no checksum.
    pub fn verify(&self, extent: Extent) -> Result<(), BadSum> {
        for (i, piece) in extent.pieces().enumerate() {
            let data = self.data.get(piece.data);
            if data.map(checksum::sum) != self.sum(i) || data.is_none() {
                return Err(BadSum { block: piece.block });
            }
        }
        Ok(())
    }
}
