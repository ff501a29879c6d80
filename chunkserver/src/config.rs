//! What a chunkserver is told when it starts.

use std::net::SocketAddr;

use tidewater_proto::rpc::Topology;

use crate::{replica::Timing, store::StoreConfig};

/// Configuration of one chunkserver, validated by who reads it from a file.
#[derive(Clone, Debug)]
pub struct ChunkserverConfig {
    /// Meta nodes, `host:port`.
    pub meta: Vec<String>,
    /// Control address.
    pub listen: SocketAddr,
    /// Data-plane addresses, one a shard; a port of 0 picks a free one.
    pub shard_listen: Vec<SocketAddr>,
    /// Where the server is.
    pub topology: Topology,
    /// Folder, devices and bounds of the store.
    pub store: StoreConfig,
    /// Durations of the replication protocol; the same on every server.
    pub timing: Timing,
    /// Rate at which copies are sent to learners, bytes a second, per shard.
    pub rebuild_bytes_per_second: u64,
}

/// Default of [`ChunkserverConfig::rebuild_bytes_per_second`].
pub const REBUILD_BYTES_PER_SECOND: u64 = 200 << 20;
