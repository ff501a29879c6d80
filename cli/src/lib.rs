//! Tidewater's one binary, and the harness that runs clusters of it.
//!
//! | module | noun |
//! | --- | --- |
//! | [`cluster`] | a cluster of real processes: start, await, kill, pause, restart |
//! | [`nbd_client`] | a blocking NBD client, for the demo and for tests |
//! | [`units`] | sizes and durations as people write them |
//! | `args`, `commands` | the command tree and what each verb does |
//! | `output`, [`failure`] | tables, JSON, exit codes |
//! | `config` | one TOML file a server |
//! | `file_system` | which folders are on a disk |
//! | `metrics` | Prometheus text over HTTP |
//! | `demo` | a cluster under load and faults that proves itself |
//!
//! Data goes to standard output; progress, prompts and errors to standard error.

mod args;
pub mod cluster;
mod commands;
mod config;
mod demo;
#[cfg(test)]
mod documented;
pub mod failure;
mod file_system;
mod metrics;
pub mod nbd_client;
mod output;
mod server;
pub mod units;

pub use args::main;
