//! End-to-end benches: a cluster of release binaries, fio's jobs over NBD, mixes through the client
//! library, idle processes, memory, and kills under load. `make bench` runs them all; docs/results.md
//! keeps what it printed.
//!
//! | module | noun |
//! | --- | --- |
//! | [`plan`] | pure: what a run measures |
//! | [`scene`] | the cluster that is measured, and its volume, written in full |
//! | [`fio`] | fio's jobs and the disk's limits |
//! | [`library`] | a random mix through the client library |
//! | [`idle`] | CPU of processes that have nothing to do |
//! | [`load`], [`gaps`], [`faults`] | a small load; pure: what a fault did to it; kills under it |
//! | [`machine`] | CPU by process, work of others, steal |
//! | [`targets`], [`report`], [`number`] | pure: what must be reached, and the tables |

pub mod faults;
pub mod fio;
pub mod gaps;
pub mod idle;
pub mod library;
pub mod load;
pub mod machine;
pub mod number;
pub mod plan;
pub mod report;
pub mod scene;
pub mod targets;
