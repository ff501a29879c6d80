//! A copy that is filled from a peer, with and without a crash in its middle.

use bytes::Bytes;
use tidewater_proto::{
    entry::{Change, Entry, Payload},
    geometry::{CHUNK_BYTES, Extent},
    ids::{Epoch, Position, ReplicaId, Sequence, Token},
};

use super::driver::{SEGMENT, World, read, segment, table};
use crate::store::{ChunkImage, Completion, Freeze, Record, ShardStore, disk::Keep};

const COPY: ReplicaId = ReplicaId(4);

fn entry(sequence: u64, at: u64, len: u64, byte: u8) -> Entry<Payload> {
    let extent = Extent::new(at, len, SEGMENT).expect("valid");
    let data = Payload::new(extent, Bytes::from(vec![byte; len as usize]));
    Entry {
        position: position(sequence),
        token: Token(1),
        op: None,
        lowest_open: 0,
        change: Change::Write { extent, data },
    }
}

fn position(sequence: u64) -> Position {
    Position { epoch: Epoch(1), sequence: Sequence(sequence) }
}

fn log(store: &mut ShardStore, entry: &Entry<Payload>) {
    let commit = Sequence(entry.position.sequence.0 - 1);
    let (replica, segment) = (COPY, segment(COPY));
    store.append(Record::Entry { replica, segment, entry: entry.clone(), commit, slot: None });
}

fn image(chunk: u32, changed: u64, at: u64, byte: u8) -> ChunkImage {
    let extent = Extent::new(u64::from(chunk) * CHUNK_BYTES, CHUNK_BYTES, SEGMENT).expect("valid");
    let image = Payload::new(extent, Bytes::from(vec![byte; CHUNK_BYTES as usize]));
    ChunkImage { chunk, changed: Sequence(changed), at: Sequence(at), image: Some(image) }
}

fn completions(store: &mut ShardStore) -> Vec<Completion> {
    let mut out = Vec::new();
    store.poll(&mut out);
    out
}

fn freeze(store: &mut ShardStore, at: u64) -> Vec<Completion> {
    store.freeze(vec![Freeze { replica: COPY, at: position(at), applied: Vec::new() }]);
    completions(store)
}

/// A copy with one entry of its own, then the stream from 11 on.
fn begun(world: &World) -> ShardStore {
    let mut store = world.open().expect("opens").0;
    store.create(COPY, segment(COPY)).expect("made");
    let own = entry(1, 0, 4096, 1);
    log(&mut store, &own);
    store.apply(COPY, &own);
    store.begin_copy(COPY, Sequence(1));
    for streamed in [entry(11, 4096, 4096, 11), entry(12, CHUNK_BYTES + 512, 512, 12)] {
        log(&mut store, &streamed);
        store.apply(COPY, &streamed);
    }
    store
}

fn put(store: &mut ShardStore, image: ChunkImage) {
    store.put_chunk(COPY, image, 9);
    let out = completions(store);
    assert!(out.iter().any(|c| matches!(c, Completion::ChunkPut { tag: 9 })), "{out:?}");
}

fn check_whole(store: &mut ShardStore) {
    // Chunk 0: the image showed 10, so entry 11 lies over it.
    assert!(read(store, COPY, 0, 4096).iter().all(|&b| b == 50));
    assert!(read(store, COPY, 4096, 4096).iter().all(|&b| b == 11));
    // Chunk 1: the image showed 12, so it has all.
    assert!(read(store, COPY, CHUNK_BYTES, 4096).iter().all(|&b| b == 60));
    assert_eq!(read(store, COPY, CHUNK_BYTES + 4096, 512), [13; 512]);
}

fn finish(store: &mut ShardStore) {
    put(store, image(0, 10, 10, 50));
    put(store, image(1, 12, 12, 60));
    let last = entry(13, CHUNK_BYTES + 4096, 512, 13);
    log(store, &last);
    store.apply(COPY, &last);
    store.end_copy(COPY, position(13), Vec::new(), None, 8);
    assert!(store.freeze_wanted());
    let out = freeze(store, 13);
    assert!(out.iter().any(|c| matches!(c, Completion::CopyEnded { tag: 8 })), "{out:?}");
}

#[test]
fn images_go_under_newer_entries_and_over_older_ones() {
    let world = World::new();
    let mut store = begun(&world);
    freeze(&mut store, 12);
    finish(&mut store);
    check_whole(&mut store);
    let next = entry(14, 0, 512, 14);
    log(&mut store, &next);
    completions(&mut store);

    let (mut store, found) = world.after_crash(Keep::None, 1).open().expect("opens");
    assert_eq!((found[0].base, found[0].copying, found[0].damaged), (position(13), None, false));
    assert_eq!(found[0].entries, [next], "the journal goes on behind the copy");
    check_whole(&mut store);
    assert_eq!(store.chunk_table(COPY), [(0, Sequence(11)), (1, Sequence(13))]);
}

#[test]
fn a_copy_cut_short_is_found_as_it_was_with_the_chunks_that_came() {
    let world = World::new();
    let mut store = begun(&world);
    put(&mut store, image(1, 12, 12, 60));
    freeze(&mut store, 12);
    drop(store);

    let world = world.after_crash(Keep::None, 1);
    let (mut store, found) = world.open().expect("opens");
    let copy = &found[0];
    assert_eq!((copy.copying, copy.damaged), (Some(Sequence(1)), false));
    assert_eq!((copy.base.sequence, copy.commit), (Sequence(0), Sequence(1)));
    assert_eq!(copy.entries, [entry(1, 0, 4096, 1)], "its own, and nothing of the stream");
    store.apply(COPY, &copy.entries[0]);
    assert_eq!(store.chunk_table(COPY), [(0, Sequence(1)), (1, Sequence(12))]);

    store.begin_copy(COPY, Sequence(1));
    for streamed in [entry(11, 4096, 4096, 11), entry(12, CHUNK_BYTES + 512, 512, 12)] {
        store.apply(COPY, &streamed);
    }
    finish(&mut store);
    check_whole(&mut store);
}

#[test]
fn a_copy_begun_at_a_point_has_it_as_its_base() {
    let world = World::new();
    let mut store = world.open().expect("opens").0;
    store.create(COPY, segment(COPY)).expect("made");
    let own = entry(1, 0, 4096, 1);
    log(&mut store, &own);
    store.apply(COPY, &own);
    let applied = table(std::slice::from_ref(&own));
    store.begin_copy_at(Freeze { replica: COPY, at: position(1), applied: applied.clone() });
    completions(&mut store);

    let (mut store, found) = world.after_crash(Keep::None, 1).open().expect("opens");
    let copy = &found[0];
    assert_eq!(
        (copy.base, &copy.applied, copy.copying),
        (position(1), &applied, Some(Sequence(1)))
    );
    assert!(copy.entries.is_empty());
    assert!(read(&mut store, COPY, 0, 4096).iter().all(|&b| b == 1));
}

#[test]
fn a_copy_without_a_stream_ends_too() {
    let world = World::new();
    let mut store = world.open().expect("opens").0;
    store.create(COPY, segment(COPY)).expect("made");
    store.begin_copy(COPY, Sequence(0));
    // A learner's commit point is the primary's, though it has applied nothing.
    freeze(&mut store, 10);
    put(&mut store, image(0, 10, 10, 50));
    store.end_copy(COPY, position(10), Vec::new(), None, 8);
    let out = freeze(&mut store, 10);
    assert!(out.iter().any(|c| matches!(c, Completion::CopyEnded { tag: 8 })), "{out:?}");
    let (mut store, found) = world.after_crash(Keep::None, 1).open().expect("opens");
    assert_eq!((found[0].base, found[0].copying), (position(10), None));
    assert!(read(&mut store, COPY, 0, 4096).iter().all(|&b| b == 50));
}

#[test]
fn an_entry_that_a_chunk_already_has_is_skipped_when_it_is_replayed() {
    let world = World::new();
    let mut store = begun(&world);
    put(&mut store, image(0, 10, 12, 50));
    drop(store);
    let (mut store, found) = world.after_crash(Keep::None, 1).open().expect("opens");
    assert_eq!(found[0].entries, [entry(1, 0, 4096, 1)]);
    store.apply(COPY, &found[0].entries[0]);
    assert!(read(&mut store, COPY, 0, 4096).iter().all(|&b| b == 50), "the image is newer");
}

#[test]
fn chunks_that_the_primary_lacks_are_dropped_at_the_end() {
    let world = World::new();
    let mut store = begun(&world);
    put(&mut store, image(1, 12, 12, 60));
    let hole = ChunkImage { chunk: 0, changed: Sequence(12), at: Sequence(12), image: None };
    put(&mut store, hole);
    store.end_copy(COPY, position(12), Vec::new(), Some([0].into()), 8);
    freeze(&mut store, 12);
    assert!(store.chunk_table(COPY).is_empty());
    assert!(read(&mut store, COPY, 0, SEGMENT).iter().all(|&b| b == 0));
}
