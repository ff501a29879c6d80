//! Where a shard's copies are kept.
//!
//! | file | noun |
//! | --- | --- |
//! | [`shard`](ShardStore) | storage of one shard, what the shard's thread calls |
//! | [`base`](Store) | what the shards of a server share: folder, lock, catalog, devices |
//! | [`journal`] | ring of files in which a record becomes durable |
//! | `overlay` | applied changes in memory, two generations (pure) |
//! | `destage` | overlay to slots and catalog |
//! | `reader`, `fetch` | blocks from slots, verified: by threads, by a ring of the shard's own |
//! | `recent` | rows and blocks used last |
//! | [`catalog`] | where each chunk is, what its blocks sum to, what replicas promised |
//! | [`slots`], [`device`] | chunk-sized slots of a device's file |
//! | [`limits`] | IOPS, bandwidth and latency that a device keeps itself (pure) |
//! | [`disk`] | files, real and simulated |
//! | `crew` | who does the blocking work |
//!
//! A write's way: `append` → journal (durable) → `apply` → overlay → `freeze` → slots → catalog → journal
//! freed. Each arrow waits for the one before it to be durable; tests take the power at every write.

mod base;
mod busy;
pub mod catalog;
mod crew;
mod destage;
pub mod device;
pub mod disk;
mod fetch;
mod fields;
pub mod journal;
pub mod limits;
mod overlay;
mod reader;
mod recent;
mod shard;
pub mod slots;
#[cfg(test)]
mod tests;

pub use base::{
    CACHE_BYTES, DeviceConfig, Ground, Identity, JOURNAL_BYTES, LimitsConfig, OVERLAY_BYTES,
    OpenError, READ_THREADS, Store, StoreConfig,
};
pub use crew::Crew;
pub use destage::{Fault, Freeze};
pub use device::{Device, DeviceError, Tier};
pub use journal::Record;
pub use shard::{
    ChunkImage, Completion, Failure, ReadError, Ready, Recovered, ShardStore, Ticket, chunk_extent,
};
