#![deny(clippy::disallowed_methods, clippy::disallowed_types)]
//! What can be derived from the tables, kept so that no request and no plan walks all rows. Rebuilt when a
//! state is loaded; never stored, never hashed.

use std::collections::{BTreeMap, BTreeSet};

use tidewater_proto::{
    ids::{SegmentId, ServerId, SessionId, VolumeId},
    record::SegmentRecord,
};

/// Look-ups into the tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Index {
    /// Volumes outside the trash, by name.
    pub(crate) names: BTreeMap<String, VolumeId>,
    /// Servers by the identity of their data folder.
    pub(crate) stores: BTreeMap<String, ServerId>,
    /// Attachments by the client's request.
    pub(crate) requests: BTreeMap<String, SessionId>,
    /// Every copy a record names, retired ones too.
    pub(crate) copies: BTreeSet<(ServerId, SegmentId)>,
    /// Attachments in state `Fencing`.
    pub(crate) fencing: BTreeSet<SessionId>,
    /// Volumes in the trash.
    pub(crate) trashed: BTreeSet<VolumeId>,
    /// Segments whose repair may have something to do.
    pub(crate) unsettled: BTreeSet<SegmentId>,
    load: BTreeMap<ServerId, CopyCount>,
    placed: BTreeMap<VolumeId, u32>,
}

/// How many copies a server holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CopyCount {
    /// Members, learners and former members.
    pub(crate) copies: u32,
    /// Of those, primaries.
    pub(crate) primaries: u32,
    /// Of those, learners.
    pub(crate) learners: u32,
}

/// Whether every copy of the set is where it should be, active, and nothing else is kept.
pub(crate) fn is_settled(record: &SegmentRecord) -> bool {
    record.is_active()
        && record.members.len() == usize::from(record.replicas)
        && record.learners.is_empty()
        && record.former.is_empty()
}

impl Index {
    /// Copies on `server`.
    pub(crate) fn load(&self, server: ServerId) -> CopyCount {
        self.load.get(&server).copied().unwrap_or_default()
    }

    /// Segments of `volume` that are placed.
    pub(crate) fn placed(&self, volume: VolumeId) -> u32 {
        self.placed.get(&volume).copied().unwrap_or_default()
    }

    /// Segments that name `server`.
    pub(crate) fn on_server(&self, server: ServerId) -> impl Iterator<Item = SegmentId> {
        let first = SegmentId::default();
        let last = SegmentId { volume: VolumeId(u64::MAX), index: u32::MAX };
        self.copies.range((server, first)..=(server, last)).map(|&(_, segment)| segment)
    }

    pub(super) fn add(&mut self, record: &SegmentRecord) {
        for member in record.copies() {
            self.copies.insert((member.server, record.segment));
        }
        if !is_settled(record) {
            self.unsettled.insert(record.segment);
        }
        *self.placed.entry(record.segment.volume).or_default() += 1;
        self.count(record, |count, by| *count += by);
    }

    pub(super) fn subtract(&mut self, record: &SegmentRecord) {
        for member in record.copies() {
            self.copies.remove(&(member.server, record.segment));
        }
        self.unsettled.remove(&record.segment);
        if let Some(placed) = self.placed.get_mut(&record.segment.volume) {
            *placed -= 1;
            if *placed == 0 {
                self.placed.remove(&record.segment.volume);
            }
        }
        self.count(record, |count, by| *count -= by);
        for member in record.copies() {
            if self.load.get(&member.server) == Some(&CopyCount::default()) {
                self.load.remove(&member.server);
            }
        }
    }

    fn count(&mut self, record: &SegmentRecord, add: impl Fn(&mut u32, u32)) {
        for member in record.members.iter().chain(&record.former) {
            add(&mut self.load.entry(member.server).or_default().copies, 1);
        }
        for learner in &record.learners {
            let load = self.load.entry(learner.server).or_default();
            add(&mut load.copies, 1);
            add(&mut load.learners, 1);
        }
        let primary = record.primary_member().server;
        add(&mut self.load.entry(primary).or_default().primaries, 1);
    }
}
