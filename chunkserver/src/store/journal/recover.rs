//! What the files of a journal hold: batches in order, and whether some are missing.
//!
//! A batch is written only when the one before is durable. So a bad batch with no valid one after
//! it is the tail, torn by a crash; a bad one with a valid one after it was durable and has rotted.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeSet;

use bytes::Bytes;
use tidewater_proto::ids::ReplicaId;

use super::{
    Record,
    format::{BLOCK, BadBatch, decode_header, decode_records},
};

/// A valid batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Its number.
    pub number: u64,
    /// Use of the file it is in.
    pub pass: u64,
    /// Its records.
    pub records: Vec<Record>,
}

/// Which replicas' records are lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// None.
    None,
    /// Those of these replicas, for all that is known.
    Some(BTreeSet<ReplicaId>),
    /// Any replica's.
    All,
}

/// Where the next batch goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Next {
    /// Number of the batch.
    pub number: u64,
    /// Use of a file.
    pub pass: u64,
    /// Offset in that file, bytes.
    pub offset: u64,
    /// Sum of the batch before.
    pub chain: u64,
}

/// All that the files hold.
#[derive(Clone, Debug)]
pub struct Recovery {
    /// Valid batches, oldest first.
    pub batches: Vec<Batch>,
    /// What is missing among them.
    pub damage: Damage,
    /// Where to go on.
    pub next: Next,
}

/// The first batch of a pass.
pub const FIRST_OFFSET: u64 = BLOCK as u64;

/// One file, read.
#[derive(Clone, Debug, Default)]
pub struct Scan {
    run: Vec<Batch>,
    /// Chain of the first batch, sum of the last, end of the last.
    first_chain: u64,
    last_sum: u64,
    end: u64,
    /// Why the run ended, if not at an old batch or at zeroes.
    bad: Option<BadBatch>,
    /// Highest number and pass of the valid headers after the run.
    beyond: Option<(u64, u64)>,
}

/// Reads one file. `keep` says which records the caller wants; payloads kept are copied, so that
/// the file's memory can be freed.
pub fn scan(file: &Bytes, tag: u64, keep: &mut dyn FnMut(&Record) -> bool) -> Scan {
    let mut scan = Scan { end: FIRST_OFFSET, ..Scan::default() };
    while let Some(header) = decode_header(file, scan.end as usize, tag) {
        let stamp = header.stamp;
        if let Some(last) = scan.run.last()
            && (stamp.number, stamp.pass, stamp.chain)
                != (last.number + 1, last.pass, scan.last_sum)
        {
            break;
        }
        match decode_records(file, &header) {
            Ok(records) => {
                if scan.run.is_empty() {
                    scan.first_chain = stamp.chain;
                }
                let records = records.into_iter().filter(|r| keep(r)).map(detach).collect();
                scan.run.push(Batch { number: stamp.number, pass: stamp.pass, records });
                scan.last_sum = header.sum;
                scan.end += header.bytes as u64;
            }
            Err(bad) => {
                scan.bad = Some(bad);
                break;
            }
        }
    }
    scan.beyond = beyond(file, tag, scan.end as usize + BLOCK);
    scan
}

fn beyond(file: &Bytes, tag: u64, from: usize) -> Option<(u64, u64)> {
    (from..file.len())
        .step_by(BLOCK)
        .filter_map(|at| decode_header(file, at, tag))
        .filter(|header| decode_records(file, header).is_ok())
        .map(|header| (header.stamp.number, header.stamp.pass))
        .max()
}

fn detach(mut record: Record) -> Record {
    use tidewater_proto::entry::Change;
    if let Record::Entry { entry, .. } = &mut record
        && let Change::Write { data, .. } = &mut entry.change
    {
        data.data = Bytes::copy_from_slice(&data.data);
    }
    record
}

/// Puts the files together.
pub fn recover(mut scans: Vec<Scan>) -> Recovery {
    let newest = scans.iter().filter_map(|s| s.run.last()).map(|b| b.number).max().unwrap_or(0);
    // Old batches lie behind the end of a run that has begun to replace them; they are no loss.
    let later = scans.iter().filter_map(|s| s.beyond).filter(|b| b.0 > newest).max();
    scans.sort_by_key(|s| s.run.first().map_or(u64::MAX, |b| b.pass));

    let mut damage = Damage::None;
    let mut next = Next { number: 1, pass: 0, offset: FIRST_OFFSET, chain: 0 };
    let mut suspects = None;
    for scan in scans.iter().filter(|s| !s.run.is_empty()) {
        let first = &scan.run[0];
        let begins = next.number == 1;
        let follows = first.number == next.number
            && first.pass == next.pass + 1
            && scan.first_chain == next.chain;
        if !begins && !follows {
            let one_lost = first.number == next.number + 1 && first.pass == next.pass + 1;
            damage = damage.and(suspects.take().filter(|_| one_lost));
        }
        let last = &scan.run[scan.run.len() - 1];
        next = Next {
            number: last.number + 1,
            pass: last.pass,
            offset: scan.end,
            chain: scan.last_sum,
        };
        suspects.clone_from(&scan.bad);
    }
    if let Some((number, pass)) = later {
        damage = damage.and(suspects.filter(|_| number == next.number + 1));
        let pass = pass.max(next.pass) + 1;
        next = Next { number: number + 1, pass, offset: FIRST_OFFSET, chain: 0 };
    }
    let batches = scans.into_iter().flat_map(|s| s.run).collect();
    Recovery { batches, damage, next }
}

impl Damage {
    fn and(self, bad: Option<BadBatch>) -> Self {
        match (self, bad) {
            (Self::All, _) | (_, None | Some(BadBatch::Header)) => Self::All,
            (Self::None, Some(BadBatch::Payload(names))) => Self::Some(names.into_iter().collect()),
            (Self::Some(mut known), Some(BadBatch::Payload(names))) => {
                known.extend(names);
                Self::Some(known)
            }
        }
    }

    /// Whether this replica may have lost records.
    pub fn includes(&self, replica: ReplicaId) -> bool {
        match self {
            Self::None => false,
            Self::Some(names) => names.contains(&replica),
            Self::All => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tidewater_proto::{
        entry::{Change, Entry, Payload},
        geometry::Extent,
        ids::{Epoch, Position, SegmentId, Sequence, Token},
    };

    use super::*;
    use crate::store::journal::{
        Shape,
        format::{Stamp, encode},
    };

    const TAG: u64 = 5;
    const SHAPE: Shape = Shape { files: 3, file_bytes: 64 << 10 };

    /// A ring as the writer leaves it, and where each batch that is still there lies.
    struct Ring {
        files: Vec<Vec<u8>>,
        places: Vec<(usize, usize, usize)>,
        batches: Vec<Batch>,
    }

    fn record(sequence: u64, blocks: u64) -> Record {
        let extent = Extent::new(0, blocks * 4096, 1 << 20).expect("valid");
        let data = Payload::new(extent, vec![sequence as u8; blocks as usize * 4096].into());
        let position = Position { epoch: Epoch(1), sequence: Sequence(sequence) };
        let change = Change::Write { extent, data };
        let entry = Entry { position, token: Token(1), op: None, lowest_open: 0, change };
        let segment = SegmentId::default();
        Record::Entry { replica: ReplicaId(1), segment, entry, commit: Sequence(0), slot: None }
    }

    fn ring(sizes: &[u64]) -> Ring {
        let files = vec![vec![0; SHAPE.file_bytes as usize]; SHAPE.files as usize];
        let mut ring = Ring { files, places: Vec::new(), batches: Vec::new() };
        let mut next = Next { number: 1, pass: 0, offset: FIRST_OFFSET, chain: 0 };
        for (&blocks, sequence) in sizes.iter().zip(1..) {
            let records = vec![record(sequence, blocks)];
            if next.offset + (blocks + 1) * 4096 > SHAPE.file_bytes {
                next = Next { pass: next.pass + 1, offset: FIRST_OFFSET, ..next };
                let recycled = next.pass.checked_sub(SHAPE.files);
                let gone = ring.batches.iter().take_while(|b| Some(b.pass) == recycled).count();
                ring.batches.drain(..gone);
                ring.places.drain(..gone);
            }
            let Next { number, pass, offset, chain } = next;
            let (bytes, sum) = encode(&Stamp { number, pass, chain, tag: TAG, offset }, &records);
            let bytes = bytes.concat();
            let file = SHAPE.file(pass);
            ring.files[file][offset as usize..][..bytes.len()].copy_from_slice(&bytes);
            ring.places.push((file, offset as usize, bytes.len()));
            ring.batches.push(Batch { number, pass, records });
            let offset = offset + bytes.len() as u64;
            next = Next { number: number + 1, pass, offset, chain: sum };
        }
        ring
    }

    fn read(ring: &Ring) -> Recovery {
        let files = ring.files.iter().map(|file| Bytes::from(file.clone()));
        recover(files.map(|file| scan(&file, TAG, &mut |_| true)).collect())
    }

    /// Those of the batches found that the writer has not begun to replace.
    fn current(found: &Recovery, ring: &Ring) -> Vec<Batch> {
        let oldest = ring.batches[0].number;
        found.batches.iter().filter(|batch| batch.number >= oldest).cloned().collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        #[test]
        fn a_whole_ring_is_read_whole(sizes in prop::collection::vec(1..6_u64, 1..60)) {
            let ring = ring(&sizes);
            let found = read(&ring);
            prop_assert_eq!(&found.damage, &Damage::None);
            prop_assert_eq!(found.next.number, sizes.len() as u64 + 1);
            prop_assert!(current(&found, &ring) == ring.batches);
        }

        /// The last batch torn at any byte leaves the batches before it, and no damage.
        #[test]
        fn a_torn_tail_gives_a_prefix(
            sizes in prop::collection::vec(1..6_u64, 1..60),
            at in any::<prop::sample::Index>(),
            garbage in any::<u8>(),
        ) {
            let mut ring = ring(&sizes);
            let (file, start, len) = *ring.places.last().expect("one batch");
            let torn = &mut ring.files[file][start + at.index(len)..start + len];
            prop_assume!(torn.iter().any(|&b| b != garbage));
            torn.fill(garbage);
            let found = read(&ring);
            let last = ring.batches.pop().expect("one batch");
            prop_assert_eq!(&found.damage, &Damage::None);
            if let Some(oldest) = ring.batches.first() {
                prop_assert_eq!(found.next.number, last.number);
                let kept = found.batches.iter().filter(|b| b.number >= oldest.number);
                prop_assert!(kept.eq(&ring.batches));
            }
        }

        /// A bit that rots in any batch but the last is reported, and what is before it is kept.
        /// Rot in the first of all leaves no trace here: what is missing then is found by the gap.
        #[test]
        fn rot_in_the_middle_is_reported(
            sizes in prop::collection::vec(1..6_u64, 3..60),
            which in any::<prop::sample::Index>(),
            at in any::<prop::sample::Index>(),
            bit in 0..8_u8,
        ) {
            let mut ring = ring(&sizes);
            prop_assume!(ring.places.len() > 2);
            let which = 1 + which.index(ring.places.len() - 2);
            let (file, start, len) = ring.places[which];
            ring.files[file][start + at.index(len)] ^= 1 << bit;
            let found = read(&ring);
            prop_assert!(found.damage.includes(ReplicaId(1)), "batch {which} of {}", ring.places.len());
            let before = &ring.batches[..which];
            prop_assert!(current(&found, &ring).starts_with(before));
            prop_assert!(found.next.number > sizes.len() as u64, "numbers are not used again");
        }
    }
}
