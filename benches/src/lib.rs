//! End-to-end benches: a cluster of release binaries, fio's job list over NBD, and the same mix through
//! the client library. `make bench` runs them all; docs/results.md keeps what they printed.
//!
//! | module | noun |
//! | --- | --- |
//! | [`scene`] | the cluster that is measured, and its volume, written in full |
//! | [`library`] | a random mix through the client library |

pub mod library;
pub mod scene;
