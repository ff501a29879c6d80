//! Chunkserver: shards that hold copies of segments.
//!
//! | module | noun |
//! | --- | --- |
//! | [`replica`] | one copy of a segment: the pure replication protocol |
//! | [`store`] | journal, catalog, slots: where a shard's copies are kept |
//! | [`shard`] | the thread that owns a subset of the segments |
//! | [`server`] | registration, heartbeats, records and reports |
//! | [`config`] | what a chunkserver is told when it starts |
//!
//! INV-ACK, INV-LIN, INV-EPOCH, INV-FENCE and INV-LOG are kept by [`replica`], INV-SUM by [`store`] and
//! the checks where frames come in, INV-BOUND by constants beside each queue.

mod clock;
pub mod config;
mod identity;
mod load;
pub mod replica;
pub mod server;
pub mod shard;
pub mod store;

pub use clock::{BootClock, Clock, SimClock};
pub use config::ChunkserverConfig;
pub use server::{ServerError, ServerMetrics, run};
