//! The metadata cluster: a few nodes that agree, by Raft, who holds which copy of which segment, under
//! which epoch and token. Everything that decides is a pure function of the replicated state and of
//! arguments; the edges feed it.
//!
//! | module | noun | |
//! | --- | --- | --- |
//! | `state` | tables, commands, `apply` | pure; INV-META, INV-EPOCH, INV-FENCE |
//! | `detector` | who is alive | pure |
//! | `placement` | where copies go | pure |
//! | `silence` | whose fault a silence is | pure |
//! | `repair` | what the state needs | pure |
//! | `feed` | what watches have yet to be sent | pure |
//! | `absence` | who believes that a segment is not placed | pure |
//! | `raft` | openraft's storage and network | edge |
//! | `driver` | the leader's loop around `repair` | edge |
//! | `service` | the gRPC service | edge |
//! | [`sim`] | all that is pure, without the edges | for simulators |
//! | [`MetaNode`], [`run`] | one node | edge |

mod absence;
mod config;
mod detector;
mod driver;
mod feed;
mod fleet;
mod live;
mod metrics;
mod node;
mod placement;
mod raft;
mod repair;
mod service;
mod silence;
pub mod sim;
mod state;
#[cfg(test)]
mod testing;

pub use config::{ConfigError, MetaConfig};
pub use metrics::MetaMetrics;
pub use node::{MetaError, MetaNode, run};
pub use raft::{
    restore::{RestoreError, Restored, restore},
    store::StoreError,
};
