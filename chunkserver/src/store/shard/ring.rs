//! What the journal's passes hold, and which are still needed.

use std::collections::{BTreeMap, VecDeque};

use tidewater_proto::{
    entry::{Entry, Payload},
    ids::{Epoch, ReplicaId, Sequence, Token},
};

use super::{Record, Replica, ShardStore, Ticket, writer};
use crate::store::journal::{Shape, recover::Batch};

/// Client writes wait while less than one file in this many is free. What members append for other
/// primaries cannot be made to wait, and entries that are not committed yet are appended again to free the
/// oldest file: both need the rest.
const FREE_SHARE: u64 = 2;

/// What one pass holds of one replica.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    /// Highest entry.
    last: Sequence,
    /// Lowest entry.
    first: Option<Sequence>,
    /// Highest promise.
    promise: Option<(Epoch, Token)>,
}

#[derive(Clone, Copy, Debug)]
enum Summary {
    Entry(ReplicaId, Sequence),
    /// Appended again; `first` and `last` of all that are, of this replica.
    Carried {
        replica: ReplicaId,
        sequence: Sequence,
        first: Sequence,
        last: Sequence,
    },
    Promise(ReplicaId, (Epoch, Token)),
}

/// The passes in use.
#[derive(Debug)]
pub(super) struct Ring {
    shape: Shape,
    passes: BTreeMap<u64, BTreeMap<ReplicaId, Held>>,
    /// Queued or being written, oldest first.
    on_the_way: VecDeque<Summary>,
    last: Ticket,
    durable: Ticket,
    /// The pass being written.
    newest: u64,
    /// The oldest pass needed.
    released: u64,
    /// Pass of the first entry that was appended again, of replicas whose last is not durable yet.
    carried_from: BTreeMap<ReplicaId, u64>,
    /// The last record that was appended again. Nothing is carried again before it is durable: else a
    /// full ring would have the same tail queued over and over.
    carried_until: Ticket,
}

impl Ring {
    pub(super) fn new(shape: Shape, newest: u64) -> Self {
        Self {
            shape,
            passes: BTreeMap::new(),
            on_the_way: VecDeque::new(),
            last: Ticket(0),
            durable: Ticket(0),
            carried_until: Ticket(0),
            newest,
            released: 0,
            carried_from: BTreeMap::new(),
        }
    }

    /// Takes note of what recovery found.
    pub(super) fn found(&mut self, batch: &Batch) {
        for record in &batch.records {
            match Summary::of(record) {
                // Whether it replaces what is there or is there again is not known yet.
                Summary::Entry(replica, sequence) => self.hold_entry(batch.pass, replica, sequence),
                other => self.hold(batch.pass, other),
            }
        }
    }

    /// The ticket of the record that is appended next.
    pub(super) fn next(&self) -> Ticket {
        Ticket(self.last.0 + 1)
    }

    pub(super) fn is_durable(&self, ticket: Ticket) -> bool {
        ticket <= self.durable
    }

    pub(super) fn appended(&mut self, record: &Record) -> Ticket {
        self.last.0 += 1;
        self.on_the_way.push_back(Summary::of(record));
        self.last
    }

    fn carried(&mut self, replica: ReplicaId, tail: &VecDeque<Entry<Payload>>) {
        let sequences = tail.iter().map(|entry| entry.position.sequence);
        let (Some(first), Some(last)) = (sequences.clone().next(), sequences.clone().last()) else {
            return;
        };
        for sequence in sequences {
            self.last.0 += 1;
            self.on_the_way.push_back(Summary::Carried { replica, sequence, first, last });
        }
        self.carried_until = self.last;
    }

    pub(super) fn written(&mut self, written: writer::Written) -> Ticket {
        self.newest = written.pass;
        for _ in 0..written.records {
            let summary = self.on_the_way.pop_front().expect("only what was queued is written");
            self.hold(written.pass, summary);
        }
        self.durable.0 += written.records as u64;
        self.durable
    }

    fn hold(&mut self, pass: u64, summary: Summary) {
        match summary {
            Summary::Entry(replica, sequence) => {
                // What this entry replaces is needed no more.
                self.forget_above(replica, Sequence(sequence.0.saturating_sub(1)));
                self.hold_entry(pass, replica, sequence);
            }
            Summary::Carried { replica, sequence, first, last } => {
                self.hold_entry(pass, replica, sequence);
                let from = *self.carried_from.entry(replica).or_insert(pass);
                if sequence == last {
                    // Only now is all of it durable a second time.
                    self.carried_from.remove(&replica);
                    let below = Sequence(first.0.saturating_sub(1));
                    for (_, pass) in self.passes.range_mut(..from) {
                        pass.entry(replica).and_modify(|held| held.last = held.last.min(below));
                    }
                }
            }
            Summary::Promise(replica, promise) => {
                let held = self.passes.entry(pass).or_default().entry(replica).or_default();
                held.promise = held.promise.max(Some(promise));
            }
        }
    }

    fn hold_entry(&mut self, pass: u64, replica: ReplicaId, sequence: Sequence) {
        let held = self.passes.entry(pass).or_default().entry(replica).or_default();
        held.last = held.last.max(sequence);
        held.first = Some(held.first.map_or(sequence, |first| first.min(sequence)));
    }

    /// Entries of a replica above `last` are needed no more.
    pub(super) fn forget_above(&mut self, replica: ReplicaId, last: Sequence) {
        for held in self.passes.values_mut().filter_map(|pass| pass.get_mut(&replica)) {
            held.last = held.last.min(last);
        }
    }

    fn free_files(&self) -> u64 {
        (self.released + self.shape.files).saturating_sub(self.newest + 1)
    }

    pub(super) fn has_room(&self) -> bool {
        self.free_files() >= self.shape.files / FREE_SHARE
    }

    /// Whether half of the ring is in use.
    pub(super) fn is_filling(&self) -> bool {
        self.free_files() < self.shape.files / 2 + 1 && self.released < self.newest
    }

    /// Lets go of the oldest passes that nobody needs; the first that somebody does.
    pub(super) fn release(&mut self, replicas: &BTreeMap<ReplicaId, Replica>) -> Option<u64> {
        let before = self.released;
        while self.released < self.newest {
            let needed = self.passes.get(&self.released).is_some_and(|pass| {
                pass.iter().any(|(id, held)| replicas.get(id).is_some_and(|r| held.is_needed(r)))
            });
            if needed {
                break;
            }
            self.passes.remove(&self.released);
            self.released += 1;
        }
        (self.released > before).then_some(self.released)
    }

    /// Replicas whose entries in the oldest pass are not even applied, once the ring is filling.
    pub(super) fn stragglers(&self, replicas: &BTreeMap<ReplicaId, Replica>) -> Vec<ReplicaId> {
        if !self.is_filling() || self.durable < self.carried_until {
            return Vec::new();
        }
        let Some(oldest) = self.passes.get(&self.released) else { return Vec::new() };
        let straggles = |id: &ReplicaId, held: &Held| {
            replicas.get(id).is_some_and(|r| held.first.is_some() && held.last > r.applied)
        };
        oldest.iter().filter(|(id, held)| straggles(id, held)).map(|(id, _)| *id).collect()
    }
}

impl Held {
    fn is_needed(&self, replica: &Replica) -> bool {
        let own = replica.own.is_some_and(|own| {
            self.first.is_some_and(|first| first <= own) && self.last > replica.base.sequence
        });
        own || self.first.is_some() && self.last > replica.released
            || self.promise.is_some_and(|promise| promise > replica.saved)
    }
}

impl Summary {
    fn of(record: &Record) -> Self {
        match record {
            Record::Entry { replica, entry, .. } => Self::Entry(*replica, entry.position.sequence),
            Record::Promise { replica, epoch, token, .. } => {
                Self::Promise(*replica, (*epoch, *token))
            }
        }
    }
}

impl ShardStore {
    pub(super) fn release_journal(&mut self) {
        if let Some(released) = self.ring.release(&self.replicas) {
            self.journal.give(writer::Job::Release(released));
        }
    }

    /// Appends again what has long been neither committed nor replaced, so that the oldest pass can
    /// be freed: else one member that is away would fill the journal of all segments.
    pub(super) fn carry_over(&mut self) {
        for replica in self.ring.stragglers(&self.replicas) {
            let Some(state) = self.replicas.get(&replica) else { continue };
            let (segment, commit) = (state.segment, state.applied);
            self.ring.carried(replica, &state.tail);
            let reserved = &self.reserved;
            let again = |entry: &Entry<Payload>| Record::Entry {
                replica,
                segment,
                entry: entry.clone(),
                commit,
                slot: reserved.place(replica, entry.position),
            };
            self.queued.extend(state.tail.iter().map(again));
        }
    }

    /// Promises that the catalog lacks.
    pub(super) fn promises_to_save(&self) -> BTreeMap<ReplicaId, (Epoch, Token)> {
        self.replicas
            .iter()
            .filter(|(_, replica)| replica.promised > replica.saved)
            .map(|(&id, replica)| (id, replica.promised))
            .collect()
    }
}
