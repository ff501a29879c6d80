//! openraft's log on RocksDB. Appends are written at once and made durable by one thread, many
//! together.

use std::{
    fmt::Debug,
    io,
    ops::{Bound, RangeBounds},
    thread::JoinHandle,
};

use openraft::{
    OptionalSend, RaftLogReader,
    entry::RaftEntry,
    storage::{IOFlushed, LogState, RaftLogStorage},
};
use rocksdb::{Direction, IteratorMode, WriteBatch};
use tokio::sync::mpsc;

use super::{
    Entry, LogId, TypeConfig, Vote,
    store::{Store, StoreError},
};

pub(super) const KEY_VOTE: &[u8] = b"vote";
pub(super) const KEY_PURGED: &[u8] = b"purged";
const KEY_COMMITTED: &[u8] = b"committed";
/// Appends that wait to become durable.
const FLUSH_QUEUE: usize = 1024;

/// The log, and the thread that makes it durable.
pub(crate) struct LogStore {
    reader: LogReader,
    flusher: mpsc::Sender<IOFlushed<TypeConfig>>,
    // After `flusher`: the thread ends once that is gone.
    _thread: Joined,
}

/// A thread that is waited for. It has the database open, and a process that exits meanwhile runs
/// RocksDB's static destructors under it, which aborts. It waits for nothing but a sync, so neither
/// does whoever drops this.
struct Joined(Option<JoinHandle<()>>);

impl Drop for Joined {
    fn drop(&mut self) {
        if self.0.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that syncs the log panicked");
        }
    }
}

/// Reads the log.
#[derive(Clone)]
pub(crate) struct LogReader {
    store: Store,
}

impl LogStore {
    /// The log in `store`. Its thread ends before it is gone.
    pub(crate) fn new(store: Store) -> Result<Self, StoreError> {
        let (flusher, queue) = mpsc::channel(FLUSH_QUEUE);
        let reader = LogReader { store: store.clone() };
        let path = store.dir().to_owned();
        let thread = std::thread::Builder::new()
            .name("meta-log".to_owned())
            .spawn(move || flush(&store, queue))
            .map_err(|source| StoreError::Io { path, source })?;
        Ok(Self { reader, flusher, _thread: Joined(Some(thread)) })
    }
}

/// Syncs once for all appends that have come, until the log is dropped.
fn flush(store: &Store, mut queue: mpsc::Receiver<IOFlushed<TypeConfig>>) {
    let mut waiting = Vec::new();
    while queue.blocking_recv_many(&mut waiting, FLUSH_QUEUE) > 0 {
        match store.db().flush_wal(true) {
            Ok(()) => waiting.drain(..).for_each(|done| done.io_completed(Ok(()))),
            Err(error) => waiting
                .drain(..)
                .for_each(|done| done.io_completed(Err(io::Error::other(error.clone())))),
        }
    }
}

fn malformed(key: &[u8]) -> StoreError {
    StoreError::Malformed { key: key.to_vec() }
}

fn decode(key: &[u8], value: &[u8]) -> Result<Entry, StoreError> {
    serde_json::from_slice(value).map_err(|_| malformed(key))
}

impl LogReader {
    fn range(&self, first: u64, last: u64) -> Result<Vec<Entry>, StoreError> {
        let from = first.to_be_bytes();
        let mode = IteratorMode::From(&from, Direction::Forward);
        let mut entries = Vec::new();
        for row in self.store.db().iterator_cf(self.store.log(), mode) {
            let (key, value) = row?;
            let index: [u8; 8] = key.as_ref().try_into().map_err(|_| malformed(&key))?;
            if u64::from_be_bytes(index) > last {
                break;
            }
            entries.push(decode(&key, &value)?);
        }
        Ok(entries)
    }

    fn last(&self) -> Result<Option<LogId>, StoreError> {
        let Some(row) = self.store.db().iterator_cf(self.store.log(), IteratorMode::End).next()
        else {
            return Ok(None);
        };
        let (key, value) = row?;
        Ok(Some(decode(&key, &value)?.log_id()))
    }
}

impl RaftLogReader<TypeConfig> for LogReader {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let first = match range.start_bound() {
            Bound::Included(&first) => first,
            Bound::Excluded(&before) => before + 1,
            Bound::Unbounded => 0,
        };
        let last = match range.end_bound() {
            Bound::Included(&last) => last,
            Bound::Excluded(&0) => return Ok(Vec::new()),
            Bound::Excluded(&end) => end - 1,
            Bound::Unbounded => u64::MAX,
        };
        Ok(self.range(first, last)?)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.store.meta(KEY_VOTE)?)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let last_purged_log_id = self.reader.store.meta(KEY_PURGED)?;
        let last_log_id = self.reader.last()?.or(last_purged_log_id);
        Ok(LogState { last_purged_log_id, last_log_id })
    }

    async fn get_log_reader(&mut self) -> LogReader {
        self.reader.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let mut batch = WriteBatch::default();
        self.reader.store.put_meta(&mut batch, KEY_VOTE, vote);
        Ok(self.reader.store.write_synced(batch)?)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        let mut batch = WriteBatch::default();
        self.reader.store.put_meta(&mut batch, KEY_COMMITTED, &committed);
        Ok(self.reader.store.write(batch)?)
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.reader.store.meta::<Option<LogId>>(KEY_COMMITTED)?.flatten())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut batch = WriteBatch::default();
        for entry in entries {
            let bytes = serde_json::to_vec(&entry).map_err(io::Error::other)?;
            batch.put_cf(self.reader.store.log(), entry.log_id().index.to_be_bytes(), bytes);
        }
        self.reader.store.write(batch)?;
        self.flusher.send(callback).await.map_err(io::Error::other)
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        let first = last_log_id.map_or(0, |last| last.index + 1);
        let mut batch = WriteBatch::default();
        let log = self.reader.store.log();
        batch.delete_range_cf(log, first.to_be_bytes(), u64::MAX.to_be_bytes());
        Ok(self.reader.store.write(batch)?)
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        let mut batch = WriteBatch::default();
        let log = self.reader.store.log();
        batch.delete_range_cf(log, 0_u64.to_be_bytes(), (log_id.index + 1).to_be_bytes());
        self.reader.store.put_meta(&mut batch, KEY_PURGED, &log_id);
        Ok(self.reader.store.write(batch)?)
    }
}
