#![deny(clippy::disallowed_methods, clippy::disallowed_types)]
//! The replicated state: a function of the log (INV-META). [`apply`](apply::apply) is the only
//! thing that changes it.

pub(crate) mod apply;
pub(crate) mod command;
pub(crate) mod index;
pub(crate) mod outcome;
pub(crate) mod rows;
pub(crate) mod table;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tidewater_proto::{
    ids::{ReplicaId, SegmentId, ServerId, SessionId, VolumeId},
    record::SegmentRecord,
};

use self::{
    index::Index,
    rows::{
        AttachState, AttachmentRow, ClusterRow, CopyRow, Counters, EventRow, ProgramRow,
        RestoreRow, RetiredRow, ServerRow, VolumeRow,
    },
    table::{Change, RetiredKey, Single, Table},
};

const CLUSTER: u8 = 1;
const COUNTERS: u8 = 2;
const SERVERS: u8 = 3;
const VOLUMES: u8 = 4;
const SEGMENTS: u8 = 5;
const RETIRED: u8 = 6;
const ATTACHMENTS: u8 = 7;
const PROGRAMS: u8 = 8;
const EVENTS: u8 = 9;
const RESTORE: u8 = 10;
const COPIES: u8 = 11;

/// Segments a command changed, each with the servers that its record named before.
pub(crate) type Touched = BTreeMap<SegmentId, BTreeSet<ServerId>>;

/// All that the Raft log has decided.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub(crate) cluster: Table<Single, ClusterRow>,
    pub(crate) counters: Table<Single, Counters>,
    pub(crate) servers: Table<ServerId, ServerRow>,
    pub(crate) volumes: Table<VolumeId, VolumeRow>,
    /// Changed through [`State::put_segment`] only, which keeps the index.
    segments: Table<SegmentId, Arc<SegmentRecord>>,
    pub(crate) retired: Table<RetiredKey, RetiredRow>,
    pub(crate) attachments: Table<SessionId, AttachmentRow>,
    pub(crate) programs: Table<String, ProgramRow>,
    pub(crate) events: Table<u64, EventRow>,
    /// While a cluster made from a backup collects; then empty.
    pub(crate) restore: Table<Single, RestoreRow>,
    pub(crate) copies: Table<ReplicaId, CopyRow>,
    pub(crate) index: Index,
    touched: Touched,
    hash: u64,
}

/// A stored row that is no row of this version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed row with key {key:02x?}")]
pub(crate) struct BadRow {
    /// Key as stored.
    pub(crate) key: Vec<u8>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            cluster: Table::new(CLUSTER),
            counters: Table::new(COUNTERS),
            servers: Table::new(SERVERS),
            volumes: Table::new(VOLUMES),
            segments: Table::new(SEGMENTS),
            retired: Table::new(RETIRED),
            attachments: Table::new(ATTACHMENTS),
            programs: Table::new(PROGRAMS),
            events: Table::new(EVENTS),
            restore: Table::new(RESTORE),
            copies: Table::new(COPIES),
            index: Index::default(),
            touched: Touched::new(),
            hash: 0,
        }
    }
}

impl State {
    /// The state whose rows are these.
    pub(crate) fn load<R: AsRef<[u8]>>(
        rows: impl IntoIterator<Item = (R, R)>,
    ) -> Result<Self, BadRow> {
        let mut state = Self::default();
        for (key, value) in rows {
            let (key, value) = (key.as_ref(), value.as_ref());
            if !state.load_row(key, value) {
                return Err(BadRow { key: key.to_vec() });
            }
        }
        state.rebuild_index();
        Ok(state)
    }

    fn load_row(&mut self, stored: &[u8], value: &[u8]) -> bool {
        let Some((&tag, key)) = stored.split_first() else { return false };
        let hash = &mut self.hash;
        match tag {
            CLUSTER => self.cluster.load(stored, key, value, hash),
            COUNTERS => self.counters.load(stored, key, value, hash),
            SERVERS => self.servers.load(stored, key, value, hash),
            VOLUMES => self.volumes.load(stored, key, value, hash),
            SEGMENTS => self.segments.load(stored, key, value, hash),
            RETIRED => self.retired.load(stored, key, value, hash),
            ATTACHMENTS => self.attachments.load(stored, key, value, hash),
            PROGRAMS => self.programs.load(stored, key, value, hash),
            EVENTS => self.events.load(stored, key, value, hash),
            RESTORE => self.restore.load(stored, key, value, hash),
            COPIES => self.copies.load(stored, key, value, hash),
            _ => false,
        }
    }

    fn rebuild_index(&mut self) {
        let mut index = Index::default();
        for (&id, volume) in self.volumes.iter() {
            if volume.trashed.is_some() {
                index.trashed.insert(id);
            } else {
                index.names.insert(volume.name.clone(), id);
            }
        }
        for (&id, server) in self.servers.iter() {
            index.stores.insert(server.store.clone(), id);
        }
        for (&session, attachment) in self.attachments.iter() {
            if attachment.state == AttachState::Fencing {
                index.fencing.insert(session);
            }
            if !attachment.request.is_empty() {
                index.requests.insert(attachment.request.clone(), session);
            }
        }
        for (_, record) in self.segments.iter() {
            index.add(record);
        }
        self.index = index;
    }

    /// Hash of all rows, as last drained. Equal on two nodes at one log index.
    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    /// Rows changed since the last call, for the store.
    pub(crate) fn drain_changes(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        let hash = &mut self.hash;
        self.cluster.drain(&mut changes, hash);
        self.counters.drain(&mut changes, hash);
        self.servers.drain(&mut changes, hash);
        self.volumes.drain(&mut changes, hash);
        self.segments.drain(&mut changes, hash);
        self.retired.drain(&mut changes, hash);
        self.attachments.drain(&mut changes, hash);
        self.programs.drain(&mut changes, hash);
        self.events.drain(&mut changes, hash);
        self.restore.drain(&mut changes, hash);
        self.copies.drain(&mut changes, hash);
        changes
    }

    /// Segments changed since the last call, for the watches.
    pub(crate) fn drain_touched(&mut self) -> Touched {
        std::mem::take(&mut self.touched)
    }

    pub(crate) fn segment(&self, segment: SegmentId) -> Option<&Arc<SegmentRecord>> {
        self.segments.get(&segment)
    }

    /// Segments of `volume` in order, from index `first` on.
    pub(crate) fn segments_of(
        &self,
        volume: VolumeId,
        first: u32,
    ) -> impl Iterator<Item = &Arc<SegmentRecord>> {
        let from = SegmentId { volume, index: first };
        let to = SegmentId { volume, index: u32::MAX };
        self.segments.range(from..=to).map(|(_, record)| record)
    }

    pub(crate) fn segment_count(&self) -> usize {
        self.segments.len()
    }

    pub(crate) fn cluster(&self) -> Option<&ClusterRow> {
        self.cluster.get(&Single)
    }

    /// Set while the cluster, made from a backup, decides nothing yet.
    pub(crate) fn restoring(&self) -> Option<&RestoreRow> {
        self.restore.get(&Single)
    }

    /// The volume outside the trash that has this name.
    pub(crate) fn volume_named(&self, name: &str) -> Option<&VolumeRow> {
        self.volumes.get(self.index.names.get(name)?)
    }

    /// Attachments of `volume`, oldest first.
    pub(crate) fn attachments_of(&self, volume: VolumeId) -> impl Iterator<Item = &AttachmentRow> {
        self.attachments.iter().map(|(_, a)| a).filter(move |a| a.volume == volume)
    }

    /// Copies of purged segments that `server` has yet to delete.
    pub(crate) fn retired_on(&self, server: ServerId) -> impl Iterator<Item = RetiredKey> {
        let first =
            RetiredKey { server, segment: SegmentId::default(), replica: ReplicaId::default() };
        let keys = self.retired.range(first..).map(|(&key, _)| key);
        keys.take_while(move |key| key.server == server)
    }

    pub(crate) fn put_segment(&mut self, record: SegmentRecord) {
        let segment = record.segment;
        self.touch(segment);
        if let Some(before) = self.segments.get(&segment) {
            self.index.subtract(before);
        }
        self.index.add(&record);
        self.segments.insert(segment, Arc::new(record));
    }

    pub(crate) fn remove_segment(&mut self, segment: SegmentId) -> Option<Arc<SegmentRecord>> {
        self.touch(segment);
        let record = self.segments.remove(&segment)?;
        self.index.subtract(&record);
        Some(record)
    }

    fn touch(&mut self, segment: SegmentId) {
        let before = self.touched.entry(segment).or_default();
        if let Some(record) = self.segments.get(&segment) {
            before.extend(record.copies().map(|member| member.server));
        }
    }
}
