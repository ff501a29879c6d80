//! Which slots of a device are free. A slot holds one chunk.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeSet;

use tidewater_proto::geometry::CHUNK_BYTES;

/// Slots a device's file grows by.
pub const GROW_SLOTS: u32 = 64;

/// The device is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no space: all {capacity} slots are in use")]
pub struct NoSpace {
    /// Slots of the device.
    pub capacity: u32,
}

/// Free and used slots of one device.
#[derive(Clone, Debug)]
pub struct Slots {
    free: BTreeSet<u32>,
    /// Slots that the file has room for.
    grown: u32,
    capacity: u32,
}

/// A slot, and how long the file must be to hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocated {
    /// The slot.
    pub slot: u32,
    /// Slots that the file must have room for, where it has not yet.
    pub grow_to: Option<u32>,
}

impl Slots {
    /// A device whose file has room for `grown` slots, with these in use.
    pub fn new(capacity_bytes: u64, grown: u32, used: &BTreeSet<u32>) -> Self {
        let capacity = (capacity_bytes / CHUNK_BYTES).min(u64::from(u32::MAX)) as u32;
        let free = (0..grown.min(capacity)).filter(|slot| !used.contains(slot)).collect();
        Self { free, grown, capacity }
    }

    /// Takes the lowest free slot. The caller grows the file before it writes there.
    pub fn allocate(&mut self) -> Result<Allocated, NoSpace> {
        if let Some(slot) = self.free.pop_first() {
            return Ok(Allocated { slot, grow_to: None });
        }
        if self.grown >= self.capacity {
            return Err(NoSpace { capacity: self.capacity });
        }
        let slot = self.grown;
        self.grown = (self.grown + GROW_SLOTS).min(self.capacity);
        self.free.extend(slot + 1..self.grown);
        Ok(Allocated { slot, grow_to: Some(self.grown) })
    }

    /// Takes this slot; false if it is not free.
    pub fn take(&mut self, slot: u32) -> bool {
        self.free.remove(&slot)
    }

    /// Gives a slot back.
    pub fn release(&mut self, slot: u32) {
        let new = self.free.insert(slot);
        debug_assert!(new && slot < self.grown, "slot {slot} was not in use");
    }

    /// Takes back the growth of an allocation whose file could not grow.
    pub fn shrink(&mut self, failed: Allocated) {
        self.grown = failed.slot;
        self.free.split_off(&failed.slot);
    }

    /// Slots that can still be allocated.
    pub fn available(&self) -> u32 {
        self.free.len() as u32 + self.capacity.saturating_sub(self.grown)
    }

    /// Slots of the device.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_given_once_until_the_device_is_full() {
        let used = BTreeSet::from([1]);
        let mut slots = Slots::new(66 << 20, 2, &used);
        assert_eq!(slots.available(), 65);
        assert_eq!(slots.allocate(), Ok(Allocated { slot: 0, grow_to: None }));
        assert_eq!(slots.allocate(), Ok(Allocated { slot: 2, grow_to: Some(66) }));
        let rest: Vec<u32> = std::iter::from_fn(|| slots.allocate().ok()).map(|a| a.slot).collect();
        assert_eq!(rest, (3..66).collect::<Vec<_>>());
        assert_eq!(slots.allocate(), Err(NoSpace { capacity: 66 }));
        slots.release(1);
        assert_eq!(slots.allocate(), Ok(Allocated { slot: 1, grow_to: None }));
    }

    #[test]
    fn growth_that_failed_is_taken_back() {
        let mut slots = Slots::new(1 << 30, 0, &BTreeSet::new());
        let failed = slots.allocate().expect("room");
        slots.shrink(failed);
        assert_eq!((slots.available(), slots.allocate()), (1024, Ok(failed)));
    }
}
