//! The store on a real folder, with threads.

use std::{path::Path, time::Duration};

use bytes::Bytes;
use tidewater_proto::{
    entry::{Change, Entry, Payload},
    geometry::{CHUNK_BYTES, Extent},
    ids::{Epoch, Position, ReplicaId, SegmentId, Sequence, ServerId, Token, VolumeId},
};

use super::driver::{SEGMENT, World, table};
use crate::store::{
    Completion, DeviceConfig, Freeze, Identity, LimitsConfig, OpenError, Record, ShardStore, Store,
    StoreConfig, Ticket, device::Tier,
};

const DEADLINE: Duration = Duration::from_secs(20);
const REPLICA: ReplicaId = ReplicaId(1);

fn config(dir: &Path, shards: usize) -> StoreConfig {
    let mut config = StoreConfig::new(dir, shards);
    config.journal_bytes = 24 << 20;
    config.devices.push(DeviceConfig {
        name: "d1".to_string(),
        path: dir.join("d1"),
        tier: Tier::Nvme,
        capacity_bytes: 64 << 20,
        limits: LimitsConfig::default(),
    });
    config
}

fn segment() -> SegmentId {
    SegmentId { volume: VolumeId(1), index: 0 }
}

fn entry(sequence: u64, at: u64, len: u64) -> Entry<Payload> {
    let extent = Extent::new(at, len, SEGMENT).expect("valid");
    let data = Payload::new(extent, Bytes::from(vec![sequence as u8; len as usize]));
    let position = Position { epoch: Epoch(1), sequence: Sequence(sequence) };
    let change = Change::Write { extent, data };
    Entry { position, token: Token(1), op: None, lowest_open: 0, change }
}

/// Waits for the first completion that `pick` takes.
async fn wait<T>(store: &mut ShardStore, pick: impl Fn(Completion) -> Option<T>) -> T {
    let ready = store.ready().expect("a descriptor");
    let mut out = Vec::new();
    let found = async {
        loop {
            store.poll(&mut out);
            store.submit();
            if let Some(found) = out.drain(..).find_map(&pick) {
                return found;
            }
            ready.wait().await;
        }
    };
    tokio::time::timeout(DEADLINE, found).await.expect("within the deadline")
}

async fn read(store: &mut ShardStore, at: u64, len: u64) -> Bytes {
    let extent = Extent::new(at, len, SEGMENT).expect("valid");
    let payload = match store.read(REPLICA, extent, 3) {
        Some(payload) => payload,
        None => {
            wait(store, |c| match c {
                Completion::Read { tag: 3, result } => Some(result.expect("readable")),
                _ => None,
            })
            .await
        }
    };
    payload.verify(extent).expect("sums match");
    payload.data
}

async fn durable(store: &mut ShardStore, ticket: Ticket) {
    store.submit();
    wait(store, |c| matches!(c, Completion::Durable(t) if t >= ticket).then_some(())).await;
}

#[tokio::test]
async fn what_is_written_is_read_before_and_after_destaging_and_a_restart() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let shard = segment().shard(2);
    let entries =
        [entry(1, 0, 4096), entry(2, CHUNK_BYTES - 512, 1024), entry(3, CHUNK_BYTES, CHUNK_BYTES)];
    {
        let store = Store::open(config(dir.path(), 2), &World::identity()).expect("opens");
        let (mut store, found) = ShardStore::open(&store, shard).expect("opens");
        assert!(found.is_empty());
        store.create(REPLICA, segment()).expect("made");
        let mut last = Ticket(0);
        for entry in &entries {
            let (replica, segment) = (REPLICA, segment());
            let commit = Sequence(entry.position.sequence.0 - 1);
            last = store.append(Record::Entry {
                replica,
                segment,
                entry: entry.clone(),
                commit,
                slot: None,
            });
        }
        durable(&mut store, last).await;
        for entry in &entries {
            store.apply(REPLICA, entry);
        }
        assert!(read(&mut store, CHUNK_BYTES - 512, 512).await.iter().all(|&b| b == 2));
        let at = entries[1].position;
        store.freeze(vec![Freeze { replica: REPLICA, at, applied: table(&entries[..2]) }]);
        wait(&mut store, |c| matches!(c, Completion::Destaged(_)).then_some(())).await;
        assert!(read(&mut store, CHUNK_BYTES, CHUNK_BYTES).await.iter().all(|&b| b == 3));
    }
    let store = Store::open(config(dir.path(), 2), &World::identity()).expect("opens again");
    let (mut store, found) = ShardStore::open(&store, shard).expect("opens again");
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].base, &found[0].entries[..]), (entries[1].position, &entries[2..]));
    assert!(read(&mut store, 0, 4096).await.iter().all(|&b| b == 1));
    assert!(read(&mut store, 8192, 4096).await.iter().all(|&b| b == 0), "a hole");
    let border = read(&mut store, CHUNK_BYTES - 1024, 2048).await;
    assert_eq!(border[..], [vec![0; 512], vec![2; 512], vec![3; 1024]].concat());
}

#[test]
fn a_folder_in_use_or_of_another_server_shape_or_version_is_refused() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let open = |shards, identity: &Identity| Store::open(config(dir.path(), shards), identity);
    let mine = World::identity();
    let held = open(1, &mine).expect("opens");
    assert!(matches!(open(1, &mine), Err(OpenError::InUse { .. })));
    drop(held);
    let other = Identity { cluster: "other".to_string(), ..mine.clone() };
    assert!(matches!(open(1, &other), Err(OpenError::Foreign { .. })));
    let other = Identity { server: ServerId(2), ..mine.clone() };
    assert!(matches!(open(1, &other), Err(OpenError::Foreign { .. })));
    assert!(matches!(open(2, &mine), Err(OpenError::Shards { found: 1, wanted: 2 })));

    let held = open(1, &mine).expect("opens again: nothing was changed");
    let mut marker = held.marker.clone();
    marker.version = 2;
    let key = crate::store::catalog::rows::MARKER_KEY.to_vec();
    held.catalog.write(vec![(key, Some(marker.encode()))]).expect("written");
    drop(held);
    assert!(matches!(open(1, &mine), Err(OpenError::Version { found: 2 })));
}
