//! Clusters of real processes, for the demo, tests, fault testing and benches alike.
//!
//! A [`Cluster`] is a folder with a configuration, a log and a data folder for each process, and the
//! processes themselves. They can be killed, paused and restarted; whatever is waited for is a
//! condition with a deadline. Everything dies with the harness: on drop, and by the kernel's hand if
//! the harness itself is killed.
//!
//! The calls block and the harness owns a small runtime: from async code, use it on a thread.

mod deadline;
mod error;
mod folder;
mod harness;
mod metadata;
mod ports;
mod process;
mod spec;

pub use deadline::wait_until;
pub use error::ClusterError;
pub use folder::{Folder, check_direct_io};
pub use harness::{Cluster, ServerRun};
pub use process::{PARENT_VARIABLE, binary, follow_parent};
pub(crate) use spec::DEFAULT_LOG_FILTER;
pub use spec::{ClusterSpec, DeviceSpec, ExportMode, ExportSpec, Host, Seat};
