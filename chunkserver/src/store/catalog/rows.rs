//! Keys and rows of the catalog, format version 1.
//!
//! Numbers in keys are big-endian, so that rows sort by them; numbers in rows are little-endian.
//!
//! | key | row |
//! | --- | --- |
//! | `m` | [`Marker`]: u32 version, u32 shards, 16 bytes store id, u64 server, then the cluster id |
//! | `d`, u16 device | name of the device |
//! | `r`, u64 replica | [`ReplicaRow`] |
//! | `c`, u64 replica, u32 chunk, u64 owner | [`ChunkRow`] |
//!
//! A replica row: u8 version, u8 copying, u8 lost, u8 0, u32 segment index, u64 volume, u64 promised epoch, u64
//! promised token, u64 base epoch, u64 base sequence, u64 copying from, u32 sessions; then for each
//! session u64 id, u64 token, u64 lowest open, u32 operations, and for each of these u64 number, u64
//! epoch, u64 sequence.
//!
//! A chunk row: u8 version, u8 has slot, u16 device, u32 slot, u32 references to the slot, 4 bytes 0,
//! u64 last change, u64 owner, 32 bytes content hash (zeroes: none), 32 bytes bitmap of the blocks
//! that are written (block i is bit i % 8 of byte i / 8), then one u64 checksum for each of them.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use tidewater_proto::{
    geometry::CHUNK_BLOCKS,
    ids::{Epoch, Position, ReplicaId, SegmentId, Sequence, ServerId, SessionId, Token, VolumeId},
    peer::AppliedSession,
};

use crate::store::fields::{Fields, PutFields};

/// Version of the whole data folder's format.
pub const FORMAT_VERSION: u32 = 1;
const ROW_VERSION: u8 = 1;

/// Key of the marker.
pub const MARKER_KEY: &[u8] = b"m";
/// What the keys of devices start with.
pub const DEVICE_PREFIX: &[u8] = b"d";
/// What the keys of replicas start with.
pub const REPLICA_PREFIX: &[u8] = b"r";
/// What the keys of chunks start with.
pub const CHUNK_PREFIX: &[u8] = b"c";

/// A row or key is not what this version writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("catalog row of kind {kind:?} is malformed or of another version")]
pub struct BadRow {
    /// First byte of the key.
    pub kind: char,
}

/// Which version of a chunk: the volume's own, or one kept for a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// The volume as it is now.
    Volume,
    /// A snapshot, by its non-zero number.
    Snapshot(u64),
}

/// Who the data folder belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marker {
    /// Format of everything in the folder.
    pub version: u32,
    /// Shards the replicas are spread over.
    pub shards: u32,
    /// Drawn at random when the folder was made; journals and devices carry it too.
    pub store: [u8; 16],
    /// Server.
    pub server: ServerId,
    /// Its cluster.
    pub cluster: String,
}

/// What is kept of one replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaRow {
    /// Segment it is a copy of.
    pub segment: SegmentId,
    /// Highest epoch promised, and the token with it.
    pub promised: (Epoch, Token),
    /// Everything up to here is in the slots.
    pub base: Position,
    /// Commit point that the last round of destaging began with, at least. It is durable before the round
    /// writes in place, so that recovery applies all that a torn write may have damaged.
    pub commit: Sequence,
    /// Where the copy that is being filled started.
    pub copying: Option<Sequence>,
    /// A device that held chunks of it has failed: it is good for nothing any more, and waits to be deleted.
    pub lost: bool,
    /// Operations applied, as of `base`.
    pub applied: Vec<AppliedSession>,
}

/// A slot of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Device.
    pub device: u16,
    /// Slot of the device.
    pub slot: u32,
}

/// Where one chunk is and what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkRow {
    /// Where; a chunk of holes has no slot.
    pub place: Option<Place>,
    /// Rows that refer to the slot.
    pub references: u32,
    /// Entry that last changed the chunk.
    pub changed: Sequence,
    /// Version of the chunk.
    pub owner: Owner,
    /// BLAKE3 of the content, where known.
    pub hash: [u8; 32],
    /// Checksum of each block; none for a hole.
    pub sums: Vec<Option<u64>>,
}

impl Owner {
    fn number(self) -> u64 {
        match self {
            Self::Volume => 0,
            Self::Snapshot(number) => number,
        }
    }

    fn from_number(number: u64) -> Self {
        if number == 0 { Self::Volume } else { Self::Snapshot(number) }
    }
}

/// Versions in which a read looks for a chunk, first one first. Snapshots will make it longer.
pub const OWNER_CHAIN: [Owner; 1] = [Owner::Volume];

/// Key of a device.
pub fn device_key(device: u16) -> Vec<u8> {
    [DEVICE_PREFIX, &device.to_be_bytes()].concat()
}

/// Device of a key.
pub fn parse_device_key(key: &[u8]) -> Result<u16, BadRow> {
    key.get(1..).and_then(|n| n.try_into().ok()).map(u16::from_be_bytes).ok_or(BadRow { kind: 'd' })
}

/// Key of a replica.
pub fn replica_key(replica: ReplicaId) -> Vec<u8> {
    [REPLICA_PREFIX, &replica.0.to_be_bytes()].concat()
}

/// Replica of a key.
pub fn parse_replica_key(key: &[u8]) -> Result<ReplicaId, BadRow> {
    let number = key.get(1..).and_then(|n| n.try_into().ok()).ok_or(BadRow { kind: 'r' })?;
    Ok(ReplicaId(u64::from_be_bytes(number)))
}

/// What the keys of a replica's chunks start with.
pub fn chunks_prefix(replica: ReplicaId) -> Vec<u8> {
    [CHUNK_PREFIX, &replica.0.to_be_bytes()].concat()
}

/// Key of one version of a chunk.
pub fn chunk_key(replica: ReplicaId, chunk: u32, owner: Owner) -> Vec<u8> {
    let owner = owner.number().to_be_bytes();
    [CHUNK_PREFIX, &replica.0.to_be_bytes(), &chunk.to_be_bytes(), &owner].concat()
}

/// Replica, chunk and version of a key.
pub fn parse_chunk_key(key: &[u8]) -> Result<(ReplicaId, u32, Owner), BadRow> {
    let mut fields = Fields(key);
    let mut parse = || {
        fields.u8()?;
        let replica = ReplicaId(u64::from_be_bytes(fields.array()?));
        let chunk = u32::from_be_bytes(fields.array()?);
        Some((replica, chunk, Owner::from_number(u64::from_be_bytes(fields.array()?))))
    };
    parse().ok_or(BadRow { kind: 'c' })
}

impl Marker {
    /// Bytes of the row.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_u32(self.version);
        out.put_u32(self.shards);
        out.extend(self.store);
        out.put_u64(self.server.0);
        out.extend(self.cluster.as_bytes());
        out
    }

    /// Reads a row; also one of another version, as far as `version`.
    pub fn decode(row: &[u8]) -> Result<Self, BadRow> {
        let mut fields = Fields(row);
        let mut parse = || {
            Some(Self {
                version: fields.u32()?,
                shards: fields.u32()?,
                store: fields.array()?,
                server: ServerId(fields.u64()?),
                cluster: String::from_utf8(fields.0.to_vec()).ok()?,
            })
        };
        parse().ok_or(BadRow { kind: 'm' })
    }
}

impl ReplicaRow {
    /// The row of a copy just made.
    pub fn empty(segment: SegmentId) -> Self {
        let promised = (Epoch(0), Token(0));
        let (base, commit) = (Position::default(), Sequence(0));
        let (copying, lost, applied) = (None, false, Vec::new());
        Self { segment, promised, base, commit, copying, lost, applied }
    }

    /// Bytes of the row.
    pub fn encode(&self) -> Vec<u8> {
        let (copying, lost) = (self.copying.is_some(), self.lost);
        let mut out = vec![ROW_VERSION, u8::from(copying), u8::from(lost), 0];
        out.put_u32(self.segment.index);
        let copying = self.copying.map_or(0, |s| s.0);
        let (epoch, token) = self.promised;
        let base = self.base;
        let volume = self.segment.volume.0;
        let base = [base.epoch.0, base.sequence.0];
        for word in [volume, epoch.0, token.0, base[0], base[1], self.commit.0, copying] {
            out.put_u64(word);
        }
        out.put_u32(self.applied.len() as u32);
        for session in &self.applied {
            for word in [session.session.0, session.token.0, session.lowest_open] {
                out.put_u64(word);
            }
            out.put_u32(session.applied.len() as u32);
            for (number, at) in &session.applied {
                for word in [*number, at.epoch.0, at.sequence.0] {
                    out.put_u64(word);
                }
            }
        }
        out
    }

    /// Reads a row.
    pub fn decode(row: &[u8]) -> Result<Self, BadRow> {
        decode_replica(&mut Fields(row)).ok_or(BadRow { kind: 'r' })
    }
}

fn decode_replica(fields: &mut Fields<'_>) -> Option<ReplicaRow> {
    let [ROW_VERSION, copying, lost, 0] = fields.array()? else { return None };
    let lost = lost == 1;
    let index = fields.u32()?;
    let segment = SegmentId { volume: VolumeId(fields.u64()?), index };
    let promised = (Epoch(fields.u64()?), Token(fields.u64()?));
    let base = decode_position(fields)?;
    let commit = Sequence(fields.u64()?);
    let from = Sequence(fields.u64()?);
    let applied = (0..fields.u32()?).map(|_| decode_session(fields)).collect::<Option<_>>()?;
    let copying = (copying == 1).then_some(from);
    let row = ReplicaRow { segment, promised, base, commit, copying, lost, applied };
    fields.0.is_empty().then_some(row)
}

fn decode_session(fields: &mut Fields<'_>) -> Option<AppliedSession> {
    let session = SessionId(fields.u64()?);
    let token = Token(fields.u64()?);
    let lowest_open = fields.u64()?;
    let operations = fields.u32()?;
    let applied = (0..operations)
        .map(|_| Some((fields.u64()?, decode_position(fields)?)))
        .collect::<Option<_>>()?;
    Some(AppliedSession { session, token, lowest_open, applied })
}

fn decode_position(fields: &mut Fields<'_>) -> Option<Position> {
    Some(Position { epoch: Epoch(fields.u64()?), sequence: Sequence(fields.u64()?) })
}

impl ChunkRow {
    /// A chunk of holes.
    pub fn hole(changed: Sequence) -> Self {
        Self {
            place: None,
            references: 0,
            changed,
            owner: Owner::Volume,
            hash: [0; 32],
            sums: vec![None; CHUNK_BLOCKS],
        }
    }

    /// Bytes of the row.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![ROW_VERSION, u8::from(self.place.is_some())];
        let place = self.place.unwrap_or(Place { device: 0, slot: 0 });
        out.put_u16(place.device);
        for word in [place.slot, self.references, 0] {
            out.put_u32(word);
        }
        out.put_u64(self.changed.0);
        out.put_u64(self.owner.number());
        out.extend(self.hash);
        for byte in self.sums.chunks(8) {
            out.push(byte.iter().rev().fold(0, |bits, sum| bits << 1 | u8::from(sum.is_some())));
        }
        for sum in self.sums.iter().flatten() {
            out.put_u64(*sum);
        }
        out
    }

    /// Reads a row.
    pub fn decode(row: &[u8]) -> Result<Self, BadRow> {
        decode_chunk(&mut Fields(row)).ok_or(BadRow { kind: 'c' })
    }
}

fn decode_chunk(fields: &mut Fields<'_>) -> Option<ChunkRow> {
    let [ROW_VERSION, placed] = fields.array()? else { return None };
    let place = Place { device: fields.u16()?, slot: fields.u32()? };
    let references = fields.u32()?;
    fields.u32()?;
    let changed = Sequence(fields.u64()?);
    let owner = Owner::from_number(fields.u64()?);
    let hash = fields.array()?;
    let bitmap: [u8; CHUNK_BLOCKS / 8] = fields.array()?;
    let sums = (0..CHUNK_BLOCKS)
        .map(|block| match bitmap[block / 8] >> (block % 8) & 1 {
            1 => fields.u64().map(Some),
            _ => Some(None),
        })
        .collect::<Option<_>>()?;
    let place = (placed == 1).then_some(place);
    let row = ChunkRow { place, references, changed, owner, hash, sums };
    fields.0.is_empty().then_some(row)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica() -> ReplicaRow {
        let at = Position { epoch: Epoch(2), sequence: Sequence(9) };
        let applied = vec![AppliedSession {
            session: SessionId(4),
            token: Token(3),
            lowest_open: 6,
            applied: vec![(7, at)],
        }];
        ReplicaRow {
            segment: SegmentId { volume: VolumeId(1), index: 5 },
            promised: (Epoch(3), Token(3)),
            base: at,
            commit: Sequence(10),
            copying: Some(Sequence(8)),
            lost: true,
            applied,
        }
    }

    fn chunk() -> ChunkRow {
        let mut row = ChunkRow::hole(Sequence(9));
        row.place = Some(Place { device: 1, slot: 7 });
        row.references = 1;
        row.sums[9] = Some(0x0102_0304_0506_0708);
        row
    }

    /// Golden bytes: a change here is a change of the disk format and needs a new version.
    #[test]
    fn rows_are_stable() {
        let hex =
            |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().concat();
        let word = |n: u8| format!("{n:02x}00000000000000");
        let words: String = [1, 3, 3, 2, 9, 10, 8].map(word).concat();
        let session = [4, 3, 6].map(word).concat() + "01000000" + &[7, 2, 9].map(word).concat();
        assert_eq!(hex(&replica().encode()), format!("0101010005000000{words}01000000{session}"));
        let zeroes = |n: usize| "00".repeat(n);
        let golden = format!(
            "010101000700000001000000{}{}{}{}0002{}0807060504030201",
            zeroes(4),
            word(9),
            word(0),
            zeroes(32),
            zeroes(30)
        );
        assert_eq!(hex(&chunk().encode()), golden);
        assert_eq!(
            hex(&chunk_key(ReplicaId(2), 3, Owner::Volume)),
            format!("63{}0200000003{}", zeroes(7), zeroes(8))
        );
        let marker = Marker {
            version: 1,
            shards: 2,
            store: [5; 16],
            server: ServerId(3),
            cluster: "c".into(),
        };
        assert_eq!(
            hex(&marker.encode()),
            format!("0100000002000000{}{}63", "05".repeat(16), word(3))
        );
    }

    #[test]
    fn rows_decode_to_what_was_encoded_and_nothing_shorter_does() {
        let (replica, chunk) = (replica().encode(), chunk().encode());
        assert_eq!(ReplicaRow::decode(&replica), Ok(self::replica()));
        assert_eq!(ChunkRow::decode(&chunk), Ok(self::chunk()));
        for cut in 0..replica.len() {
            assert!(ReplicaRow::decode(&replica[..cut]).is_err());
        }
        for cut in 0..chunk.len() {
            assert!(ChunkRow::decode(&chunk[..cut]).is_err());
        }
        let key = chunk_key(ReplicaId(8), 9, Owner::Snapshot(4));
        assert_eq!(parse_chunk_key(&key), Ok((ReplicaId(8), 9, Owner::Snapshot(4))));
        assert_eq!(parse_replica_key(&replica_key(ReplicaId(8))), Ok(ReplicaId(8)));
    }
}
