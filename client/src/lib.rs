//! Tidewater's client library and NBD gateway.
//!
//! | module | noun |
//! | --- | --- |
//! | [`device`] | the narrow waist: [`BlockDevice`], its contract, devices in memory and on a file |
//! | `cluster` | the control plane: calls that find and follow the leader |
//! | `open`, `volume` | how a volume is opened, and its handle for any thread |
//! | `session` | one attachment: segment map, connections, op ids, requests |
//! | `retry`, `split` | pure: what to do next with a request; how an operation is cut |
//! | `intake` | pure: room in receive buffers |
//! | `error` | why an operation failed, and whether it happened |
//! | [`nbd`] | pure: the NBD session, bytes in, requests and replies out |
//! | [`gateway`] | serves block devices over NBD |
//! | [`blocking`] | the same without async |
//!
//! Invariants kept here: INV-SUM (every read is checked against its checksums before it is handed
//! out), INV-BOUND (queues, windows and connections are bounded), and that no failure is told as
//! `NotApplied` unless no try can have taken effect.
//!
//! ```
//! use tidewater_client::{BlockDeviceExt, MemDevice};
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), tidewater_client::BlockError> {
//! let disk = MemDevice::new(1 << 20);
//! disk.write_at(0, vec![1; 4096]).await?;
//! disk.flush().await?;
//! assert_eq!(disk.read_at(0, 512).await?, vec![1; 512]);
//! # Ok(())
//! # }
//! ```

// The fake cluster of `tests/` is used by the session's own tests, too.
#[cfg(test)]
extern crate self as tidewater_client;

pub mod blocking;
mod cluster;
pub mod device;
mod error;
pub mod gateway;
mod intake;
pub mod nbd;
mod open;
pub mod retry;
mod session;
pub mod split;
mod stats;
mod volume;

pub use cluster::{Cluster, ClusterBuilder, VolumeRef};
pub use device::{
    BlockDevice, BlockDeviceExt, DeviceInfo, FaultyDevice, FileDevice, Io, IoDone,
    LocalBlockDevice, MemDevice, Run,
};
pub use error::{BlockError, Kind, Outcome, RetryHint};
pub use open::{Mode, Open};
pub use session::{CloseError, OpenError, Window};
pub use stats::{Op, OpSnapshot, VolumeStats};
pub use tidewater_proto::{
    meta_client::{MetaCode, MetaError},
    rpc,
};
pub use volume::Volume;
