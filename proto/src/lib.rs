//! What Tidewater's processes must agree on: ids, geometry, checksums, the segment record, the
//! messages of replication, and their wire formats.
//!
//! | module | noun |
//! | --- | --- |
//! | [`ids`] | volumes, segments, replicas, epochs, sequences, tokens |
//! | [`geometry`] | blocks, chunks, segments; extents and how they split |
//! | [`checksum`] | xxh3-64 of each block a range touches |
//! | [`record`] | the segment's Raft record and the changes it can take |
//! | [`entry`] | one entry of a segment's log |
//! | [`peer`] | messages between replicas, requests of clients |
//! | [`frame`], [`header`] | their encoding on the data plane |
//! | [`link`] | one data-plane connection |
//! | [`meta_client`] | calls to the metadata cluster, following its leader |
//! | [`aligned`] | buffers for direct I/O |
//! | [`rpc`] | the control plane, generated from `tidewater.proto`; [`convert`] validates it |

pub mod aligned;
pub mod checksum;
pub mod convert;
pub mod entry;
pub mod frame;
pub mod geometry;
pub mod header;
pub mod ids;
pub mod link;
pub mod meta_client;
pub mod peer;
pub mod record;

/// gRPC messages, clients and servers of the control plane.
#[allow(missing_docs, clippy::pedantic, clippy::all, unreachable_pub)]
pub mod rpc {
    tonic::include_proto!("tidewater.v1");
}
