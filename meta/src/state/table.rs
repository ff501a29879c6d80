#![deny(clippy::disallowed_methods, clippy::disallowed_types)]
//! One table of the replicated state: rows in key order, and which of them changed since the last
//! command was stored, so that the store writes exactly those.

use std::{collections::BTreeMap, ops::RangeBounds};

use serde::{Serialize, de::DeserializeOwned};
use tidewater_proto::ids::{ReplicaId, SegmentId, ServerId, SessionId, VolumeId};
use xxhash_rust::xxh3::xxh3_64;

/// A key with an order-preserving encoding.
pub(crate) trait Key: Ord + Clone {
    /// Appends the encoding.
    fn encode(&self, out: &mut Vec<u8>);
    /// The key, if `bytes` is one's encoding.
    fn decode(bytes: &[u8]) -> Option<Self>;
}

/// Key of a table with one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Single;

/// Key of a copy to be deleted after its segment was purged; by server, for its watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RetiredKey {
    pub(crate) server: ServerId,
    pub(crate) segment: SegmentId,
    pub(crate) replica: ReplicaId,
}

impl Key for Single {
    fn encode(&self, _: &mut Vec<u8>) {}

    fn decode(bytes: &[u8]) -> Option<Self> {
        bytes.is_empty().then_some(Self)
    }
}

impl Key for u64 {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.to_be_bytes());
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self::from_be_bytes)
    }
}

macro_rules! id_key {
    ($($id:ident),*) => {$(
        impl Key for $id {
            fn encode(&self, out: &mut Vec<u8>) {
                self.0.encode(out);
            }

            fn decode(bytes: &[u8]) -> Option<Self> {
                u64::decode(bytes).map(Self)
            }
        }
    )*};
}
id_key!(ServerId, VolumeId, SessionId, ReplicaId);

impl Key for String {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.as_bytes());
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        Self::from_utf8(bytes.to_vec()).ok()
    }
}

impl Key for SegmentId {
    fn encode(&self, out: &mut Vec<u8>) {
        self.volume.encode(out);
        out.extend(self.index.to_be_bytes());
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (volume, index) = bytes.split_at_checked(8)?;
        let index = u32::from_be_bytes(index.try_into().ok()?);
        Some(Self { volume: VolumeId::decode(volume)?, index })
    }
}

impl Key for RetiredKey {
    fn encode(&self, out: &mut Vec<u8>) {
        self.server.encode(out);
        self.segment.encode(out);
        self.replica.encode(out);
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (server, rest) = bytes.split_at_checked(8)?;
        let (segment, replica) = rest.split_at_checked(12)?;
        Some(Self {
            server: ServerId::decode(server)?,
            segment: SegmentId::decode(segment)?,
            replica: ReplicaId::decode(replica)?,
        })
    }
}

/// A changed row as the store keeps it: encoded key with its table's tag, and the row, or none if
/// it was removed.
pub(crate) type Change = (Vec<u8>, Option<Vec<u8>>);

#[derive(Clone, Debug)]
struct Row<V> {
    value: V,
    /// Of the stored bytes; 0 until stored.
    hash: u64,
}

/// Rows of one kind.
#[derive(Clone, Debug)]
pub(crate) struct Table<K, V> {
    tag: u8,
    rows: BTreeMap<K, Row<V>>,
    /// Changed rows, with the hash of what the store has of each.
    dirty: BTreeMap<K, u64>,
}

impl<K: Key, V: Serialize + DeserializeOwned> Table<K, V> {
    /// No rows. `tag` is the first byte of every stored key, unique to the table.
    pub(crate) fn new(tag: u8) -> Self {
        Self { tag, rows: BTreeMap::new(), dirty: BTreeMap::new() }
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.rows.get(key).map(|row| &row.value)
    }

    pub(crate) fn contains(&self, key: &K) -> bool {
        self.rows.contains_key(key)
    }

    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = (&K, &V)> {
        self.rows.iter().map(|(key, row)| (key, &row.value))
    }

    pub(crate) fn range(
        &self,
        range: impl RangeBounds<K>,
    ) -> impl DoubleEndedIterator<Item = (&K, &V)> {
        self.rows.range(range).map(|(key, row)| (key, &row.value))
    }

    /// The row, to be changed; it counts as changed from here on.
    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let row = self.rows.get_mut(key)?;
        self.dirty.entry(key.clone()).or_insert(row.hash);
        Some(&mut row.value)
    }

    pub(crate) fn insert(&mut self, key: K, value: V) {
        let stored = self.rows.get(&key).map_or(0, |row| row.hash);
        self.dirty.entry(key.clone()).or_insert(stored);
        self.rows.insert(key, Row { value, hash: 0 });
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let row = self.rows.remove(key)?;
        self.dirty.entry(key.clone()).or_insert(row.hash);
        Some(row.value)
    }

    /// Takes a row as the store has it, without its tag. False if it is malformed.
    pub(crate) fn load(&mut self, stored: &[u8], key: &[u8], value: &[u8], hash: &mut u64) -> bool {
        let (Some(key), Ok(row)) = (K::decode(key), serde_json::from_slice(value)) else {
            return false;
        };
        let row_hash = hash_row(stored, value);
        *hash ^= row_hash;
        self.rows.insert(key, Row { value: row, hash: row_hash });
        true
    }

    /// Appends the changed rows to `changes` and folds them into the state's hash.
    pub(crate) fn drain(&mut self, changes: &mut Vec<Change>, hash: &mut u64) {
        for (key, before) in std::mem::take(&mut self.dirty) {
            let mut stored = vec![self.tag];
            key.encode(&mut stored);
            let value = self.rows.get_mut(&key).map(|row| {
                let bytes = serde_json::to_vec(&row.value).expect("rows have string keys only");
                row.hash = hash_row(&stored, &bytes);
                *hash ^= row.hash;
                bytes
            });
            *hash ^= before;
            changes.push((stored, value));
        }
    }
}

fn hash_row(stored: &[u8], value: &[u8]) -> u64 {
    let mut bytes = Vec::with_capacity(stored.len() + value.len() + 8);
    bytes.extend((stored.len() as u64).to_le_bytes());
    bytes.extend(stored);
    bytes.extend(value);
    xxh3_64(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_reloaded_from_its_changes_has_the_same_rows_and_hash() {
        let mut table: Table<u64, String> = Table::new(7);
        let (mut changes, mut hash) = (Vec::new(), 0);
        table.insert(1, "one".into());
        table.insert(2, "two".into());
        table.drain(&mut changes, &mut hash);
        changes.clear();
        table.remove(&1);
        table.insert(1, "uno".into());
        table.get_mut(&2).expect("row").push('!');
        table.remove(&2);
        table.insert(3, "three".into());
        table.drain(&mut changes, &mut hash);
        assert_eq!(changes.len(), 3, "{changes:?}");

        let (mut again, mut reloaded) = (Table::<u64, String>::new(7), 0);
        for (key, value) in &changes {
            if let Some(value) = value {
                assert!(again.load(key, &key[1..], value, &mut reloaded));
            }
        }
        assert_eq!(reloaded, hash);
        assert!(again.iter().eq(table.iter()));
    }

    #[test]
    fn keys_round_trip_and_keep_their_order() {
        let key = |server, volume, index, replica| RetiredKey {
            server: ServerId(server),
            segment: SegmentId { volume: VolumeId(volume), index },
            replica: ReplicaId(replica),
        };
        let keys = [key(1, 2, 3, 4), key(1, 2, 256, 1), key(1, 300, 0, 0), key(256, 0, 0, 0)];
        let encoded = keys.map(|k| {
            let mut out = Vec::new();
            k.encode(&mut out);
            assert_eq!(RetiredKey::decode(&out), Some(k));
            out
        });
        assert!(encoded.is_sorted());
    }
}
