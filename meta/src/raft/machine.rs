//! openraft's state machine: the state in memory, its rows in RocksDB with the index of the log
//! entry that made them, in one write batch.

use std::{
    io,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use futures::{Stream, TryStreamExt};
use openraft::{
    EntryPayload, OptionalSend,
    entry::RaftEntry,
    storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine},
};
use rocksdb::{IteratorMode, WriteBatch, checkpoint::Checkpoint};
use tidewater_proto::ids::Revision;

use super::{
    Entry, LogId, Snapshot, SnapshotMeta, StoredMembership, TypeConfig,
    snapshot::{SnapshotData, SnapshotDir, Snapshots},
    store::{Store, StoreError, StoredRow, read_checkpoint},
};
use crate::{
    feed::Feed,
    live::{Live, View},
    state::{
        State,
        apply::apply,
        outcome::{Applied, Outcome},
    },
};

pub(super) const KEY_APPLIED: &[u8] = b"applied";
pub(super) const KEY_MEMBERSHIP: &[u8] = b"membership";
/// Past every row's key: tags are small.
const STATE_END: &[u8] = &[0xff];

/// Applies the log.
pub(crate) struct Machine {
    store: Store,
    live: Arc<Live>,
    // A lock, because openraft builds a snapshot beside the machine that installs another.
    snapshots: Arc<Mutex<Snapshots>>,
}

/// A snapshot being made: the checkpoint as of the moment the builder was asked for.
pub(crate) struct Builder {
    meta: SnapshotMeta,
    checkpoint: Option<io::Result<SnapshotData>>,
    snapshots: Arc<Mutex<Snapshots>>,
}

fn load(store: &Store) -> Result<View, StoreError> {
    let rows = store
        .db()
        .iterator_cf(store.state(), IteratorMode::Start)
        .collect::<Result<Vec<_>, _>>()?;
    let state = State::load(rows).map_err(|bad| StoreError::Malformed { key: bad.key })?;
    let applied: Option<LogId> = store.meta(KEY_APPLIED)?;
    let membership = store.meta(KEY_MEMBERSHIP)?.unwrap_or_default();
    let feed = Feed::starting_after(Revision(applied.map_or(0, |log_id| log_id.index)));
    Ok(View { state, feed, applied, membership })
}

impl Machine {
    /// The state machine of `store`, and the view of its state.
    pub(crate) fn open(store: Store) -> Result<(Self, Arc<Live>), StoreError> {
        let live = Arc::new(Live::new(load(&store)?));
        let path = store.dir().to_owned();
        let snapshots =
            Snapshots::open(&store).map_err(|source| StoreError::Io { path, source })?;
        let snapshots = Arc::new(Mutex::new(snapshots));
        Ok((Self { store, live: Arc::clone(&live), snapshots }, live))
    }

    /// Where a snapshot from the leader is received.
    pub(crate) fn snapshots(&self) -> Arc<Mutex<Snapshots>> {
        Arc::clone(&self.snapshots)
    }

    fn apply_entry(&self, entry: &Entry) -> Result<Outcome, StoreError> {
        let log_id = entry.log_id();
        let revision = Revision(log_id.index);
        let mut batch = WriteBatch::default();
        let mut view = self.live.write();
        let outcome = match &entry.payload {
            EntryPayload::Blank => Ok(Applied::Unchanged),
            EntryPayload::Normal(proposal) => apply(&mut view.state, revision, proposal),
            EntryPayload::Membership(membership) => {
                view.membership = StoredMembership::new(Some(log_id), membership.clone());
                self.store.put_meta(&mut batch, KEY_MEMBERSHIP, &view.membership);
                Ok(Applied::Unchanged)
            }
        };
        view.applied = Some(log_id);
        let touched = view.state.drain_touched();
        view.feed.push(revision, touched);
        let changes = view.state.drain_changes();
        drop(view);
        for (key, row) in changes {
            match row {
                Some(row) => batch.put_cf(self.store.state(), key, row),
                None => batch.delete_cf(self.store.state(), key),
            }
        }
        self.store.put_meta(&mut batch, KEY_APPLIED, &log_id);
        self.store.write(batch)?;
        Ok(outcome)
    }

    fn checkpoint(&self, path: &Path) -> io::Result<SnapshotData> {
        let checkpoint = Checkpoint::new(self.store.db()).map_err(StoreError::from)?;
        checkpoint.create_checkpoint(path).map_err(StoreError::from)?;
        Ok(SnapshotDir::temporary(path.to_owned()))
    }

    /// Replaces all rows by those of `rows`, in one durable batch.
    fn replace(&self, meta: &SnapshotMeta, rows: &[StoredRow]) -> io::Result<()> {
        let mut batch = WriteBatch::default();
        batch.delete_range_cf(self.store.state(), &[][..], STATE_END);
        for (key, row) in rows {
            batch.put_cf(self.store.state(), key, row);
        }
        if let Some(log_id) = &meta.last_log_id {
            self.store.put_meta(&mut batch, KEY_APPLIED, log_id);
        }
        self.store.put_meta(&mut batch, KEY_MEMBERSHIP, &meta.last_membership);
        Ok(self.store.write_synced(batch)?)
    }
}

fn lock(snapshots: &Mutex<Snapshots>) -> std::sync::MutexGuard<'_, Snapshots> {
    snapshots.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let taken = self.checkpoint.take();
        let data = taken.ok_or_else(|| io::Error::other("a builder builds one snapshot"))??;
        let snapshot = lock(&self.snapshots).keep(&self.meta, &data)?;
        Ok(Snapshot { meta: self.meta.clone(), snapshot })
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let view = self.live.read();
        Ok((view.applied, view.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let outcome = self.apply_entry(&entry)?;
            self.live.announce(Revision(entry.log_id().index));
            if let Some(responder) = responder {
                responder.send(outcome);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        // Taken here, where nothing is being applied, so that the rows are those of `meta`.
        let meta = {
            let view = self.live.read();
            SnapshotMeta { last_log_id: view.applied, last_membership: view.membership.clone() }
        };
        let path = lock(&self.snapshots).building();
        let checkpoint = Some(self.checkpoint(&path));
        Builder { meta, checkpoint, snapshots: Arc::clone(&self.snapshots) }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotData,
    ) -> io::Result<()> {
        let rows = read_checkpoint(snapshot.path())?;
        let state = State::load(rows.iter().map(|(key, row)| (key, row)))
            .map_err(|bad| StoreError::Malformed { key: bad.key })?;
        self.replace(meta, &rows)?;
        let revision = Revision(meta.last_log_id.map_or(0, |log_id| log_id.index));
        *self.live.write() = View {
            state,
            feed: Feed::starting_after(revision),
            applied: meta.last_log_id,
            membership: meta.last_membership.clone(),
        };
        self.live.announce(revision);
        lock(&self.snapshots).keep(meta, &snapshot)?;
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let snapshots = lock(&self.snapshots);
        let current = snapshots.current();
        Ok(current.map(|(meta, data)| Snapshot { meta: meta.clone(), snapshot: Arc::clone(data) }))
    }
}
