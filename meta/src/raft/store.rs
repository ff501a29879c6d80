//! The data folder: one RocksDB for log and state, and the snapshots beside it.
//!
//! ```text
//! lock                held by the process that serves the folder
//! db/                 column families: log (index -> entry), meta, state (tag + key -> row)
//! snapshots/<n>/      checkpoint of db, and meta.json; the highest n is the current one
//! ```

use std::{
    fs::{File, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rocksdb::{ColumnFamily, ColumnFamilyDescriptor, DB, Options, WriteBatch, WriteOptions};
use serde::{Serialize, de::DeserializeOwned};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Version of the database's content.
const FORMAT: u32 = 1;
const CF_LOG: &str = "log";
const CF_META: &str = "meta";
const CF_STATE: &str = "state";
const KEY_FORMAT: &[u8] = b"format";
const KEY_NODE: &[u8] = b"node";

/// Memory a column family's unflushed writes may take.
const WRITE_BUFFER_BYTES: usize = 8 << 20;
/// Write-ahead log kept before memory is flushed.
const WAL_BYTES_MAX: u64 = 64 << 20;
const INFO_LOG_BYTES: usize = 1 << 20;
const INFO_LOG_FILES: usize = 2;

/// Why a data folder cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it open.
    #[error("data folder {} is in use by another process", dir.display())]
    InUse {
        /// The folder.
        dir: PathBuf,
    },
    /// Written by a version that this one does not read.
    #[error("data folder has format {found}, this version reads {supported}")]
    Format {
        /// In the folder.
        found: u32,
        /// By this version.
        supported: u32,
    },
    /// Belongs to another node of the cluster.
    #[error("data folder belongs to meta node {found}, not to {configured}")]
    OtherNode {
        /// In the folder.
        found: u64,
        /// In the configuration.
        configured: u64,
    },
    /// Belongs to another cluster.
    #[error("data folder belongs to cluster {found}, not to {configured}")]
    OtherCluster {
        /// In the folder.
        found: String,
        /// In the configuration.
        configured: String,
    },
    /// A stored value is none of this format.
    #[error("malformed value with key {key:02x?}")]
    Malformed {
        /// Key as stored.
        key: Vec<u8>,
    },
    /// The file system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// What was opened.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// RocksDB refused.
    #[error(transparent)]
    Db(#[from] rocksdb::Error),
}

impl From<StoreError> for io::Error {
    fn from(error: StoreError) -> Self {
        Self::other(error)
    }
}

/// An open data folder. Clones share it; the last one to go releases the lock.
#[derive(Clone)]
pub(crate) struct Store {
    inner: Arc<Inner>,
    closed: CancellationToken,
}

struct Inner {
    db: DB,
    dir: PathBuf,
    // After `db`: the lock is released once the database is closed, and that is told last.
    _lock: File,
    _closed: DropGuard,
}

fn options() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_write_buffer_size(WRITE_BUFFER_BYTES);
    options.set_max_total_wal_size(WAL_BYTES_MAX);
    options.set_max_log_file_size(INFO_LOG_BYTES);
    options.set_keep_log_file_num(INFO_LOG_FILES);
    options
}

fn families() -> impl Iterator<Item = ColumnFamilyDescriptor> {
    [CF_LOG, CF_META, CF_STATE].map(|name| ColumnFamilyDescriptor::new(name, options())).into_iter()
}

fn lock(dir: &Path) -> Result<File, StoreError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| StoreError::Io { path, source }
    };
    std::fs::create_dir_all(dir).map_err(io(dir))?;
    let path = dir.join("lock");
    let file = File::create(&path).map_err(io(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse { dir: dir.to_owned() }),
        Err(TryLockError::Error(source)) => Err(StoreError::Io { path, source }),
    }
}

impl Store {
    /// Opens or makes the data folder of meta node `node`.
    pub(crate) fn open(dir: &Path, node: u64) -> Result<Self, StoreError> {
        let lock = lock(dir)?;
        let db = DB::open_cf_descriptors(&options(), dir.join("db"), families())?;
        let closed = CancellationToken::new();
        let guard = closed.clone().drop_guard();
        let inner = Inner { db, dir: dir.to_owned(), _lock: lock, _closed: guard };
        let store = Self { inner: Arc::new(inner), closed };
        store.check_owner(node)?;
        Ok(store)
    }

    fn check_owner(&self, node: u64) -> Result<(), StoreError> {
        let Some(found) = self.meta::<u32>(KEY_FORMAT)? else {
            let mut batch = WriteBatch::default();
            self.put_meta(&mut batch, KEY_FORMAT, &FORMAT);
            self.put_meta(&mut batch, KEY_NODE, &node);
            return self.write_synced(batch);
        };
        if found != FORMAT {
            return Err(StoreError::Format { found, supported: FORMAT });
        }
        match self.meta::<u64>(KEY_NODE)? {
            Some(found) if found != node => Err(StoreError::OtherNode { found, configured: node }),
            Some(_) => Ok(()),
            None => Err(StoreError::Malformed { key: KEY_NODE.to_vec() }),
        }
    }

    /// Fires once the last clone is gone and the folder is free for another process.
    pub(crate) fn closed(&self) -> CancellationToken {
        self.closed.clone()
    }

    pub(crate) fn db(&self) -> &DB {
        &self.inner.db
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.inner.dir
    }

    fn family(&self, name: &str) -> &ColumnFamily {
        self.inner.db.cf_handle(name).expect("opened with every column family")
    }

    pub(crate) fn log(&self) -> &ColumnFamily {
        self.family(CF_LOG)
    }

    pub(crate) fn state(&self) -> &ColumnFamily {
        self.family(CF_STATE)
    }

    /// A value of the meta column family.
    pub(crate) fn meta<T: DeserializeOwned>(&self, key: &[u8]) -> Result<Option<T>, StoreError> {
        let Some(bytes) = self.inner.db.get_pinned_cf(self.family(CF_META), key)? else {
            return Ok(None);
        };
        let value = serde_json::from_slice(&bytes);
        value.map(Some).map_err(|_| StoreError::Malformed { key: key.to_vec() })
    }

    pub(crate) fn put_meta<T: Serialize>(&self, batch: &mut WriteBatch, key: &[u8], value: &T) {
        let bytes = serde_json::to_vec(value).expect("meta values are plain data");
        batch.put_cf(self.family(CF_META), key, bytes);
    }

    /// Writes to memory and to the write-ahead log, which a later sync makes durable in order.
    pub(crate) fn write(&self, batch: WriteBatch) -> Result<(), StoreError> {
        Ok(self.inner.db.write(batch)?)
    }

    /// Writes durably, with all that was written before.
    pub(crate) fn write_synced(&self, batch: WriteBatch) -> Result<(), StoreError> {
        let mut options = WriteOptions::default();
        options.set_sync(true);
        Ok(self.inner.db.write_opt(batch, &options)?)
    }
}

/// A row as stored: tagged key, and value.
pub(crate) type StoredRow = (Box<[u8]>, Box<[u8]>);

/// All rows of the state in a checkpoint of this version.
pub(crate) fn read_checkpoint(dir: &Path) -> Result<Vec<StoredRow>, StoreError> {
    let db = DB::open_cf_descriptors_read_only(&options(), dir, families(), false)?;
    let meta = db.cf_handle(CF_META).expect("opened with every column family");
    let malformed = || StoreError::Malformed { key: KEY_FORMAT.to_vec() };
    let format = db.get_pinned_cf(meta, KEY_FORMAT)?.ok_or_else(malformed)?;
    let found = serde_json::from_slice(&format).map_err(|_| malformed())?;
    if found != FORMAT {
        return Err(StoreError::Format { found, supported: FORMAT });
    }
    let state = db.cf_handle(CF_STATE).expect("opened with every column family");
    let rows = db.iterator_cf(state, rocksdb::IteratorMode::Start).collect::<Result<_, _>>()?;
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_in_use_or_of_another_node_or_format_is_refused() {
        let dir = tempfile::tempdir().expect("tempdir");
        let store = Store::open(dir.path(), 1).expect("new folder");
        assert!(matches!(Store::open(dir.path(), 1), Err(StoreError::InUse { .. })));
        let mut batch = WriteBatch::default();
        store.put_meta(&mut batch, KEY_FORMAT, &(FORMAT + 1));
        drop(store.clone());
        drop(store);
        let other = Store::open(dir.path(), 2);
        assert!(matches!(other, Err(StoreError::OtherNode { found: 1, configured: 2 })));
        let store = Store::open(dir.path(), 1).expect("own folder");
        store.write_synced(batch).expect("write");
        drop(store);
        let newer = Store::open(dir.path(), 1);
        assert!(matches!(newer, Err(StoreError::Format { found: 2, supported: 1 })));
    }
}
