//! Bytes of the journal, format version 1. All numbers are little-endian.
//!
//! A file begins with an empty block of 4096 bytes, kept for later versions. Then come batches, each
//! a multiple of 4096 bytes: the header area, then the payload of each record, padded to 4096 bytes.
//!
//! | offset | bytes | field | meaning |
//! |-------:|------:|-------|---------|
//! | 0 | 4 | magic | `TWJB` |
//! | 4 | 4 | version | 1 |
//! | 8 | 8 | number | of the batch, from 1, contiguous |
//! | 16 | 8 | pass | use of the file |
//! | 24 | 8 | chain | `sum` of the batch before |
//! | 32 | 8 | tag | xxh3 of the store's id and the shard's number |
//! | 40 | 4 | offset | of the batch in the file, in 4096 bytes |
//! | 44 | 4 | header | length of the header area in 4096 bytes |
//! | 48 | 4 | length | of the whole batch in 4096 bytes |
//! | 52 | 4 | records | number of records |
//! | 56 | 8 | sum | xxh3 of the header area without this field |
//! | 64 | | records | packed |
//!
//! A record: u8 kind (1 entry, 2 promise), u8 change (0 activate, 1 write, 2 zero, 3 zero
//! and discard), u8 has operation, u8 payload is in a slot, u32 payload bytes here, u64 replica, u64 volume, u32
//! segment index, u32 checksums. Entry: u64 epoch, sequence, token, session, number, lowest open, commit, u32
//! offset, u32 length, where the payload is in a slot u32 device and u32 slot, then the checksums, u64 each.
//! Promise: u64 epoch, token. The checksums are the payload's, so a torn payload is found by them. One in a slot was
//! durable before the batch was written.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use bytes::Bytes;
use tidewater_proto::{
    aligned::AlignedBuf,
    entry::{Change, Entry, Payload},
    geometry::{Extent, SEGMENT_BYTES},
    ids::{Epoch, OpId, Position, ReplicaId, SegmentId, Sequence, SessionId, Token, VolumeId},
};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::Record;
use crate::store::{
    catalog::rows::Place,
    fields::{Fields, PutFields},
};

/// Unit of the journal, bytes.
pub const BLOCK: usize = 4096;
/// Largest batch, bytes.
pub const BATCH_BYTES_MAX: usize = 4 << 20;
/// Most records in a batch.
pub const BATCH_RECORDS_MAX: usize = 4096;

const MAGIC: u32 = u32::from_le_bytes(*b"TWJB");
const VERSION: u32 = 1;
const FIXED_BYTES: usize = 64;
const SUM_AT: usize = 56;
const RECORD_BYTES: usize = 32;
const ENTRY_BYTES: usize = 64;
const SLOT_BYTES: usize = 8;

/// What a batch's header says apart from its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Number of the batch.
    pub number: u64,
    /// Use of the file.
    pub pass: u64,
    /// Sum of the batch before.
    pub chain: u64,
    /// Whose journal it is.
    pub tag: u64,
    /// Where in the file, bytes.
    pub offset: u64,
}

/// A valid header.
#[derive(Clone, Debug)]
pub struct Header {
    /// Its stamp.
    pub stamp: Stamp,
    /// Its sum, the next batch's chain.
    pub sum: u64,
    /// Bytes of the whole batch.
    pub bytes: usize,
    area: usize,
    records: usize,
}

/// A batch is torn or rotten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BadBatch {
    /// The header is no batch's.
    Header,
    /// The header is whole; payloads of these replicas are not.
    Payload(Vec<ReplicaId>),
}

/// Tag of a shard's journal.
pub fn tag(store: [u8; 16], shard: usize) -> u64 {
    xxh3_64(&[&store[..], &(shard as u64).to_le_bytes()].concat())
}

/// Bytes that a record adds to a batch: in the header area, and after it.
pub fn record_bytes(record: &Record) -> (usize, usize) {
    match record {
        Record::Entry { entry, slot, .. } => match payload(entry) {
            Some(p) if slot.is_some() => {
                (RECORD_BYTES + ENTRY_BYTES + SLOT_BYTES + p.sums.len(), 0)
            }
            Some(p) => {
                (RECORD_BYTES + ENTRY_BYTES + p.sums.len(), p.data.len().next_multiple_of(BLOCK))
            }
            None => (RECORD_BYTES + ENTRY_BYTES, 0),
        },
        Record::Promise { .. } => (RECORD_BYTES + 16, 0),
    }
}

/// Bytes of a batch whose records add up to these.
pub fn batch_bytes(header: usize, payload: usize) -> usize {
    (FIXED_BYTES + header).next_multiple_of(BLOCK) + payload
}

fn payload(entry: &Entry<Payload>) -> Option<&Payload> {
    match &entry.change {
        Change::Write { data, .. } => Some(data),
        Change::Activate | Change::Zero { .. } => None,
    }
}

/// Makes a batch of pieces to be written one behind the other, each aligned for direct I/O; also its sum. Payloads
/// that lie right in memory are not copied.
pub fn encode(stamp: &Stamp, records: &[Record]) -> (Vec<Bytes>, u64) {
    let mut head = Vec::with_capacity(BLOCK);
    head.resize(FIXED_BYTES, 0);
    for record in records {
        put_record(&mut head, record);
    }
    head.resize(head.len().next_multiple_of(BLOCK), 0);
    let payloads: usize = records.iter().map(|r| record_bytes(r).1).sum();
    let bytes = head.len() + payloads;
    let sum = put_fixed(&mut head, stamp, bytes, records.len());
    let mut pieces = vec![padded(&head)];
    for record in records {
        if let Record::Entry { entry, slot: None, .. } = record
            && let Some(payload) = payload(entry)
        {
            pieces.push(aligned(&payload.data));
        }
    }
    (pieces, sum)
}

/// The bytes, padded to whole blocks and aligned for direct I/O; not copied if they lie right.
pub(crate) fn aligned(data: &Bytes) -> Bytes {
    let lies_right = data.len().is_multiple_of(BLOCK) && data.as_ptr().addr().is_multiple_of(BLOCK);
    if lies_right { data.clone() } else { padded(data) }
}

/// A copy in aligned memory, padded with zeroes.
fn padded(data: &[u8]) -> Bytes {
    let mut out = AlignedBuf::stale(data.len().next_multiple_of(BLOCK));
    out[..data.len()].copy_from_slice(data);
    out[data.len()..].fill(0);
    out.freeze()
}

fn put_fixed(head: &mut [u8], stamp: &Stamp, bytes: usize, records: usize) -> u64 {
    let mut fixed = Vec::with_capacity(FIXED_BYTES);
    fixed.put_u32(MAGIC);
    fixed.put_u32(VERSION);
    for word in [stamp.number, stamp.pass, stamp.chain, stamp.tag] {
        fixed.put_u64(word);
    }
    let blocks = |bytes: usize| (bytes / BLOCK) as u32;
    for word in [blocks(stamp.offset as usize), blocks(head.len()), blocks(bytes), records as u32] {
        fixed.put_u32(word);
    }
    head[..SUM_AT].copy_from_slice(&fixed);
    let sum = header_sum(head);
    head[SUM_AT..FIXED_BYTES].copy_from_slice(&sum.to_le_bytes());
    sum
}

fn header_sum(head: &[u8]) -> u64 {
    let mut hasher = Xxh3::new();
    hasher.update(&head[..SUM_AT]);
    hasher.update(&head[FIXED_BYTES..]);
    hasher.digest()
}

fn put_record(out: &mut Vec<u8>, record: &Record) {
    match record {
        Record::Entry { replica, segment, entry, commit, slot } => {
            put_entry(out, *replica, *segment, entry, *commit, *slot);
        }
        Record::Promise { replica, segment, epoch, token } => {
            put_common(out, [2, 0, 0, 0], 0, *replica, *segment, 0);
            out.put_u64(epoch.0);
            out.put_u64(token.0);
        }
    }
}

fn put_common(
    out: &mut Vec<u8>,
    kind: [u8; 4],
    payload: usize,
    replica: ReplicaId,
    segment: SegmentId,
    sums: usize,
) {
    out.extend(kind);
    out.put_u32(payload as u32);
    out.put_u64(replica.0);
    out.put_u64(segment.volume.0);
    out.put_u32(segment.index);
    out.put_u32(sums as u32);
}

fn put_entry(
    out: &mut Vec<u8>,
    replica: ReplicaId,
    segment: SegmentId,
    entry: &Entry<Payload>,
    commit: Sequence,
    slot: Option<Place>,
) {
    let change = match &entry.change {
        Change::Activate => 0,
        Change::Write { .. } => 1,
        Change::Zero { discard: false, .. } => 2,
        Change::Zero { discard: true, .. } => 3,
    };
    let kind = [1, change, u8::from(entry.op.is_some()), u8::from(slot.is_some())];
    let (bytes, sums) = payload(entry).map_or((0, &[][..]), |p| (p.data.len(), &p.sums[..]));
    let bytes = if slot.is_some() { 0 } else { bytes };
    put_common(out, kind, bytes, replica, segment, sums.len() / 8);
    let op = entry.op.unwrap_or(OpId { session: SessionId(0), number: 0 });
    let Position { epoch, sequence } = entry.position;
    let words =
        [epoch.0, sequence.0, entry.token.0, op.session.0, op.number, entry.lowest_open, commit.0];
    for word in words {
        out.put_u64(word);
    }
    let (offset, len) = entry.change.extent().map_or((0, 0), |e| (e.offset(), e.len()));
    out.put_u32(offset as u32);
    out.put_u32(len as u32);
    if let Some(Place { device, slot }) = slot {
        out.put_u32(device.into());
        out.put_u32(slot);
    }
    out.extend(sums);
}

/// Reads the header of the batch at `offset` of a file; `None` if there is no whole one.
pub fn decode_header(file: &[u8], offset: usize, tag: u64) -> Option<Header> {
    let mut fields = Fields(file.get(offset..)?);
    if (fields.u32()?, fields.u32()?) != (MAGIC, VERSION) {
        return None;
    }
    let (number, pass, chain) = (fields.u64()?, fields.u64()?, fields.u64()?);
    let found = fields.u64()?;
    let blocks = |fields: &mut Fields<'_>| fields.u32().map(|n| n as usize * BLOCK);
    let (at, header_bytes, bytes) =
        (blocks(&mut fields)?, blocks(&mut fields)?, blocks(&mut fields)?);
    let records = fields.u32()? as usize;
    let sum = fields.u64()?;
    let fits = header_bytes >= BLOCK && header_bytes <= bytes && at == offset && found == tag;
    let head = file.get(offset..offset + header_bytes)?;
    if !fits || header_sum(head) != sum || offset + bytes > file.len() {
        return None;
    }
    let stamp = Stamp { number, pass, chain, tag, offset: offset as u64 };
    Some(Header { stamp, sum, bytes, area: header_bytes, records })
}

/// Reads the records of a batch. Payloads are slices of `file`.
pub fn decode_records(file: &Bytes, header: &Header) -> Result<Vec<Record>, BadBatch> {
    let start = header.stamp.offset as usize;
    let mut at = start + header.area;
    let mut fields = Fields(&file[start + FIXED_BYTES..at]);
    let mut records = Vec::with_capacity(header.records.min(BATCH_RECORDS_MAX));
    let mut torn = Vec::new();
    for _ in 0..header.records {
        let record = decode_record(&mut fields, file, &mut at).ok_or(BadBatch::Header)?;
        if let Record::Entry { replica, entry, slot: None, .. } = &record
            && let Change::Write { extent, data } = &entry.change
            && data.verify(*extent).is_err()
        {
            torn.push(*replica);
        }
        records.push(record);
    }
    if torn.is_empty() { Ok(records) } else { Err(BadBatch::Payload(torn)) }
}

fn decode_record(fields: &mut Fields<'_>, file: &Bytes, at: &mut usize) -> Option<Record> {
    let [kind, change, has_op, in_slot @ (0 | 1)] = fields.array()? else { return None };
    let payload_bytes = fields.u32()? as usize;
    let replica = ReplicaId(fields.u64()?);
    let volume = VolumeId(fields.u64()?);
    let segment = SegmentId { volume, index: fields.u32()? };
    let sums = fields.u32()? as usize;
    match kind {
        1 => {
            let data = file.get(*at..*at + payload_bytes).map(|data| file.slice_ref(data))?;
            *at += payload_bytes.next_multiple_of(BLOCK);
            let marks = [has_op == 1, in_slot == 1];
            let (entry, commit, slot) = decode_entry(fields, change, marks, data, sums)?;
            Some(Record::Entry { replica, segment, entry, commit, slot })
        }
        2 => {
            let (epoch, token) = (Epoch(fields.u64()?), Token(fields.u64()?));
            Some(Record::Promise { replica, segment, epoch, token })
        }
        _ => None,
    }
}

fn decode_entry(
    fields: &mut Fields<'_>,
    change: u8,
    [has_op, in_slot]: [bool; 2],
    data: Bytes,
    sums: usize,
) -> Option<(Entry<Payload>, Sequence, Option<Place>)> {
    let position = Position { epoch: Epoch(fields.u64()?), sequence: Sequence(fields.u64()?) };
    let token = Token(fields.u64()?);
    let op = OpId { session: SessionId(fields.u64()?), number: fields.u64()? };
    let lowest_open = fields.u64()?;
    let commit = Sequence(fields.u64()?);
    let (offset, len) = (u64::from(fields.u32()?), u64::from(fields.u32()?));
    let slot = if in_slot {
        Some(Place { device: fields.u32()?.try_into().ok()?, slot: fields.u32()? })
    } else {
        None
    };
    let sums = Bytes::copy_from_slice(fields.bytes(sums.checked_mul(8)?)?);
    let extent = || Extent::new(offset, len, SEGMENT_BYTES).ok();
    let change = match change {
        0 => Change::Activate,
        1 => Change::Write { extent: extent()?, data: Payload { data, sums } },
        2 => Change::Zero { extent: extent()?, discard: false },
        3 => Change::Zero { extent: extent()?, discard: true },
        _ => return None,
    };
    let op = has_op.then_some(op);
    Some((Entry { position, token, op, lowest_open, change }, commit, slot))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> Vec<Record> {
        let extent = Extent::new(4608, 512, SEGMENT_BYTES).expect("valid");
        let data = Payload::new(extent, Bytes::from(vec![7; 512]));
        let entry = Entry {
            position: Position { epoch: Epoch(2), sequence: Sequence(3) },
            token: Token(4),
            op: Some(OpId { session: SessionId(5), number: 6 }),
            lowest_open: 6,
            change: Change::Write { extent, data },
        };
        let (replica, segment) = (ReplicaId(1), SegmentId { volume: VolumeId(8), index: 9 });
        let zero =
            Entry { change: Change::Zero { extent, discard: true }, op: None, ..entry.clone() };
        vec![
            Record::Entry { replica, segment, entry, commit: Sequence(2), slot: None },
            Record::Promise { replica, segment, epoch: Epoch(3), token: Token(4) },
            Record::Entry { replica, segment, entry: zero, commit: Sequence(2), slot: None },
        ]
    }

    fn stamp() -> Stamp {
        Stamp { number: 10, pass: 11, chain: 12, tag: 13, offset: 4096 }
    }

    /// A change of the sum is a change of the disk format and needs a new version.
    #[test]
    fn a_batch_is_stable() {
        let (batch, sum) = encode(&stamp(), &records());
        let batch = batch.concat();
        assert_eq!(batch.len(), 8192);
        assert_eq!(&batch[..8], b"TWJB\x01\0\0\0");
        assert_eq!((sum, xxh3_64(&batch)), (GOLDEN_SUM, GOLDEN_BATCH));
    }

    /// A record whose payload is in a slot.
    fn elsewhere() -> Record {
        let mut record = records().remove(0);
        if let Record::Entry { slot, .. } = &mut record {
            *slot = Some(Place { device: 3, slot: 70_000 });
        }
        record
    }

    #[test]
    fn a_record_that_names_a_slot_is_stable_and_comes_back_without_its_payload() {
        let (batch, sum) = encode(&stamp(), &[elsewhere()]);
        let batch = batch.concat();
        assert_eq!(batch.len(), 4096, "no payload follows");
        assert_eq!((sum, xxh3_64(&batch)), (GOLDEN_SLOT_SUM, GOLDEN_SLOT_BATCH));
        let file = [&[0; 4096][..], &batch].concat();
        let header = decode_header(&file, 4096, 13).expect("a header");
        let mut want = elsewhere();
        if let Record::Entry { entry: Entry { change: Change::Write { data, .. }, .. }, .. } =
            &mut want
        {
            data.data = Bytes::new();
        }
        assert_eq!(decode_records(&Bytes::from(file), &header), Ok(vec![want]));
    }

    const GOLDEN_SLOT_SUM: u64 = 3_350_740_849_827_594_839;
    const GOLDEN_SLOT_BATCH: u64 = 14_857_357_774_966_347_411;
    const GOLDEN_SUM: u64 = 4_566_507_915_168_945_453;
    const GOLDEN_BATCH: u64 = 11_943_919_248_428_113_813;

    #[test]
    fn a_batch_decodes_to_its_records_and_a_torn_one_does_not() {
        let (batch, sum) = encode(&stamp(), &records());
        let batch = batch.concat();
        let file = [&[0; 4096][..], &batch].concat();
        let header = decode_header(&file, 4096, 13).expect("a header");
        assert_eq!((header.stamp, header.sum, header.bytes), (stamp(), sum, 8192));
        assert_eq!(decode_records(&Bytes::from(file.clone()), &header), Ok(records()));
        assert!(decode_header(&file, 4096, 14).is_none(), "another shard's");

        let mut torn = file.clone();
        torn[8192 + 100] ^= 1;
        let torn = decode_records(&Bytes::from(torn), &header);
        assert_eq!(torn, Err(BadBatch::Payload(vec![ReplicaId(1)])));
        for byte in 4096..8192 {
            let mut rotten = file.clone();
            rotten[byte] ^= 1;
            assert!(decode_header(&rotten, 4096, 13).is_none(), "byte {byte}");
        }
    }
}
