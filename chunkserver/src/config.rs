//! What a chunkserver is told when it starts.

use std::net::SocketAddr;

use tidewater_proto::rpc::Topology;

use crate::{replica::Timing, shard::RebuildRate, store::StoreConfig};

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
    /// Rate at which learners are sent what they lack, per shard.
    pub rebuild: RebuildRate,
}
