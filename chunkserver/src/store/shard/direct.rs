//! Whole chunks go straight to fresh slots: the journal has only their records, and a round only their rows.
//!
//! A slot is reserved when the entry is appended. It is the catalog's once a round has adopted it; else it is free
//! when the copy's base in the catalog has passed the entry, for then recovery does not look for it any more. A
//! round adopts a slot whose entry is durable here and the last change of its chunk.

use std::collections::BTreeMap;

use tidewater_proto::{
    entry::{Change, Entry, Payload},
    geometry::CHUNK_BYTES,
    ids::{Epoch, Position, ReplicaId, Sequence},
};

use super::{Record, ShardStore, Ticket};
use crate::store::{base::Store, catalog::rows::Place, device::Device};

/// Most slots that a shard has reserved.
const RESERVED_MAX: usize = 256;
/// Of a device's slots, one in so many may be reserved by a shard; twice as many are left free.
const DEVICE_SHARE: u32 = 8;

/// A slot that is not the catalog's yet.
#[derive(Clone, Copy, Debug)]
struct Reserved {
    place: Place,
    ticket: Ticket,
}

/// Slots reserved by a shard.
#[derive(Debug, Default)]
pub(super) struct Reservations {
    by_entry: BTreeMap<(ReplicaId, Sequence, Epoch), Reserved>,
    by_place: BTreeMap<Place, (ReplicaId, Sequence, Epoch)>,
    #[cfg(test)]
    adopted: u64,
}

impl Reservations {
    pub(super) fn len(&self) -> usize {
        self.by_entry.len()
    }

    pub(super) fn add(&mut self, replica: ReplicaId, at: Position, place: Place, ticket: Ticket) {
        let key = (replica, at.sequence, at.epoch);
        self.by_entry.insert(key, Reserved { place, ticket });
        self.by_place.insert(place, key);
    }

    fn find(&self, replica: ReplicaId, at: Position) -> Option<&Reserved> {
        self.by_entry.get(&(replica, at.sequence, at.epoch))
    }

    /// The slot of an entry. Its bytes may be written there again: they are the same.
    pub(super) fn place(&self, replica: ReplicaId, at: Position) -> Option<Place> {
        self.find(replica, at).map(|reserved| reserved.place)
    }

    /// A row names the slot now.
    pub(super) fn adopted(&mut self, place: Place) {
        if let Some(key) = self.by_place.remove(&place) {
            self.by_entry.remove(&key);
            #[cfg(test)]
            {
                self.adopted += 1;
            }
        }
    }

    /// Takes out those of a replica up to an entry.
    fn take(&mut self, replica: ReplicaId, last: Sequence) -> Vec<Place> {
        let range = (replica, Sequence(0), Epoch(0))..=(replica, last, Epoch(u64::MAX));
        let taken: Vec<Place> =
            self.by_entry.extract_if(range, |_, _| true).map(|(_, r)| r.place).collect();
        for place in &taken {
            self.by_place.remove(place);
        }
        taken
    }

    /// Forgets those of a replica, which stay in use.
    pub(super) fn forget(&mut self, replica: ReplicaId) {
        self.take(replica, Sequence(u64::MAX));
    }
}

/// The chunk that an entry writes all of.
pub(super) fn whole_chunk(entry: &Entry<Payload>) -> Option<u32> {
    let Change::Write { extent, .. } = &entry.change else { return None };
    let whole = extent.len() == CHUNK_BYTES && extent.offset().is_multiple_of(CHUNK_BYTES);
    whole.then(|| extent.chunks().start)
}

/// Takes a slot where there is plenty: where the chunk is, or on the fastest device. Not on one with limits, for
/// the journal would have to wait for it.
fn plenty(store: &Store, preferred: Option<u16>, reserved: usize) -> Option<Place> {
    let device = match preferred {
        Some(id) => store.device(id),
        None => store.devices().iter().find(|device| !device.has_failed()),
    };
    let fits = |device: &&Device| {
        let (free, slots) = device.room();
        let share = slots / DEVICE_SHARE;
        reserved < share as usize && free > 2 * share
    };
    let usable = |device: &&Device| device.is_unlimited() && !device.has_failed();
    let device = device.filter(usable).filter(fits)?;
    let slot = device.allocate().ok()?;
    Some(Place { device: device.id, slot })
}

impl ShardStore {
    /// Slots reserved now.
    #[cfg(test)]
    pub(crate) fn reserved_slots(&self) -> usize {
        self.reserved.len()
    }

    /// Slots that have become the catalog's.
    #[cfg(test)]
    pub(crate) fn adopted_slots(&self) -> u64 {
        self.reserved.adopted
    }

    /// Has the payload go to a slot, if the record writes a whole chunk.
    pub(super) fn reserve(&mut self, record: &mut Record) {
        let Record::Entry { replica, entry, slot, .. } = record else { return };
        let (Some(chunk), Some(state)) = (whole_chunk(entry), self.replicas.get(replica)) else {
            return;
        };
        let known = self.reserved.find(*replica, entry.position).is_some();
        // What is there is changed while a copy is filled, and recovery needs its entries all the same.
        if known || state.copy.is_some() || state.own.is_some() {
            return;
        }
        let reserved = self.reserved.len();
        if reserved >= RESERVED_MAX || self.failed {
            return;
        }
        let mapped = state.chunks.get(&chunk);
        let preferred = mapped.and_then(|mapped| mapped.device);
        if mapped.is_some_and(|mapped| mapped.data) && preferred.is_none() {
            return;
        }
        *slot = plenty(&self.store, preferred, reserved);
        if let Some(place) = *slot {
            let ticket = self.ring.next();
            self.reserved.add(*replica, entry.position, place, ticket);
        }
    }

    /// An entry that is applied and durable in its slot can stay there.
    pub(super) fn note_stored(&mut self, replica: ReplicaId, entry: &Entry<Payload>) {
        let Some(reserved) = self.reserved.find(replica, entry.position) else { return };
        if self.ring.is_durable(reserved.ticket)
            && let Some(chunk) = whole_chunk(entry)
        {
            self.active.store(replica, chunk, entry.position.sequence, reserved.place);
        }
    }

    /// Frees slots that neither a row nor recovery needs.
    pub(super) fn release_slots(&mut self) {
        let bases: Vec<_> = self.replicas.iter().map(|(&id, r)| (id, r.base.sequence)).collect();
        for (replica, base) in bases {
            for place in self.reserved.take(replica, base) {
                self.store.release(place);
            }
        }
    }

    /// A copy is deleted, and its rows with it.
    pub(super) fn release_slots_of(&mut self, replica: ReplicaId) {
        for place in self.reserved.take(replica, Sequence(u64::MAX)) {
            self.store.release(place);
        }
    }
}
